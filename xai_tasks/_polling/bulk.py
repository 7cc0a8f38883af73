"""The producer for `OutcomeStream`: any number of ids, pulled as there is room."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any

from attrs import define

from xai_tasks._errors import (
    AuthenticationError,
    ClientClosedError,
    InvalidTaskIdError,
    PermissionDeniedError,
    WaitTimeoutError,
    XaiTasksError,
    is_transient,
)
from xai_tasks._models import Outcome, TaskResult, task_error
from xai_tasks._policies import PollPolicy
from xai_tasks._polling.ends import closed_while_waiting
from xai_tasks._polling.entries import NEVER, PolicyGroup
from xai_tasks._polling.packed import BulkOwner, PendingIds
from xai_tasks._polling.poller import Poller
from xai_tasks._polling.producers import Bind, Producer, check_one_of_many
from xai_tasks._polling.requests import RequestOwner, RequestStage, Submit
from xai_tasks._polling.saving import Save, Saving
from xai_tasks._polling.slices import SLICE, in_slices
from xai_tasks._requests import ImageRequest, Request, VideoRequest

_PULL_SLICE = 100
"""Ids pulled, or outcomes taken, before others on the loop get a turn: a millisecond or so."""

_EVERYBODY = 10
"""Different ids that must have been refused, and none answered well, for the key to be at fault."""


class Source:
    """Pulls items from an iterable or an async iterable, one by one, as there is room."""

    __slots__ = ("_items", "_room", "_task", "ended", "pulled")

    def __init__(self, items: Iterable[Any] | AsyncIterable[Any]) -> None:
        self._items = items
        self._room: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self.ended: bool = False
        """Whether no further item will come."""
        self.pulled: int = 0
        """The number of items that came."""

    def start(
        self,
        admit: Callable[[object], None],
        has_room: Callable[[], bool],
        on_end: Callable[[BaseException | None], None],
    ) -> None:
        """Begin to pull.

        Args:
            admit: called with each item.
            has_room: asked before each item but the first.
            on_end: called once: with what the source or `admit` raised, or with None.

        """

        def on_task_end(task: asyncio.Task[None]) -> None:
            if not self.ended and not task.cancelled():  # the source raised what is no `Exception`
                self.ended = True
                on_end(task.exception())

        work = self._run(admit, has_room, on_end)
        self._task = asyncio.get_running_loop().create_task(work)
        self._task.add_done_callback(on_task_end)

    def on_room(self) -> None:
        """Pull on: there may be room now."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def cancel(self) -> None:
        """Pull nothing more."""
        self.ended = True
        if self._task is not None:
            self._task.cancel()

    async def settled(self) -> None:
        """Wait until the source has been closed."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(
        self,
        admit: Callable[[object], None],
        has_room: Callable[[], bool],
        on_end: Callable[[BaseException | None], None],
    ) -> None:
        async def take(item: object) -> None:
            self.pulled += 1
            admit(item)
            while not has_room():
                self._room = asyncio.get_running_loop().create_future()
                await self._room

        error: BaseException | None = None
        try:
            if isinstance(self._items, AsyncIterable):
                await self._pull_async(self._items, take)
            else:
                await self._pull(self._items, take)
        except asyncio.CancelledError as cancelled:
            if self.ended:
                raise
            error = cancelled  # the source's own: a task that it awaited was cancelled
        except Exception as raised:  # noqa: BLE001 -- raised to the reader of the stream
            error = raised
        self.ended = True
        on_end(error)
        del error  # break the reference cycle between exception and frame

    @staticmethod
    async def _pull(items: Iterable[Any], take: Callable[[object], Awaitable[None]]) -> None:
        for number, item in enumerate(items, 1):
            await take(item)
            if number % _PULL_SLICE == 0:
                await asyncio.sleep(0)

    async def _pull_async(
        self, items: AsyncIterable[Any], take: Callable[[object], Awaitable[None]]
    ) -> None:
        iterator = aiter(items)
        try:
            async for item in iterator:
                if self.ended:  # the source swallowed its cancellation, as asyncio.wait_for may do
                    # Python 3.11 traces no line after a throw.
                    raise asyncio.CancelledError  # pragma: no cover
                await take(item)
        finally:
            aclose = getattr(iterator, "aclose", None)
            if aclose is not None:
                await aclose()


class Refusals:
    """Finds out whether a key is refused for every id, and not only for some."""

    __slots__ = ("_answered", "_error", "_ids")

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._answered = False
        self._error: PermissionDeniedError | None = None

    def answered(self) -> None:
        """Record an id that was answered well."""
        self._answered = True

    def refused(self, task_id: str, error: PermissionDeniedError) -> None:
        """Record an id that was answered 403."""
        if not self._answered and len(self._ids) < _EVERYBODY:
            self._ids.add(task_id)
            self._error = copy.copy(error)  # the error itself belongs to the id's outcome

    def of_everybody(self, *, that_was_all: bool) -> PermissionDeniedError | None:
        """Return the last refusal if everybody is refused.

        That is, no id was answered well, and ten were refused, or all if there are fewer.
        """
        if self._answered or len(self._ids) < (1 if that_was_all else _EVERYBODY):
            return None
        return self._error


@define
class Taken:
    """Outcomes that were taken from a stream."""

    succeeded: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        """The number of both."""
        return self.succeeded + self.failed


class BulkProducer(Producer[Outcome], BulkOwner, RequestOwner):
    """Produces an outcome for each id or request, as tasks end."""

    __slots__ = (
        "_due",
        "_emptied",
        "_max_pending",
        "_policy",
        "_poller",
        "_refusals",
        "_requests",
        "_saving",
        "_source",
        "_unpolled",
        "group",
        "ids",
        "taken",
        "timeout",
    )

    def __init__(
        self,
        poller: Poller,
        bind: Bind,
        source: Iterable[Any] | AsyncIterable[Any],
        policy: PollPolicy,
        timeout: float | None,
        max_pending: int,
        *,
        raise_refusals: bool,
        save: Save | None = None,
        submit: Submit | None = None,
    ) -> None:
        """Take `TaskClient.as_completed`'s arguments.

        Args:
            poller: the client's.
            bind: the client's.
            source: the ids and requests.
            policy: how to poll.
            timeout: seconds for each wait; None: no limit.
            max_pending: ids whose outcomes have not been taken, at most.
            raise_refusals: whether the stream ends with an error if the key is refused for all ids.
            save: saves the files of each completed task, before its outcome is taken.
            submit: submits a request; None: there are no requests in the source.

        """
        super().__init__(bind)
        self._requests = (
            None if submit is None else RequestStage(self, submit, poller, policy, timeout)
        )
        self._saving = None if save is None else Saving(save, self._deliver, self._end_all)
        self._poller = poller
        self._source = Source(source)
        self._policy = policy
        self.timeout: float = NEVER if timeout is None else timeout
        self._max_pending = max_pending
        self._refusals = Refusals() if raise_refusals else None
        self._due: float | None = None
        """Where it stands in the poller's schedule of deadlines."""
        self._emptied: asyncio.Future[None] | None = None
        """Done once all ids have been left."""
        self._unpolled = 0
        """Ids pulled that have not been polled yet."""
        self.ids: PendingIds = PendingIds()
        self.group: PolicyGroup
        self.taken: Taken = Taken()

    @property
    def pulled(self) -> int:
        """The number of ids taken from the source."""
        return self._source.pulled

    @property
    def pending(self) -> int:
        """The number of ids whose outcome has not been taken."""
        return 0 if self.stopped else self.pulled - self.taken.total

    @property
    def exhausted(self) -> bool:
        if self.stopped or not self._source.ended:
            return self.stopped
        if self.error is None:
            return not self.pending
        return not self._unpolled and (self._saving is None or self._saving.is_empty)

    async def next(self) -> Outcome:
        if self.taken.total % _PULL_SLICE == _PULL_SLICE - 1:
            await asyncio.sleep(0)
        outcome = await super().next()
        self._end_closed()
        if outcome.ok:
            self.taken.succeeded += 1
        else:
            self.taken.failed += 1
        self._source.on_room()
        return outcome

    def start(self) -> None:
        self.group = self._poller.register(self, self._policy)
        self._source.start(self._admit, self._has_room, self._on_source_end)

    def abandon(self) -> None:
        if self._requests is not None:
            self._requests.cancel()
        if self._saving is not None:
            self._saving.cancel()
        self._leave_all()

    def _leave_all(self) -> None:
        """Pull no further id, and wait for none."""
        self._source.cancel()
        self.ids.closed.clear()
        self._unpolled = 0
        if self._due is not None:
            self._poller.clear_deadline(self, self._due)
            self._due = None
        self._emptied = in_slices(self.ids.after(0), self._leave)
        self._emptied.add_done_callback(lambda _: self._poller.release(self))

    async def settled(self) -> None:
        await self._source.settled()
        if self._requests is not None:
            await self._requests.settled()
        if self._emptied is not None:
            await asyncio.shield(self._emptied)
        if self._saving is not None:
            await self._saving.settled()

    def on_poll(self, index: int, task: TaskResult | None, *, first: bool) -> None:
        if task is not None and self._refusals is not None:
            self._refusals.answered()
        if first:
            self._on_first_poll()
        self._source.on_room()  # for the rate may have grown

    def on_end(
        self,
        index: int,
        task_id: str,
        task: TaskResult | None,
        error: BaseException | None,
        *,
        first: bool,
    ) -> None:
        if self.ids.discard(index):  # it may have been left while others of its id were ended
            self._source.on_room()
            self._end(index, task_id, task, error, first=first)

    def on_close(self, index: int, *, first: bool) -> None:
        if first:
            self._on_first_poll()
        self.ids.closed.append(index)
        self._end_closed()

    def _end_closed(self) -> None:
        """Keep an outcome ready as long as there are ids that the end of the client has ended."""
        while self.ids.closed and not self.items and not self.stopped:
            index = self.ids.closed.popleft()
            task_id = self.ids.task_id(index)
            self.on_end(index, task_id, None, closed_while_waiting(task_id), first=False)

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
        self._end(index, task_id, task, error, first=first, request=request)

    def on_room(self) -> None:
        self._source.on_room()

    def _end(
        self,
        index: int,
        task_id: str,
        task: TaskResult | None,
        error: BaseException | None,
        *,
        first: bool,
        request: Request | None = None,
    ) -> None:
        if first:
            self._on_first_poll()
        if task is not None:
            error = task_error(task, task_id)
            if self._refusals is not None:
                self._refusals.answered()
        if error is None or (isinstance(error, XaiTasksError) and not self._is_refused_key(error)):
            self._put(Outcome(task_id, index, task, error, request=request))
            if (
                self._refusals is not None
                and task_id
                and isinstance(error, PermissionDeniedError)
                and not is_transient(error)
            ):
                self._refusals.refused(task_id, error)
            self._finish()
        else:
            # Every other id would only meet the same.
            self._end_all(error)

    def expire(self, now: float) -> None:
        self._due = None
        for count, (index, task_id) in enumerate(self.ids.after(self.ids.expired)):
            deadline = self._poller.deadline(task_id, self, index)
            if deadline > now or count == SLICE:
                self._due = self._poller.set_deadline(self, deadline)
                return
            self.ids.expired = index + 1
            self._poller.expire_bulk(task_id, self, index, now)

    def _admit(self, task_id: object) -> None:
        index = self.pulled - 1
        if self._requests is not None and isinstance(task_id, (ImageRequest, VideoRequest)):
            self._unpolled += 1
            self._requests.add(index, task_id)
            return
        try:
            check_one_of_many(task_id)
        except InvalidTaskIdError as error:
            self._put(Outcome(repr(task_id), index, error=error))
            return
        self._subscribe(str(task_id), index)

    def _subscribe(self, task_id: str, index: int) -> None:
        """Begin to wait for an id."""
        now = asyncio.get_running_loop().time()
        self.ids.add(index, task_id)
        if self.timeout == 0:
            self.on_end(index, task_id, None, WaitTimeoutError(task_id, 0.0), first=False)
            return
        try:
            polled = self._poller.subscribe_bulk(task_id, self, index, now)
        except ClientClosedError as error:
            self.on_end(index, task_id, None, error, first=False)
            raise
        if not polled:
            self._unpolled += 1
        if self._due is None and self.timeout < NEVER:
            self._due = self._poller.set_deadline(self, now + self.timeout)

    def _has_room(self) -> bool:
        if self._requests is not None and not self._requests.has_room:
            return False
        # At least one, however many wait in other streams.
        return self.pending < self._max_pending and (
            not self.ids or self._poller.has_room(self.timeout)
        )

    def _on_source_end(self, error: BaseException | None) -> None:
        self.error = self.error or error
        self._finish()
        self._check_error()
        self.wake()

    def _on_first_poll(self) -> None:
        if self._unpolled:
            self._unpolled -= 1
        self._check_error()

    def _check_error(self) -> None:
        """End the stream with its error, if there is one, once each id has been polled."""
        if self.error is not None and not self._unpolled:
            if self._requests is not None:
                self._requests.drain(self.error)
            self.wake()

    def _is_refused_key(self, error: XaiTasksError) -> bool:
        return self._refusals is not None and isinstance(error, AuthenticationError)

    def _end_all(self, error: BaseException) -> None:
        """End the stream with an error, after the outcomes that there are, and their files."""
        self.error = error
        self._leave_all()
        if self._requests is not None:
            self._unpolled = self._requests.drain(error)
        self.wake()

    def _finish(self) -> None:
        """End the stream if every id is refused; leave the poller once all ids have ended."""
        all_ended = self._source.ended and not self.ids and self._has_no_requests
        if self._refusals is not None and self.error is None:
            error = self._refusals.of_everybody(that_was_all=all_ended)
            if error is not None:
                self._end_all(error)
                return
        if all_ended:
            if self._due is not None:
                self._poller.clear_deadline(self, self._due)
                self._due = None
            self._poller.release(self)

    @property
    def _has_no_requests(self) -> bool:
        return self._requests is None or self._requests.is_empty

    def _leave(self, member: tuple[int, str]) -> None:
        index, task_id = member
        self._poller.leave_bulk(task_id, self, index)
        self.ids.discard(index)

    def _put(self, outcome: Outcome) -> None:
        deliver = self._deliver if self._saving is None else self._saving.add
        deliver(outcome)

    def _deliver(self, outcome: Outcome) -> None:
        if not self.stopped:
            self.items.append(outcome)
            self.wake()
