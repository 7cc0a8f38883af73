"""How much of each kind of limit is used, and how many requests are refused: in virtual time.

Each row is a server of `limit_simulation.py` and what is to be reached on it. `--json FILE` keeps
the figures, from which `docs/plots/rate_discovery.py` makes the table of `rate-discovery.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).parents[1]))
from limit_simulation import (  # noqa: E402 -- beside its tests
    Concurrency,
    FixedWindow,
    Nginx,
    Noise,
    OneBadId,
    RandomFaults,
    Server,
    Throttler,
    TokenBucket,
    jain,
    simulate,
)

FAR = Noise(latency=(0.05, 0.06))


class Row(NamedTuple):
    """A server, and what is to be reached on it from `start` to `end` seconds."""

    name: str
    server: Callable[[], Server]
    limit: float | None  # requests per second; None: what the same client reaches without it
    start: float
    end: float
    used: float
    refused: float
    clients: int = 1
    fair: float | None = None  # Jain's index, over the minute from `start` on
    starts: tuple[float, ...] = ()
    noise: Noise = Noise()
    ids: int = 0


def steps(*changes: tuple[float, float]) -> Callable[[float], float]:
    """Return a rate that changes at times."""

    def rate(now: float) -> float:
        return [value for time, value in changes if now >= time][-1]

    return rate


def bucket(rate: int, burst: int, used: float, start: float = 60, end: float = 200) -> Row:
    name = f"token bucket, {rate}/s, burst {burst}"
    return Row(name, lambda: TokenBucket(rate, burst), rate, start, end, used, 0.02)


def nginx(status: int, rate: int, burst: int) -> Row:
    even = 0.95 * 0.95  # of an even pacer at 95 % of the limit
    name = f"nginx `limit_req`, {status}, {rate}/s, burst {burst}"
    server = lambda: Nginx(rate, burst, status=status)  # noqa: E731
    used, refused = (0.93, 0.02) if burst else (even, 0.03)
    return Row(name, server, rate, 30, 200, used, refused)


def changing(name: str, limit: float, start: float, *changes: tuple[float, float]) -> Row:
    server = lambda: TokenBucket(steps(*changes), 10)  # noqa: E731
    return Row(name, server, limit, start, start + 60, 0.9, 0.02)


ROWS = [
    *(bucket(rate, burst, 0.93) for burst in (2, 10, 200) for rate in (5, 50, 500)),
    *(bucket(rate, 1, 0.86) for rate in (5, 50, 200)),
    *(nginx(status, rate, burst) for status in (503, 429) for rate in (20, 50) for burst in (0, 5)),
    Row(
        "fixed window, 100 in 10 s, `RateLimit` headers, from the first request on",
        lambda: FixedWindow(100, 10, headers=True), 10, 0, 120, 0.95, 0.01,
    ),
    Row("NestJS, 100 in 10 s", lambda: Throttler((100, 10)), 10, 60, 600, 0.9, 0.01),
    Row("NestJS, 600 in 60 s", lambda: Throttler((600, 60)), 10, 180, 900, 0.9, 0.01),
    Row(
        "NestJS, 10 in 1 s and 100 in 60 s",
        lambda: Throttler((10, 1), (100, 60)), 100 / 60, 120, 900, 0.9, 0.01,
    ),
    Row(
        "NestJS, 100 in 10 s, without its headers but `Retry-After`",
        lambda: Throttler((100, 10), headers=False), 10, 60, 900, 0.9, 0.01,
    ),
    *(
        Row(
            f"{100 * share:g} % of answers {status} at random",
            lambda share=share, status=status: RandomFaults(share, status),
            None, 60, 90, 0.6, 1, noise=FAR,
        )
        for share, status in ((0.3, 503), (0.01, 429))
    ),
    *(
        Row(
            f"at most {limit} in flight",
            lambda limit=limit: Concurrency(limit, 0.05), limit / 0.052, 60, 200, 0.85, 0.03,
        )
        for limit in (5, 20)
    ),
    *(
        Row(
            f"one id of 2,000 always 429{text}",
            lambda pause=pause: OneBadId(pause), None, start, start + 60, 0.95, 1,
            noise=FAR, ids=2000,
        )
        for text, pause, start in (("", None, 30), (", `Retry-After: 30`", 30.0, 120))
    ),
    *(
        Row(
            f"{clients} clients, {text}",
            server, limit, 60, 240, 0.9, 0.03, clients=clients, fair=0.95,
        )
        for clients in (3, 8)
        for text, server, limit in (
            ("token bucket, 200/s, burst 10", lambda: TokenBucket(200, 10), 200),
            ("window, 200 in 10 s", lambda: FixedWindow(200, 10), 20),
            ("window, 200 in 10 s, headers", lambda: FixedWindow(200, 10, headers=True), 20),
        )
    ),
    *(
        Row(
            f"{clients} clients that come within 30 s, token bucket, 200/s, burst 50",
            lambda: TokenBucket(200, 50), 200, 90, 240, 0.9, 0.03, clients=clients, fair=0.95,
            starts=tuple(30 * n / (clients - 1) for n in range(clients)),
        )
        for clients in (3, 8)
    ),
    changing("halves: from 30 s after", 100, 90, (0, 200), (60, 100)),
    changing("doubles: from 60 s after", 400, 120, (0, 200), (60, 400)),
    changing("nothing for 600 s: from 60 s after", 200, 720, (0, 200), (60, 0), (660, 200)),
    changing("1/s for 600 s: from 60 s after", 200, 720, (0, 200), (60, 1), (660, 200)),
]  # fmt: skip


def measure(row: Row, seeds: int) -> dict[str, Any]:
    """Return medians over the seeds."""
    used, refused, fair = [], [], []
    for seed in range(seeds):
        options: dict[str, Any] = {"duration": row.end, "seed": seed}
        options |= {"noise": row.noise, "ids": row.ids}
        limit = row.limit
        if limit is None:
            limit = simulate(Server(), **options)[0].accepted_rate(row.start, row.end)
        runs = simulate(row.server(), row.clients, starts=row.starts, **options)
        accepted = sum(run.accepted_rate(row.start, row.end) for run in runs)
        used.append(accepted / limit)
        rejects = sum(row.start <= time < row.end for run in runs for time in run.rejects)
        refused.append(rejects / (rejects + accepted * (row.end - row.start)))
        fair.append(jain([run.accepted_rate(row.start, row.start + 60) for run in runs]))
    return {
        "name": row.name,
        "used": median(used),
        "used_target": row.used,
        "refused": median(refused),
        "refused_target": row.refused,
        "fair": None if row.fair is None else median(fair),
        "fair_target": row.fair,
    }


def reached(figures: dict[str, Any]) -> bool:
    """Return whether all targets of a row are reached."""
    return (
        figures["used"] >= figures["used_target"]
        and figures["refused"] <= figures["refused_target"]
        and (figures["fair"] is None or figures["fair"] >= figures["fair_target"])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    options = parser.parse_args()
    results = []
    for row in ROWS:
        if options.only in row.name:
            figures = measure(row, options.seeds)
            results.append(figures)
            shown = " ".join(f"{key} {figures[key]}" for key in ("used", "refused", "fair"))
            print("  " if reached(figures) else "! ", row.name, shown, flush=True)
    if options.json is not None:
        text = json.dumps({"seeds": options.seeds, "rows": results}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
