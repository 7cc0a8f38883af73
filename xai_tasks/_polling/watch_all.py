"""The producer for `WatchAll`: the changes of many tasks, and of each the latest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable
from typing import Any

from xai_tasks._errors import (
    AuthenticationError,
    ClientClosedError,
    InvalidTaskIdError,
    WaitTimeoutError,
    XaiTasksError,
)
from xai_tasks._models import TaskResult, Update
from xai_tasks._policies import PollPolicy
from xai_tasks._polling.bulk import Source
from xai_tasks._polling.entries import Entry, Subscriber
from xai_tasks._polling.poller import Poller
from xai_tasks._polling.producers import Bind, Producer, check_one_of_many, check_task_id
from xai_tasks._polling.slices import in_slices

_TAKE_SLICE = 100
"""Updates taken before others on the loop get a turn."""


class _WatchedTask(Subscriber):
    """One id of many."""

    __slots__ = ("_producer", "index", "status", "task_id")

    def __init__(
        self, producer: WatchAllProducer, task_id: str, index: int, timeout: float | None
    ) -> None:
        super().__init__(asyncio.get_running_loop().time(), timeout)
        self._producer = producer
        self.task_id = task_id
        self.index = index
        self.status: object = None
        """The server's word in the last update; it tells unknown statuses apart."""

    @property
    def last(self) -> TaskResult | None:
        """The last good answer, if there was one."""
        entry: Entry | None = getattr(self, "entry", None)  # set only once it is waited for
        return None if entry is None else entry.last

    def on_poll(self, task: TaskResult | None) -> None:
        if task is not None:
            self._producer.on_poll(self, task)

    def on_end(self, task_id: str, task: TaskResult | None, error: BaseException | None) -> None:
        self._producer.on_end(self, task, error)


class WatchAllProducer(Producer[Update]):
    """Produces the changes of many tasks.

    Of each id only the latest update is kept until it is taken. So memory is bounded by the ids,
    however slow the reader is, and the last update of an id is never lost.
    """

    __slots__ = (
        "_emptied",
        "_latest",
        "_max_pending",
        "_policy",
        "_poller",
        "_pulled",
        "_source",
        "_taken",
        "_timeout",
        "_waiting",
    )

    def __init__(
        self,
        poller: Poller,
        bind: Bind,
        task_ids: Iterable[Any] | AsyncIterable[Any],
        policy: PollPolicy,
        timeout: float | None,
        max_pending: int,
    ) -> None:
        super().__init__(bind)
        self._poller = poller
        self._source = Source(task_ids)
        self._policy = policy
        self._timeout = timeout
        self._max_pending = max_pending
        self._pulled = 0
        """Ids pulled or added."""
        self._taken = 0
        """Ids whose last update has been taken."""
        self._waiting: dict[int, _WatchedTask] = {}
        """What has not ended, by index."""
        self._latest: dict[int, Update] = {}
        """The updates not taken, by index; in `items` stands the first one of each index."""
        self._emptied: asyncio.Future[None] | None = None
        """Done once all ids have been left."""

    @property
    def exhausted(self) -> bool:
        return self.stopped or (self._source.ended and not self._waiting)

    async def next(self) -> Update:
        if self._taken % _TAKE_SLICE == _TAKE_SLICE - 1:
            await asyncio.sleep(0)
        first = await super().next()
        update = self._latest.pop(first.index)
        if update.final:
            self._taken += 1
            self._source.on_room()
        return update

    def add(self, task_id: str) -> None:
        """Watch one more id."""
        check_task_id(task_id)
        if self.stopped or self.error is not None:
            raise RuntimeError("this stream has ended: watch the task with a new one")
        if self.loop is None:
            self.loop = self._bind()
            self.start()
        self._watch(task_id, self._next_index())

    def start(self) -> None:
        self._source.start(self._admit, self._has_room, self._on_source_end)

    def abandon(self) -> None:
        self._source.cancel()
        watched, self._waiting = iter(self._waiting.values()), {}
        self._emptied = in_slices(watched, self._leave)

    async def settled(self) -> None:
        await self._source.settled()
        if self._emptied is not None:
            await asyncio.shield(self._emptied)

    def on_poll(self, watched: _WatchedTask, task: TaskResult) -> None:
        status = task.raw.get("status")
        if status != watched.status and watched.index in self._waiting:
            watched.status = status
            self._put(Update(watched.task_id, watched.index, task))

    def on_end(
        self, watched: _WatchedTask, task: TaskResult | None, error: BaseException | None
    ) -> None:
        if self._waiting.pop(watched.index, None) is None:
            return
        if error is None or (
            isinstance(error, XaiTasksError) and not isinstance(error, AuthenticationError)
        ):
            if isinstance(error, WaitTimeoutError):
                task = error.last
            elif error is not None:
                task = watched.last
            self._put(Update(watched.task_id, watched.index, task, error, final=True))
        else:
            # Every other id would only meet the same.
            self._end_all(error)

    def _next_index(self) -> int:
        self._pulled += 1
        return self._pulled - 1

    def _admit(self, task_id: object) -> None:
        index = self._next_index()
        try:
            check_one_of_many(task_id)
        except InvalidTaskIdError as error:
            self._put(Update(repr(task_id), index, error=error, final=True))
        else:
            self._watch(str(task_id), index)

    def _watch(self, task_id: str, index: int) -> None:
        watched = self._waiting[index] = _WatchedTask(self, task_id, index, self._timeout)
        try:
            entry = self._poller.subscribe(task_id, self._policy, watched)
        except ClientClosedError as error:
            self.on_end(watched, None, error)
            return
        if entry is not None and (last := entry.last) is not None:
            self.on_poll(watched, last)

    def _leave(self, watched: _WatchedTask) -> None:
        self._poller.leave(watched.entry, watched)

    def _has_room(self) -> bool:
        return self._pulled - self._taken < self._max_pending

    def _on_source_end(self, error: BaseException | None) -> None:
        self.error = self.error or error
        self.wake()

    def _end_all(self, error: BaseException) -> None:
        """End the stream with an error, after the updates that there are."""
        self.error = error
        self.abandon()
        self.wake()

    def _put(self, update: Update) -> None:
        if update.index not in self._latest:
            self.items.append(update)
            self.wake()
        self._latest[update.index] = update
