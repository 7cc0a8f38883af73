"""What an id that waits holds in memory, and that a million of them pass through a flat one.

Two parts. `waiting`: 100,000 ids of which each has been polled once and none has ended, in
`as_completed` and, for comparison, in a coroutine each that sleeps in tenacity. `passing`:
1,000,000 ids from an async generator, tasks already ended, at most 10,000 in rotation,
against a run of 10,000 ids.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import baselines
import harness
import waiting_cost

from xai_tasks import TaskClient

_WARM_UP = 1000
_MB = 2**20


async def waiting(url: str, count: int) -> dict[str, Any]:
    """Return the bytes that each id in `as_completed` holds beside itself."""
    ids = harness.task_ids(count)
    async with TaskClient(
        "made-up-key", base_url=url, max_concurrency=baselines.CONNECTIONS, poll=waiting_cost.LONG
    ) as client:
        polled = await _until_polled(client, harness.task_ids(_WARM_UP, count), 0)
        before = harness.memory()
        held = await _until_polled(client, ids, polled, measured=True)
    return {"bytes": (held - before) / count}


async def _until_polled(
    client: TaskClient, ids: list[str], polled: int, *, measured: bool = False
) -> int:
    """Poll each id once; return the number of polls, or `measured` the
    memory while all of them wait.
    """
    async with client.as_completed(ids, max_pending=len(ids)) as stream:
        taker = asyncio.ensure_future(anext(stream))
        while client.stats.polls < polled + len(ids):
            await asyncio.sleep(0.05)
        assert stream.pending == client.stats.waiting == len(ids)
        figure = harness.memory() if measured else client.stats.polls
        taker.cancel()
        await asyncio.wait([taker])
    return figure


async def coroutines(url: str, count: int) -> dict[str, Any]:
    """Return the bytes that each id holds beside itself in a sleeping coroutine."""
    ids = harness.task_ids(count)
    semaphore = asyncio.Semaphore(baselines.CONNECTIONS)
    polled = 0

    class Http:
        """The session, counted."""

        def get(self, url: str) -> Any:
            nonlocal polled
            polled += 1
            return session.get(url)

    async def hold(ids: list[str]) -> int:
        nonlocal polled
        polled = 0
        waits = [
            asyncio.ensure_future(baselines.wait(Http(), url, i, semaphore, 3600.0)) for i in ids
        ]
        while polled < len(ids):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)  # the last answers
        held = harness.memory()
        for each in waits:
            each.cancel()
        await asyncio.wait(waits)
        return held

    async with baselines.session() as session:
        await hold(harness.task_ids(_WARM_UP, count))
        before = harness.memory()
        held = await hold(ids)
    return {"bytes": (held - before) / count}


async def passing(url: str, count: int, max_pending: int) -> dict[str, Any]:
    """Return the peak of memory while `count` ids pass; each must come out once."""
    seen = bytearray(count)

    async def source() -> AsyncIterator[str]:
        for number in range(count):
            yield harness.task_id(number)

    async with TaskClient(
        "made-up-key", base_url=url, max_concurrency=baselines.CONNECTIONS
    ) as client:
        before = harness.memory()
        harness.reset_peak()
        async with client.as_completed(source(), max_pending=max_pending) as stream:
            async for outcome in stream:
                assert outcome.ok
                assert outcome.task_id == harness.task_id(outcome.index)
                seen[outcome.index] += 1
        assert seen == b"\x01" * count
        return {"growth": harness.peak_memory() - before, "seen": sum(seen)}


def run(options: argparse.Namespace, report: harness.Report) -> None:
    """Measure both parts and fill the report."""
    scale = 10 if options.quick else 1
    if options.only in "waiting":
        _run_waiting(options.rounds, 100_000 // scale, report)
    if options.only in "passing":
        _run_passing(1_000_000 // scale, report)


def _run_waiting(rounds: int, count: int, report: harness.Report) -> None:
    figures: dict[str, list[float]] = {"waiting": [], "coroutines": []}
    with harness.serve(polls=None) as server:
        for number, name in itertools.product(range(rounds), figures):
            harness.progress(f"{name}, round {number + 1} of {rounds}")
            figures[name].append(harness.measure(name, url=server.url, count=count)["bytes"])
    ours, theirs = figures["waiting"], figures["coroutines"]
    report.add(f"an id in `as_completed`, {count:,} waiting", "bytes", ours, at_most=800)
    report.add(f"a sleeping coroutine per id, {count:,} waiting", "bytes", theirs)
    report.add(
        "a coroutine against an id in `as_completed`",
        "x",
        [b / a for a, b in zip(ours, theirs, strict=True)],
    )


def _run_passing(count: int, report: harness.Report) -> None:
    few = 10_000
    peaks = {}
    with harness.serve(polls=1) as server:
        for ids in (few, count):
            harness.progress(f"{ids:,} ids passing")
            result = harness.measure("passing", url=server.url, count=ids, max_pending=few)
            peaks[ids] = result["growth"] / _MB
            assert result["seen"] == ids
    # One round: it is a bound on a peak, and a run of minutes has met every
    # moment that a round could.
    report.add(f"peak of {few:,} ids passing", "MB", [peaks[few]])
    report.add(f"peak of {count:,} ids passing, each seen once", "MB", [peaks[count]])
    report.add("the difference", "MB", [peaks[count] - peaks[few]], at_most=60)


if __name__ == "__main__":
    harness.main(__doc__, run, {"waiting": waiting, "coroutines": coroutines, "passing": passing})
