"""Seven days of 50,000 jobs with daily outages, by a fake clock: does anything grow?

    python tests/benchmarks/soak.py

One client serves a stream of jobs and, beside it, single waits and watches, as a web app makes
them. Each day the server is gone for four minutes, and some answers fail. At each midnight, when
nothing is waited for, it counts the objects of the process and the items in the containers that
hang on the client. Takes about three minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import sys
from collections import Counter, deque
from pathlib import Path
from types import FunctionType, ModuleType

sys.path.append(str(Path(__file__).parents[1]))

from fakes import FakeTransport, client_over, now, refused, run, status

from xai_tasks import PollPolicy

DAY = 86_400.0
OUTAGE = 240.0
"""Seconds; less than `max_outage`, so that every job is waited for to its end."""


NOT_OF_THE_CLIENT = type, ModuleType, FunctionType, FakeTransport


def container_items(root: object) -> int:
    """Return how many items stand in the containers that can be reached from an object."""
    seen: set[int] = set()
    stack, items = [root], 0
    while stack:
        found = stack.pop()
        if id(found) in seen or isinstance(found, NOT_OF_THE_CLIENT):
            continue
        seen.add(id(found))
        if isinstance(found, (dict, list, set, tuple, deque)):
            items += len(found)
        if type(found).__module__.startswith(("xai_tasks", "builtins", "collections")):
            stack.extend(gc.get_referents(found))
    return items


class Soak:
    """The jobs of some days, and what is left after each."""

    def __init__(self, days: int, jobs: int, seed: int) -> None:
        self.days = days
        self.jobs = jobs
        self.random = random.Random(seed)
        self.transport = FakeTransport(latency=0.2)
        self.transport.weather = self._weather
        self.ends: Counter[str] = Counter()
        self.samples: list[tuple[int, int]] = []

    def _weather(self, task_id: str) -> object:
        if now() % DAY > DAY / 2 and now() % DAY < DAY / 2 + OUTAGE:
            return refused
        if self.random.random() < 0.005:
            return self.random.choice([status(500), status(429, retry_after=2), refused])
        return None

    async def _jobs(self, day: int) -> object:
        for n in range(self.jobs):
            task_id = f"job-{day}-{n}"
            seconds = self.random.lognormvariate(3.5, 0.7)
            self.transport.add(task_id, ("processing", seconds))
            yield task_id
            await asyncio.sleep(0.9 * DAY / self.jobs)

    async def _visit(self, day: int, n: int) -> None:
        task_id = f"visit-{day}-{n}"
        self.transport.add(task_id, ("pending", 5), ("processing", 30))
        if n % 2:
            async for _ in self.client.watch(task_id, timeout=None):
                pass
        else:
            poll = PollPolicy(max_outage=None, timeout=None)
            await self.client.wait(task_id, poll=poll)
        self.ends["visits"] += 1

    async def _visits(self, day: int) -> None:
        for n in range(self.jobs // 50):
            await self._visit(day, n)
            await asyncio.sleep(0.5 * DAY / (self.jobs // 50))

    async def run(self) -> None:
        async with client_over(self.transport) as self.client:
            for day in range(self.days):
                midnight = now() + DAY
                visits = asyncio.ensure_future(self._visits(day))
                async for outcome in self.client.as_completed(self._jobs(day), timeout=None):
                    self.ends["ok" if outcome.ok else type(outcome.error).__name__] += 1
                await visits
                await asyncio.sleep(max(0.0, midnight - now()))
                self.transport.requests.clear()
                self.transport._tasks.clear()
                gc.collect()
                self.samples.append((len(gc.get_objects()), container_items(self.client)))


def soak(days: int, jobs: int, seed: int = 1) -> Soak:
    """Run the simulation."""
    simulation = Soak(days, jobs, seed)
    run(simulation.run())
    return simulation


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=50_000 // 7 + 1, help="jobs a day")
    options = parser.parse_args()
    done = soak(options.days, options.jobs)
    print(dict(done.ends))
    print("day: objects of the process, items in the client's containers")
    for day, (objects, items) in enumerate(done.samples, 1):
        print(f"{day}: {objects:,}, {items:,}")
