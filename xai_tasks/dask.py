"""The stream of `TaskClient.as_completed` over a Dask cluster; needs the extra `dask`.

Ids are handed to the workers in chunks, as long as a worker has room: a task that takes long holds its own place and no more. A worker keeps
its waits from turn to turn. A turn is a Dask task, pinned to the worker, that brings a chunk and fetches what has ended; there is one
at a time for each worker, whatever threads it has, and it takes a quarter of a second at most. So outcomes are late by no
more than that, and the scheduler holds one chunk and one answer per worker.

A worker's waits are a session. It ends when a turn fails, when the worker has forgotten it or is to have other limits: what was not
answered is then handed out anew, and nothing of the old session is read any more, so no outcome comes twice. A worker that no
turn reaches any more forgets its session by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from types import EllipsisType
from typing import Any, Self, cast

from attrs import define, evolve, field, frozen
from distributed import Client, KilledWorker, WorkerPlugin, get_worker

from xai_tasks import InvalidTaskIdError, Outcome, PollPolicy, TaskClient

__all__ = ["ClusterStream", "as_completed"]

_TURN = 0.25
"""Seconds that a turn waits for outcomes: with 50 workers the scheduler has 200 tasks a second."""
_REPLY = 1000
"""Outcomes that a turn fetches at most: a megabyte or so."""
_LEASE = 30.0
"""Seconds without a turn after which both sides hold the other for lost: ten times what Dask warns of as a slow event loop."""
_LOOK = 1.0
"""Seconds between looks at which workers there are."""
_SLICE = 100
"""Ids pulled, or outcomes given, without a wait before others on the loop get a turn: a millisecond or so."""

Limits = dict[str, Any]
"""`rate_limit` and `max_concurrency`, as far as they are given."""


@frozen
class _Key:
    """Keeps the key out of reprs, and out of the locals of tracebacks."""

    source: Any = field(repr=False)


@frozen
class _Turn:
    stream: str
    session: int
    fresh: bool
    limits: Limits
    ids: dict[int, str]
    seconds: float
    linger: float


_Reply = tuple[list[Outcome], Exception | None] | None
"""What has ended, and what ends the whole stream; None where the session is not known."""


async def _turn(turn: _Turn) -> _Reply:
    plugin: _Waits | None = cast("Any", get_worker()).plugins.get(turn.stream)
    return None if plugin is None else await plugin.turn(turn)


@define(eq=False)
class _Session:
    """A worker's waits under one set of limits."""

    _client: TaskClient
    _starts: float
    _waits: set[asyncio.Task[None]] = field(factory=set[asyncio.Task[None]])
    _outcomes: list[Outcome] = field(factory=list[Outcome])
    _error: Exception | None = None

    def add(self, ids: dict[int, str], seconds: float) -> None:
        wait = asyncio.get_running_loop().create_task(self._wait(ids, seconds))
        self._waits.add(wait)
        wait.add_done_callback(self._waits.discard)

    async def _wait(self, ids: dict[int, str], seconds: float) -> None:
        delay = max(0.0, self._starts - asyncio.get_running_loop().time())
        await asyncio.sleep(delay)
        timeout = None if seconds == math.inf else max(0.0, seconds - delay)
        places = list(ids)
        stream = self._client.as_completed(ids.values(), timeout=timeout, max_pending=len(ids))
        try:
            async with stream:
                async for outcome in stream:
                    self._outcomes.append(evolve(outcome, index=places[outcome.index]))
        except Exception as error:  # noqa: BLE001 -- the key was refused, or what its source raised
            self._error = error

    async def fetch(self, linger: float) -> _Reply:
        if self._waits and len(self._outcomes) < _REPLY:
            await asyncio.sleep(linger)
        outcomes, self._outcomes = self._outcomes[:_REPLY], self._outcomes[_REPLY:]
        return outcomes, None if self._outcomes else self._error

    async def close(self) -> None:
        waits = list(self._waits)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        await self._client.close()


class _Waits(WorkerPlugin):
    """A worker's part of a stream: one session at a time, with one client."""

    def __init__(self, key: _Key, options: dict[str, Any]) -> None:
        self._key = key
        self._options = options

    def setup(self, worker: Any) -> None:
        self._lock = asyncio.Lock()
        self._session: _Session | None = None
        self._number: int | None = None
        self._lease: asyncio.TimerHandle | None = None
        self._expiry: asyncio.Task[None] | None = None
        self._removed = False

    async def teardown(self, worker: Any) -> None:
        self._removed = True
        await self._forget()

    async def turn(self, turn: _Turn) -> _Reply:
        async with self._lock:
            if self._removed or not (turn.fresh or turn.session == self._number):
                return None
            if turn.fresh:
                await self._close()
                try:
                    client = TaskClient(self._key.source, **self._options, **turn.limits)
                except Exception as error:  # noqa: BLE001 -- no key in this worker's environment, say
                    return [], error
                # Others may just have used up what is this client's part of the rate now: a full bucket is to be earned.
                rate = turn.limits.get("rate_limit")
                delay = 0.0 if rate is None else max(1.0, 1 / rate)
                self._session = _Session(client, asyncio.get_running_loop().time() + delay)
                self._number = turn.session
            if self._lease is not None:
                self._lease.cancel()
            self._lease = asyncio.get_running_loop().call_later(_LEASE, self._expire)
            session = cast("_Session", self._session)
            if turn.ids:
                session.add(turn.ids, turn.seconds)
        return await session.fetch(turn.linger)

    def _expire(self) -> None:
        self._expiry = asyncio.get_running_loop().create_task(self._forget())

    async def _forget(self) -> None:
        async with self._lock:
            await self._close()

    async def _close(self) -> None:
        session, self._session, self._number = self._session, None, None
        if self._lease is not None:
            self._lease.cancel()
        if session is not None:
            await session.close()


@define(eq=False)
class _Chunk:
    """Ids by their place in the input."""

    ids: dict[int, str]
    deadline: float | None = None
    """Infinite for no limit; None before a worker has got it."""


@define(eq=False)
class _Worker:
    """What the stream's side knows of a worker."""

    address: str
    session: int | None = None
    """None: one is to begin."""
    granted: Limits = field(factory=dict[str, Any])
    """The most that the worker may be using now."""
    waits: dict[int, _Chunk] = field(factory=dict[int, _Chunk])
    """The chunk of each id that it has."""


@define(eq=False)
class _Work:
    """The stream's side: from ids pulled to outcomes fetched."""

    _source: Iterable[Any] | AsyncIterable[Any]
    _client: Any  # Dask's, which is not typed
    _plugin: WorkerPlugin
    _limits: Limits
    _timeout: float
    _chunk_size: int
    _max_pending: int
    _name: str = field(factory=lambda: f"xai-tasks-{uuid.uuid4().hex}")
    _sessions: Iterator[int] = field(factory=itertools.count)
    _workers: dict[str, _Worker] = field(factory=dict[str, _Worker])
    _settles: float = -math.inf
    _ready: deque[_Chunk] = field(factory=deque[_Chunk])
    _outcomes: deque[Outcome] = field(factory=deque[Outcome])
    _pulled: int = 0
    _taken: int = 0
    _source_ended: bool = False
    _source_error: BaseException | None = None
    _moved: asyncio.Event = field(factory=asyncio.Event)

    async def outcomes(self) -> AsyncGenerator[Outcome]:
        running = asyncio.get_running_loop().create_task(self._run())
        running.add_done_callback(lambda _: self._move())
        try:
            while self._outcomes or not running.done():
                if not self._outcomes:
                    await self._moved.wait()
                    continue
                self._taken += 1
                self._move()
                yield self._outcomes.popleft()
                if self._taken % _SLICE == 0:
                    await asyncio.sleep(0)
            await running
            if self._source_error is not None:
                raise self._source_error
        finally:
            running.cancel()
            await asyncio.wait([running])

    def _move(self) -> None:
        """Have everybody who waits for ids or outcomes look again."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def _run(self) -> None:
        try:
            await self._client.register_plugin(self._plugin, name=self._name)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pull())
                group.create_task(self._follow(group))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            # Where it can't be taken back, as from a worker that is going just now, leases end what is left.
            with contextlib.suppress(OSError, ValueError):
                if self._client.status == "running":
                    await self._client.unregister_worker_plugin(self._name)

    async def _pull(self) -> None:
        """Pull ids as there is room, at most a chunk ahead of the workers."""
        source = self._source
        try:
            async for task_id in source if isinstance(source, AsyncIterable) else _each(source):
                if isinstance(task_id, str):
                    if not self._ready or self._ready[-1].deadline is not None:
                        self._ready.append(_Chunk({}))
                    self._ready[-1].ids[self._pulled] = task_id
                else:
                    error = InvalidTaskIdError(f"task_id must be a string, not {type(task_id).__name__}")
                    self._outcomes.append(Outcome(repr(task_id), self._pulled, error=error))
                    self._move()
                self._pulled += 1
                while not self._has_room:
                    await self._moved.wait()
        except (Exception, asyncio.CancelledError) as error:
            if cast("asyncio.Task[None]", asyncio.current_task()).cancelling():
                raise
            self._source_error = error
        self._source_ended = True
        self._move()

    @property
    def _has_room(self) -> bool:
        full = bool(self._ready) and len(self._ready[-1].ids) >= self._chunk_size
        return not full and self._pulled - self._taken < self._max_pending * max(1, len(self._workers))

    async def _follow(self, group: asyncio.TaskGroup) -> None:
        """Serve the workers that there are, as they come and go, until all outcomes are here."""
        serving: dict[str, asyncio.Task[None]] = {}
        while True:
            if self._client.status != "running":
                raise ConnectionError("the Dask client is closed, or its scheduler is gone")
            found = set(await self._client.nthreads())
            if serving and found != serving.keys():
                self._settles = asyncio.get_running_loop().time() + 1.5 * _LOOK
            for address in serving.keys() - found:
                serving.pop(address).cancel()
            for address in found - serving.keys():
                self._workers[address] = worker = _Worker(address)
                serving[address] = group.create_task(self._serve(worker))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    while not self._source_ended or self._pulled > self._taken + len(self._outcomes):
                        await self._moved.wait()
                    break
        for task in serving.values():
            task.cancel()

    async def _serve(self, worker: _Worker) -> None:
        """Give a worker one turn after the other, where there is something to say."""
        try:
            while True:
                limits = self._limits_of(worker)
                if limits is not None and limits != worker.granted:
                    self._take_back(worker)
                chunk = None if limits is None else self._chunk_for(worker)
                if limits is None or not (worker.waits or limits != worker.granted):
                    await asyncio.sleep(_TURN)
                elif not await self._have_turn(worker, limits, chunk):
                    self._take_back(worker)
                    await asyncio.sleep(_TURN)
        finally:
            self._take_back(worker)
            del self._workers[worker.address]

    async def _have_turn(self, worker: _Worker, limits: Limits, chunk: _Chunk | None) -> bool:
        """Say whether the worker answered."""
        ids, seconds, linger = dict[int, str](), math.inf, _TURN
        if chunk is not None:
            now = asyncio.get_running_loop().time()
            if chunk.deadline is None:
                chunk.deadline = now + self._timeout
            ids, seconds = chunk.ids, chunk.deadline - now
            linger = 0 if self._ready or len(ids) == self._chunk_size else _TURN
        fresh = worker.session is None
        session = worker.session = next(self._sessions) if worker.session is None else worker.session
        worker.granted = {name: max(limit, worker.granted.get(name, 0)) for name, limit in limits.items()}
        turn = _Turn(self._name, session, fresh, limits, ids, seconds, linger)
        try:
            async with asyncio.timeout(_LEASE):
                future = self._client.submit(_turn, turn, workers=[worker.address], pure=False)
                failure = await future.exception()
                if failure is not None:
                    raise failure
                # Not `await future`: cancelled while a lost worker's answer is gathered, that leaves a task behind.
                reply: _Reply = await self._client.gather(future, errors="skip")
        except (OSError, KilledWorker):
            return False
        except Exception:
            if self._client.status == "running":
                raise
            return False
        if reply is None:
            return False
        worker.granted = limits
        outcomes, error = reply
        for outcome in outcomes:
            del worker.waits.pop(outcome.index).ids[outcome.index]
        self._outcomes.extend(outcomes)
        self._move()
        if error is not None:
            raise error
        return True

    def _chunk_for(self, worker: _Worker) -> _Chunk | None:
        # No more than an even part and a chunk: a worker that comes late would have limits and nothing to use them on.
        even = (self._pulled - self._taken - len(self._outcomes)) // self._used_workers
        room = min(self._max_pending, even + self._chunk_size) - len(worker.waits)
        if not self._ready or len(self._ready[0].ids) > room:
            return None
        chunk = self._ready.popleft()
        worker.waits.update(dict.fromkeys(chunk.ids, chunk))
        self._move()
        return chunk

    def _take_back(self, worker: _Worker) -> None:
        """End the session, and have its ids handed out anew."""
        self._ready.extendleft(dict.fromkeys(worker.waits.values()))
        worker.waits.clear()
        worker.session = None

    @property
    def _used_workers(self) -> int:
        """No more than requests may be in flight."""
        workers = len(self._workers)
        return min(workers, int(self._limits.get("max_concurrency", workers)))

    def _limits_of(self, worker: _Worker) -> Limits | None:
        """Give the worker's part of the limits; None: it has to wait for the others to leave it one.

        No part grows before the others' have shrunk, nor changes while workers come and go.
        """
        if worker.granted and asyncio.get_running_loop().time() < self._settles:
            return worker.granted
        workers = list(self._workers.values())
        rank, count = workers.index(worker), self._used_workers
        if rank >= count:
            return None
        part: Limits = {}
        for name, limit in self._limits.items():
            part[name] = limit / count if name == "rate_limit" else limit // count + (rank < limit % count)
            taken = sum(other.granted.get(name, 0) for other in workers if other is not worker)
            if part[name] > worker.granted.get(name, 0) and part[name] + taken > limit * (1 + 1e-9):
                return worker.granted or None
        return part


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

    async def __aiter__(self) -> AsyncGenerator[Outcome]:
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
    max_pending: int = 10_000,
    timeout: float | EllipsisType | None = ...,
    **client_options: Any,
) -> ClusterStream:
    """Wait for any number of tasks on a Dask cluster and give each one's outcome as it ends.

    Each worker has a `TaskClient` of its own; this package must be installed there, and on the scheduler. The ids of a worker that is lost
    are waited for again on others. An outcome is here within 0.25 s or so of the task's end being seen.

    Args:
        task_ids: the ids, from any iterable or async iterable, also one that never ends; pulled as there is room.
        client: an asynchronous client of the cluster.
        chunk_size: ids handed to a worker at once, 1 or more; fewer where the source has no more just now.
        max_pending: ids in rotation at most, for each worker that there is, outcomes not yet taken among them; 1 or more.
        timeout: seconds for each wait, from when its id is handed to a worker, 0 or more; None: no limit. Default: the policy's.
        **client_options: options of `TaskClient`, which have to pickle; no `session`. `rate_limit` and `max_concurrency` are the
            whole cluster's: each worker has a part, and where workers come or go, parts are dealt anew and tasks looked at once more.
            Without a `rate_limit`, each worker finds out what the server grants it; without `max_concurrency`, each has 64
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
    TaskClient(key.source or "a worker's own", **client_options).as_completed(
        task_ids, max_pending=max_pending
    )
    policy = client_options.pop("poll", None) or PollPolicy()
    policy = policy if timeout is ... else evolve(policy, timeout=timeout)
    limits = {name: client_options.pop(name, None) for name in ("rate_limit", "max_concurrency")}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    plugin = _Waits(key, {**client_options, "poll": policy})
    seconds = math.inf if policy.timeout is None else policy.timeout
    work = _Work(task_ids, client, plugin, limits, seconds, min(chunk_size, max_pending), max_pending)
    return ClusterStream(work.outcomes())


async def _each(source: Iterable[Any]) -> AsyncGenerator[Any]:
    for number, task_id in enumerate(source, 1):
        yield task_id
        if number % _SLICE == 0:
            await asyncio.sleep(0)
