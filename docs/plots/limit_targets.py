"""Put the targets' figures into rate-discovery.md, and draw its pictures of shared limits.

python tests/benchmarks/limit_targets.py --json docs/plots/limit_targets.json
python docs/plots/limit_targets.py
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))

from limit_simulation import (  # noqa: E402 -- beside the tests that share it
    FixedWindow,
    Run,
    Throttler,
    TokenBucket,
    simulate,
)
from matplotlib import pyplot as plt  # noqa: E402 -- after the path

PAGE = ROOT / "docs" / "rate-discovery.md"
FIGURES = Path(__file__).with_suffix(".json")
STATIC = ROOT / "docs" / "_static"
COLOURS = ("tab:blue", "tab:orange", "tab:green")


def table(figures: dict[str, Any]) -> str:
    """Return the table: what is reached, with the target in brackets."""
    lines = ["| server | used | refused | Jain's index |", "| --- | --- | --- | --- |"]
    for row in figures["rows"]:
        most = "any" if row["refused_target"] == 1 else f"{100 * row['refused_target']:g}"
        fair = "" if row["fair"] is None else f"{row['fair']:.2f} ({row['fair_target']:g})"
        lines.append(
            f"| {row['name']} | {100 * row['used']:.1f} ({100 * row['used_target']:.3g}) "
            f"| {100 * row['refused']:.2f} ({most}) | {fair} |"
        )
    return "\n".join(lines)


def counts(run: Run, end: int, step: int) -> list[float]:
    """Return the requests accepted per second, in steps."""
    return [run.accepted_rate(start, start + step) for start in range(0, end, step)]


def draw(
    name: str, title: str, runs: list[Run], limit: list[tuple[float, float]], end: int, step: int
) -> None:
    """Draw what each client got, second by second, and its pauses."""
    figure, axes = plt.subplots(figsize=(9, 3), layout="constrained")
    times, rates = zip(*limit, (end, limit[-1][1]), strict=True)
    axes.step(times, rates, where="post", color="black", linestyle=":", label="the limit")
    for run, colour, number in zip(runs, COLOURS, range(1, 4), strict=False):
        label = "accepted" if len(runs) == 1 else f"client {number}"
        axes.stairs(counts(run, end, step), range(0, end + 1, step), color=colour, label=label)
        axes.plot(run.pauses, [0] * len(run.pauses), "x", color=colour, clip_on=False, markersize=5)
    axes.set_title(title, fontsize=10)
    axes.set_xlim(0, end)
    axes.set_xlabel("seconds; a cross is a refusal that pauses the client")
    axes.set_ylabel("requests per second")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper right")
    figure.savefig(STATIC / f"{name}.svg", metadata={"Date": None})


def main() -> None:
    mpl.rcParams["svg.hashsalt"] = "xai_tasks"  # the same picture from the same run
    text = PAGE.read_text(encoding="utf-8")
    made = table(json.loads(FIGURES.read_text(encoding="utf-8")))
    marks = r"(<!-- targets: [^\n]*-->\n).*?(<!-- end of targets -->)"
    text, found = re.subn(marks, lambda m: f"{m[1]}\n{made}\n\n{m[2]}", text, flags=re.DOTALL)
    assert found == 1
    PAGE.write_text(text, encoding="utf-8")

    draw(
        "rate-discovery-window",
        "NestJS's throttler: 100 requests in any 10 seconds",
        simulate(Throttler((100, 10)), duration=60, seed=1),
        [(0, 10)],
        60,
        1,
    )
    draw(
        "rate-discovery-sharing",
        "a token bucket of 200/s: a client comes after 30 s, another after 60 s, and both leave",
        simulate(
            TokenBucket(200, 50), 3, duration=240, seed=1, starts=(0, 30, 60), stops=(300, 180, 180)
        ),
        [(0, 200)],
        240,
        3,
    )
    draw(
        "rate-discovery-recovery",
        "a limit that falls from 200/s to 1/s for ten minutes",
        simulate(TokenBucket(lambda t: 1 if 60 <= t < 660 else 200, 10), duration=780, seed=1),
        [(0, 200), (60, 1), (660, 200)],
        780,
        5,
    )
    draw(
        "rate-discovery-shared-window",
        "200 requests in each 10 seconds, said by `RateLimit` headers, shared by three clients",
        simulate(FixedWindow(200, 10, headers=True), 3, duration=60, seed=1),
        [(0, 20)],
        60,
        1,
    )


if __name__ == "__main__":
    main()
