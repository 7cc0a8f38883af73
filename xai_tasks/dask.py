"""The stream of `TaskClient.as_completed` over a Dask cluster; needs the extra `dask`.

Each worker waits with a `TaskClient` of its own, which a plugin makes and closes. Ids reach it, and
outcomes come back, by turns: short Dask tasks, one at a time for each worker. A turn lasts a
quarter of a second however long the tasks take. So an outcome is at most that late, a slow task
delays no other, and the scheduler holds one chunk of ids and one answer per worker.

A client's limits are fixed. When the workers change, the limits are divided again, and all clients
are replaced: the round ends, and the next one hands out all ids that have no outcome yet. Nothing
that the old round still sends is read, so no outcome comes twice. A plugin without turns stops by
itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import copyreg
import io
import itertools
import marshal
import math
import pickle
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from typing import Any, Self, cast

from attrs import define, field, frozen
from distributed import CancelledError, Client, KilledWorker, WorkerPlugin, get_worker

from xai_tasks import (
    ImageRequest,
    Outcome,
    TaskClient,
    TaskError,
    TaskResult,
    VideoRequest,
    XaiTasksError,
)

__all__ = ["ClusterStream", "as_completed"]

_TURN = 0.25
"""Seconds that a turn waits for outcomes; with 50 workers the scheduler has 200 tasks a second."""
_LEASE = 30.0
"""Seconds without a turn after which reader and worker stop counting on each other.

Ten times the delay of an event loop that Dask warns of.
"""
_CHECK_INTERVAL = 1.0
"""Seconds between checks of which workers there are."""
_CHUNKS = 10
"""Chunks that a worker has in rotation at most."""

_Encoded = tuple[int, str, bytes | None, bytes | None]
"""An outcome as it travels: index, task id, the completed task's JSON, the pickled error."""
_Answer = tuple[list[_Encoded], BaseException | None] | None
"""Outcomes, and the error that ends the whole stream; None: the worker knows no earlier turns."""


@frozen
class _Key:
    """Keeps the key out of reprs, and out of the locals of tracebacks."""

    source: Any = field(repr=False)


class _Pickler(pickle.Pickler):
    """Pickles errors; the tasks in them as their JSON, which may be nested deeply."""

    dispatch_table = copyreg.dispatch_table | {
        TaskResult: lambda task: (_decode_task, (_encode_task(task),))
    }


def _encode_task(task: TaskResult) -> bytes:
    """Return the bytes of an answer.

    As marshal, which takes any nesting that the JSON decoder takes (pickle and the JSON encoders
    don't) and costs least. Dask requires one version of Python on both sides anyway.
    """
    return marshal.dumps(task.to_dict())


def _decode_task(data: bytes) -> TaskResult:
    return TaskResult.from_raw(marshal.loads(data))  # noqa: S302 -- from our own workers


def _encode(outcome: Outcome, index: int) -> _Encoded:
    """Encode an outcome; `index` replaces its own."""
    if outcome.ok:
        return index, outcome.task_id, _encode_task(outcome.unwrap()), None
    pickled = io.BytesIO()
    _Pickler(pickled, pickle.HIGHEST_PROTOCOL).dump(outcome.error)
    return index, outcome.task_id, None, pickled.getvalue()


def _decode(encoded: _Encoded) -> Outcome:
    index, task_id, data, pickled = encoded
    if data is not None:
        return Outcome(task_id, index, _decode_task(data))
    error: XaiTasksError = pickle.loads(pickled or b"")  # noqa: S301 -- from our own workers
    return Outcome(task_id, index, error.task if isinstance(error, TaskError) else None, error)


class _WaitPlugin(WorkerPlugin):
    """Waits on a worker, for one round: gets ids and returns outcomes, turn by turn."""

    def __init__(self, key: _Key, options: dict[str, Any], chunk_size: int) -> None:
        self._key = key
        self._options = options
        self._chunk_size = chunk_size

    def setup(self, worker: Any) -> None:
        self._start()

    async def teardown(self, worker: Any) -> None:
        self._lease.cancel()
        await _stop(self._waiting)

    def _start(self) -> None:
        self._turns = 0
        self._ids: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        self._outcomes: list[_Encoded] = []
        self._error: BaseException | None = None
        self._waiting = asyncio.create_task(self._wait())
        self._lease = asyncio.get_running_loop().call_later(_LEASE, self._waiting.cancel)

    async def _wait(self) -> None:
        indexes: dict[int, int] = {}
        max_pending = _CHUNKS * self._chunk_size

        async def ids() -> AsyncGenerator[Any]:
            number = 0
            while True:
                indexes[number], task_id = await self._ids.get()
                number += 1
                yield task_id

        try:
            async with TaskClient(self._key.source, **self._options) as client:
                async for outcome in client.as_completed(ids(), max_pending=max_pending):
                    self._outcomes.append(_encode(outcome, indexes.pop(outcome.index)))
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise  # pragma: no cover -- it ends the program
        except BaseException as error:  # a refused key, or what user code raised
            if cast("asyncio.Task[None]", asyncio.current_task()).cancelling():
                raise
            self._error = error

    async def turn(self, number: int, ids: dict[int, Any]) -> _Answer:
        """Take ids, wait a moment, and return the outcomes that have come since the last turn."""
        # Another number: a new process at an old address, or a turn that Dask repeats because its
        # answer was lost.
        if number != self._turns or (self._waiting.done() and self._error is None):
            if number:
                return None
            self._lease.cancel()
            self._waiting.cancel()
            self._start()
        self._turns += 1
        self._lease.cancel()
        self._lease = asyncio.get_running_loop().call_later(_LEASE, self._waiting.cancel)
        for item in ids.items():
            self._ids.put_nowait(item)
        # Turn 0 brings no ids, and after a full chunk there may be another one.
        full = len(ids) >= self._chunk_size or len(self._outcomes) >= self._chunk_size
        if number and not full:
            await asyncio.sleep(_TURN)
        outcomes = self._outcomes[: self._chunk_size]
        self._outcomes = self._outcomes[self._chunk_size :]
        return outcomes, None if self._outcomes else self._error


async def _turn(name: str, number: int, ids: dict[int, Any]) -> _Answer:
    """Run a turn on the worker that this runs on."""
    plugin: _WaitPlugin | None = cast("Any", get_worker()).plugins.get(name)
    return None if plugin is None else await plugin.turn(number, ids)


def _demand() -> None:
    """Do nothing: a task that waits for a worker makes an adaptive cluster start one."""


@define(eq=False)
class _Reader:
    """The reader's side: pulls ids, hands them out, collects outcomes."""

    _source: Iterable[Any] | AsyncIterable[Any]
    _dask: Any  # Dask's client, which is not typed
    _key: _Key
    _options: dict[str, Any]
    _chunk_size: int
    _ready: dict[int, Any] = field(factory=dict[int, Any])
    """Ids to hand out, by their index in the input."""
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
                # New clients may start with a burst. A second's pause keeps the rate as it was.
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
            if isinstance(task_id, (ImageRequest, VideoRequest)):
                raise TypeError(
                    "a cluster takes ids only: it would submit a request again if a worker was "
                    "lost. Submit requests first, with TaskClient.submit"
                )
            self._ready[self._pulled] = task_id
            self._pulled += 1
            while len(self._ready) >= _CHUNKS * self._chunk_size:
                self._room.clear()
                await self._room.wait()

    async def _round(self) -> None:
        """Run the workers until all is done, or until their parts of the limits change."""
        workers = await self._workers()
        if not workers and self._ready:
            workers = await self._request_workers()
        if not workers:
            return None
        name = f"xai-tasks-{uuid.uuid4().hex}"
        options = self._options_for(workers)
        plugin = _WaitPlugin(self._key, options, self._chunk_size)
        try:
            with contextlib.suppress(OSError):  # from a worker that is just leaving
                async with asyncio.timeout(_LEASE):
                    await self._dask.register_plugin(plugin, name=name)
            while workers and options == self._options_for(workers):
                for address in self._serving.keys() - workers:
                    await _stop(self._serving.pop(address))
                for address in workers - self._serving.keys():
                    self._serving[address] = asyncio.create_task(self._serve(address, name))
                ended, _ = await asyncio.wait(
                    self._serving.values(),
                    timeout=_CHECK_INTERVAL,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if ended:
                    return await ended.pop()
                workers = await self._workers()
        finally:
            await _stop(*self._serving.values())
            self._serving.clear()
            # Without a scheduler, or if a worker hangs, its lease ends what is left.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_LEASE):
                    await self._dask.unregister_worker_plugin(name)

    async def _workers(self) -> set[str]:
        """Return the workers to use: no more than requests may be in flight."""
        return set(sorted(await self._dask.nthreads())[: self._options.get("max_concurrency")])

    async def _request_workers(self) -> set[str]:
        """Wait for workers; a waiting task makes a cluster that scales by its load start one."""
        demand = self._dask.submit(_demand, pure=False)
        try:
            # Often enough to be there before a new worker counts as idle, and is stopped.
            while not (workers := await self._workers()):  # noqa: ASYNC110 -- only Dask knows
                await asyncio.sleep(_TURN)
            return workers
        finally:
            await demand.cancel()

    def _options_for(self, workers: set[str]) -> dict[str, Any]:
        """Return the options of each worker's client, with its part of the limits."""
        options = dict(self._options)
        if options.get("rate_limit") is not None:
            options["rate_limit"] /= len(workers)
        if "max_concurrency" in options:
            options["max_concurrency"] //= len(workers)
        return options

    async def _serve(self, address: str, name: str) -> None:
        """Run turn after turn on a worker, until all is done."""
        waiting: dict[int, Any] = {}
        number = 0
        try:
            while not self._finished:
                # Turn 0 brings no ids: a worker that is too busy to start must not hold any.
                ids = self._take(_CHUNKS * self._chunk_size - len(waiting)) if number else {}
                waiting |= ids
                answer = await self._turn(address, name, number, ids)
                if answer is None:
                    self._ready, waiting, number = waiting | self._ready, {}, 0
                    await asyncio.sleep(_TURN)
                    continue
                outcomes, error = answer
                for encoded in outcomes:
                    del waiting[encoded[0]]
                    self._outcomes.put_nowait(_decode(encoded))
                self._answered += len(outcomes)
                if error is not None:
                    raise error
                number += 1
        finally:
            self._ready = waiting | self._ready

    def _take(self, room: int) -> dict[int, Any]:
        """Take ids to hand out: at most an even part, and none while outcomes lie unread."""
        count = 0
        if self._outcomes.qsize() < self._chunk_size:
            count = min(room, self._chunk_size, math.ceil(len(self._ready) / len(self._serving)))
        ids = dict(itertools.islice(self._ready.items(), count))
        for index in ids:
            del self._ready[index]
        self._room.set()
        return ids

    async def _turn(self, address: str, name: str, number: int, ids: dict[int, Any]) -> _Answer:
        """Return the worker's answer; None if there is none, or it knows no earlier turns."""
        future = self._dask.submit(_turn, name, number, ids, workers=[address], pure=False)
        answer = asyncio.ensure_future(future)
        try:
            await asyncio.wait([answer], timeout=_LEASE)
            return cast("_Answer", answer.result()) if answer.done() else None
        except (OSError, KilledWorker, CancelledError):
            return None
        finally:
            # Cancelling the answer itself would break other gathers through the same Dask client.
            if not answer.done():
                answer.add_done_callback(_ignore)
                await future.cancel()
                await asyncio.wait([answer], timeout=_CHECK_INTERVAL)


class ClusterStream(AsyncIterator[Outcome]):
    """Outcomes as tasks end on a cluster: an async iterator and context manager.

    Made by `as_completed`. Leaving the loop early, by `break`, an exception or cancellation, stops
    the waits on the workers too; so does `aclose()`. Afterwards it is exhausted.

    Raises, while it is iterated:
        AuthenticationError, PermissionDeniedError: the key was refused; every id would meet that.
        ConfigurationError: a worker's environment has no key, or a malformed one.
        OSError: the scheduler is gone.
        TypeError: the source yielded a request; only ids can be waited for on a cluster.
        Exception: what the source of ids raised, once all ids pulled before have ended.

    """

    __slots__ = ("_outcomes",)

    def __init__(self, outcomes: AsyncGenerator[Outcome]) -> None:
        self._outcomes = outcomes

    async def __aiter__(self) -> AsyncIterator[Outcome]:
        # A generator for each loop, so that it ends with the loop.
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
        """Stop waiting, on the workers too. Closing twice is fine."""
        await self._outcomes.aclose()


def as_completed(
    task_ids: Iterable[str] | AsyncIterable[str],
    *,
    client: Client,
    chunk_size: int = 1000,
    **client_options: Any,
) -> ClusterStream:
    """Wait for any number of tasks on a Dask cluster, and yield each outcome as its task ends.

    Each worker has a `TaskClient` of its own. This package must be installed on the workers and on
    the scheduler. If a worker is lost, others wait for its ids; their timeouts start again. An
    outcome arrives at most about 0.25 s after its worker has seen the end. A cluster without
    workers that scales by its load (`cluster.adapt(minimum=0)`) starts one.

    Args:
        task_ids: the ids, from any iterable or async iterable, also an endless one; pulled as there
            is room.
        client: an asynchronous client of the cluster.
        chunk_size: ids handed to a worker at once at most, 1 or more. A worker has up to ten times
            as many in rotation.
        **client_options: options of `TaskClient`, which must pickle; no `session`. `rate_limit` and
            `max_concurrency` hold for the whole cluster: each worker has an equal part. When
            workers come or go, these parts change, and all tasks are polled once more. Without
            `rate_limit` each worker learns the server's limit; without `max_concurrency` each has
            at most 64 requests in flight. Without `api_key` or `base_url` a worker takes them from
            its own environment.

    Returns:
        a stream of `Outcome`, one for each id pulled.

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
    # A client that is not used checks the arguments here, instead of on a worker.
    TaskClient(
        "a worker's own" if key.source is None else key.source, **client_options
    ).as_completed(task_ids)
    return ClusterStream(_Reader(task_ids, client, key, client_options, chunk_size).outcomes())


async def _stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
        task.add_done_callback(_ignore)
    if tasks:
        await asyncio.wait(tasks)


def _ignore(ended: asyncio.Future[Any]) -> None:
    """Retrieve the exception, so that asyncio does not log it as never retrieved."""
    if not ended.cancelled():
        ended.exception()


async def _each(source: Iterable[Any]) -> AsyncGenerator[Any]:
    for task_id in source:
        yield task_id
