"""What the benchmarks share: a server in a process of its own, measurements in
children, and a table at the end.

A benchmark is a script that calls `main` with a function that fills a `Report` and with its
measurements: coroutine functions, each of which runs in a fresh process, so that none pays for
another's garbage and each has its own peak of memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib.metadata
import json
import math
import os
import platform
import resource
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any, NamedTuple, Self

CORES = sorted(os.sched_getaffinity(0))
CLIENT_CORE, SERVER_CORE = CORES[0], CORES[-1]

Measurement = Callable[..., Coroutine[Any, Any, dict[str, Any]]]


# The server.


class Limit:
    """A token bucket, full at first, whose rate may halve."""

    def __init__(self, rate: float, burst: float, halves_after: float = math.inf) -> None:
        """Pass `rate` requests a second and `burst` at once; `halves_after` counts
        seconds from the first request.
        """
        self.rate = rate
        self.burst = burst
        self.halves_after = halves_after
        self.tokens = burst
        self.stamp = 0.0

    def passes(self, now: float) -> bool:
        rate = self.rate if now < self.halves_after else self.rate / 2
        self.tokens = min(self.burst, self.tokens + (now - self.stamp) * rate)
        self.stamp = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Api:
    """The API as cheap as Python gives it, so that it is the client that is measured."""

    def __init__(self, polls: int | None, limit: Limit | None) -> None:
        """End each task at its `polls`-th poll (None: never),
        and then again from the first.
        """
        self.polls = polls
        self.limit = limit
        self.seen: Counter[bytes] = Counter()
        self.started: float | None = None
        self.accepted: list[float] = []
        self.rejected: list[float] = []
        self.requests = 0
        self.dated = -math.inf
        self.head = b""

    def answer(self, head: bytes) -> bytes:
        """Return the whole answer to one request."""
        now = time.monotonic()
        if now - self.dated >= 1:
            self.dated = now
            self.head = (
                b"Content-Type: application/json; charset=utf-8\r\nDate: "
                + formatdate(usegmt=True).encode()
                + b"\r\nContent-Length: "
            )
        self.requests += 1
        if self.limit is not None:
            if self.started is None:
                self.started = now
            since = now - self.started
            if not self.limit.passes(since):
                self.rejected.append(since)
                return (
                    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\n%b2\r\n\r\n{}" % self.head
                )
            self.accepted.append(since)
        task_id = head.split(b" ", 2)[1].partition(b"taskId=")[2]
        body = (_ENDED if self.has_ended(task_id) else _PENDING) % task_id
        return b"HTTP/1.1 200 OK\r\n%b%d\r\n\r\n%b" % (self.head, len(body), body)

    def has_ended(self, task_id: bytes) -> bool:
        if self.polls is None or self.polls == 1:
            return self.polls == 1
        self.seen[task_id] += 1
        if self.seen[task_id] < self.polls:
            return False
        del self.seen[task_id]
        return True


_PENDING = (
    b'{"taskId":"%b","status":"pending","createdAt":"2026-01-01T12:00:00.000Z",'
    b'"traceId":"4bf92f3577b34da6a3ce929d0e0e4736"}'
)
_ENDED = (
    b'{"taskId":"%b","status":"completed","result":{"videoUrl":'
    b'"https://cdn.example.com/videos/2026/01/01/5f0c6c3e8f7a4c0b.mp4","width":1280,"height":720,"duration":6.0},'
    b'"createdAt":"2026-01-01T12:00:00.000Z","finishedAt":"2026-01-01T12:00:00.500Z",'
    b'"traceId":"4bf92f3577b34da6a3ce929d0e0e4736"}'
)


class _Connection(asyncio.Protocol):
    """One kept-alive connection; only GETs without a body, which may come in pieces."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.waiting = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        *heads, self.waiting = (self.waiting + data).split(b"\r\n\r\n")
        self.transport.write(b"".join(self.api.answer(head) for head in heads))


async def _serve(api: Api) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(api), "127.0.0.1", 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # also over when the benchmark dies
    server.close()
    print(
        json.dumps({"requests": api.requests, "accepted": api.accepted, "rejected": api.rejected})
    )


class Server:
    """The server's process, as the benchmark sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Take a process that is about to print its port."""
        self._process = process
        assert process.stdout is not None
        self.url = f"http://127.0.0.1:{process.stdout.readline().strip()}"

    def stop(self) -> dict[str, Any]:
        """End it; give how many requests it saw, and with a limit the times of
        those accepted and rejected.
        """
        output, _ = self._process.communicate()
        return json.loads(output) if output else {}


@contextlib.contextmanager
def serve(**options: Any) -> Iterator[Server]:
    """Run an `Api` pinned to the server's core: `polls`, and `limit`
    as the arguments of `Limit`.
    """
    command = [sys.executable, __file__, json.dumps(options)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        server = Server(process)
        yield server
        server.stop()
    finally:
        process.kill()
        process.wait()


# The measurements.


def task_ids(count: int, start: int = 0) -> list[str]:
    """Return ids of a UUID's length."""
    return [task_id(number) for number in range(start, start + count)]


def task_id(number: int) -> str:
    return f"5f0c6c3e-8f7a-4c0b-9d61-{number:012d}"


async def by_turns(
    works: Mapping[str, Callable[[], Awaitable[int]]], rounds: int
) -> dict[str, list[float]]:
    """Return the microseconds of this process's CPU, user and system, per
    request, of each work in each round.

    A work gives how many requests it has made. Each comes first, last and between as often as any
    other, and there is a round before the first, which warms up and is not counted.
    """
    names = deque(works)
    figures: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        names.rotate()
        for name in list(names) if number % 2 else reversed(list(names)):
            gc.collect()  # nobody pays for another's garbage
            started = time.process_time()
            requests = await works[name]()
            spent = time.process_time() - started
            if number:
                figures[name].append(spent / requests * 1e6)
    return figures


def memory() -> int:
    """Return the bytes of RSS that this process holds now, once it has no garbage."""
    gc.collect()
    return _status("VmRSS")


def reset_peak() -> None:
    """Reset what `peak_memory` measures."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int:
    """Return the most bytes of RSS that this process has held since `reset_peak`."""
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


class Child:
    """A measurement of the running script, in a process of its own."""

    def __init__(self, name: str, arguments: dict[str, Any], *, pinned: bool) -> None:
        """Start the measurement called `name`, pinned to the clients' core or not."""
        command = [
            sys.executable,
            sys.argv[0],
            "--child",
            name,
            json.dumps(arguments),
            str(int(pinned)),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def result(self) -> dict[str, Any]:
        """Wait for its end, and give what it gives."""
        output, _ = self._process.communicate()
        if self._process.returncode:
            raise SystemExit(f"the measurement failed: {' '.join(map(str, self._process.args))}")
        return json.loads(output)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait()


def measure(name: str, **arguments: Any) -> dict[str, Any]:
    """Run one measurement to its end."""
    with Child(name, arguments, pinned=True) as child:
        return child.result()


# The report.


class Spread(NamedTuple):
    """The quartiles of what several rounds gave."""

    low: float
    median: float
    high: float
    rounds: int


def spread(values: list[float]) -> Spread:
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(low, median, high, len(values))


class Report:
    """A table that grows by a line per figure."""

    def __init__(self, name: str, also: tuple[str, ...] = ()) -> None:
        """Begin the report of the benchmark called `name`; `also` are packages whose
        versions its figures depend on.
        """
        self.name = name
        self.command = f"python tests/benchmarks/{name}.py"
        self.versions = versions(also)
        self.notes: list[str] = []
        """What the figures don't say of themselves, such as why one is missing."""
        self.started = time.time()
        self.load = [os.getloadavg()]
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        what: str,
        unit: str,
        values: list[float],
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Add the median and the quartiles of `values`, one from each round, and the target."""
        result = spread(values)
        reached = None if at_most is None and at_least is None else True
        if at_most is not None:
            reached = result.median <= at_most
        if at_least is not None:
            reached = result.median >= at_least
        self.rows.append(
            {"what": what, "unit": unit, **result._asdict(), "values": values}
            | {"at_most": at_most, "at_least": at_least, "reached": reached}
        )

    def as_json(self) -> dict[str, Any]:
        """Return all that is known, also each round's figure."""
        return {
            "benchmark": self.name,
            "command": self.command,
            "date": time.strftime("%Y-%m-%d", time.gmtime(self.started)),
            "versions": self.versions,
            "cores": len(CORES),
            "processor": processor(),
            "load": [*self.load, os.getloadavg()],
            "seconds": time.time() - self.started,
            "rows": self.rows,
            "notes": self.notes,
        }


def table(rows: list[dict[str, Any]]) -> str:
    """Return a report's rows as a Markdown table."""
    lines = [
        "| what | median | quartiles | rounds | target | |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        bound, verdict = target(row)
        lines.append(
            f"| {row['what']} | {figure(row['median'])} {row['unit']} | {figure(row['low'])} to "
            f"{figure(row['high'])} | {row['rounds']} | {bound} | {verdict} |"
        )
    return "\n".join(lines)


def target(row: dict[str, Any]) -> tuple[str, str]:
    """Return the target of a row, and whether it was reached."""
    bound = f"<= {row['at_most']:,g}" if row["at_most"] is not None else ""
    if row["at_least"] is not None:
        bound = f">= {row['at_least']:,g}"
    return bound, {None: "", True: "reached", False: "**missed**"}[row["reached"]]


def figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def processor() -> str:
    """Return the processor's name, as the kernel knows it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def versions(also: tuple[str, ...]) -> dict[str, str]:
    """Return the versions that all figures depend on, and those of the packages in `also`."""
    names = ("xai_tasks", "aiohttp", "attrs", "tenacity", "orjson", *also)
    found = {"Python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def progress(text: str) -> None:
    """Print on stderr what is being measured."""
    print(text, file=sys.stderr, flush=True)


def main(
    description: str,
    run: Callable[[argparse.Namespace, Report], None],
    measurements: dict[str, Measurement],
    also: tuple[str, ...] = (),
) -> None:
    """Be the benchmark, or one measurement of it that it started; `also` are more
    packages to tell the versions of.
    """
    if sys.argv[1:2] == ["--child"]:
        name, arguments, pinned = sys.argv[2:]
        if pinned == "1":
            os.sched_setaffinity(0, [CLIENT_CORE])
        print(json.dumps(asyncio.run(measurements[name](**json.loads(arguments)))))
        return
    _allow_connections()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end the children on the way out
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tenth of the work, to see it run: no figures to quote",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds per figure (default: 5)")
    parser.add_argument("--only", default="", help="only the parts whose name contains this")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every round's figure to FILE"
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds = min(options.rounds, 2)
    report = Report(Path(sys.argv[0]).stem, also)
    report.command += f" --rounds {options.rounds}" + " --quick" * options.quick
    if options.only:
        report.command += f" --only {shlex.quote(options.only)}"
    run(options, report)
    print(", ".join(f"{name} {version}" for name, version in report.versions.items()))
    print(f"load before and after: {report.load[0][0]:.2f}, {os.getloadavg()[0]:.2f}\n")
    print(table(report.rows))
    print(*("\n" + note for note in report.notes), sep="", end="")
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")


def _allow_connections() -> None:
    """Make room for the connections of both sides."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    os.sched_setaffinity(0, [SERVER_CORE])
    settings = json.loads(sys.argv[1])
    rate_limit = settings.get("limit")
    asyncio.run(
        _serve(Api(settings.get("polls"), None if rate_limit is None else Limit(**rate_limit)))
    )
