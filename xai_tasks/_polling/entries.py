"""An id in rotation, and who waits for it."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import tenacity

from xai_tasks._errors import APIError
from xai_tasks._http.transport import Response
from xai_tasks._learning.adaptive import wait_adaptive
from xai_tasks._models import TaskResult, decode_task
from xai_tasks._policies import PollPolicy, WaitStrategy

NEVER = math.inf


class Subscriber(ABC):
    """Somebody who waits for an id: one call of `wait`, one `watch`, or one place in a bulk stream."""

    __slots__ = ("deadline", "timeout")

    deadline: float
    """The loop's time at which the wait is given up."""
    timeout: float
    """What was asked for, in seconds, as errors tell it."""

    def __init__(self, now: float, timeout: float | None) -> None:
        """Begin to wait at `now`, for `timeout` seconds or without limit."""
        self.timeout = NEVER if timeout is None else timeout
        self.deadline = now + self.timeout

    def on_poll(self, task: TaskResult | None) -> None:  # noqa: B027 -- most have nothing to do
        """Hear of each poll after which the wait goes on; None if it failed."""

    @abstractmethod
    def on_end(self, task_id: str, task: TaskResult | None, error: Exception | None) -> None:
        """Hear, once, how it ended: the ended task, or the error that ended the wait."""


class Due(float):
    """The moment at which something is due for an entry: an item of the heap, for less than a tuple and its float."""

    __slots__ = ("entry",)

    entry: Entry


class Failures(NamedTuple):
    """What went wrong with an entry."""

    last: APIError
    since: float | None
    """When the first request failed of those that have failed on end; None after a good answer."""


class Entry:
    """One id in rotation."""

    __slots__ = (
        "body",
        "due",
        "failures",
        "group",
        "poll_at",
        "polled_at",
        "polls",
        "started",
        "subscribers",
        "task_id",
    )

    def __init__(self, task_id: str, group: PolicyGroup, now: float) -> None:
        self.task_id: str = task_id
        self.group: PolicyGroup = group
        self.subscribers: dict[Subscriber, None] | Subscriber | None = None
        """One alone, as in bulk, goes without a dict."""
        self.polls: int = 0
        self.started: float = now
        self.polled_at: float = now
        self.due: float = NEVER
        """This entry's item in the heap; others with this entry are leftovers."""
        self.poll_at: float | None = None
        """When the next poll is, if something else is due before."""
        self.body: bytes | None = None
        """The last good answer, undecoded, since most are never looked at again."""
        self.failures: Failures | None = None

    def all(self) -> list[Subscriber]:
        """Give the subscribers as a list of their own."""
        if isinstance(self.subscribers, dict):
            return list(self.subscribers)
        return [] if self.subscribers is None else [self.subscribers]

    def add(self, subscriber: Subscriber) -> None:
        """Add a subscriber."""
        if self.subscribers is None:
            self.subscribers = subscriber
        elif isinstance(self.subscribers, dict):
            self.subscribers[subscriber] = None
        else:
            self.subscribers = {self.subscribers: None, subscriber: None}

    def remove(self, subscriber: Subscriber) -> None:
        """Remove a subscriber, if it is one."""
        if isinstance(self.subscribers, dict):
            self.subscribers.pop(subscriber, None)
            if not self.subscribers:
                self.subscribers = None
        elif self.subscribers is subscriber:
            self.subscribers = None

    @property
    def deadline(self) -> float:
        """When the first of the subscribers gives up."""
        if isinstance(self.subscribers, dict):
            return min(subscriber.deadline for subscriber in self.subscribers)
        return NEVER if self.subscribers is None else self.subscribers.deadline

    @property
    def error(self) -> APIError | None:
        """The last error met, for the message if time runs out."""
        return None if self.failures is None else self.failures.last

    @property
    def failing_since(self) -> float | None:
        """When the first request failed of those that have failed on end."""
        return None if self.failures is None else self.failures.since

    def failed(self, error: APIError) -> None:
        """Note a failed request."""
        since = self.failing_since
        self.failures = Failures(
            error, asyncio.get_running_loop().time() if since is None else since
        )

    def answered(self) -> None:
        """Note a good answer."""
        if self.failures is not None:
            self.failures = Failures(self.failures.last, None)

    @property
    def last(self) -> TaskResult | None:
        """The last good answer."""
        return None if self.body is None else decode_task(self.body)


class PollState(tenacity.RetryCallState):
    """tenacity's state of an entry. Kept, it would cost each id 1.5 KB, so each decision makes its own."""

    found: TaskResult | None
    """What the last poll found; None if it failed."""
    server_time: float | None
    """Unix seconds, by the server's clock, of the last answer; `wait_adaptive` tells a task's age by it."""
    _outcome: tenacity.Future | None

    def __init__(self, entry: Entry, now: float, answer: Response | Exception, gap: float) -> None:
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
        """The last poll as tenacity tells of it; made when a strategy asks for it, since the default one doesn't."""
        if self._outcome is None:
            failed = isinstance(self._answer, Exception)
            value = self._answer if failed else self.found
            self._outcome = tenacity.Future.construct(self.attempt_number, value, failed)
        return self._outcome

    @outcome.setter
    def outcome(self, outcome: tenacity.Future | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._outcome = outcome


class PolicyGroup:
    """The entries under one policy."""

    __slots__ = ("entries", "learners", "policy", "tenacity")

    def __init__(self, policy: PollPolicy) -> None:
        self.policy: PollPolicy = policy
        self.entries: dict[str, Entry] = {}
        self.learners: list[wait_adaptive] = _learners(policy.wait)
        self.tenacity: tenacity.Retrying = tenacity.Retrying(wait=policy.wait)


def _learners(wait: WaitStrategy) -> list[wait_adaptive]:
    """Find the strategies that learn, also inside tenacity's sums and chains."""
    if isinstance(wait, wait_adaptive):
        return [wait]
    parts = (*getattr(wait, "wait_funcs", ()), *getattr(wait, "strategies", ()))
    return [learner for part in parts for learner in _learners(part)]
