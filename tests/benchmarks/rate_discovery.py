"""How much of a server's rate limit is used, and how many requests it answers 429,
where no limit is configured.

10,000 ids of tasks that have ended, against a token bucket that answers 429 with `Retry-After: 1`.
What the server let through, and what not, is the server's own count. The same with plain AIMD in
place of the library's finder, and with one that was told the limit: more than that one, no client
can use on this machine. The three go on at once: they mostly sleep, and so meet the same noise.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import math
import sys
from pathlib import Path
from typing import Any

import baselines
import harness

import xai_tasks._limits.throttle
from xai_tasks import TaskClient

sys.path.append(str(Path(__file__).parents[1]))
from rate_simulation import AIMD  # noqa: E402 -- the simulation of the same, beside its tests

_FINDERS = {"found": "xai_tasks", "aimd": "plain AIMD", "told": "told the limit"}

_SCENES: dict[str, dict[str, Any]] = {
    "200/s, burst 200": {
        "limit": {"rate": 200, "burst": 200},
        "after": 10,
        "used": 0.95,
        "refused": 0.01,
    },
    "200/s, burst 10": {
        "limit": {"rate": 200, "burst": 10},
        "after": 10,
        "used": 0.95,
        "refused": 0.02,
    },
    "200/s, burst 10, halved after 20 s": {
        "limit": {"rate": 200, "burst": 10, "halves_after": 20},
        "after": 30,
        "used": 0.95,
        "refused": 0.02,
    },
}
"""The limit, the seconds from the first request after which is counted, and what is to be reached.
"""


class Told:
    """Paces requests at 99 % of a limit that it knows."""

    def __init__(self, rate: float, burst: float, halves_after: float = math.inf) -> None:
        """Take the arguments of `harness.Limit`."""
        self._rates = (0.99 * rate, 0.99 * rate / 2)
        self._halves_after = halves_after
        self._started: float | None = None
        self.rate = self._rates[0]
        self.burst = 0.7 * burst

    def accepted(self, now: float) -> None:
        pass

    def rejected(self, now: float, sent: float, pause: float) -> bool:
        return True

    def pace(self, now: float) -> float:
        if self._started is None:
            self._started = now
        self.rate = self._rates[now >= self._started + self._halves_after]
        return self.rate


async def found(url: str, count: int, limit: dict[str, float]) -> dict[str, Any]:
    """Wait for `count` ids with the library's own finder."""
    ids = harness.task_ids(count)
    async with TaskClient(
        "made-up-key", base_url=url, max_concurrency=baselines.CONNECTIONS
    ) as client:
        outcomes = [outcome async for outcome in client.as_completed(ids, timeout=None)]
    assert len(outcomes) == count
    assert all(outcome.ok for outcome in outcomes)
    return {}


async def aimd(url: str, count: int, limit: dict[str, float]) -> dict[str, Any]:
    """Wait for `count` ids with AIMD."""
    xai_tasks._limits.throttle.RateFinder = AIMD
    return await found(url, count, limit)


async def told(url: str, count: int, limit: dict[str, float]) -> dict[str, Any]:
    """Wait for `count` ids with the limit known."""
    xai_tasks._limits.throttle.RateFinder = functools.partial(Told, **limit)
    return await found(url, count, limit)


def run(options: argparse.Namespace, report: harness.Report) -> None:
    """Measure each scene with each finder and fill the report."""
    count = 8_000 if options.quick else 10_000
    scenes = {name: scene for name, scene in _SCENES.items() if options.only in name}
    counts: dict[tuple[str, str], list[dict[str, Any]]] = {
        key: [] for key in itertools.product(scenes, _FINDERS)
    }
    for number, (name, scene) in itertools.product(range(options.rounds), scenes.items()):
        harness.progress(f"{name}, round {number + 1} of {options.rounds}")
        for finder, result in _round(scene["limit"], count).items():
            counts[name, finder].append(result)
    for (name, finder), rounds in counts.items():
        _add(f"{name}, {_FINDERS[finder]}", scenes[name], rounds, report, judged=finder == "found")


def _round(limit: dict[str, float], count: int) -> dict[str, dict[str, Any]]:
    """Return what the servers counted while a client of each finder ran."""
    with contextlib.ExitStack() as stack:
        servers = {
            finder: stack.enter_context(harness.serve(polls=1, limit=limit)) for finder in _FINDERS
        }
        children = {}
        for finder, server in servers.items():
            arguments = {"url": server.url, "count": count, "limit": limit}
            children[finder] = stack.enter_context(harness.Child(finder, arguments, pinned=False))
        for child in children.values():
            child.result()
        return {finder: server.stop() for finder, server in servers.items()}


def _add(
    label: str,
    scene: dict[str, Any],
    rounds: list[dict[str, list[float]]],
    report: harness.Report,
    *,
    judged: bool,
) -> None:
    limit, after = scene["limit"], scene["after"]
    rate = limit["rate"] / (2 if after > limit.get("halves_after", math.inf) else 1)
    used, refused = [], []
    for each in rounds:
        accepted, rejected = (
            [time for time in each[kind] if time >= after] for kind in ("accepted", "rejected")
        )
        used.append(100 * len(accepted) / (rate * (each["accepted"][-1] - after)))
        refused.append(100 * len(rejected) / (len(accepted) + len(rejected)))
    since = f"from {after} s on"
    report.add(
        f"{label}: used of {rate:g}/s {since}",
        "%",
        used,
        at_least=100 * scene["used"] if judged else None,
    )
    report.add(
        f"{label}: 429s {since}", "%", refused, at_most=100 * scene["refused"] if judged else None
    )


if __name__ == "__main__":
    harness.main(__doc__, run, {"found": found, "aimd": aimd, "told": told})
