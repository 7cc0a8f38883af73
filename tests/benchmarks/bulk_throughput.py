"""What whole waits in bulk cost: CPU, memory and time, against the loop that a user would write.

10,000 tasks that end at the third poll, 2 s apart, in `as_completed` and in gathered tenacity
loops, each in a process of its own; and the same with the results kept in a list, as
`wait_all` and `gather` give it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from typing import Any

import baselines
import harness
from tenacity import wait_fixed

from xai_tasks import PollPolicy, TaskClient

_MB = 2**20
_INTERVAL = 2.0


async def stream(url: str, count: int) -> dict[str, Any]:
    """Wait in `as_completed`, and keep nothing."""
    async with _client(url) as client:

        async def wait(ids: list[str]) -> None:
            async for outcome in client.as_completed(ids):
                assert outcome.ok

        return await _cost(wait, count)


async def wait_all(url: str, count: int) -> dict[str, Any]:
    """Wait in `wait_all`, and keep the list."""
    async with _client(url) as client:
        return await _cost(client.wait_all, count)


async def loops(url: str, count: int, keep: bool) -> dict[str, Any]:
    """Wait in a tenacity loop per id, gathered; keep the tasks, or nothing."""
    semaphore = asyncio.Semaphore(baselines.CONNECTIONS)
    async with baselines.session() as session:

        async def one(task_id: str) -> baselines.Task | None:
            task = await baselines.wait(session, url, task_id, semaphore, _INTERVAL)
            assert task.status == "completed"
            return task if keep else None

        async def wait(ids: list[str]) -> list[baselines.Task | None]:
            return await asyncio.gather(*map(one, ids))

        return await _cost(wait, count)


def _client(url: str) -> TaskClient:
    policy = PollPolicy(wait=wait_fixed(_INTERVAL))
    return TaskClient(
        "made-up-key", base_url=url, max_concurrency=baselines.CONNECTIONS, poll=policy
    )


async def _cost(wait: Any, count: int) -> dict[str, Any]:
    """Return the CPU per id and the growth of memory at its peak, after a warm-up."""
    ids = harness.task_ids(count)
    await wait(harness.task_ids(200, count))
    before = harness.memory()
    harness.reset_peak()
    started, cpu = time.perf_counter(), time.process_time()
    kept = await wait(ids)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    del kept
    return {
        "cpu": cpu / count * 1e6,
        "memory": (harness.peak_memory() - before) / _MB,
        "seconds": seconds,
    }


def run(options: argparse.Namespace, report: harness.Report) -> None:
    """Measure all four and fill the report."""
    count = 1_000 if options.quick else 10_000
    variants: dict[str, dict[str, Any]] = {
        "`as_completed`": {"name": "stream"},
        "loops": {"name": "loops", "keep": False},
        "`wait_all`": {"name": "wait_all"},
        "loops, kept": {"name": "loops", "keep": True},
    }
    results: dict[str, list[dict[str, float]]] = {label: [] for label in variants}
    with harness.serve(polls=3) as server:
        for number, label in itertools.product(range(options.rounds), variants):
            harness.progress(f"{label}, round {number + 1} of {options.rounds}")
            results[label].append(harness.measure(**variants[label], url=server.url, count=count))
    for ours, theirs, least_cpu, least_memory in (
        ("`as_completed`", "loops", 1.5, 5.0),
        ("`wait_all`", "loops, kept", None, None),
    ):
        for key, unit, least in (
            ("cpu", "us CPU", least_cpu),
            ("memory", "MB", least_memory),
            ("seconds", "s", None),
        ):
            columns = [[result[key] for result in results[label]] for label in (ours, theirs)]
            for label, column in zip((ours, theirs), columns, strict=True):
                report.add(f"{_WHAT[key]}, {label}", unit, column)
            if key != "seconds":
                ratios = [b / a for a, b in zip(*columns, strict=True)]
                report.add(f"{_WHAT[key]}, {theirs} against {ours}", "x", ratios, at_least=least)


_WHAT = {"cpu": "CPU per id", "memory": "peak of memory", "seconds": "time to the last"}


if __name__ == "__main__":
    harness.main(__doc__, run, {"stream": stream, "wait_all": wait_all, "loops": loops})
