"""`wait_adaptive`: a tenacity wait strategy that learns how long tasks take.

It tells how old a task is and what it has already cost; when to poll a task of that age, a `Plan` of `_planning` says.
"""

from __future__ import annotations

import math
import random
import time
from datetime import datetime
from typing import Protocol

from tenacity import RetryCallState
from tenacity.wait import wait_base

from xai_tasks._learning.plan import MEMORY, LifeTable, Limits, Plan

_FIRST = 10
"""Ended tasks before the first plan."""
_GROWTH = 0.25
"""The share of new ends among those remembered that makes a new plan worth its while."""
_SURPLUS = 1.5
"""Polls beyond the plan's own that a task may have had before it is polled no faster than at `interval`."""
_TOO_OLD = 10.0
"""How often the plan's length a task's age by the server's clock may be before the clock is what is doubted."""
_UNKNOWN = object()


class _Dated(Protocol):
    @property
    def created_at(self) -> datetime | None: ...
    @property
    def finished_at(self) -> datetime | None: ...


class wait_adaptive(wait_base):  # noqa: N801 -- named as tenacity names its strategies
    """
    Wait until a poll is most likely to find the task ended; learn that from the tasks that ended before.

    Spends no more polls than polling every `interval` seconds would, and finds ends sooner. Until it has seen ten
    tasks end it waits about `interval`. Each object learns on its own; share one to share what it knows. `TaskClient` tells it of
    every ended task; in a tenacity loop of your own call `observe`:

        strategy = wait_adaptive()
        polling = AsyncRetrying(wait=strategy, retry=retry_if_result(lambda task: not task.done))
        task = await polling(client.get, "task-id")
        strategy.observe(task)

    Results may be of any type with `created_at` and `finished_at`; without those a task's age counts from the first look. Not
    thread-safe: one object belongs to one thread. It pickles, with what it has learned.

    Args:
        interval: Seconds. On average no more polls are spent than one every `interval` would be. The default is the upper end
            of what the documentation of sister services advises to start with, 3 to 5 s.
        minimum: The shortest wait, in seconds, greater than 0 and at most `interval`.
        maximum: The longest wait, in seconds, at least `interval`: how late a task that fails early is noticed at worst.

    Raises:
        TypeError: One of them is not a number.
        ValueError: They are not finite, or not `0 < minimum <= interval <= maximum`.

    """

    def __init__(self, interval: float = 5.0, minimum: float = 0.5, maximum: float = 30.0) -> None:
        for name, value in (("interval", interval), ("minimum", minimum), ("maximum", maximum)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number of seconds, not {value!r}")
        if not 0 < minimum <= interval <= maximum < math.inf:
            raise ValueError(
                "interval, minimum and maximum must be 0 < minimum <= interval <= maximum and finite, "
                f"not {interval}, {minimum} and {maximum}"
            )
        self.interval: float = float(interval)
        self.minimum: float = float(minimum)
        self.maximum: float = float(maximum)
        self._table = LifeTable(self.interval)
        self._plan: Plan | None = None
        self._price: float | None = None
        self._waiting = 0
        self._news = 0
        self._next_plan = _FIRST

    def __repr__(self) -> str:
        return f"wait_adaptive(interval={self.interval}, minimum={self.minimum}, maximum={self.maximum})"

    def __call__(self, retry_state: RetryCallState) -> float:
        """
        Give the seconds to the next poll, `minimum` to `maximum`; at most `interval` after a failed attempt.

        Args:
            retry_state: tenacity's. Where it has a `server_time` (Unix seconds, from the answer's `Date` header) the task's
                age is told by the server's clock; else by the local one, if that gives an age which is likely;
                else it counts from the first attempt. `upcoming_sleep` is taken for the time since the attempt before.

        """
        if self._news >= self._next_plan:
            self._replan()
        # A loop whose sleep is faked has slept longer than its clock shows.
        elapsed = max(retry_state.seconds_since_start or 0.0, retry_state.idle_for)
        task = _found(retry_state)
        if task is None:
            return min(self.interval, self._wait(elapsed, elapsed, retry_state.attempt_number))
        age = self._age(task, getattr(retry_state, "server_time", None), elapsed)
        if retry_state.attempt_number == 1:
            self._waiting += 1
            self._table.entered(age)
        else:
            self._table.survived(max(0.0, age - retry_state.upcoming_sleep), age)
        return self._wait(age, elapsed, retry_state.attempt_number)

    def observe(self, task: _Dated, *, waited: float | None = None, gap: float = 0.0) -> None:
        """
        Learn from a task that has ended, in whatever way: how it ended makes no difference.

        One that was never waited for counts too, so that past tasks can be told of before the first poll. A task without
        dates teaches nothing if it had ended at the first look.

        Args:
            task: The ended task. Its duration is `finished_at - created_at`, where both are there and in order.
            waited: Seconds from the first look to the one that found it ended, in place of a duration; 0 if the first did. None
                if unknown.
            gap: Seconds between the last two looks: the end lies that much or less before `waited`. 0 if unknown.

        """
        polled = self._waiting > 0 if waited is None else waited > 0
        if polled and self._waiting:
            self._waiting -= 1
        duration = _duration(task)
        if duration is not None:
            # On average the look before the end was half a gap before it.
            lead = (gap or self._usual_gap(duration)) / 2
            self._table.ended(max(0.0, duration - lead) if polled else 0.0, duration, duration)
        elif waited:
            first = max(0.0, waited - gap)
            self._table.ended(first, first, waited)
        else:
            return
        self._news += 1

    def _age(self, task: object, server_time: float | None, elapsed: float) -> float:
        """Tell how many seconds ago a task was created that has been polled for `elapsed` seconds."""
        created = getattr(task, "created_at", None)
        if not isinstance(created, datetime) or created.tzinfo is None:
            return elapsed
        known = self._plan.end if self._plan is not None else 0.0
        if server_time is not None:
            # `Date` is cut to whole seconds. Within that second the time since the first look is the better measure.
            age, limit = server_time - created.timestamp(), _TOO_OLD * known or math.inf
            return age + 0.5 if elapsed < age <= limit else elapsed
        # An age which nearly no task is known to reach says more about the clocks than about the task.
        age = time.time() - created.timestamp()
        return age if elapsed < age <= known else elapsed

    def _wait(self, age: float, elapsed: float, attempt: int) -> float:
        plan = self._plan
        if plan is None:
            # Their mean is 2.5 % above the interval, or uneven gaps would mean more polls than even ones.
            wait = self.interval * random.uniform(0.85, 1.2)
        elif age >= plan.end:
            # Where nothing is known the chance of an end is taken to fall as 1 / age; then this is how the best gap grows.
            wait = self.interval * math.sqrt(age / plan.end) * random.uniform(0.9, 1.1)
        else:
            wait = min(self.maximum, plan.next_poll(age) - age)
            if (
                wait < self.interval
                and attempt - 1 - plan.polls_between(age - elapsed, age) > _SURPLUS
            ):
                wait = self.interval
            # Jitter on the scale of the polls around the next one: the first, which may be far, must not miss its aim by more.
            landing = age + wait
            scale = min(
                wait, plan.next_poll(landing) - landing if landing < plan.end else self.interval
            )
            wait += scale * (
                random.uniform(-0.5, 0.5) if attempt == 1 else random.uniform(-0.1, 0.1)
            )
        return min(self.maximum, max(self.minimum, wait))

    def _usual_gap(self, age: float) -> float:
        if self._plan is None or age >= self._plan.end:
            return self.interval
        return min(self.maximum, max(self.minimum, self._plan.next_poll(age) - age))

    def _replan(self) -> None:
        self._news = 0
        curve = self._table.curve()
        self._next_plan = max(1, int(_GROWTH * min(MEMORY, self._table.ends)))
        self._plan = None
        if curve is not None:
            self._plan = Plan(curve, Limits(self.interval, self.minimum, self.maximum), self._price)
            self._price = self._plan.price


def _found(retry_state: RetryCallState) -> object | None:
    """Give what the last attempt returned; None if it failed."""
    found: object = getattr(
        retry_state, "found", _UNKNOWN
    )  # the client's own states tell without a Future
    if found is not _UNKNOWN:
        return found
    outcome = retry_state.outcome
    return None if outcome is None or outcome.failed else outcome.result()


def _duration(task: _Dated) -> float | None:
    created, finished = task.created_at, task.finished_at
    if created is None or finished is None:
        return None
    try:
        duration = (finished - created).total_seconds()
    except TypeError:  # one with a time zone, one without
        return None
    return duration if duration >= 0 else None
