"""What a wait costs before and while it waits: set-up time and memory, one call
of `wait` each or all in bulk.

100,000 ids, each polled once, none ended. `gather`: a call of `wait` for each under
`asyncio.gather`, task and coroutine included. `bulk`: `as_completed`; `unlimited`: the same with
`timeout=None`, where no last answer is kept. The set-up is the CPU until
the last id is in rotation, before its first poll; memory is RSS beside the ids themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import baselines
import harness

from xai_tasks import PollPolicy, TaskClient, wait_adaptive

LONG = PollPolicy(wait=wait_adaptive(interval=3600, maximum=7200), timeout=86400)
"""So rarely that each id is polled once while it is measured."""

_WARM_UP = 1000

Start = Callable[[TaskClient, list[str]], "asyncio.Future[Any]"]


def gathered(client: TaskClient, ids: list[str]) -> asyncio.Future[Any]:
    return asyncio.gather(*(client.wait(task_id) for task_id in ids))


def streamed(
    client: TaskClient, ids: list[str], timeout: float | None = LONG.timeout
) -> asyncio.Future[Any]:
    async def first() -> None:
        async for outcome in client.as_completed(ids, timeout=timeout, max_pending=len(ids)):
            raise AssertionError(outcome)

    return asyncio.ensure_future(first())


async def gather(url: str, count: int, what: str) -> dict[str, Any]:
    """Return microseconds or bytes for each call of `wait`."""
    return await _cost(url, count, what, gathered)


async def bulk(url: str, count: int, what: str) -> dict[str, Any]:
    """Return microseconds or bytes for each id in `as_completed`."""
    return await _cost(url, count, what, streamed)


async def unlimited(url: str, count: int, what: str) -> dict[str, Any]:
    """Return microseconds or bytes for each id in `as_completed` without a timeout."""
    return await _cost(url, count, what, partial(streamed, timeout=None))


async def _cost(url: str, count: int, what: str, start: Start) -> dict[str, Any]:
    cost = _set_up if what == "microseconds" else _memory
    await cost(url, harness.task_ids(_WARM_UP, count), start)
    return {what: await cost(url, harness.task_ids(count), start)}


async def _set_up(url: str, ids: list[str], start: Start) -> float:
    """Return the CPU for each id until all are in rotation; a rate limit keeps polls out of it."""
    async with TaskClient("made-up-key", base_url=url, rate_limit=100, poll=LONG) as client:
        begun = time.process_time()
        waits = start(client, ids)
        while client.stats.waiting < len(ids):
            await asyncio.sleep(0)
        seconds = time.process_time() - begun
        await _leave(waits)
    return seconds / len(ids) * 1e6


async def _memory(url: str, ids: list[str], start: Start) -> float:
    """Return the memory for each id once all have been polled."""
    async with TaskClient(
        "made-up-key", base_url=url, max_concurrency=baselines.CONNECTIONS, poll=LONG
    ) as client:
        before = harness.memory()
        waits = start(client, ids)
        while client.stats.polls < len(ids):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.1)
        held = harness.memory() - before
        await _leave(waits)
    return held / len(ids)


async def _leave(waits: asyncio.Future[Any]) -> None:
    waits.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waits


_REACH = {"gather": (20, 1600), "bulk": (6, 300), "unlimited": (6, 180)}
_CALLED = {
    "gather": "`wait` under `asyncio.gather`",
    "bulk": "`as_completed`",
    "unlimited": "`as_completed` with `timeout=None`",
}


def run(options: argparse.Namespace, report: harness.Report) -> None:
    """Measure each way to wait and fill the report."""
    count = 10_000 if options.quick else 100_000
    figures: dict[str, list[dict[str, float]]] = {
        name: [] for name in _REACH if options.only in name
    }
    with harness.serve(polls=None) as server:
        for number, (name, results) in itertools.product(range(options.rounds), figures.items()):
            harness.progress(f"{name}, round {number + 1} of {options.rounds}")
            # A process for each: what one leaves behind in memory, the other would use.
            result: dict[str, float] = {}
            for what in ("microseconds", "bytes"):
                result.update(harness.measure(name, url=server.url, count=count, what=what))
            results.append(result)
    for name, results in figures.items():
        what = f"{_CALLED[name]}, {count:,} ids"
        microseconds, size = _REACH[name]
        report.add(
            f"set-up, {what}",
            "us CPU",
            [each["microseconds"] for each in results],
            at_most=microseconds,
        )
        report.add(f"memory, {what}", "bytes", [each["bytes"] for each in results], at_most=size)


if __name__ == "__main__":
    harness.main(__doc__, run, {"gather": gather, "bulk": bulk, "unlimited": unlimited})
