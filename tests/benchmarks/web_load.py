"""Long polls in one worker process: what 2,000 of them over 50 ids ask of the API, and what
they do to the rest of the app.

Two parts. `polls`: the API's requests for 2,000 long polls against those for 50, one an id, and the
time that another endpoint takes while they wait against an app that is idle. `hang-ups`: of 2,000
that wait, 500 hang up at once, and later all others; how long until the app has nothing left of
them: no wait, no task, no socket. The app (`web_app.py`) is a process alone on the clients' core;
its browsers share the other one with the API.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import web_app

_IDS = 50
_LOOKS = 14
_WINDOW = 6.0
"""Seconds in which the other endpoint is timed; the waits last longer by
what it takes 2,000 to arrive.
"""
_SPACING = 0.004
"""Seconds between two requests to it: 1,500 in all."""
_PATIENCE = 30.0
"""Seconds after which what is left behind is left for good."""


class _Browser(asyncio.Protocol):
    """A connection with one request under way at a time."""

    def __init__(self) -> None:
        self._waiting = b""
        self.answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._waiting += data
        head, found, body = self._waiting.partition(b"\r\n\r\n")
        if found and len(body) == int(head.lower().partition(b"content-length: ")[2].split()[0]):
            assert head.startswith(b"HTTP/1.1 200 ")
            self._waiting = b""
            self.answer.set_result(body)

    def ask(self, path: str) -> asyncio.Future[bytes]:
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(f"GET {path} HTTP/1.1\r\nHost: app\r\n\r\n".encode())
        return self.answer


class _App:
    """The app's process, and a connection to it."""

    def __init__(self, port: int, control: _Browser) -> None:
        self.port = port
        self.control = control

    async def browser(self) -> _Browser:
        _, browser = await asyncio.get_running_loop().create_connection(
            _Browser, "127.0.0.1", self.port
        )
        return browser

    async def state(self) -> dict[str, int]:
        return json.loads(await self.control.ask("/state"))

    async def long_polls(self, count: int) -> list[_Browser]:
        """Begin that many long polls, as many for each id, in the order of ids."""
        browsers = [await self.browser() for _ in range(count)]
        ids = harness.task_ids(_IDS)
        for number, browser in enumerate(browsers):
            browser.ask(f"/tasks/{ids[number * _IDS // count]}/wait")
        await self.settled({"polls": count, "ids": _IDS})
        return browsers

    async def settled(self, wanted: dict[str, int]) -> float:
        """Wait until the app's state is as wanted; give the seconds that it took."""
        began = time.monotonic()
        while True:
            state = await self.state()
            if wanted.items() <= state.items():
                return time.monotonic() - began
            if time.monotonic() - began > _PATIENCE:
                raise SystemExit(f"the app's state is {state} instead of {wanted}")
            await asyncio.sleep(0.005)

    async def p99(self) -> float:
        """Return the 99th percentile of an idle endpoint's milliseconds."""
        loop, took = asyncio.get_running_loop(), []
        until = loop.time() + _WINDOW
        while loop.time() < until:
            began = time.perf_counter()
            await self.control.ask("/ping")
            took.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(_SPACING)
        return statistics.quantiles(took, n=100)[-1]


@contextlib.contextmanager
def _started(url: str) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("web_app.py"), url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield int(process.stdout.readline())
        process.communicate()
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def _app(url: str) -> Any:
    """Run the app, warm."""
    os.sched_setaffinity(0, [harness.SERVER_CORE])
    with _started(url) as port:
        app = _App(port, None)
        app.control = await app.browser()
        for _ in range(500):
            await app.control.ask("/ping")
        await app.state()
        yield app
        app.control.transport.abort()


async def polls(url: str, count: int) -> dict[str, Any]:
    """Return the other endpoint's time before and while `count` long polls wait."""
    async with _app(url) as app:
        idle = await app.p99()
        began = time.monotonic()
        browsers = await app.long_polls(count)
        arrived = time.monotonic() - began
        busy = await app.p99()
        assert (await app.state())["polls"] == count, "they ended before the time was taken"
        await asyncio.gather(*(browser.answer for browser in browsers))
        for browser in browsers:
            browser.transport.abort()
    return {"idle": idle, "busy": busy, "arrived": arrived}


async def hang_ups(url: str, count: int, quitters: int) -> dict[str, Any]:
    """Return the seconds until nothing is left of `quitters` of `count` long
    polls, and then of all others.
    """
    async with _app(url) as app:
        before = await app.state()
        browsers = await app.long_polls(count)
        for browser in browsers[:quitters]:
            browser.transport.abort()
        stay = count - quitters
        some = await app.settled({"polls": stay, "ids": math.ceil(stay * _IDS / count)})
        for browser in browsers[quitters:]:
            browser.transport.abort()
        waits = await app.settled({"polls": 0, "ids": 0, "tasks": before["tasks"]})
        sockets = waits + await app.settled(before)
    return {"some": some, "waits": waits, "sockets": sockets}


def run(options: argparse.Namespace, report: harness.Report) -> None:
    """Measure both parts and fill the report."""
    crowd, quitters = (200, 50) if options.quick else (2000, 500)
    if options.only in "polls":
        _run_polls(options.rounds, crowd, report)
    if options.only in "hang-ups":
        _run_hang_ups(options.rounds, crowd, quitters, report)


def _run_polls(rounds: int, crowd: int, report: harness.Report) -> None:
    results: dict[int, list[dict[str, float]]] = {_IDS: [], crowd: []}
    for number, count in itertools.product(range(rounds), results):
        harness.progress(f"{count} long polls, round {number + 1} of {rounds}")
        with (
            harness.serve(polls=_LOOKS) as server,
            harness.Child("polls", {"url": server.url, "count": count}, pinned=False) as child,
        ):
            result = child.result()
            results[count].append({**result, "requests": server.stop()["requests"]})
    few, many = results.values()
    for count, column in results.items():
        requests = [result["requests"] for result in column]
        report.add(f"requests to the API, {count:,} long polls over {_IDS} ids", "", requests)
    ratios = [b["requests"] / a["requests"] for a, b in zip(few, many, strict=True)]
    report.add(f"requests, {crowd:,} against {_IDS}", "x", ratios, at_most=1.0)
    report.add("p99 of another endpoint, idle", "ms", [result["idle"] for result in many])
    for count, column in results.items():
        report.add(
            f"p99 of another endpoint, {count:,} waiting",
            "ms",
            [result["busy"] for result in column],
        )
        ratios = [result["busy"] / result["idle"] for result in column]
        report.add(
            f"p99, {count:,} waiting against idle",
            "x",
            ratios,
            at_most=3.0 if count == crowd else None,
        )
    report.add(f"until {crowd:,} had arrived", "s", [result["arrived"] for result in many])


def _run_hang_ups(rounds: int, crowd: int, quitters: int, report: harness.Report) -> None:
    results = []
    for number in range(rounds):
        harness.progress(f"{quitters} of {crowd} hang up, round {number + 1} of {rounds}")
        arguments = {"count": crowd, "quitters": quitters}
        with (
            harness.serve() as server,
            harness.Child("hang_ups", arguments | {"url": server.url}, pinned=False) as child,
        ):
            results.append(child.result())
    for key, what in (
        (
            "some",
            f"until nothing was left of {quitters:,} that hung up, {crowd - quitters:,} waiting on",
        ),
        ("waits", f"until no wait and no task was left of the other {crowd - quitters:,}"),
        ("sockets", f"until no socket was left, {web_app.KEEPALIVE:g} s of keep-alive among it"),
    ):
        report.add(what, "s", [result[key] for result in results])


if __name__ == "__main__":
    harness.main(__doc__, run, {"polls": polls, "hang_ups": hang_ups})
