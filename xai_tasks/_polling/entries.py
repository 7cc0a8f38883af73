"""An id in rotation, and who waits for it."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import TYPE_CHECKING

import tenacity
from attrs import define

from xai_tasks._errors import (
    APIError,
    NotFoundError,
    RateLimitError,
    WaitTimeoutError,
    is_transient,
)
from xai_tasks._http.transport import Response
from xai_tasks._learning.adaptive import wait_adaptive
from xai_tasks._models import TaskResult, decode_task
from xai_tasks._policies import PollPolicy, WaitStrategy

if TYPE_CHECKING:
    from xai_tasks._polling.packed import BulkOwner

NEVER = math.inf

_ID = b"\0"
"""Stands in a kept answer for the id. No JSON has this byte."""


class Subscriber(ABC):
    """A wait for an id: a call of `wait`, a `watch`, or one id of a bulk stream."""

    __slots__ = ("deadline", "due", "entry", "timeout")

    deadline: float
    """The loop's time at which the wait times out."""
    due: float | None
    """Where it stands in the poller's schedule of deadlines; None if it does not."""
    entry: Entry
    """What it waits for; set by the poller."""
    timeout: float
    """The seconds that were asked for, for error messages."""

    def __init__(self, now: float, timeout: float | None) -> None:
        """Begin to wait at `now`, for `timeout` seconds or without limit."""
        self.timeout = NEVER if timeout is None else timeout
        self.deadline = now + self.timeout
        self.due = None

    @property
    def key(self) -> Hashable:
        """What it is found by among the subscribers of its entry."""
        return self

    def on_poll(self, task: TaskResult | None) -> None:  # noqa: B027 -- most have nothing to do
        """Take note of a poll after which the wait goes on; `task` is None if it failed."""

    @abstractmethod
    def on_end(self, task_id: str, task: TaskResult | None, error: BaseException | None) -> None:
        """Take the end of the wait: the ended task, or the error that ended the wait."""


@define
class Failures:
    """What went wrong with an entry."""

    last: APIError
    since: float | None = None
    """When the first request failed of those that failed with no good answer in between.
    429s and 404s don't count: a 429 means "later", and for a 404 there is `not_found_since`."""
    not_found_since: float | None = None
    """When the first 404 came of those with no good answer in between."""


class Entry:
    """One id in rotation: scheduled, or in flight."""

    __slots__ = (
        "due",
        "failures",
        "group",
        "kept",
        "owed",
        "polled_at",
        "polls",
        "sent_at",
        "started",
        "subscribers",
        "task_id",
    )

    def __init__(self, task_id: str, group: PolicyGroup, now: float) -> None:
        self.task_id: str = task_id
        self.group: PolicyGroup = group
        self.subscribers: dict[Hashable, Subscriber] | Subscriber | None = None
        """A single one is held without a dict; None once nobody waits any more."""
        self.polls: int = 0
        self.sent_at: float | None = None
        """When the last request was sent, or answered; None if none was sent."""
        self.owed: int = 0
        """Polls to wait for before waits that are overdue time out."""
        self.started: float = now
        self.polled_at: float = now
        self.due: float | None = None
        """Where it stands in the schedule; None while it is in flight."""
        self.kept: bytes | None = None
        """What `keep` keeps of the last good answer."""
        self.failures: Failures | None = None

    def all(self) -> list[Subscriber]:
        """Return the subscribers as a new list."""
        if isinstance(self.subscribers, dict):
            return list(self.subscribers.values())
        return [] if self.subscribers is None else [self.subscribers]

    def find(self, key: Hashable) -> Subscriber | None:
        """Return the subscriber with this key, if there is one."""
        if isinstance(self.subscribers, dict):
            return self.subscribers.get(key)
        only = self.subscribers
        return only if only is not None and only.key == key else None

    def add(self, subscriber: Subscriber) -> None:
        """Add a subscriber."""
        if self.subscribers is None:
            self.subscribers = subscriber
        elif isinstance(self.subscribers, dict):
            self.subscribers[subscriber.key] = subscriber
        else:
            self.subscribers = {each.key: each for each in (self.subscribers, subscriber)}

    def remove(self, subscriber: Subscriber) -> None:
        """Remove a subscriber, if it is one."""
        if isinstance(self.subscribers, dict):
            self.subscribers.pop(subscriber.key, None)
            if not self.subscribers:
                self.subscribers = None
        elif self.subscribers is subscriber:
            self.subscribers = None

    def on_send(self, now: float) -> None:
        """Record that a request is being sent."""
        self.sent_at = now

    def on_error(self, error: APIError) -> None:
        """Record a failed request, also one that is retried."""
        failures = self.failures
        if failures is None:
            failures = self.failures = Failures(error)
        failures.last = error
        if isinstance(error, RateLimitError):
            return
        now = asyncio.get_running_loop().time()
        if isinstance(error, NotFoundError) and not is_transient(error):
            if failures.not_found_since is None:
                failures.not_found_since = now
        elif failures.since is None:
            failures.since = now

    def on_answer(self) -> None:
        """Record a good answer."""
        if self.failures is not None:
            self.failures.since = self.failures.not_found_since = None

    def keep(self, body: bytes) -> None:
        """Keep a good answer as `last`: not decoded, as most are never read, and without its id."""
        self.kept = body.replace(self.task_id.encode(), _ID)

    @property
    def error(self) -> APIError | None:
        """The last error met."""
        return None if self.failures is None else self.failures.last

    @property
    def last(self) -> TaskResult | None:
        """The last good answer."""
        if self.kept is None:
            return None
        return decode_task(self.kept.replace(_ID, self.task_id.encode()))

    def timeout_error(self, timeout: float) -> WaitTimeoutError:
        """Return the error of a wait for this id that has timed out."""
        return WaitTimeoutError(self.task_id, timeout, self.last, self.error)


class PollState(tenacity.RetryCallState):
    """tenacity's state of an entry, made for one decision: kept, it would cost each id 1.5 KB."""

    found: TaskResult | None
    """What the last poll found; None if it failed."""
    server_time: float | None
    """Unix seconds, by the server's clock, of the last answer; `wait_adaptive` takes a task's age
    from it."""
    _outcome: tenacity.Future | None

    def __init__(
        self, entry: Entry, now: float, answer: Response | BaseException, gap: float
    ) -> None:
        super().__init__(entry.group.tenacity, fn=None, args=(entry.task_id,), kwargs={})
        self._answer = answer
        if isinstance(answer, Response):
            self.found, self.server_time = answer.task, answer.server_time
        else:
            self.found = self.server_time = None
        self.attempt_number = entry.polls
        self.start_time = entry.started
        self.outcome_timestamp = now
        self.idle_for = now - entry.started
        self.upcoming_sleep = gap  # until the wait strategy is asked: the last one

    @property
    def outcome(self) -> tenacity.Future | None:
        """The last poll as tenacity holds it; built when a strategy asks for it."""
        if self._outcome is None:
            failed = not isinstance(self._answer, Response)
            value = self._answer if failed else self.found
            self._outcome = tenacity.Future.construct(self.attempt_number, value, failed)
        return self._outcome

    @outcome.setter
    def outcome(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, outcome: tenacity.Future | None
    ) -> None:
        self._outcome = outcome


class PolicyGroup:
    """The entries under one policy."""

    __slots__ = ("_adaptive", "entries", "learners", "owners", "policy", "tenacity")

    def __init__(self, policy: PollPolicy) -> None:
        self.policy: PollPolicy = policy
        self.entries: dict[str, Entry] = {}
        """Those that are not packed, by id."""
        self.owners: set[BulkOwner] = set()
        """Bulk streams under this policy."""
        # A subclass may decide otherwise, so it is called as tenacity would.
        self._adaptive: wait_adaptive | None = None
        if isinstance(policy.wait, wait_adaptive) and type(policy.wait) is wait_adaptive:
            self._adaptive = policy.wait
        self.learners: list[wait_adaptive] = _learners(policy.wait)
        self.tenacity: tenacity.Retrying = tenacity.Retrying(wait=policy.wait)

    def next_wait(
        self, entry: Entry, answer: Response | BaseException, now: float, gap: float
    ) -> float:
        """Return the seconds to the next poll, as the policy's strategy says; at least 0.

        Raises:
            ValueError: the strategy returned no finite number.
            BaseException: whatever the strategy raises.

        """
        if self._adaptive is not None:  # the default: not worth tenacity's state
            task = server_time = None
            if isinstance(answer, Response):
                task, server_time = answer.task, answer.server_time
            elapsed = now - entry.started
            return self._adaptive._next_wait(  # noqa: SLF001 -- ours
                task, entry.polls, elapsed=elapsed, gap=gap, server_time=server_time
            )
        seconds = float(self.policy.wait(PollState(entry, now, answer, gap)))
        if not math.isfinite(seconds):
            raise ValueError(f"the wait strategy of the poll policy gave {seconds} seconds")
        return max(0.0, seconds)

    def observe(self, entry: Entry, task: TaskResult, now: float, gap: float) -> None:
        """Teach the strategies that learn from a task that has ended."""
        waited = now - entry.started if entry.polls > 1 else 0.0
        for learner in self.learners:
            learner.observe(task, waited=waited, gap=gap)


def _learners(wait: WaitStrategy) -> list[wait_adaptive]:
    """Return the strategies that learn, also those inside tenacity's sums and chains."""
    if isinstance(wait, wait_adaptive):
        return [wait]
    parts = (*getattr(wait, "wait_funcs", ()), *getattr(wait, "strategies", ()))
    return [learner for part in parts for learner in _learners(part)]
