"""What a poll costs, and how late it is, while more and more ids wait: 1,000 to 1,000,000.

All have been polled once. Then each is polled again and again at a fixed interval, long enough that
there are 2,000 polls a second in all, however many ids wait. CPU is that of the client's process
for a poll, over some seconds. A poll is late by the time since the id's last answer, less the
interval; the request itself is part of it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from typing import Any

import baselines
import harness
from latency import percentile
from tenacity import RetryCallState

from xai_tasks import PollPolicy, TaskClient

_RATE = 2000
_COUNTS = (1_000, 10_000, 100_000, 1_000_000)


class Evenly:
    """A wait strategy: polls spread over the interval, and then one in each."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.late: list[float] = []
        """The seconds by which each poll came late."""

    def __call__(self, state: RetryCallState) -> float:
        if state.attempt_number == 1:
            return self.interval * random.random()
        if state.attempt_number > 2:  # before, it was not this interval that passed
            self.late.append(state.upcoming_sleep - self.interval)
        return self.interval


async def polls(url: str, count: int, seconds: float) -> dict[str, Any]:
    """Return the microseconds of CPU of a poll while `count` ids wait, how many
    there were in a second, and the p50 and p99 by which they were late, in milliseconds.
    """
    strategy = Evenly(count / _RATE)
    poll = PollPolicy(wait=strategy, timeout=86400)
    async with TaskClient(
        "made-up-key", base_url=url, max_concurrency=baselines.CONNECTIONS, poll=poll
    ) as client:
        ids = map(harness.task_id, range(count))
        async with client.as_completed(ids, max_pending=count) as stream:
            reader = asyncio.ensure_future(anext(stream, None))
            while client.stats.polls < count:
                await asyncio.sleep(0.05)
            # Each id of the short intervals is polled once more, and what came due meanwhile.
            await asyncio.sleep(max(2.0, min(2 * strategy.interval, 12.0)))
            idle = 0
            while idle < 20:
                await asyncio.sleep(0.05)
                idle = idle + 1 if client.stats.in_flight < baselines.CONNECTIONS else 0
            strategy.late.clear()
            before, began, spent = client.stats.polls, time.perf_counter(), time.process_time()
            await asyncio.sleep(seconds)
            spent, wall = time.process_time() - spent, time.perf_counter() - began
            made, late = client.stats.polls - before, strategy.late
        await asyncio.wait([reader])
    figures = {"CPU": spent / made * 1e6, "rate": made / wall}
    if late:
        figures |= {"p50": percentile(late, 0.5) * 1e3, "p99": percentile(late, 0.99) * 1e3}
    return figures


def run(options: argparse.Namespace, report: harness.Report) -> None:
    """Measure by turns and fill the report; the million once in five rounds."""
    scale = 10 if options.quick else 1
    counts = [count // scale for count in _COUNTS]
    results: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    with harness.serve(polls=None) as server:
        for number in range(options.rounds):
            for count in counts:
                if count == counts[-1] and number % 5:
                    continue
                harness.progress(f"{count:,} ids, round {number + 1} of {options.rounds}")
                seconds = 10 / scale
                figures = harness.measure("polls", url=server.url, count=count, seconds=seconds)
                results[count].append(figures)
    for count, rounds in results.items():
        report.add(f"a poll, {count:,} ids waiting", "us CPU", [each["CPU"] for each in rounds])
    for count, rounds in results.items():
        report.add(f"polls, {count:,} ids waiting", "/s", [each["rate"] for each in rounds])
    medians = [
        harness.spread([each["CPU"] for each in rounds]).median for rounds in results.values()
    ]
    report.add(
        "the dearest of these polls against the cheapest",
        "x",
        [max(medians) / min(medians)],
        at_most=1.15,
    )
    for count in counts[:2]:  # of more ids none comes due twice while it is measured
        at_most = 20 if count == 10_000 else None
        late = [each["p50"] for each in results[count]]
        report.add(f"how late a due poll is, {count:,} ids, median", "ms", late)
        late = [each["p99"] for each in results[count]]
        report.add(f"how late a due poll is, {count:,} ids, p99", "ms", late, at_most=at_most)


if __name__ == "__main__":
    harness.main(__doc__, run, {"polls": polls})
