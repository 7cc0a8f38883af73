"""How long it takes to begin: importing the library against importing what it is
made of, and `xai-tasks --help`.

`import`: the CPU of the import statement alone, in a fresh interpreter each time. `help`: the CPU
of the whole process, against one that imports click and does nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import harness
import processes

_IMPORT = "import time; begun = time.process_time(); import {}; print(time.process_time() - begun)"
_ROUNDS = 5
"""Processes started per round asked for: each takes a fraction of a
second, and their times scatter.
"""


def run(options: argparse.Namespace, report: harness.Report) -> None:
    """Measure both parts and fill the report."""
    os.environ.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # what is installed is compiled; so must a checkout be
    rounds = options.rounds * (1 if options.quick else _ROUNDS)
    if options.only in "import":
        _run_import(rounds, report)
    if options.only in "help":
        _run_help(rounds, report)


def _run_import(rounds: int, report: harness.Report) -> None:
    harness.progress(f"import, {rounds} rounds")
    figures: dict[str, list[float]] = {"aiohttp, attrs, tenacity": [], "xai_tasks": []}
    for number in range(rounds + 1):
        for names, seconds in figures.items():
            command = [
                "taskset",
                "-c",
                str(harness.CLIENT_CORE),
                sys.executable,
                "-c",
                _IMPORT.format(names),
            ]
            took = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            if number:  # the first round compiles and warms the disk's cache
                seconds.append(took * 1000)
    for names, seconds in figures.items():
        report.add(f"`import {names}`", "ms CPU", seconds)
    theirs, ours = figures.values()
    report.add(
        "`import xai_tasks` against its parts",
        "x",
        [b / a for a, b in zip(theirs, ours, strict=True)],
        at_most=1.08,
    )


def _run_help(rounds: int, report: harness.Report) -> None:
    harness.progress(f"help, {rounds} rounds")
    commands = {
        "an interpreter that does nothing": ["-c", "pass"],
        '`python -c "import click"`': ["-c", "import click"],
        "`xai-tasks --help`": ["-m", "xai_tasks", "--help"],
        "`xai-tasks --version`": ["-m", "xai_tasks", "--version"],
        "`xai-tasks wait --help`": ["-m", "xai_tasks", "wait", "--help"],
    }
    figures: dict[str, list[float]] = {what: [] for what in commands}
    for number in range(rounds + 1):
        for what, command in commands.items():
            cost = processes.run(command)
            if number:
                figures[what].append(cost.cpu * 1000)
    for what, milliseconds in figures.items():
        report.add(what, "ms CPU", milliseconds)
    _, click, *ours = figures
    for what in ours:
        ratios = [b / a for a, b in zip(figures[click], figures[what], strict=True)]
        target = 1.5 if what == "`xai-tasks --help`" else None
        report.add(f"{what} against click", "x", ratios, at_most=target)


if __name__ == "__main__":
    harness.main(__doc__, run, {})
