"""What the command line adds: CPU of `xai-tasks wait -i -` against `as_completed` called
directly, and memory of `--resume`.

`wait`: 100,000 ids, each ended at its first poll, through pipes in and out of the program,
against a program that loops over `as_completed` and drops what comes; whole processes, by turns.
`resume`: a million ids that the output file holds already; the peak of the process's memory, and
that of one with nothing to resume.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import harness
import processes

_KEY = {"MOUNTSEA_API_KEY": "made-up-key"}
_DIRECT = """
import asyncio, sys
from xai_tasks import TaskClient

async def main():
    ids = sys.stdin.read().split()
    async with TaskClient() as client:
        async for outcome in client.as_completed(ids):
            assert outcome.ok

asyncio.run(main())
"""
_RECORD = (
    '{{"taskId":"{0}","status":"completed","result":{{"videoUrl":"https://cdn.example.com/videos/{0}.mp4"}},'
    '"errorMessage":null,"errorCode":null,"createdAt":"2026-01-01T12:00:00.000Z",'
    '"finishedAt":"2026-01-01T12:01:30.500Z","traceId":"4bf92f3577b34da6a3ce929d0e0e4736"}}\n'
)


def run(options: argparse.Namespace, report: harness.Report) -> None:
    """Measure both parts and fill the report."""
    scale = 10 if options.quick else 1
    if options.only in "wait":
        _run_wait(options.rounds, 100_000 // scale, report)
    if options.only in "resume":
        _run_resume(1_000_000 // scale, report)


def _run_wait(rounds: int, count: int, report: harness.Report) -> None:
    commands = {
        "`as_completed` called directly": ["-c", _DIRECT],
        "`xai-tasks wait -i -`": ["-m", "xai_tasks", "wait", "-i", "-"],
    }
    figures: dict[str, list[float]] = {what: [] for what in commands}
    with harness.serve(polls=1) as server:
        for number in range(rounds):
            for what, command in commands.items():
                harness.progress(f"{what}, round {number + 1} of {rounds}")
                ids = (f"{harness.task_id(number)}\n" for number in range(count))
                cost = processes.run(command, ids, {**_KEY, "MOUNTSEA_BASE_URL": server.url})
                assert cost.lines == (0 if command[0] == "-c" else count)
                figures[what].append(cost.cpu / count * 1e6)
    for what, microseconds in figures.items():
        report.add(f"{what}, {count:,} ids", "us CPU per id", microseconds)
    direct, program = figures.values()
    ratios = [b / a for a, b in zip(direct, program, strict=True)]
    report.add("the program against the call", "x", ratios, at_most=1.15)


def _run_resume(count: int, report: harness.Report) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number in (0, count):
            harness.progress(f"resume, {number:,} ids held")
            path = Path(folder) / "out.jsonl"
            with path.open("w") as file:
                file.writelines(_RECORD.format(harness.task_id(each)) for each in range(number))
            ids = (f"{harness.task_id(each)}\n" for each in range(number))
            command = ["-m", "xai_tasks", "wait", "-i", "-", "-o", str(path), "--resume"]
            cost = processes.run(command, ids, _KEY)
            bound = 200.0 if number else None
            report.add(
                f"peak of memory, `--resume`, {number:,} ids held", "MB", [cost.peak], at_most=bound
            )
            report.add(f"`--resume`, {number:,} ids held", "s CPU", [cost.cpu])


if __name__ == "__main__":
    harness.main(__doc__, run, {})
