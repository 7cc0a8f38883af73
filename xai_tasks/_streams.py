"""What a client's methods iterate over: the changes of one task, the outcomes of many."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Generic, Self, TypeVar

from xai_tasks._models import Outcome, TaskResult, Update
from xai_tasks._policies import PollPolicy
from xai_tasks._polling.bulk import BulkProducer
from xai_tasks._polling.poller import Poller
from xai_tasks._polling.producers import Bind, Producer, WatchProducer
from xai_tasks._polling.requests import Submit
from xai_tasks._polling.saving import Save
from xai_tasks._polling.watch_all import WatchAllProducer
from xai_tasks._requests import Request

T = TypeVar("T")


class _Stream(Generic[T]):
    """An async iterator that ends its work when it is closed, or when the loop over it is left.

    It is not an async generator, since those can't clean up on `break`.
    """

    __slots__ = ("__weakref__", "_poller", "_producer")

    def __init__(self, producer: Producer[T], poller: Poller) -> None:
        self._producer = producer
        self._poller = poller

    def __aiter__(self) -> AsyncIterator[T]:
        return _Loop(self)

    async def __anext__(self) -> T:
        return await self._producer.next()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Abandon what is still waited for, and wait until no request is in flight for it.

        Calling it twice is fine.
        """
        self._producer.stop()
        await self._producer.settled()
        await self._poller.aborted()

    def __del__(self) -> None:
        self._abandon()

    def _abandon(self) -> None:
        """Abandon the work, from any thread: the garbage collector may run in any."""
        producer = getattr(self, "_producer", None)
        if (
            producer is not None
            and producer.loop is not None
            and not producer.stopped
            and not producer.loop.is_closed()
        ):
            producer.loop.call_soon_threadsafe(producer.stop)


class _Loop(Generic[T]):
    """One `async for` over a stream. Only the loop holds it, so it ends with the loop."""

    __slots__ = ("_stream",)

    def __init__(self, stream: _Stream[T]) -> None:
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            return await self._stream.__anext__()
        except BaseException:
            # The loop is over, even if a traceback that somebody keeps holds it for a while.
            self._stream._abandon()  # noqa: SLF001 -- one thing in two parts
            raise

    def __del__(self) -> None:
        self._stream._abandon()  # noqa: SLF001 -- one thing in two parts


class Watch(_Stream[TaskResult]):
    """The changes of one task, as `TaskClient.watch` returns them.

    An async iterator, and an async context manager with `aclose()`. It yields the first answer,
    each change of status, and last the ended task. Leaving the loop early abandons the wait.
    """

    __slots__ = ()

    def __init__(
        self,
        poller: Poller,
        bind: Bind,
        task_id: str,
        policy: PollPolicy,
        timeout: float | None,
    ) -> None:
        super().__init__(WatchProducer(poller, bind, task_id, policy, timeout), poller)


class WatchAll(_Stream[Update]):
    """The changes of many tasks: an async iterator and context manager.

    Made by `TaskClient.watch_all`. It yields the first answer of each task, each change of status,
    and last how the wait for it ended: an update with `final` set. A reader that is slower than the
    changes gets the latest of each task; a final update is never lost. Leaving the loop early stops
    the waits, and so does `aclose()`. Afterwards it is exhausted.

    Raises, while it is iterated:
        AuthenticationError: the key was refused; every id would meet that.
        Exception: what the source of ids raised, once all tasks pulled before have ended.

    """

    __slots__ = ("_watched",)

    def __init__(
        self,
        poller: Poller,
        bind: Bind,
        task_ids: Iterable[str] | AsyncIterable[str],
        policy: PollPolicy,
        timeout: float | None,
        max_pending: int,
    ) -> None:
        self._watched = WatchAllProducer(poller, bind, task_ids, policy, timeout, max_pending)
        super().__init__(self._watched, poller)

    def add(self, task_id: str) -> None:
        """Watch one more task from now on. It does not wait for room under `max_pending`.

        The stream ends with the last task. So add while one is still watched, or pass an async
        iterable that has not ended.

        Args:
            task_id: the id that the job's submission returned.

        Raises:
            RuntimeError: the stream has ended.
            InvalidTaskIdError: the id is empty.
            TypeError: the id is not a string.
            ClientClosedError: the client is closed.

        """
        self._watched.add(task_id)


class OutcomeStream(_Stream[Outcome]):
    """Outcomes as tasks end, as `TaskClient.as_completed` returns them.

    An async iterator, and an async context manager with `aclose()`. Leaving the loop over it early,
    by `break`, an exception or cancellation, abandons what is still waited for; so does `aclose()`.
    Afterwards it is exhausted.

    The iteration raises an error only if it concerns every id; all others are in the outcomes.

    Raises:
        AuthenticationError: the key was refused, which every other id would meet too.
        PermissionDeniedError: 10 different ids, or all if there are fewer, were answered 403,
            and none was answered well.
        Exception: what the source of ids raised, once each id already pulled has been polled.
        OSError: files are to be saved, and the disk is full or the directory can't be written.

    Before it raises, it yields what must not be lost: tasks that have ended, with a `DownloadError`
    if their files could not be saved, and requests that were accepted, with their tasks' ids.

    """

    __slots__ = ("_bulk",)

    def __init__(
        self,
        poller: Poller,
        bind: Bind,
        task_ids: Iterable[str | Request] | AsyncIterable[str | Request],
        policy: PollPolicy,
        timeout: float | None,
        max_pending: int,
        *,
        raise_refusals: bool = True,
        save: Save | None = None,
        submit: Submit | None = None,
    ) -> None:
        self._bulk = BulkProducer(
            poller,
            bind,
            task_ids,
            policy,
            timeout,
            max_pending,
            raise_refusals=raise_refusals,
            save=save,
            submit=submit,
        )
        super().__init__(self._bulk, poller)

    @property
    def pulled(self) -> int:
        """Ids taken from the source so far."""
        return self._bulk.pulled

    @property
    def pending(self) -> int:
        """Ids whose outcome has not been taken yet; 0 once the stream is closed."""
        return self._bulk.pending

    @property
    def succeeded(self) -> int:
        """Outcomes taken that are `ok`."""
        return self._bulk.taken.succeeded

    @property
    def failed(self) -> int:
        """Outcomes taken that are not `ok`."""
        return self._bulk.taken.failed
