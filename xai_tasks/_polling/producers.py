"""Producers for the streams: they take from the poller what a stream passes on one by one."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from xai_tasks._errors import InvalidTaskIdError
from xai_tasks._models import TaskResult
from xai_tasks._policies import PollPolicy
from xai_tasks._polling.entries import Entry, Subscriber
from xai_tasks._polling.poller import Poller
from xai_tasks._polling.slices import in_slices

T = TypeVar("T")

PASSED_ON = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""Raised to end the loop or a coroutine. Anything else that user code raises ends its wait."""

Bind = Callable[[], asyncio.AbstractEventLoop]
"""Returns the running loop, after a check that the client is open and belongs to it."""


def check_task_id(task_id: object) -> None:
    """Check an id before anything is done with it.

    Raises:
        TypeError: it is not a string.
        InvalidTaskIdError: it is empty.

    """
    if not isinstance(task_id, str):
        raise TypeError(f"task_id must be a string, not {type(task_id).__name__}")
    if not task_id:
        raise InvalidTaskIdError(
            "task_id is empty: pass the taskId that the job's submission returned"
        )


def check_one_of_many(task_id: object) -> None:
    """Check one of many ids, where one that is not a string is as invalid as an empty one.

    Raises:
        InvalidTaskIdError: it is empty, or not a string.

    """
    try:
        check_task_id(task_id)
    except TypeError as error:
        message = str(error)
    else:
        return
    raise InvalidTaskIdError(message)


class Producer(ABC, Generic[T]):
    """Fills a stream.

    It holds no reference to its stream, so garbage-collecting the stream stops the work.
    """

    __slots__ = ("_bind", "_waiters", "error", "items", "loop", "stopped")

    def __init__(self, bind: Bind) -> None:
        self._bind = bind
        self._waiters: set[asyncio.Future[None]] = set()
        self.items: deque[T] = deque()
        self.error: BaseException | None = None
        """Raised once the items have been taken."""
        self.stopped: bool = False
        self.loop: asyncio.AbstractEventLoop | None = None

    async def next(self) -> T:
        """Return the next item; raise `error` or StopAsyncIteration if there is none any more."""
        if self.loop is None and not self.stopped:
            self.loop = self._bind()
            self.start()
        while not self.items:
            if self.exhausted:
                self.stop()
                error, self.error = self.error, None
                if error is None:
                    raise StopAsyncIteration
                if isinstance(error, StopAsyncIteration):  # it would end the loop in silence
                    raise RuntimeError("user code raised StopAsyncIteration") from error
                try:
                    raise error
                finally:
                    # Break the reference cycle between exception and frame.
                    del error
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        return self.items.popleft()

    def wake(self) -> None:
        """Wake those who wait for an item."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def stop(self) -> None:
        """Abandon whatever is under way. Twice is fine."""
        if not self.stopped:
            self.stopped = True
            items, self.items = self.items, deque()
            if items:  # freeing a million outcomes takes a tenth of a second
                in_slices(_emptied(items), lambda _: None)
            if self.loop is not None:
                self.abandon()
            self.wake()

    async def settled(self) -> None:
        """Wait until what `abandon` ended has come to its end."""

    @property
    @abstractmethod
    def exhausted(self) -> bool:
        """Whether no further item will come."""

    @abstractmethod
    def start(self) -> None:
        """Begin, when the first item is asked for."""

    @abstractmethod
    def abandon(self) -> None:
        """End all that `start` began."""


def _emptied(items: deque[T]) -> Iterator[T]:
    while items:
        yield items.popleft()


class _WatchSubscriber(Subscriber):
    __slots__ = ("_producer",)

    def __init__(self, producer: WatchProducer, now: float, timeout: float | None) -> None:
        super().__init__(now, timeout)
        self._producer = producer

    def on_poll(self, task: TaskResult | None) -> None:
        if task is not None:
            self._producer.on_poll(task)

    def on_end(self, task_id: str, task: TaskResult | None, error: BaseException | None) -> None:
        self._producer.on_end(task, error)


class WatchProducer(Producer[TaskResult]):
    """Produces the changes of one task."""

    __slots__ = (
        "_done",
        "_entry",
        "_policy",
        "_poller",
        "_status",
        "_subscriber",
        "_task_id",
        "_timeout",
    )

    def __init__(
        self,
        poller: Poller,
        bind: Bind,
        task_id: str,
        policy: PollPolicy,
        timeout: float | None,
    ) -> None:
        super().__init__(bind)
        self._poller = poller
        self._task_id = task_id
        self._policy = policy
        self._timeout = timeout
        self._status: object = None
        self._done = False
        self._entry: Entry | None = None

    @property
    def exhausted(self) -> bool:
        return self._done or self.stopped

    def start(self) -> None:
        self._subscriber = _WatchSubscriber(self, asyncio.get_running_loop().time(), self._timeout)
        self._entry = self._poller.subscribe(self._task_id, self._policy, self._subscriber)
        if self._entry is not None and (last := self._entry.last) is not None:
            self.on_poll(last)

    def abandon(self) -> None:
        if self._entry is not None:
            self._poller.leave(self._entry, self._subscriber)

    def on_poll(self, task: TaskResult) -> None:
        status = task.raw.get("status")  # the server's word, which tells unknown statuses apart
        if status != self._status:
            self._status = status
            self.items.append(task)
            self.wake()

    def on_end(self, task: TaskResult | None, error: BaseException | None) -> None:
        self._entry = None
        del self._subscriber  # it holds the entry, which holds the error
        self._done = True
        self.error = error
        if task is not None:
            self.items.append(task)
        self.wake()
