"""What comes out of the poller one by one: the changes of one task, the outcomes of many."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Generic, Self, TypeVar

from xai_tasks._errors import AuthenticationError, PermissionDeniedError
from xai_tasks._models import Outcome, TaskResult
from xai_tasks._policies import PollPolicy
from xai_tasks._polling.poller import Poller
from xai_tasks._polling.producers import Bind, BulkProducer, Producer, WatchProducer

T = TypeVar("T")


class _Stream(Generic[T]):
    """An async iterator that ends its work when it is closed, or when the loop over it is left.

    No async generator, since those can't clean up on `break`.
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
        """Give up what is still waited for; return once no request is under way for it. Twice is fine."""
        self._producer.stop()
        await self._producer.settled()
        await self._poller.aborted()

    def __del__(self) -> None:
        self._abandon()

    def _abandon(self) -> None:
        """Give up from wherever the garbage collector happens to run."""
        producer = getattr(self, "_producer", None)
        if (
            producer is not None
            and producer.loop is not None
            and not producer.stopped
            and not producer.loop.is_closed()
        ):
            producer.loop.call_soon_threadsafe(producer.stop)


class _Loop(Generic[T]):
    """One `async for` over a stream. Only the loop holds it, so its end is the loop's end."""

    __slots__ = ("_stream",)

    def __init__(self, stream: _Stream[T]) -> None:
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            return await self._stream.__anext__()
        except BaseException:
            # The loop is over, also if a traceback that somebody keeps holds it for a while.
            self._stream._abandon()  # noqa: SLF001 -- one thing in two parts
            raise

    def __del__(self) -> None:
        self._stream._abandon()  # noqa: SLF001 -- one thing in two parts


class Watch(_Stream[TaskResult]):
    """The changes of one task: an async iterator, also an async context manager; made by `TaskClient.watch`.

    It gives the first look, each change of status, and last the ended task. Leaving the loop early gives the wait up.
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


class OutcomeStream(_Stream[Outcome]):
    """Outcomes as tasks end: an async iterator and an async context manager; made by `TaskClient.as_completed`.

    Leaving the loop over it early, by `break`, an exception or cancellation, gives up what is still waited for;
    so does `aclose()`. Afterwards it is exhausted.

    Raises, while it is iterated:
        AuthenticationError, PermissionDeniedError: the key was refused, which every other id would meet too.
        Exception: what the source of ids raised, once each id already pulled has had its first look.

    """

    __slots__ = ("_bulk",)

    def __init__(
        self,
        poller: Poller,
        bind: Bind,
        task_ids: Iterable[str] | AsyncIterable[str],
        policy: PollPolicy,
        timeout: float | None,
        max_pending: int,
        refusals: tuple[type[Exception], ...] = (AuthenticationError, PermissionDeniedError),
    ) -> None:
        self._bulk = BulkProducer(poller, bind, task_ids, policy, timeout, max_pending, refusals)
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
        return self._bulk.succeeded

    @property
    def failed(self) -> int:
        """Outcomes taken that are not `ok`."""
        return self._bulk.failed
