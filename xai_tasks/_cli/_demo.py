"""`xai-tasks demo`: a test server and a client in one process."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import cast

import click

from xai_tasks import ClientStats, Outcome, TaskClient, TaskResult
from xai_tasks._cli._running import Exit, Interrupt
from xai_tasks.testing import TaskServer, uniform

TASKS = 200
SECONDS = (1.0, 10.0)
FAILED = 0.04
"""The share of made-up tasks that fail, so that one sees what it looks like."""


class _Story:
    """Tells what came out: a line every second, and a summary."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._told = 0
        self._completed = 0
        self._ended = 0
        self._delays: list[float] = []

    def hear(self, outcome: Outcome) -> None:
        self._ended += 1
        self._completed += outcome.ok
        task = cast("TaskResult", outcome.task)  # nothing goes wrong here but tasks
        self._delays.append(
            (datetime.now(UTC) - cast("datetime", task.finished_at)).total_seconds()
        )
        elapsed = time.monotonic() - self._begun
        if elapsed >= self._told + 1 or self._ended == TASKS:
            self._told = int(elapsed)
            told = task.result["videoUrl"] if outcome.ok else outcome.error
            click.echo(
                f"{elapsed:5.1f} s  {self._ended:3} of {TASKS} ended, the last: {outcome.task_id}, {told}"
            )

    def summary(self, stats: ClientStats) -> str:
        late = sum(self._delays) / len(self._delays)
        return (
            f"{self._ended} tasks in {time.monotonic() - self._begun:.1f} s: {self._completed} completed, "
            f"{self._ended - self._completed} failed; {stats.requests} requests; "
            f"ends were noticed {late:.2f} s late on average"
        )


async def demo(interrupt: Interrupt) -> int:
    """Wait for 200 made-up tasks at once, each of which takes 1 to 10 s; no key, no network."""
    async with TaskServer(api_key="demo", log_limit=0) as server:
        ids = server.add_many(TASKS, duration=uniform(*SECONDS), failed=FAILED, prefix="demo")
        click.echo(
            f"Waiting for {TASKS} made-up tasks of {SECONDS[0]:g} to {SECONDS[1]:g} s at once, on a test server at {server.url}"
        )
        story = _Story()
        async with TaskClient("demo", base_url=server.url) as client:
            async for outcome in client.as_completed(ids):
                story.hear(outcome)
            click.echo(story.summary(client.stats))
    return Exit.COMPLETED
