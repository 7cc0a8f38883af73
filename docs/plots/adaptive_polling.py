"""Draw the pictures of adaptive-polling.md from runs of the code.

python docs/plots/adaptive_polling.py
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import matplotlib as mpl

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))

from adaptive_simulation import durations, simulate  # noqa: E402 -- beside the tests that share it
from matplotlib import pyplot as plt  # noqa: E402 -- after the path, as the line above
from tenacity import wait_exponential, wait_fixed  # noqa: E402

from xai_tasks import wait_adaptive  # noqa: E402

STATIC = ROOT / "docs" / "_static"
COUNT = 6000
SEED = 7

SPREADS = {
    "lognormal 45 s, sigma 0.25": "lognormal, sigma 0.25",
    "lognormal 45 s, sigma 0.5": "lognormal, sigma 0.5",
    "lognormal 45 s, sigma 1.0": "lognormal, sigma 1",
    "two humps, 15 % near 4 s, 85 % near 60 s": "15 % near 4 s, 85 % near 60 s",
}
POLICIES = {
    "exponential, x 1.5": lambda seconds: wait_exponential(
        multiplier=1, exp_base=1.5, max=2 * seconds
    ),
    "fixed interval": wait_fixed,
    "wait_adaptive": wait_adaptive,
}
INTERVALS = (3.0, 4.0, 5.0, 6.5, 8.0, 10.0, 13.0)
COLOURS = ("tab:orange", "tab:gray", "tab:blue")


def draw_trade_off() -> None:
    """Draw mean delay against mean polls, a curve for each policy."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 7), sharex=True, layout="constrained")
    for axis, (name, title) in zip(axes.flat, SPREADS.items(), strict=True):
        lengths = durations(name, COUNT, SEED)
        for (label, policy), colour in zip(POLICIES.items(), COLOURS, strict=True):
            random.seed(SEED)
            runs = [simulate(policy(seconds), lengths) for seconds in INTERVALS]
            axis.plot(
                [run.mean_polls for run in runs],
                [run.mean_delay for run in runs],
                "o-",
                markersize=3,
                label=label,
                color=colour,
            )
        axis.set_title(title, fontsize=10)
        axis.set_ylim(0, 7)
        axis.grid(alpha=0.3)
    figure.supxlabel("polls for each task, after the first poll")
    figure.supylabel("mean seconds from a task's end to the poll that finds it")
    axes[0, 0].set_xlim(3, 18)
    axes[0, 0].legend(fontsize=9)
    figure.savefig(STATIC / "adaptive-polling-trade-off.svg", metadata={"Date": None})


def draw_placement() -> None:
    """Draw when 1,500 tasks are polled, and when they end."""
    name = "two humps, 15 % near 4 s, 85 % near 60 s"
    lengths = durations(name, 3000, SEED)
    random.seed(SEED)
    strategy = wait_adaptive()
    simulate(strategy, lengths[:1500])
    created = [1000.0 * number for number in range(1500)]
    run = simulate(strategy, lengths[1500:], created)
    ages = [time % 1000.0 for time in run.times]
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 5), sharex=True, layout="constrained")
    edges = [0.5 * number for number in range(241)]
    above.hist(lengths[1500:], edges, histtype="stepfilled", color="tab:gray")
    above.set_ylabel("tasks that end")
    below.hist(ages, edges, histtype="stepfilled", color="tab:blue")
    below.set_ylabel("polls")
    below.set_xlabel("age of the task, seconds")
    below.set_xlim(0, 120)
    figure.savefig(STATIC / "adaptive-polling-placement.svg", metadata={"Date": None})


if __name__ == "__main__":
    mpl.rcParams["svg.hashsalt"] = "xai_tasks"  # the same picture from the same run
    draw_trade_off()
    draw_placement()
