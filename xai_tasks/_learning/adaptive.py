"""`wait_adaptive`: a tenacity wait strategy that learns how long tasks take.

It knows a task's age and what the task has cost so far. When to poll a task of that age is up to
the `Plan`.
"""

from __future__ import annotations

import math
import random
import sys
import time
from datetime import datetime, timedelta
from typing import Protocol

from tenacity import RetryCallState
from tenacity.wait import wait_base

from xai_tasks._learning.life_table import MEMORY, LifeTable
from xai_tasks._learning.plan import Limits, Plan

_FIRST_PLAN = 10
"""Ended tasks needed for the first plan."""
_GROWTH = 0.25
"""New observations needed for the next plan, relative to the ends remembered."""
_SURPLUS = 1.5
"""Polls above the plan's number after which a task is polled no faster than at `interval`."""
_TOO_OLD = 10.0
"""An age beyond this many times the plan's length is taken for an error of dates or clocks."""
_SECOND = 1.0
"""The resolution of the `Date` header."""
_UNKNOWN = object()


class _Dated(Protocol):
    @property
    def created_at(self) -> datetime | None: ...
    @property
    def finished_at(self) -> datetime | None: ...


class wait_adaptive(wait_base):  # noqa: N801 -- named as tenacity names its strategies
    """
    Wait until a poll is most likely to find the task ended, learned from tasks that ended before.

    Spends no more polls than polling every `interval` seconds would, and finds ends sooner.
    Until it has seen ten tasks end it waits about `interval`. Each object learns on its own;
    share one to share what it knows. `TaskClient` reports every ended task to it; in a tenacity
    loop of your own call `observe`:

        strategy = wait_adaptive()
        polling = AsyncRetrying(wait=strategy, retry=retry_if_result(lambda task: not task.done))
        task = await polling(client.get, "task-id")
        strategy.observe(task)

    Results may be of any type with `created_at` and `finished_at`. Without a creation date a
    task's age counts from its first poll. Not thread-safe: use an object in one thread only. It
    pickles, with what it has learned.

    Args:
        interval: Seconds. On average no more polls are spent than one every `interval` would be.
            The documentation of sister services advises 3 to 5 s; the default is the upper end.
        minimum: The shortest wait, in seconds, greater than 0 and at most `interval`.
        maximum: The longest wait, in seconds, at least `interval`. At worst a task that fails
            early is noticed so late.

    Raises:
        TypeError: One of them is not a number.
        ValueError: They are not finite, or not `0 < minimum <= interval <= maximum`.

    """

    def __init__(self, interval: float = 5.0, minimum: float = 0.5, maximum: float = 30.0) -> None:
        for name, value in (("interval", interval), ("minimum", minimum), ("maximum", maximum)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number of seconds, not {value!r}")
        if not 0 < minimum <= interval <= maximum <= sys.float_info.max:
            raise ValueError(
                "interval, minimum and maximum must be 0 < minimum <= interval <= maximum and "
                f"finite, not {interval}, {minimum} and {maximum}"
            )
        self.interval: float = float(interval)
        self.minimum: float = float(minimum)
        self.maximum: float = float(maximum)
        self._table = LifeTable(self.interval)
        self._plan: Plan | None = None
        self._cost_per_poll: float | None = None
        self._waiting = 0
        self._new_observations = 0
        self._next_plan = _FIRST_PLAN
        self._server_ahead: float | None = None

    def __repr__(self) -> str:
        return (
            f"wait_adaptive(interval={self.interval}, minimum={self.minimum}, "
            f"maximum={self.maximum})"
        )

    def __call__(self, retry_state: RetryCallState) -> float:
        """
        Return the seconds to the next poll.

        Args:
            retry_state: tenacity's. A `server_time` attribute (Unix seconds, from the answer's
                `Date` header), if there is one, gives the task's age by the server's clock;
                otherwise the local clock does, if the age is plausible; otherwise the age counts
                from the first attempt. `upcoming_sleep` is taken for the time since the attempt
                before.

        Returns:
            `minimum` to `maximum`; at most `interval` after a failed attempt.

        """
        return self._next_wait(
            _result_of(retry_state),
            retry_state.attempt_number,
            # A loop whose sleep is faked has slept longer than its clock shows.
            elapsed=max(retry_state.seconds_since_start or 0.0, retry_state.idle_for),
            gap=retry_state.upcoming_sleep,
            server_time=getattr(retry_state, "server_time", None),
        )

    def _next_wait(
        self,
        task: object | None,
        attempt: int,
        *,
        elapsed: float,
        gap: float,
        server_time: float | None,
    ) -> float:
        """
        Return the seconds to the next poll, without tenacity's state.

        Args:
            task: What the last poll found; None if it failed.
            attempt: The number of the last poll, from 1.
            elapsed: Seconds from the beginning to the last poll.
            gap: Seconds between the last two.
            server_time: Unix seconds, by the server's clock; None if unknown.

        """
        self._replan_if_due()
        if task is None:
            return min(self.interval, self._wait(elapsed, elapsed, attempt))
        age = self._age(task, server_time, elapsed)
        if attempt == 1:
            self._waiting += 1
            self._table.record_entry(age)
        else:
            self._table.record_survival(max(0.0, age - gap), age)
        return self._wait(age, elapsed, attempt)

    def observe(self, task: _Dated, *, waited: float | None = None, gap: float = 0.0) -> None:
        """
        Learn from a task that has ended. How it ended makes no difference.

        A task that was never waited for counts too, so that past tasks can teach before the first
        poll. A task without dates that had ended at its first poll teaches nothing.

        Args:
            task: The ended task. Its duration is `finished_at - created_at`, where both are
                there and in order.
            waited: Seconds from the first poll to the one that found the end, used where there
                is no duration; 0 if the first poll did. None if unknown.
            gap: Seconds between the last two polls: the task ended at most so long before
                `waited`. 0 if unknown.

        """
        polled = self._waiting > 0 if waited is None else waited > 0
        if polled and self._waiting:
            self._waiting -= 1
        duration = _duration(task)
        if duration is not None:
            # On average the last poll before the end was half a gap before it.
            lead = (gap or self._usual_gap(duration)) / 2
            seen = max(0.0, duration - lead) if polled else 0.0
            self._table.record_end(seen, duration, duration)
        elif waited:
            first = max(0.0, waited - gap)
            self._table.record_end(first, first, waited)
        else:
            return
        self._new_observations += 1

    def remaining(self, task: _Dated) -> timedelta | None:
        """
        Return the median time left of a task that is as old as this one.

        Half of the tasks that have not ended at this age take longer, half of them less. While
        nothing new is learned, the time at which the task is expected to end only moves later.

        Args:
            task: Its age is the time since `created_at`, by the server's clock as of the last
                poll, or else by the local clock.

        Returns:
            The time left, zero for a task that has ended. None until ten tasks have been observed
            (and half of all tasks seen are accounted for), or if the task's age is not known: it
            has no creation date with a time zone, or one that can't be right.

        """
        if getattr(task, "done", task.finished_at is not None):
            return timedelta(0)
        self._replan_if_due()
        created = task.created_at
        if self._plan is None or created is None or created.tzinfo is None:
            return None
        age = time.time() + (self._server_ahead or 0.0) - created.timestamp()
        if not -_SECOND <= age <= _TOO_OLD * self._plan.end:
            return None
        return timedelta(seconds=self._plan.distribution.median_remaining(max(0.0, age)))

    def _age(self, task: object, server_time: float | None, elapsed: float) -> float:
        """Return the age, in seconds, of a task that has been polled for `elapsed` seconds."""
        created = getattr(task, "created_at", None)
        if not isinstance(created, datetime) or created.tzinfo is None:
            return elapsed
        known = self._plan.end if self._plan is not None else 0.0
        if server_time is not None:
            self._compare_clocks(server_time)
            # `Date` is cut to whole seconds. Within a second of the creation the time since the
            # first poll is more exact.
            age, limit = server_time - created.timestamp(), _TOO_OLD * known or math.inf
            return age + _SECOND / 2 if elapsed < age <= limit else elapsed
        # The local clock may be wrong. It is not believed if it makes the task older than nearly
        # all tasks get.
        age = time.time() - created.timestamp()
        return age if elapsed < age <= known else elapsed

    def _compare_clocks(self, server_time: float) -> None:
        """Record how far the server's clock is ahead; differences that rounding explains stay."""
        ahead = server_time + _SECOND / 2 - time.time()
        if self._server_ahead is None or abs(ahead - self._server_ahead) > _SECOND:
            self._server_ahead = ahead

    def _wait(self, age: float, elapsed: float, attempt: int) -> float:
        plan = self._plan
        if plan is None:
            # 2.5 % above the interval on average: uneven gaps take more polls than even ones.
            wait = self.interval * random.uniform(0.85, 1.2)
        elif age >= plan.end:
            # Nothing is known here. If the chance of an end falls as 1 / age, as it does in heavy
            # tails, the best gap grows with the square root of the age.
            wait = self.interval * math.sqrt(age / plan.end) * random.uniform(0.9, 1.1)
        else:
            wait = min(self.maximum, plan.next_poll(age) - age)
            if wait < self.interval:
                surplus = attempt - 1 - plan.polls_between(age - elapsed, age)
                if surplus > _SURPLUS:
                    wait = self.interval
            # The gap to the next poll may be long where the one after it is short. So the first
            # wait is jittered by half of the shorter one: tasks that start together drift apart,
            # and no poll misses the ages at which tasks end.
            target = age + wait
            next_gap = plan.next_poll(target) - target if target < plan.end else self.interval
            jitter = random.uniform(-0.5, 0.5) if attempt == 1 else random.uniform(-0.1, 0.1)
            wait += min(wait, next_gap) * jitter
        return min(self.maximum, max(self.minimum, wait))

    def _usual_gap(self, age: float) -> float:
        if self._plan is None or age >= self._plan.end:
            return self.interval
        return min(self.maximum, max(self.minimum, self._plan.next_poll(age) - age))

    def _replan_if_due(self) -> None:
        if self._new_observations < self._next_plan:
            return
        self._new_observations = 0
        distribution = self._table.distribution()
        self._next_plan = max(1, int(_GROWTH * min(MEMORY, self._table.ends)))
        self._plan = None
        if distribution is not None:
            limits = Limits(self.interval, self.minimum, self.maximum)
            self._plan = Plan(distribution, limits, self._cost_per_poll)
            self._cost_per_poll = self._plan.cost_per_poll


def _result_of(retry_state: RetryCallState) -> object | None:
    """Return what the last attempt returned; None if it failed."""
    found: object = getattr(retry_state, "found", _UNKNOWN)
    if found is not _UNKNOWN:  # the client's own states hold it without a Future
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
