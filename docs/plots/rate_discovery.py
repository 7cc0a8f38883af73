"""Draw the picture of rate-discovery.md and print its tables, from runs of the code.

python docs/plots/rate_discovery.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import matplotlib as mpl

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))

from matplotlib import pyplot as plt  # noqa: E402 -- after the path, as the lines below
from rate_simulation import (  # noqa: E402 -- beside the tests that share it
    AIMD,
    Cubic,
    Finder,
    FixedWindow,
    Noise,
    Run,
    Server,
    SlidingWindow,
    TokenBucket,
    simulate,
)

from xai_tasks._limits.rate_finder import RateFinder  # noqa: E402 -- what is drawn, without a client around it

STATIC = ROOT / "docs" / "_static"
SEED = 3
SEEDS = range(7)
FINDERS: dict[str, tuple[type[Finder], str]] = {
    "plain AIMD": (AIMD, "tab:orange"),
    "CUBIC": (Cubic, "tab:gray"),
    "xai_tasks": (RateFinder, "tab:blue"),
}


class Scene(NamedTuple):
    """A server and its clients."""

    server: Callable[[], Server]
    limit: float  # requests per second, in the measured span
    start: float  # seconds: the measured span
    end: float
    clients: int = 1
    noise: Noise = Noise()

    def play(self, finder: type[Finder], seed: int) -> list[Run]:
        clients = [finder() for _ in range(self.clients)]
        return simulate(self.server(), clients, duration=self.end, seed=seed, noise=self.noise)


def bucket(rate: float, burst: float, *, then: float | None = None) -> Callable[[], Server]:
    """Return a token bucket whose rate may change after 30 s."""
    return lambda: TokenBucket(lambda time: rate if then is None or time < 30 else then, burst)


BUCKETS = {
    "200/s, burst 200, from 10 to 50 s": Scene(bucket(200, 200), 200, 10, 50),
    "200/s, burst 10, from 10 to 50 s": Scene(bucket(200, 10), 200, 10, 50),
    "the same, from 10 to 300 s": Scene(bucket(200, 10), 200, 10, 300),
    "the same, halved, from 10 to 60 s after": Scene(bucket(200, 10, then=100), 100, 40, 90),
    "the same, doubled, from 60 to 120 s after": Scene(bucket(200, 10, then=400), 400, 90, 150),
    "nginx `rate=20r/s`, `burst=5 nodelay`, from 60 to 300 s": Scene(bucket(20, 6), 20, 60, 300),
}
OTHERS = {
    "600 in each minute, fixed window": Scene(lambda: FixedWindow(600, 60), 10, 60, 900),
    "the same, but 429s say `Retry-After: 1`": Scene(
        lambda: FixedWindow(600, 60, retry_after=1), 10, 60, 900
    ),
    "600 in any 60 s, sliding window": Scene(lambda: SlidingWindow(600, 60), 10, 60, 900),
    "1,000 in each 10 s, fixed window": Scene(lambda: FixedWindow(1000, 10), 100, 10, 120),
    "1,000 in any 10 s, sliding window": Scene(lambda: SlidingWindow(1000, 10), 100, 10, 120),
    "100 in each second, fixed window": Scene(lambda: FixedWindow(100, 1), 100, 10, 120),
    "100 in any second, sliding window": Scene(lambda: SlidingWindow(100, 1), 100, 10, 120),
    "200/s, burst 10, three clients with one key": Scene(bucket(200, 10), 200, 20, 180, clients=3),
    "200/s, burst 10, answers after 1 to 100 ms": Scene(
        bucket(200, 10), 200, 10, 60, noise=Noise(latency=(0.001, 0.1))
    ),
    "200/s, burst 10, event loop stalls 5 times a second": Scene(
        bucket(200, 10), 200, 10, 60, noise=Noise(stalls=5)
    ),
    "200/s, burst 10, server stalls every other second": Scene(
        bucket(200, 10), 200, 10, 60, noise=Noise(server_stalls=0.5)
    ),
}


def cell(scene: Scene, finder: type[Finder]) -> str:
    """Return per cent of the limit used and of answers that were 429s: medians over the seeds."""
    used, refused = [], []
    for seed in SEEDS:
        runs = scene.play(finder, seed)
        accepts = sum(scene.start <= time < scene.end for run in runs for time in run.accepts)
        rejects = sum(scene.start <= time < scene.end for run in runs for time in run.rejects)
        used.append(100 * accepts / (scene.limit * (scene.end - scene.start)))
        refused.append(100 * rejects / max(1, accepts + rejects))
    return f"{median(used):.1f}, {median(refused):.2f}"


def table(scenes: dict[str, Scene]) -> str:
    lines = [f"| server | {' | '.join(FINDERS)} |", "| --- |" + " --- |" * len(FINDERS)]
    for name, scene in scenes.items():
        cells = " | ".join(cell(scene, finder) for finder, _ in FINDERS.values())
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def draw_halving() -> None:
    """Draw what each finder offers, and what is accepted in each second, at a limit that halves."""
    scene = Scene(bucket(200, 10, then=100), 100, 0, 80)
    figure, axes = plt.subplots(
        len(FINDERS), 1, figsize=(9, 7), sharex=True, sharey=True, layout="constrained"
    )
    for axis, (name, (finder, colour)) in zip(axes, FINDERS.items(), strict=True):
        (run,) = scene.play(finder, SEED)
        changes = [(0.0, 1e9), *run.paces]
        changes = [each for last, each in pairwise(changes) if each[1] != last[1]]
        times, rates = zip(*changes, (80, changes[-1][1]), strict=True)
        axis.step(
            [0, 30, 80],
            [200, 100, 100],
            where="post",
            color="black",
            linestyle=":",
            label="the limit",
        )
        axis.step(times, rates, where="post", color=colour, linewidth=0.8, label="offered")
        counts = [run.accepted_rate(second, second + 1) for second in range(80)]
        axis.stairs(
            counts, range(81), fill=True, alpha=0.35, color=colour, label="accepted in each second"
        )
        axis.plot(
            run.pauses,
            [0] * len(run.pauses),
            "x",
            color="tab:red",
            clip_on=False,
            label="429 and pause",
        )
        axis.set_title(
            f"{name}: {sum(counts[10:]) / (20 * 200 + 50 * 100):.0%} of the limit from 10 s on",
            fontsize=10,
        )
        axis.grid(alpha=0.3)
    axes[0].set_xlim(0, 80)
    axes[0].set_ylim(0, 320)
    axes[0].legend(fontsize=8, ncols=4, loc="upper right")
    figure.supxlabel("seconds")
    figure.supylabel("requests per second")
    figure.savefig(STATIC / "rate-discovery-halving.svg", metadata={"Date": None})


if __name__ == "__main__":
    mpl.rcParams["svg.hashsalt"] = "xai_tasks"  # the same picture from the same run
    draw_halving()
    print(table(BUCKETS), table(OTHERS), sep="\n\n")
