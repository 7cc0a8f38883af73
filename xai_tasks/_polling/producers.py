"""What works behind a stream: takes from the poller what the stream gives out one by one."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, Generic, TypeVar, cast

from xai_tasks._errors import InvalidTaskIdError, XaiTasksError
from xai_tasks._models import Outcome, TaskResult, task_error
from xai_tasks._policies import PollPolicy
from xai_tasks._polling.entries import NEVER, Entry, Subscriber
from xai_tasks._polling.poller import Poller

T = TypeVar("T")

Bind = Callable[[], asyncio.AbstractEventLoop]
"""Gives the running loop, once it is sure that the client is open and belongs to it."""

_SLICE = 100
"""Ids pulled, or outcomes taken, without a wait before others on the loop get a turn: a millisecond or so."""


def check_task_id(task_id: object) -> None:
    """Check an id before anything is done with it.

    Raises:
        TypeError: it is no string.
        InvalidTaskIdError: it is empty.

    """
    if not isinstance(task_id, str):
        raise TypeError(f"task_id must be a string, not {type(task_id).__name__}")
    if not task_id:
        raise InvalidTaskIdError(
            "task_id is empty: pass the taskId that the job's submission returned"
        )


def check_one_of_many(task_id: object) -> None:
    """Check an id that came from a source of many, where one that is no string is just as invalid as an empty one.

    Raises:
        InvalidTaskIdError: it is no string, or empty.

    """
    try:
        check_task_id(task_id)
    except TypeError as error:
        message = str(error)
    else:
        return
    raise InvalidTaskIdError(message)


class Producer(ABC, Generic[T]):
    """What works behind a stream. It knows nothing of the stream, which can so be dropped and end the work."""

    __slots__ = ("_bind", "_waiters", "error", "items", "loop", "stopped")

    def __init__(self, bind: Bind) -> None:
        self._bind = bind
        self.items: deque[T] = deque()
        self.error: BaseException | None = None
        """What to raise once the items are taken."""
        self.stopped: bool = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    async def next(self) -> T:
        """Give the next item; raise the error, or StopAsyncIteration, where there will be none."""
        if self.loop is None and not self.stopped:
            self.loop = self._bind()
            self.start()
        while not self.items:
            if self.exhausted:
                self.stop()
                error, self.error = self.error, None
                if error is None:
                    raise StopAsyncIteration
                try:
                    raise error
                finally:
                    del error
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        return self.items.popleft()

    def wake(self) -> None:
        """Have those who wait for an item look again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def stop(self) -> None:
        """Give up whatever is under way."""
        if not self.stopped:
            self.stopped = True
            self.items.clear()
            if self.loop is not None:
                self.give_up()
            self.wake()

    async def settled(self) -> None:
        """Return once what `give_up` ended has come to its end."""

    @property
    @abstractmethod
    def exhausted(self) -> bool:
        """Whether no further item will come."""

    @abstractmethod
    def start(self) -> None:
        """Begin, with the first item asked for."""

    @abstractmethod
    def give_up(self) -> None:
        """End all that `start` began."""


class _WatchSubscriber(Subscriber):
    __slots__ = ("producer",)

    def __init__(self, producer: WatchProducer, now: float, timeout: float | None) -> None:
        super().__init__(now, timeout)
        self.producer = producer

    def on_poll(self, task: TaskResult | None) -> None:
        if task is not None:
            self.producer.saw(task)

    def on_end(self, task_id: str, task: TaskResult | None, error: Exception | None) -> None:
        self.producer.on_end(task, error)


class WatchProducer(Producer[TaskResult]):
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
            self.saw(last)

    def give_up(self) -> None:
        if self._entry is not None:
            self._poller.leave(self._entry, self._subscriber)

    def saw(self, task: TaskResult) -> None:
        status = task.raw.get("status")  # the server's word, which tells unknown statuses apart
        if status != self._status:
            self._status = status
            self.items.append(task)
            self.wake()

    def on_end(self, task: TaskResult | None, error: Exception | None) -> None:
        self._entry = None
        self._done = True
        self.error = error
        if task is not None:
            self.items.append(task)
        self.wake()


class _BulkSubscriber(Subscriber):
    """One id's subscriber in a bulk stream."""

    __slots__ = ("index", "producer")

    def __init__(self, producer: BulkProducer, index: int, deadline: float, timeout: float) -> None:
        self.deadline = deadline
        self.timeout = timeout
        self.producer = producer
        self.index = index

    def on_poll(self, task: TaskResult | None) -> None:
        if self.producer.never_polled:
            self.producer.saw(self)

    def on_end(self, task_id: str, task: TaskResult | None, error: Exception | None) -> None:
        self.producer.on_end(self, task_id, task, error)


class BulkProducer(Producer[Outcome]):
    __slots__ = (
        "_deadline",
        "_max_pending",
        "_moment",
        "_policy",
        "_poller",
        "_puller",
        "_refusals",
        "_room",
        "_source",
        "_source_ended",
        "_timeout",
        "failed",
        "never_polled",
        "pulled",
        "succeeded",
    )

    def __init__(
        self,
        poller: Poller,
        bind: Bind,
        source: Iterable[Any] | AsyncIterable[Any],
        policy: PollPolicy,
        timeout: float | None,
        max_pending: int,
        refusals: tuple[type[Exception], ...],
    ) -> None:
        super().__init__(bind)
        self._poller = poller
        self._source = source
        self._policy = policy
        self._timeout = NEVER if timeout is None else timeout
        self._moment = self._deadline = -NEVER
        self._max_pending = max_pending
        self._refusals = refusals
        self._puller: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._source_ended = False
        self.pulled = self.succeeded = self.failed = 0
        self.never_polled: set[Subscriber] = set()
        """After the source has raised: the ids that still await their first look."""

    @property
    def pending(self) -> int:
        return 0 if self.stopped else self.pulled - self.succeeded - self.failed

    @property
    def exhausted(self) -> bool:
        if self.stopped or not self._source_ended:
            return self.stopped
        return not self.never_polled if self.error is not None else not self.pending

    async def next(self) -> Outcome:
        if (self.succeeded + self.failed) % _SLICE == _SLICE - 1:
            await asyncio.sleep(0)
        outcome = await super().next()
        if outcome.ok:
            self.succeeded += 1
        else:
            self.failed += 1
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        return outcome

    def start(self) -> None:
        self._puller = asyncio.get_running_loop().create_task(self._pull())

    def give_up(self) -> None:
        cast("asyncio.Task[None]", self._puller).cancel()
        self._poller.leave_all(self._is_mine)

    def _is_mine(self, subscriber: Subscriber) -> bool:
        return isinstance(subscriber, _BulkSubscriber) and subscriber.producer is self

    async def settled(self) -> None:
        if self._puller is not None:
            await asyncio.wait([self._puller])

    async def _pull(self) -> None:
        """Pull ids as there is room, until the source ends."""
        try:
            if isinstance(self._source, AsyncIterable):
                await self._pull_async(self._source)
            else:
                for task_id in self._source:
                    self._admit(task_id)
                    if self.pulled % _SLICE == 0:
                        await asyncio.sleep(0)
                    await self._has_room()
        except asyncio.CancelledError as error:
            if self._is_over:
                raise
            self._source_raised(error)  # that a task it waited for was cancelled, for example
        except Exception as error:  # noqa: BLE001 -- whatever a source raises goes to who reads the stream
            self._source_raised(error)
        self._source_ended = True
        self.wake()

    async def _pull_async(self, source: AsyncIterable[Any]) -> None:
        ids = aiter(source)
        try:
            async for task_id in ids:
                if (
                    self._is_over
                ):  # the source swallowed its cancellation, as asyncio.wait_for may do
                    raise asyncio.CancelledError  # pragma: no cover -- 3.11 tells no tracer of the line after a throw
                self._admit(task_id)
                await self._has_room()
        finally:
            aclose = getattr(ids, "aclose", None)
            if aclose is not None:
                await aclose()

    @property
    def _is_over(self) -> bool:
        """Whether nobody wants further ids: the stream is closed, or the key was refused."""
        return self.stopped or self._source_ended

    def _source_raised(self, error: BaseException) -> None:
        self.error = self.error or error
        self.never_polled = self._poller.never_polled(self._is_mine)

    async def _has_room(self) -> None:
        while self.pending >= self._max_pending:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def _admit(self, task_id: object) -> None:
        index = self.pulled
        self.pulled += 1
        try:
            check_one_of_many(task_id)
        except InvalidTaskIdError as error:
            self._put(Outcome(repr(task_id), index, error=error))
            return
        now = asyncio.get_running_loop().time()
        if self._moment is not (moment := self._poller.shared(now)):
            self._moment, self._deadline = moment, moment + self._timeout
        subscriber = _BulkSubscriber(self, index, self._deadline, self._timeout)
        self._poller.subscribe(str(task_id), self._policy, subscriber)

    def saw(self, subscriber: Subscriber) -> None:
        self.never_polled.discard(subscriber)
        if not self.never_polled:
            self.wake()

    def on_end(
        self,
        subscriber: _BulkSubscriber,
        task_id: str,
        task: TaskResult | None,
        error: Exception | None,
    ) -> None:
        self.never_polled.discard(subscriber)
        if task is not None:
            error = task_error(task, task_id)
        if error is None or (
            isinstance(error, XaiTasksError) and not isinstance(error, self._refusals)
        ):
            self._put(Outcome(task_id, subscriber.index, task, error))
        else:
            # The key was refused: every other id would only meet the same.
            self.error = error
            self.never_polled.clear()
            self._source_ended = True
            self.give_up()
            self.wake()

    def _put(self, outcome: Outcome) -> None:
        self.items.append(outcome)
        self.wake()
