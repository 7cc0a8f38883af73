"""How soon a wait hears of an answer, and for how long the loop is blocked while very many wait.

Three parts. `notice`: 1,000 polls a second over 5,000 ids; the time from an answer's arrival, when
aiohttp is given its last byte, to the moment at which the coroutine that awaits it runs. `blocks`:
100,000 ids that wait, polled as fast as they come due, while another task on the loop asks to be
woken every millisecond; the longest that it was kept waiting beyond that, against a loop on which
bare requests are made for as long. `collections`: what of that is Python's garbage collector, as it
comes, with a third threshold of 1,000, and after `gc.freeze()`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import baselines
import harness
from tenacity import wait_fixed

from xai_tasks import PollPolicy, TaskClient, wait_adaptive

_TICK = 0.001


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


async def notice(url: str, count: int) -> dict[str, Any]:
    """Return the milliseconds from an answer to the coroutine that waits for it, for `count` waits
    that end at the second poll.
    """
    arrived: dict[str, float] = {}
    delays: list[float] = []

    async def at_end(
        _session: object, _context: object, params: aiohttp.TraceRequestEndParams
    ) -> None:
        arrived[params.url.query["taskId"]] = time.perf_counter()

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(at_end)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(connector=connector, trace_configs=[trace]) as session,
        TaskClient(
            "made-up-key",
            base_url=url,
            session=session,
            rate_limit=1000,
            max_concurrency=baselines.CONNECTIONS,
            poll=PollPolicy(wait=wait_fixed(2)),
        ) as client,
    ):

        async def wait(task_id: str) -> None:
            await client.wait(task_id)
            delays.append((time.perf_counter() - arrived[task_id]) * 1000)

        await asyncio.gather(*map(wait, harness.task_ids(count)))
    return {"p50": percentile(delays, 0.5), "p99": percentile(delays, 0.99), "longest": max(delays)}


@asynccontextmanager
async def watched() -> AsyncIterator[list[float]]:
    """Return the seconds by which a task that sleeps a millisecond at a time is late, each time."""
    late: list[float] = []

    async def watch() -> None:
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(_TICK)
            late.append(time.perf_counter() - begun - _TICK)

    watcher = asyncio.create_task(watch())
    try:
        yield late
    finally:
        watcher.cancel()
        await asyncio.wait([watcher])


async def _blocks(work: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
    async with watched() as late:
        await work()
    return {"longest": max(late) * 1000, "p99": percentile(late, 0.99) * 1000}


def _client(url: str) -> TaskClient:
    poll = PollPolicy(wait=wait_adaptive(interval=30), timeout=None)
    return TaskClient("made-up-key", base_url=url, max_concurrency=baselines.CONNECTIONS, poll=poll)


async def waiting(url: str, count: int, seconds: float) -> dict[str, Any]:
    """Return the loop's blocks in milliseconds: `count` ids enter `as_completed`, are
    polled for `seconds`, and leave.
    """
    ids = harness.task_ids(count)
    async with _client(url) as client:

        async def work() -> None:
            async with client.as_completed(ids, max_pending=count) as stream:
                taker = asyncio.ensure_future(anext(stream, None))
                await asyncio.wait([taker], timeout=seconds)
                assert stream.pending == count
            await asyncio.wait([taker])

        return await _blocks(work)


async def uncollected(url: str, count: int, seconds: float) -> dict[str, Any]:
    """Return the same without Python's garbage collector, to tell its part from the library's."""
    gc.disable()
    return await waiting(url, count, seconds)


async def collections(url: str, count: int, seconds: float, setting: str) -> dict[str, Any]:
    """Return the milliseconds of all garbage collections, and of the longest, while `count` ids
    enter and wait for `seconds` more.

    `full` is one of everything that is asked for at the end. The settings are `default`;
    `threshold`, which puts full collections off; and `freeze`: `gc.freeze()` once all ids wait.
    """
    spans: list[float] = []
    begun = 0.0

    def watch(phase: str, _info: dict[str, int]) -> None:
        nonlocal begun
        if phase == "start":
            begun = time.perf_counter()
        else:
            spans.append((time.perf_counter() - begun) * 1000)

    if setting == "threshold":
        gc.set_threshold(700, 10, 1000)
    gc.callbacks.append(watch)
    async with (
        _client(url) as client,
        client.as_completed(harness.task_ids(count), max_pending=count) as stream,
    ):
        taker = asyncio.ensure_future(anext(stream))
        while client.stats.polls < count:
            await asyncio.sleep(0.05)
        if setting == "freeze":
            gc.freeze()
        await asyncio.sleep(seconds)
        gc.callbacks.remove(watch)
        begun = time.perf_counter()
        gc.collect()
        full = (time.perf_counter() - begun) * 1000
        taker.cancel()
        await asyncio.wait([taker])
    return {"all": sum(spans), "longest": max(spans), "full": full}


async def gathered(url: str, count: int, seconds: float) -> dict[str, Any]:
    """Return the same for `count` calls of `wait`, begun 100 at a time as
    requests come in, and cancelled so.
    """
    async with _client(url) as client:

        async def work() -> None:
            waits = []
            for number, task_id in enumerate(harness.task_ids(count)):
                waits.append(asyncio.create_task(client.wait(task_id)))
                if number % 100 == 99:
                    await asyncio.sleep(0)
            await asyncio.sleep(seconds)
            for number, each in enumerate(waits):
                each.cancel()
                if number % 100 == 99:
                    await asyncio.sleep(0)
            await asyncio.wait(waits[-100:])
            while client.stats.waiting:
                await asyncio.sleep(0)

        return await _blocks(work)


async def bare(url: str, count: int, seconds: float) -> dict[str, Any]:
    """Return the same for bare requests over 100 connections, for as long."""
    until = time.perf_counter() + seconds
    ids = itertools.takewhile(
        lambda _: time.perf_counter() < until, itertools.cycle(harness.task_ids(count))
    )
    async with baselines.session() as session:
        return await _blocks(lambda: baselines.get_all(session, url, ids))


def run(options: argparse.Namespace, report: harness.Report) -> None:
    """Measure both parts and fill the report."""
    scale = 10 if options.quick else 1
    if options.only in "notice":
        _run_notice(options.rounds, 5_000 // scale, report)
    if options.only in "blocks":
        _run_blocks(options.rounds, 100_000 // scale, 30 / scale, report)
    if options.only in "collections":
        _run_collections(options.rounds, 100_000 // scale, 5 / scale, report)


def _run_notice(rounds: int, count: int, report: harness.Report) -> None:
    results = []
    with harness.serve(polls=2) as server:
        for number in range(rounds):
            harness.progress(f"notice, round {number + 1} of {rounds}")
            results.append(harness.measure("notice", url=server.url, count=count))
    report.add(
        "from an answer to the waiting coroutine, median", "ms", [each["p50"] for each in results]
    )
    report.add("p99 of that", "ms", [each["p99"] for each in results], at_most=5)
    report.add("longest of that", "ms", [each["longest"] for each in results])


def _run_blocks(rounds: int, count: int, seconds: float, report: harness.Report) -> None:
    variants = {
        "waiting": f"{count:,} ids in `as_completed`",
        "uncollected": f"{count:,} ids in `as_completed`, garbage collector off",
        "gathered": f"{count:,} calls of `wait`",
        "bare": "bare requests",
    }
    results: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    with harness.serve(polls=None) as server:
        for number, name in itertools.product(range(rounds), variants):
            harness.progress(f"blocks, {name}, round {number + 1} of {rounds}")
            results[name].append(
                harness.measure(name, url=server.url, count=count, seconds=seconds)
            )
    for name, what in variants.items():
        longest = [each["longest"] for each in results[name]]
        report.add(
            f"longest block of the loop, {what}",
            "ms",
            longest,
            at_most=25 if name == "waiting" else None,
        )
        report.add(
            f"p99 of what a 1 ms sleep is late, {what}",
            "ms",
            [each["p99"] for each in results[name]],
        )


def _run_collections(rounds: int, count: int, seconds: float, report: harness.Report) -> None:
    settings = {
        "default": "as it comes",
        "threshold": "`gc.set_threshold(700, 10, 1000)`",
        "freeze": "`gc.freeze()`",
    }
    results: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    with harness.serve(polls=None) as server:
        for number, name in itertools.product(range(rounds), settings):
            harness.progress(f"collections, {name}, round {number + 1} of {rounds}")
            arguments = {"url": server.url, "count": count, "seconds": seconds, "setting": name}
            results[name].append(harness.measure("collections", **arguments))
    for name, what in list(settings.items())[:2]:
        report.add(
            f"all collections, {count:,} ids entering, {what}",
            "ms",
            [each["all"] for each in results[name]],
        )
        report.add(
            f"the longest of them, {what}", "ms", [each["longest"] for each in results[name]]
        )
    for name in ("default", "freeze"):
        what = "as they come" if name == "default" else f"after {settings[name]}"
        report.add(
            f"a full collection, {count:,} ids waiting, {what}",
            "ms",
            [each["full"] for each in results[name]],
        )


if __name__ == "__main__":
    harness.main(
        __doc__,
        run,
        {
            "notice": notice,
            "waiting": waiting,
            "uncollected": uncollected,
            "gathered": gathered,
            "bare": bare,
            "collections": collections,
        },
    )
