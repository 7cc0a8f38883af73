"""What saving files costs: CPU and memory of a large one, and what many small ones do to polls.

Two parts. `large`: one file of 500 MB, by `TaskClient.download` and by a bare aiohttp loop that
writes what comes to a file, and then syncs it or does not, by turns, each in a fresh
process. `polls`: 2,000 ids polled every 5 s, for as long as it takes to save 2,000 files of
200 kB, and for as long without.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socketserver
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import harness
import tenacity

from xai_tasks import PollPolicy, TaskClient, TaskResult, TaskStatus

_MB = 2**20
_BLOCK = bytes(_MB)


class _Files(socketserver.BaseRequestHandler):
    """Answers `/<size>` with so many bytes, on one connection after another."""

    def handle(self) -> None:
        reader = self.request.makefile("rb")
        while line := reader.readline():
            while reader.readline() not in (b"\r\n", b""):
                pass
            size = int(line.split()[1].rpartition(b"/")[2])
            head = f'HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nETag: "{size}"\r\n\r\n'
            self.request.sendall(head.encode())
            for start in range(0, size, _MB):
                self.request.sendall(_BLOCK[: size - start])


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


@contextmanager
def file_server() -> Iterator[str]:
    """Serve files from a thread of this process, on another core than what is measured."""
    os.sched_setaffinity(0, [harness.SERVER_CORE])
    with _Server(("127.0.0.1", 0), _Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _task(number: int, url: str) -> TaskResult:
    return TaskResult(f"task-{number}", TaskStatus.COMPLETED, {"videoUrl": url})


async def ours(url: str, size: int) -> dict[str, Any]:
    """Return what saving one file costs."""
    async with TaskClient("made-up-key", base_url=url) as client:
        with tempfile.TemporaryDirectory() as directory:
            await client.download(_task(0, f"{url}/{_MB}"), directory)
            return await _cost(client.download(_task(1, f"{url}/{size}"), directory))


async def bare(url: str, size: int, *, sync: bool) -> dict[str, Any]:
    """Return what a bare loop costs."""

    async def save(size: int, path: Path) -> None:
        async with session.get(f"{url}/{size}") as response:
            with path.open("wb") as file:
                async for chunk in response.content.iter_any():
                    file.write(chunk)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())

    async with aiohttp.ClientSession() as session:
        with tempfile.TemporaryDirectory() as directory:
            await save(_MB, Path(directory, "0"))
            return await _cost(save(size, Path(directory, "1")))


async def _cost(work: Any) -> dict[str, Any]:
    before = harness.memory()
    harness.reset_peak()
    started, cpu = time.monotonic(), time.process_time()
    await work
    return {
        "cpu": time.process_time() - cpu,
        "seconds": time.monotonic() - started,
        "growth": (harness.peak_memory() - before) / _MB,
    }


async def polls(
    api: str, files: str, ids: int, count: int, size: int, seconds: float
) -> dict[str, Any]:
    """Return how long it is from poll to poll, while files are saved or (`count` 0) are not."""
    interval = 5.0
    last: dict[str, float] = {}
    gaps: list[float] = []
    loop = asyncio.get_running_loop()

    def wait(state: tenacity.RetryCallState) -> float:
        now, task_id = loop.time(), state.args[0]
        if task_id in last and measuring:
            gaps.append(now - last[task_id])
        last[task_id] = now
        return interval

    measuring = False
    policy = PollPolicy(wait=wait, timeout=None)
    async with TaskClient("made-up-key", base_url=api, poll=policy) as client:
        async with client.as_completed(harness.task_ids(ids)) as stream:
            taker = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(2 * interval)
            measuring = True
            started = loop.time()
            with tempfile.TemporaryDirectory() as directory:
                if count:
                    tasks = [_task(number, f"{files}/{size}") for number in range(count)]
                    await asyncio.gather(*(client.download(task, directory) for task in tasks))
                    spent = loop.time() - started
                await asyncio.sleep(max(0.0, seconds - (loop.time() - started)))
            taker.cancel()
            await asyncio.wait([taker])
    quantiles = statistics.quantiles(gaps, n=100)
    return {
        "mean": statistics.fmean(gaps),
        "p99": quantiles[98],
        "spent": spent if count else 0.0,
    }


def run(options: argparse.Namespace, report: harness.Report) -> None:
    """Measure both parts and fill the report."""
    scale = 10 if options.quick else 1
    with file_server() as url:
        if options.only in "large":
            _run_large(options.rounds, url, 500 * 10**6 // scale, report)
        if options.only in "polls":
            _run_polls(options.rounds, url, 2000 // scale, report)


def _run_large(rounds: int, url: str, size: int, report: harness.Report) -> None:
    works: dict[str, dict[str, Any]] = {
        "ours": {},
        "bare": {"sync": False},
        "synced": {"sync": True},
    }
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in works}
    for number in range(rounds):
        for name in sorted(works, reverse=bool(number % 2)):
            harness.progress(f"{name}, round {number + 1} of {rounds}")
            measurement = "ours" if name == "ours" else "bare"
            results[name].append(harness.measure(measurement, url=url, size=size, **works[name]))
    mine, what = results["ours"], f"a file of {size / 1e6:.0f} MB"
    report.add(f"CPU of {what}", "s", [each["cpu"] for each in mine])
    for name, words in (
        ("synced", "bare aiohttp that syncs the file"),
        ("bare", "one that does not"),
    ):
        theirs = results[name]
        report.add(f"the same, {words}", "s", [each["cpu"] for each in theirs])
        report.add(
            f"against {words}",
            "x",
            [a["cpu"] / b["cpu"] for a, b in zip(mine, theirs, strict=True)],
            at_most=1.15,
        )
    report.add(f"time of {what}", "s", [each["seconds"] for each in mine])
    report.add("the same, bare aiohttp that syncs", "s", [e["seconds"] for e in results["synced"]])
    report.add(
        f"memory above the start, {what}", "MB", [each["growth"] for each in mine], at_most=8
    )


def _run_polls(rounds: int, url: str, count: int, report: harness.Report) -> None:
    without: list[dict[str, Any]] = []
    saving: list[dict[str, Any]] = []
    seconds = 15.0
    with harness.serve(polls=None) as server:
        for number in range(rounds):
            for files, results in ((0, without), (count, saving)):
                harness.progress(f"polls with {files} files, round {number + 1} of {rounds}")
                results.append(
                    harness.measure(
                        "polls",
                        api=server.url,
                        files=url,
                        ids=count,
                        count=files,
                        size=200_000,
                        seconds=seconds,
                    )
                )
    for name, word in (("mean", "mean"), ("p99", "99th percentile")):
        report.add(f"from poll to poll every 5 s, {word}", "s", [each[name] for each in without])
        report.add(
            f"the same while {count:,} files of 200 kB are saved, {word}",
            "x",
            [a[name] / b[name] for a, b in zip(saving, without, strict=True)],
            at_most=1.2,
        )
    report.add(f"time of {count:,} files of 200 kB", "s", [each["spent"] for each in saving])


if __name__ == "__main__":
    harness.main(__doc__, run, {"ours": ours, "bare": bare, "polls": polls})
