"""The API on a loopback port, with scripted tasks and faults."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from random import Random
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

from aiohttp import web
from attrs import evolve

from xai_tasks.testing._checks import TASKS, RequestChecks, requested_id
from xai_tasks.testing._durations import Duration, constant
from xai_tasks.testing._faults import Fault, FaultBook, Wire
from xai_tasks.testing._files import FILES, FileBook
from xai_tasks.testing._http import HANG_UP, KEEP_ALIVE, Reply, refusal, send
from xai_tasks.testing._lifecycle import Ending, Lifecycle, Step, ending_of, steps_of
from xai_tasks.testing._listener import Listener, loop_in_thread
from xai_tasks.testing._log import RequestLog, RequestRecord
from xai_tasks.testing._rate_limits import LimitStyle, limit_factory
from xai_tasks.testing._submissions import RESULTS, Submissions, read_body
from xai_tasks.testing._tasks import MadeUpTasks, TaskBook

_METHODS = {TASKS: "GET", **dict.fromkeys(RESULTS, "POST")}


class ServerOptions(TypedDict, total=False):
    """The arguments of `TaskServer`, for `TaskServer.in_thread`."""

    api_key: str | Collection[str] | None
    port: int
    ssl_context: ssl.SSLContext | None
    latency: float | Duration
    log_limit: int | None


class TaskServer:
    """The API on a loopback port: a real HTTP server whose tasks and faults are scripted.

    Use it as::

        async with TaskServer() as server:
            server.add("a", [("pending", 0.1), ("processing", 0.5)], result={"videoUrl": "..."})
            async with TaskClient("test", base_url=server.url) as client:
                task = await client.wait("a")

    Its clock is `loop.time()` of the loop it runs in, so with a fake clock a ten-minute task takes
    milliseconds. The dates in answers follow that clock. The answer to a request is decided when it
    comes: first the answer due (401, 429, 400, 422, 404 or the task), then the fault, if one is
    queued.

    The API's documents leave some things open. This server chose:

    - An error is `{"statusCode": ..., "message": ..., "error": <the status's phrase>}` as JSON.
      404 and 429 also have a `traceId`, 401 a `WWW-Authenticate: Bearer`, 405 (a wrong method) an
      `Allow`.
    - No key or a wrong one: 401. No `taskId`: 422. An unknown or empty one, or another path: 404.
    - Over the limit: what the style of `limit` says, a 429 with `Retry-After` by default.
    - A submission with a missing prompt or model, or a field of a wrong type: 400. Lengths and
      values of fields are not checked. An accepted one makes a task as `accept` was told.
    - A completed task shows `result`, null if it has none. A failed, cancelled or timed out one
      shows `errorMessage` and `errorCode` where they were given. `finishedAt` comes with the end,
      `createdAt` and `traceId` always.
    - `/files/` needs no key and has no limit, as at a storage service. Beside what `file` adds it
      has, for each task, `<task id>.mp4` (a video of one second) and `<task id>.png` (a picture).

    A server may be closed and started again. It keeps its port, its tasks and their clocks.

    Args:
        api_key: the bearer key, or keys, accepted; None: requests need none.
        port: where to listen; 0: a free port.
        ssl_context: use TLS with it; the URL then begins with https.
        latency: seconds (>= 0) from a request to its answer, or a distribution of them.
        log_limit: how many of the newest requests to keep in `requests`; None: all.

    Raises:
        ValueError: the latency or the limit is negative.

    """

    def __init__(
        self,
        api_key: str | Collection[str] | None = "test",
        *,
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        latency: float | Duration = 0.0,
        log_limit: int | None = None,
    ) -> None:
        self._listener = Listener(self._handle, port, ssl_context)
        self._checks = RequestChecks(api_key, _METHODS)
        self._tasks = TaskBook()
        self._files = FileBook(self._tasks.knows)
        self._submissions = Submissions(self._tasks, lambda: self.url + FILES)
        self._faults = FaultBook()
        self._log = RequestLog(log_limit)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wall = 0.0
        self._initial = (api_key, latency)
        self.latency = latency

    async def start(self) -> None:
        """Start listening.

        Raises:
            RuntimeError: it already listens.
            OSError: the port is taken.

        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._wall = time.time() - self._loop.time()
        await self._listener.start()

    async def aclose(self) -> None:
        """Stop listening and drop every connection, answered or not. Closing twice is fine."""
        await self._listener.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @classmethod
    @contextmanager
    def in_thread(cls, **options: Unpack[ServerOptions]) -> Generator[Self, None, None]:
        """Run a server in its own thread and event loop, for synchronous tests.

        Use it as::

            with TaskServer.in_thread() as server:
                server.add("a", result={})

        Its methods may be called from any thread, and `wait_for_requests` from any loop; `start`
        and `aclose` may not. Its clock is the system's.

        Args:
            **options: those of `TaskServer`.

        """
        server = cls(**options)
        with loop_in_thread() as loop:
            asyncio.run_coroutine_threadsafe(server.start(), loop).result()
            try:
                yield server
            finally:
                asyncio.run_coroutine_threadsafe(server.aclose(), loop).result()

    @property
    def url(self) -> str:
        """The origin it listens at: the `base_url` for a client.

        Raises:
            RuntimeError: the server was never started, so it has no port yet.

        """
        if self._loop is None:
            raise RuntimeError("start the server first: it has no port yet")
        return self._listener.url

    @property
    def api_key(self) -> str | Collection[str] | None:
        """The bearer key, or keys, accepted; None: requests need none. May be set at any time."""
        return self._checks.api_key

    @api_key.setter
    def api_key(self, api_key: str | Collection[str] | None) -> None:
        self._checks.api_key = api_key

    @property
    def latency(self) -> float | Duration:
        """Seconds from a request to its answer, or a distribution. May be set at any time."""
        return self._latency

    @latency.setter
    def latency(self, latency: float | Duration) -> None:
        self._latency = latency
        self._delay = latency if callable(latency) else constant(latency) if latency else None
        self._random = Random(0)

    def add(
        self,
        task_id: str,
        steps: str | Iterable[Step] = (),
        *,
        result: Any = None,
        failed: Ending | None = None,
        cancelled: Ending | None = None,
        timeout: Ending | None = None,
    ) -> str:
        """Add a task; its clock starts now. It replaces an older one of the same id.

        Some forms::

            server.add("a", result={"videoUrl": "https://..."})      # completed already
            server.add("b", [("pending", 0.1), ("processing", 0.5)], failed=("bad prompt", 40001))
            server.add("c", "processing", cancelled=True)            # until server.advance("c")

        Args:
            task_id: any string but "".
            steps: the statuses before its end, in any order, also unknown ones: each a pair of
                status and seconds (>= 0). None for seconds, or a status alone: until `advance`.
            result: what it completes with, any JSON value. It completes if none of the next three
                is given.
            failed: it fails: True, the error message, or a pair of error message and error code.
            cancelled: it is cancelled, in the same forms.
            timeout: it times out on the server, in the same forms.

        Returns:
            the id.

        Raises:
            RuntimeError: the server was never started, so there is no clock yet.
            ValueError: a step's time is negative, more than one end is given, or the id is empty.
            TypeError: the result can't be written as JSON.

        """
        if not task_id:
            raise ValueError("a task id must not be empty")
        ending = ending_of(result, failed=failed, cancelled=cancelled, timeout=timeout)
        self._tasks.add(task_id, Lifecycle(self._now(), steps_of(steps), ending))
        return task_id

    def add_many(
        self,
        n: int,
        *,
        duration: Duration,
        failed: float = 0.0,
        result: Any = None,
        prefix: str | None = None,
        seed: int = 0,
    ) -> Sequence[str]:
        """Add `n` made-up tasks; the clock of all of them starts now.

        Example::

            ids = server.add_many(1_000, duration=lognormal(45, 0.5), failed=0.02)

        Each is pending for a tenth of its time and processing for the rest. A task takes 9 bytes,
        and its request count 8 more.

        Args:
            n: how many.
            duration: how long they take, in seconds: `constant`, `uniform` or `lognormal`.
            failed: the share that fails in the end, 0 to 1.
            result: the result of each that completes; None: `{"videoUrl": ...}` of a small MP4 on
                this server.
            prefix: ids are this, a hyphen and a number from 0; None: `task1` for the first call,
                `task2` for the next.
            seed: the same seed gives the same durations and failures.

        Returns:
            the ids, as a sequence that computes them on demand.

        Raises:
            RuntimeError: the server was never started, so there is no clock yet.
            ValueError: there are made-up tasks with that prefix already, or `failed` is out of
                range.

        """
        if not 0 <= failed <= 1:
            raise ValueError(f"failed must be within 0 and 1, not {failed!r}")
        prefix = self._tasks.new_prefix(prefix)
        tasks = MadeUpTasks(
            prefix,
            n,
            created=self._now(),
            duration=duration,
            failed=failed,
            result=result,
            files=self.url + FILES,
            random=Random(seed),
        )
        self._tasks.add_many(prefix, tasks)
        return tasks

    def accept(
        self,
        steps: str | Iterable[Step] | Duration = (),
        *,
        result: Any = None,
        failed: Ending | None = None,
        cancelled: Ending | None = None,
        timeout: Ending | None = None,
    ) -> None:
        """Set what becomes of submissions from now on, in the forms of `add`.

        A submission is accepted also without this: its task then takes half a second. Ids are
        `submitted-1`, `submitted-2` and so on.

        Args:
            steps: the statuses of each task before its end, or how long each takes.
            result: what each completes with; None, and no other end given: made-up URLs.
            failed: each fails.
            cancelled: each is cancelled.
            timeout: each times out on the server.

        Raises:
            ValueError: a step's time is negative, or more than one end is given.
            TypeError: the result can't be written as JSON.

        """
        self._submissions.script(steps, result, failed, cancelled, timeout)

    @property
    def submissions(self) -> list[dict[str, Any]]:
        """The bodies of the submissions that made tasks, in order.

        One whose answer a fault spoiled or replaced is among them. One over the limit is not.
        """
        return self._submissions.bodies()

    def advance(self, task_id: str) -> None:
        """Begin a task's next step now, or its end after the last one.

        Raises:
            KeyError: there is no such task.
            ValueError: it has ended.

        """
        self._tasks.advance(task_id, self._now())

    def ends_at(self, task_id: str) -> float | None:
        """Return when a task ends or has ended, in seconds of the server's clock.

        Returns:
            the time; None while a step ahead waits for `advance`.

        Raises:
            KeyError: there is no such task.

        """
        return self._tasks.find(task_id).ends_at

    def file(self, path: str, data: bytes, *, content_type: str | None = None) -> str:
        """Serve a file that results may point to; an older one of that path is replaced.

        Example::

            url = server.file("cat.mp4", data)
            server.add("a", result={"videoUrl": url})

        The server answers with a strong `ETag` made of the data, and takes ranges.

        Args:
            path: where it is, with or without the leading `/files/`.
            data: the bytes of the file.
            content_type: its `Content-Type`; None: the one that the path's extension stands for.

        Returns:
            The URL. A query behind it changes nothing.

        Raises:
            RuntimeError: the server was never started, so it has no port yet.

        """
        return self.url + self._files.add(path, data, content_type)

    def fault(self, target: str | None, *faults: Fault) -> None:
        """Queue faults for the next requests, one fault per request.

        Example::

            server.fault("a", Fault.status(503))                     # polls of task "a"
            server.fault("GET /files/a.mp4", Fault.truncate())       # downloads of one file
            server.fault("GET /files/...", Fault.reset(at="body"))   # downloads of any file

        Args:
            target: the id whose polls get the faults; or a method, such as `"POST"`; or a method
                and a path, such as `"POST /xai/images"`, where `...` at its end stands for any
                rest; or None: the next polls of any id. A request takes from the queue of the
                closest target first.
            *faults: in order; `*[Fault.status(503)] * 3` is enough for three requests.

        """
        self._faults.queue(target, faults)

    def disturb(self, share: float, *faults: Fault, seed: int = 0) -> None:
        """Play faults at random, until the next call.

        Example::

            server.disturb(1.0, Fault.status(503))      # an outage
            server.disturb(0.2, Fault.reset(), Fault.status(502), Fault.truncate())
            server.disturb(0.0)                         # no more faults

        Args:
            share: the share of all requests, 0 to 1, that get a fault; a queued fault goes first.
            *faults: all equally likely.
            seed: the same seed draws the same faults.

        Raises:
            ValueError: the share is not within 0 and 1, or it is positive and no fault is given.

        """
        if not 0 <= share <= 1:
            raise ValueError(f"share must be within 0 and 1, not {share!r}")
        if share and not faults:
            raise ValueError("name the faults to draw from")
        self._faults.draw_from(share, faults, Random(seed))

    @property
    def faults_left(self) -> list[Fault]:
        """The queued faults that no request has met yet.

        End a test of faults with `assert not server.faults_left`.
        """
        return self._faults.left()

    @property
    def faults_fired(self) -> list[Fault]:
        """The faults that requests have met, in order, including those drawn by `disturb`."""
        return self._faults.fired()

    def limit(
        self,
        rate: float | None,
        burst: int = 1,
        *,
        retry_after: float | str | None = 1.0,
        style: LimitStyle = "bucket",
        name: str = "",
    ) -> None:
        """Limit the rate of requests on each route, as one of the servers that people use.

        Polls, images and videos are counted apart. The styles are:

        - `bucket`: a token bucket; requests over it get a 429 with `retry_after`.
        - `nginx`: the same bucket, as `limit_req` with `burst=<burst - 1> nodelay` answers: a 503
          with an HTML page and no `Retry-After`.
        - `nestjs`: @nestjs/throttler 6. `burst` requests in any `burst / rate` seconds, and blocked
          for as long after a refusal; `X-RateLimit-Remaining` on answers, `Retry-After` on a 429.
        - `draft-6`, `draft-7`, `draft-8`: express-rate-limit with those headers. `burst` requests
          in each window of `burst / rate` seconds.

        As in::

            server.limit(10, burst=100, style="nestjs", name="long")  # 100 in 10 s

        Args:
            rate: requests per second over time, > 0; None: no limit.
            burst: requests accepted at once, >= 1.
            retry_after: for the style `bucket`, the `Retry-After` of a 429: seconds, or a string
                such as an HTTP date, sent as it is; None: no such header.
            style: which server to answer as.
            name: for the style `nestjs`, a named throttler, whose headers all end in the name.

        Raises:
            RuntimeError: the server was never started, so there is no clock yet.
            ValueError: the rate or the burst is out of range, there is no such style, or it has no
                names.

        """
        if rate is None:
            self._checks.limit(None)
            return
        if not (rate > 0 and burst >= 1):
            raise ValueError(f"need rate > 0 and burst >= 1, not {rate!r} and {burst!r}")
        header = retry_after if isinstance(retry_after, str | None) else f"{retry_after:g}"
        self._checks.limit(limit_factory(rate, burst, self._now(), header, style, name))

    @property
    def requests(self) -> list[RequestRecord]:
        """The requests received, oldest first, as many as `log_limit` keeps.

        HTTP that can't be parsed is not among them.
        """
        return self._log.records()

    def count(self, task_id: str | None = None) -> int:
        """Return the number of requests for an id, known or not; None: of all requests."""
        return self._log.total if task_id is None else self._tasks.count(task_id)

    async def wait_for_requests(self, n: int, task_id: str | None = None) -> None:
        """Wait until the server has received `n` requests since it started, or was last `reset`.

        Args:
            n: how many, as `count` counts them.
            task_id: count those for this id only; None: all.

        """
        await self._log.wait_until(lambda: self.count(task_id) >= n)

    def reset(self) -> None:
        """Remove all tasks, files, faults, limits and records; restore the key and latency.

        The server keeps running.
        """
        self._tasks.clear()
        self._files.clear()
        self._faults.clear()
        self._log.clear()
        self._submissions.clear()
        self._checks.limit(None)
        self.api_key, self.latency = self._initial

    def _now(self) -> float:
        if self._loop is None:
            raise RuntimeError("start the server first: its clock is the event loop's")
        return self._loop.time()

    def _dated(self, moment: float) -> str:
        # Milliseconds and Z: the form of JavaScript servers.
        date = datetime.fromtimestamp(self._wall + moment, UTC)
        return date.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        posted = request.method == "POST" and path in RESULTS
        is_poll = not posted and not path.startswith(FILES)
        task_id = requested_id(request.raw_path) if is_poll else None
        body = await read_body(request) if request.can_read_body else b""
        now = self._now()
        due = self._due(request, path, task_id, body, now)
        fault = self._faults.take(f"{request.method} {path}", task_id, is_poll=is_poll)
        if task_id is not None:
            self._tasks.count_request(task_id)
        status: int | None = due.status
        if fault is not None:
            status = fault._status_sent(due.status)  # noqa: SLF001 -- one kit
        self._log.add(
            RequestRecord(task_id, now, request.headers, status, request.method, path, query)
        )
        if self._delay is not None:
            await asyncio.sleep(self._delay(self._random))
        if fault is None:
            return send(request, due)
        open_after = await fault._play(Wire(request, due))  # noqa: SLF001 -- one kit
        stays = open_after and request.keep_alive
        return KEEP_ALIVE if stays else HANG_UP

    def _due(
        self, request: web.BaseRequest, path: str, task_id: str | None, body: bytes, now: float
    ) -> Reply:
        if path.startswith(FILES):
            return self._files.reply(request, path)
        refused = self._checks.refuse(request, path, task_id, now)
        if isinstance(refused, Reply):
            return refused
        reply = self._answer(path, task_id, body, now)
        return evolve(reply, headers=(*reply.headers, *refused)) if refused else reply

    def _answer(self, path: str, task_id: str | None, body: bytes, now: float) -> Reply:
        if path in RESULTS:
            return self._submissions.submit(path, body, now)
        if task_id is None:
            return refusal(422, "taskId is required")
        try:
            return Reply(200, self._tasks.answer(task_id, now, self._dated))
        except KeyError:
            return refusal(404, f"There is no task {task_id!r}", task_id=task_id)
