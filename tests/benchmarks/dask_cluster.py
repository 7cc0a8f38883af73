"""What a cluster on one machine gives over one process: ids per second and
CPU, with 1, 2 and 4 workers.

Tasks have ended at their first poll, so nothing is waited for but the work itself. The workers'
cluster is made and warmed up before the clock starts. CPU is user and system of all processes that
wait: of the one that reads the stream, which is Dask's scheduler too here, and of the workers. The
server, on a core of its own where there are two, is not counted.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import baselines
import harness
from distributed import Client, LocalCluster

from xai_tasks import TaskClient
from xai_tasks.dask import as_completed

_WARM_UP = 500


async def alone(url: str, count: int) -> dict[str, Any]:
    """Wait in one process without Dask."""
    async with TaskClient(
        "made-up-key", base_url=url, max_concurrency=baselines.CONNECTIONS
    ) as client:

        async def wait(ids: list[str]) -> None:
            async for outcome in client.as_completed(ids):
                assert outcome.ok

        await wait(harness.task_ids(_WARM_UP, count))
        started, cpu = time.perf_counter(), time.process_time()
        await wait(harness.task_ids(count))
        return _figures(count, time.perf_counter() - started, time.process_time() - cpu, 0.0)


async def cluster(url: str, count: int, workers: int) -> dict[str, Any]:
    """Wait on a cluster of `workers` processes."""
    anywhere = "127.0.0.1:0"
    async with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            asynchronous=True,
            host="127.0.0.1",
            dashboard_address=anywhere,
            worker_dashboard_address=anywhere,
        ) as local,
        Client(local, asynchronous=True) as client,
    ):
        options = {
            "api_key": "made-up-key",
            "base_url": url,
            "max_concurrency": baselines.CONNECTIONS,
        }

        async def wait(ids: list[str]) -> None:
            async for outcome in as_completed(ids, client=client, **options):
                assert outcome.ok

        async def on_workers() -> float:
            return sum((await client.run(time.process_time)).values())

        await wait(harness.task_ids(_WARM_UP, count))
        theirs, started, ours = await on_workers(), time.perf_counter(), time.process_time()
        await wait(harness.task_ids(count))
        seconds, ours = time.perf_counter() - started, time.process_time() - ours
        return _figures(count, seconds, ours, await on_workers() - theirs)


def _figures(count: int, seconds: float, reader: float, workers: float) -> dict[str, float]:
    return {
        "ids per second": count / seconds,
        "CPU per id": (reader + workers) / count * 1e6,
        "CPU per id, the reader's part": reader / count * 1e6,
    }


_VARIANTS: dict[str, dict[str, Any]] = {
    "one process": {"name": "alone"},
    "1 worker": {"name": "cluster", "workers": 1},
    "2 workers": {"name": "cluster", "workers": 2},
    "4 workers": {"name": "cluster", "workers": 4},
}


def run(options: argparse.Namespace, report: harness.Report) -> None:
    """Measure all by turns and fill the report."""
    count = 20_000 // (10 if options.quick else 1)
    variants = {label: variant for label, variant in _VARIANTS.items() if options.only in label}
    results: dict[str, list[dict[str, float]]] = {label: [] for label in variants}
    with harness.serve(polls=1) as server:
        for number, label in itertools.product(range(options.rounds), variants):
            harness.progress(f"{label}, round {number + 1} of {options.rounds}")
            arguments = {**variants[label], "url": server.url, "count": count}
            name = arguments.pop("name")
            with harness.Child(name, arguments, pinned=False) as child:
                results[label].append(child.result())
    for what, unit in (
        ("ids per second", "/s"),
        ("CPU per id", "us CPU"),
        ("CPU per id, the reader's part", "us CPU"),
    ):
        for label, rounds in results.items():
            at_most = 150 if (what, label) == ("CPU per id", "1 worker") else None
            values = [figures[what] for figures in rounds]
            report.add(f"{what}, {label}", unit, values, at_most=at_most)


if __name__ == "__main__":
    harness.main(__doc__, run, {"alone": alone, "cluster": cluster})
