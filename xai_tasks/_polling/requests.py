"""The requests of a bulk stream: submitted, and then waited for."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Protocol

from xai_tasks._errors import ClientClosedError, XaiTasksError, printable
from xai_tasks._models import TaskResult
from xai_tasks._policies import PollPolicy
from xai_tasks._polling.entries import Subscriber
from xai_tasks._polling.poller import Poller
from xai_tasks._polling.producers import PASSED_ON
from xai_tasks._requests import Request

_AT_ONCE = 64
"""Submissions under way at most, those included that wait for their turn."""


class Submit(Protocol):
    """Submits a request; returns the id of its task."""

    def __call__(
        self, request: Request, *, on_send: Callable[[], None], on_refusal: Callable[[], None]
    ) -> Awaitable[str]:
        """Call `on_send` just before the request is sent; `on_refusal` if it was not accepted."""
        ...


class RequestOwner(ABC):
    """The producer of a stream of requests."""

    __slots__ = ()

    @abstractmethod
    def on_poll(self, index: int, task: TaskResult | None, *, first: bool) -> None:
        """Take note of a poll after which the wait goes on; `first` if there was none before."""

    @abstractmethod
    def on_request_end(
        self,
        index: int,
        request: Request,
        task_id: str,
        task: TaskResult | None,
        error: BaseException | None,
        *,
        first: bool,
    ) -> None:
        """Take the end of a request; `task_id` is "" if it was not accepted."""

    @abstractmethod
    def on_room(self) -> None:
        """Pull on: a request has left the queue of submissions."""


class _RequestSubscriber(Subscriber):
    """The task of one accepted request."""

    __slots__ = ("_polled", "_stage", "index", "request")

    def __init__(
        self, stage: RequestStage, index: int, request: Request, timeout: float | None
    ) -> None:
        super().__init__(asyncio.get_running_loop().time(), timeout)
        self.index = index
        self.request = request
        self._stage = stage
        self._polled = False

    def on_poll(self, task: TaskResult | None) -> None:
        first, self._polled = not self._polled, True
        self._stage.owner.on_poll(self.index, task, first=first)

    def on_end(self, task_id: str, task: TaskResult | None, error: BaseException | None) -> None:
        self._stage.end(self, task_id, task, error, first=not self._polled)


class RequestStage:
    """Submits requests, a limited number at a time, and waits for their tasks.

    Args:
        owner: is told how each request ends.
        submit: submits one.
        poller: the client's.
        policy: how to poll the tasks.
        timeout: seconds for each wait, from when the request is accepted; None: no limit.

    """

    __slots__ = (
        "_cancelled",
        "_drained_by",
        "_policy",
        "_poller",
        "_sent",
        "_submissions",
        "_submit",
        "_timeout",
        "_waiting",
        "owner",
    )

    def __init__(
        self,
        owner: RequestOwner,
        submit: Submit,
        poller: Poller,
        policy: PollPolicy,
        timeout: float | None,
    ) -> None:
        self.owner = owner
        self._submit = submit
        self._poller = poller
        self._policy = policy
        self._timeout = timeout
        self._submissions: set[asyncio.Task[None]] = set()
        self._waiting: set[_RequestSubscriber] = set()
        self._sent: set[asyncio.Task[None] | None] = set()
        """Submissions whose request has been sent: it may have been accepted."""
        self._cancelled = False
        self._drained_by: str | None = None
        """The message of the error that ended the stream; the error would keep its frames alive."""

    @property
    def has_room(self) -> bool:
        """Whether another request may be added now."""
        return len(self._submissions) < _AT_ONCE

    @property
    def is_empty(self) -> bool:
        """Whether all requests have ended."""
        return not self._submissions and not self._waiting

    def add(self, index: int, request: Request) -> None:
        """Submit a request, pulled as number `index`, and wait for its task."""
        work = asyncio.get_running_loop().create_task(self._run(index, request))
        self._submissions.add(work)

    def cancel(self) -> None:
        """Submit nothing more, and wait for nothing. What was sent is not taken back."""
        self._cancelled = True
        for work in self._submissions:
            work.cancel()
        self._leave_all()

    def drain(self, error: BaseException) -> int:
        """Submit nothing more, and wait for nothing, because of `error`.

        An accepted request was paid for, so its task's id must not be lost: answers to what was
        sent are awaited, and each request whose task is waited for ends with an error that has it.

        Returns:
            how many requests will end later.

        """
        if self._drained_by is None:
            self._drained_by = str(error)
            for work in self._submissions:
                if work not in self._sent:
                    work.cancel()
            for left in self._leave_all():
                self._end_early(left.index, left.request, left.entry.task_id, first=False)
        return len(self._sent)

    def _leave_all(self) -> set[_RequestSubscriber]:
        """Wait for no task any more; return what has left."""
        waiting, self._waiting = self._waiting, set()
        for subscriber in waiting:
            self._poller.leave(subscriber.entry, subscriber)
        return waiting

    def _end_early(self, index: int, request: Request, task_id: str, *, first: bool) -> None:
        error = XaiTasksError(
            f"task {printable(task_id)!r} was submitted, but the stream ended before it: "
            f"{self._drained_by}"
        )
        self.owner.on_request_end(index, request, task_id, None, error, first=first)

    async def settled(self) -> None:
        """Wait until what `cancel` ended has come to its end."""
        if self._submissions:
            await asyncio.wait(self._submissions)

    def end(
        self,
        subscriber: _RequestSubscriber,
        task_id: str,
        task: TaskResult | None,
        error: BaseException | None,
        *,
        first: bool,
    ) -> None:
        """Take the end of a wait."""
        self._waiting.discard(subscriber)
        self.owner.on_request_end(
            subscriber.index, subscriber.request, task_id, task, error, first=first
        )

    async def _run(self, index: int, request: Request) -> None:
        task_id, failure = "", None
        work = asyncio.current_task()
        try:
            task_id = await self._submit(
                request,
                on_send=lambda: self._sent.add(work),
                on_refusal=lambda: self._on_refusal(work),
            )
        except BaseException as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            was_drained = self._drained_by is not None and cancelled and work not in self._sent
            if self._cancelled or was_drained or isinstance(error, PASSED_ON):
                raise
            failure = error
        finally:
            self._submissions.discard(work)
            self._sent.discard(work)
        if self._drained_by is not None and task_id:
            self._end_early(index, request, task_id, first=True)
        elif failure is not None:
            self.owner.on_request_end(index, request, "", None, failure, first=True)
            failure = None  # break the reference cycle between exception and frame
        else:
            self._wait(index, request, task_id)
        self.owner.on_room()

    def _on_refusal(self, work: asyncio.Task[None] | None) -> None:
        self._sent.discard(work)
        if self._drained_by is not None:
            raise XaiTasksError(
                f"the request was not accepted, and the stream ended before it could be "
                f"submitted again: {self._drained_by}"
            )

    def _wait(self, index: int, request: Request, task_id: str) -> None:
        subscriber = _RequestSubscriber(self, index, request, self._timeout)
        self._waiting.add(subscriber)
        try:
            self._poller.subscribe(task_id, self._policy, subscriber)
        except ClientClosedError as error:
            subscriber.on_end(task_id, None, error)
