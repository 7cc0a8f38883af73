"""The stream of `TaskClient.as_completed` over a Dask cluster; needs the extra `dask`.

A worker waits with a client of its own, which a plugin makes and closes. Ids get there and outcomes back by turns: Dask tasks, one at a time
for each worker and a quarter of a second long, whatever is still waited for. So an outcome is late by no more than that, a task that takes long
holds its own place and no more, and the scheduler holds one chunk and one answer per worker.

A client keeps its limits, so where these change, all begin anew: a round ends, what has no outcome is handed out again by the next one, and
nothing of the old one is read any more, so no outcome comes twice. A plugin that no turn reaches any more gives up by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from typing import Any, Self, cast

from attrs import define, evolve, field, frozen
from distributed import CancelledError, Client, KilledWorker, WorkerPlugin, get_worker

from xai_tasks import Outcome, TaskClient

__all__ = ["ClusterStream", "as_completed"]

_TURN = 0.25
"""Seconds that a turn waits for outcomes: with 50 workers the scheduler has 200 tasks a second."""
_LEASE = 30.0
"""Seconds without a turn after which both sides give the other up: ten times what Dask warns of as a slow event loop."""
_LOOK = 1.0
"""Seconds between looks at which workers there are."""
_CHUNKS = 10
"""Chunks that a worker has in rotation at most."""

_Answer = tuple[list[Outcome], Exception | None] | None
"""What has ended, and what ends the whole stream; None: nobody waits there any more."""


@frozen
class _Key:
    """Keeps the key out of reprs, and out of the locals of tracebacks."""

    source: Any = field(repr=False)


class _Waits(WorkerPlugin):
    """A worker's part of a round."""

    def __init__(self, key: _Key, options: dict[str, Any], chunk_size: int) -> None:
        self._key = key
        self._options = options
        self._chunk_size = chunk_size

    def setup(self, worker: Any) -> None:
        self._begin()

    async def teardown(self, worker: Any) -> None:
        self._lease.cancel()
        await _stop(self._waiting)

    def _begin(self) -> None:
        self._turns = 0
        self._ids: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        self._outcomes: list[Outcome] = []
        self._error: Exception | None = None
        self._waiting = asyncio.create_task(self._wait())
        self._lease = asyncio.get_running_loop().call_later(_LEASE, self._waiting.cancel)

    async def _wait(self) -> None:
        places: dict[int, int] = {}

        async def ids() -> AsyncGenerator[Any]:
            index = 0
            while True:
                places[index], task_id = await self._ids.get()
                index += 1
                yield task_id

        try:
            async with TaskClient(self._key.source, **self._options) as client:
                async for outcome in client.as_completed(
                    ids(), max_pending=_CHUNKS * self._chunk_size
                ):
                    self._outcomes.append(evolve(outcome, index=places.pop(outcome.index)))
        except Exception as error:  # noqa: BLE001 -- the key was refused, or what its source raised
            self._error = error

    async def turn(self, number: int, ids: dict[int, Any]) -> _Answer:
        # Another number: a process new at an old address, or a turn that Dask repeats because its answer was lost.
        if number != self._turns or (self._waiting.done() and self._error is None):
            if number:
                return None
            self._lease.cancel()
            self._waiting.cancel()
            self._begin()
        self._turns += 1
        self._lease.cancel()
        self._lease = asyncio.get_running_loop().call_later(_LEASE, self._waiting.cancel)
        for item in ids.items():
            self._ids.put_nowait(item)
        # The first is about no ids, and after a full chunk there may be another.
        if number and len(ids) < self._chunk_size and len(self._outcomes) < self._chunk_size:
            await asyncio.sleep(_TURN)
        outcomes, self._outcomes = (
            self._outcomes[: self._chunk_size],
            self._outcomes[self._chunk_size :],
        )
        return outcomes, None if self._outcomes else self._error


async def _turn(name: str, number: int, ids: dict[int, Any]) -> _Answer:
    waits: _Waits | None = cast("Any", get_worker()).plugins.get(name)
    return None if waits is None else await waits.turn(number, ids)


@define(eq=False)
class _Work:
    """The reader's side: from ids pulled to outcomes fetched."""

    _source: Iterable[Any] | AsyncIterable[Any]
    _dask: Any  # Dask's client, which is not typed
    _key: _Key
    _options: dict[str, Any]
    _chunk_size: int
    _ready: dict[int, Any] = field(factory=dict[int, Any])
    """Ids to be handed out, by their place in the input."""
    _room: asyncio.Event = field(factory=asyncio.Event)
    _outcomes: asyncio.Queue[Outcome | None] = field(factory=asyncio.Queue[Outcome | None])
    """None: there are no more."""
    _pulled: int = 0
    _answered: int = 0
    _pulling: asyncio.Task[None] = field(init=False)
    _serving: dict[str, asyncio.Task[None]] = field(factory=dict[str, asyncio.Task[None]])

    async def outcomes(self) -> AsyncGenerator[Outcome]:
        running = asyncio.create_task(self._run())
        running.add_done_callback(lambda _: self._outcomes.put_nowait(None))
        try:
            while (outcome := await self._outcomes.get()) is not None:
                yield outcome
            await running
        finally:
            await _stop(running)

    async def _run(self) -> None:
        self._pulling = asyncio.create_task(self._pull())
        try:
            await self._round()
            while not self._finished:
                # New clients may begin with a burst of one second's worth: it is to be earned.
                await asyncio.sleep(1.0)
                await self._round()
            await self._pulling
        except Exception as error:
            if self._dask.status != "running":
                raise ConnectionError(
                    "the Dask client is closed, or its scheduler is gone"
                ) from error
            raise
        finally:
            await _stop(self._pulling)

    @property
    def _finished(self) -> bool:
        return self._pulling.done() and self._answered == self._pulled

    async def _pull(self) -> None:
        source = self._source
        async for task_id in source if isinstance(source, AsyncIterable) else _each(source):
            self._ready[self._pulled] = task_id
            self._pulled += 1
            while len(self._ready) >= _CHUNKS * self._chunk_size:
                self._room.clear()
                await self._room.wait()

    async def _round(self) -> None:
        """Have the workers wait until all is done, or their parts of the limits change."""
        workers = await self._workers()
        if not workers:
            return None
        name = f"xai-tasks-{uuid.uuid4().hex}"
        options = self._options_for(workers)
        plugin = _Waits(self._key, options, self._chunk_size)
        try:
            with contextlib.suppress(OSError):  # from a worker that is going just now
                async with asyncio.timeout(_LEASE):
                    await self._dask.register_plugin(plugin, name=name)
            while workers and options == self._options_for(workers):
                for address in self._serving.keys() - workers:
                    await _stop(self._serving.pop(address))
                for address in workers - self._serving.keys():
                    self._serving[address] = asyncio.create_task(self._serve(address, name))
                ended, _ = await asyncio.wait(
                    self._serving.values(), timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED
                )
                if ended:
                    return await ended.pop()
                workers = await self._workers()
        finally:
            await _stop(*self._serving.values())
            self._serving.clear()
            # Where it can't be taken back, as without a scheduler or from a worker that hangs, leases end what is left.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_LEASE):
                    await self._dask.unregister_worker_plugin(name)

    async def _workers(self) -> set[str]:
        """Give the workers to be used: no more than requests may be in flight."""
        return set(sorted(await self._dask.nthreads())[: self._options.get("max_concurrency")])

    def _options_for(self, workers: set[str]) -> dict[str, Any]:
        """Give the options of each worker's client, with its part of the limits."""
        options = dict(self._options)
        if options.get("rate_limit") is not None:
            options["rate_limit"] /= len(workers)
        if "max_concurrency" in options:
            options["max_concurrency"] //= len(workers)
        return options

    async def _serve(self, address: str, name: str) -> None:
        """Have one turn after the other on a worker, until all is done."""
        waiting: dict[int, Any] = {}
        number = 0
        try:
            while not self._finished:
                # None with the first: a worker that is too busy to begin is to hold no ids.
                ids = self._take(_CHUNKS * self._chunk_size - len(waiting)) if number else {}
                waiting |= ids
                answer = await self._turn(address, name, number, ids)
                if answer is None:
                    self._ready, waiting, number = waiting | self._ready, {}, 0
                    await asyncio.sleep(_TURN)
                    continue
                outcomes, error = answer
                for outcome in outcomes:
                    del waiting[outcome.index]
                    self._outcomes.put_nowait(outcome)
                self._answered += len(outcomes)
                if error is not None:
                    raise error
                number += 1
        finally:
            self._ready = waiting | self._ready

    def _take(self, room: int) -> dict[int, Any]:
        """Take ids to hand out: no more than an even part, and none while the reader is behind."""
        count = 0
        if self._outcomes.qsize() < self._chunk_size:
            count = min(room, self._chunk_size, math.ceil(len(self._ready) / len(self._serving)))
        ids = dict(itertools.islice(self._ready.items(), count))
        for place in ids:
            del self._ready[place]
        self._room.set()
        return ids

    async def _turn(self, address: str, name: str, number: int, ids: dict[int, Any]) -> _Answer:
        """Give what the worker answers; None where it does not, or knows nothing of the turns before."""
        future = self._dask.submit(_turn, name, number, ids, workers=[address], pure=False)
        answer = asyncio.ensure_future(future)
        try:
            await asyncio.wait([answer], timeout=_LEASE)
            return cast("_Answer", answer.result()) if answer.done() else None
        except (OSError, KilledWorker, CancelledError):
            return None
        finally:
            # Cancelling the answer itself would break what others gather through the same Dask client just now.
            if not answer.done():
                answer.add_done_callback(_ignore)
                await future.cancel()
                await asyncio.wait([answer], timeout=_LOOK)


class ClusterStream(AsyncIterator[Outcome]):
    """Outcomes as tasks end on a cluster: an async iterator and an async context manager; made by `as_completed`.

    Leaving the loop over it early, by `break`, an exception or cancellation, gives up what is still waited for, on the workers too;
    so does `aclose()`. Afterwards it is exhausted.

    Raises, while it is iterated:
        AuthenticationError, PermissionDeniedError: the key was refused, which every other id would meet too.
        ConfigurationError: a worker's environment has no key, or a malformed one.
        OSError: the scheduler is gone.
        Exception: what the source of ids raised, once all ids pulled before have ended.

    """

    __slots__ = ("_outcomes",)

    def __init__(self, outcomes: AsyncGenerator[Outcome]) -> None:
        self._outcomes = outcomes

    async def __aiter__(self) -> AsyncIterator[Outcome]:
        # A generator of the loop's own, so that it ends with the loop.
        async with self:
            async for outcome in self._outcomes:
                yield outcome

    async def __anext__(self) -> Outcome:
        return await anext(self._outcomes)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Give up what is still waited for; return once the workers have been told. Twice is fine."""
        await self._outcomes.aclose()


def as_completed(
    task_ids: Iterable[str] | AsyncIterable[str],
    *,
    client: Client,
    chunk_size: int = 1000,
    **client_options: Any,
) -> ClusterStream:
    """Wait for any number of tasks on a Dask cluster and give each one's outcome as it ends.

    Each worker has a `TaskClient` of its own; this package must be installed there, and on the scheduler. The ids of a worker that is lost
    are waited for again on others, their time anew. An outcome is here within 0.25 s or so of the task's end being seen.

    Args:
        task_ids: the ids, from any iterable or async iterable, also one that never ends; pulled as there is room.
        client: an asynchronous client of the cluster.
        chunk_size: ids handed to a worker at once at most, 1 or more. A worker has up to ten times as many in rotation.
        **client_options: options of `TaskClient`, which have to pickle; no `session`. `rate_limit` and `max_concurrency` are the
            whole cluster's: each worker has an equal part. Where workers come or go these are dealt anew, and all tasks looked at
            once more. Without a `rate_limit`, each worker finds out what the server grants it; without `max_concurrency`, each has 64
            requests in flight at most. Without `api_key` or `base_url`, a worker's own environment tells them.

    Returns:
        a stream of `Outcome`; each id pulled comes out of it once.

    Raises:
        ConfigurationError, ValueError: an option is out of range.
        TypeError: an option is unknown or of the wrong type, or `client` is not asynchronous.

    """
    key = _Key(client_options.pop("api_key", None))
    if not client.asynchronous:
        raise TypeError("client must be asynchronous: Client(..., asynchronous=True)")
    if client_options.get("session") is not None:
        raise TypeError("a session can't be sent to workers: leave it out")
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size must be a whole number of at least 1, not {chunk_size!r}")
    # Made to have the arguments checked here rather than on a worker.
    TaskClient(key.source or "a worker's own", **client_options).as_completed(task_ids)
    return ClusterStream(_Work(task_ids, client, key, client_options, chunk_size).outcomes())


async def _stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and return once they have ended, however that is."""
    for task in tasks:
        task.cancel()
        task.add_done_callback(_ignore)
    if tasks:
        await asyncio.wait(tasks)


def _ignore(ended: asyncio.Future[Any]) -> None:
    """Have asyncio not complain of an exception that nobody is interested in any more."""
    if not ended.cancelled():
        ended.exception()


async def _each(source: Iterable[Any]) -> AsyncGenerator[Any]:
    for task_id in source:
        yield task_id
