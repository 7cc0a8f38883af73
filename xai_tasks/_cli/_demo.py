"""`xai-tasks demo`: a test server and a client in one process."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import cast

import click

from xai_tasks import ClientStats, Outcome, PollPolicy, TaskClient, TaskResult, wait_adaptive
from xai_tasks._cli._process import Exit, Interrupt
from xai_tasks.testing import TaskServer, uniform

TASKS = 200
SECONDS = (1.0, 9.0)
FAILED = 0.04
"""The share of made-up tasks that fail, so that the output shows failures too."""
INTERVAL = 0.5
"""Seconds between polls until the client has learned how long tasks take: they are short."""
BAR = 20
"""Characters."""


class _Story:
    """Prints a line every second, and a summary."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._lines = 0
        self._completed = 0
        self._ended = 0
        self._delays: list[float] = []

    def add(self, outcome: Outcome) -> None:
        self._ended += 1
        self._completed += outcome.ok
        task = cast("TaskResult", outcome.task)  # nothing goes wrong here but tasks
        finished = cast("datetime", task.finished_at)
        self._delays.append((datetime.now(UTC) - finished).total_seconds())
        elapsed = time.monotonic() - self._begun
        if elapsed >= self._lines + 1 or self._ended == TASKS:
            self._lines = int(elapsed)
            bar = ("#" * (BAR * self._ended // TASKS)).ljust(BAR, ".")
            ended = f"{self._ended:3} of {TASKS} ended"
            click.echo(f"{elapsed:5.1f} s  {bar}  {ended}, last {task.task_id}: {task.status}")

    def summary(self, stats: ClientStats) -> str:
        late = sum(self._delays) / len(self._delays)
        return (
            f"{self._ended} tasks in {time.monotonic() - self._begun:.1f} s: "
            f"{self._completed} completed, {self._ended - self._completed} failed.\n"
            f"{stats.requests} requests; an end was noticed after {late:.2f} s on average."
        )


async def demo(interrupt: Interrupt) -> int:
    """Wait for 200 made-up tasks at once, each of which takes 1 to 9 s; no key, no network."""
    policy = PollPolicy(wait=wait_adaptive(interval=INTERVAL, minimum=0.1))
    async with TaskServer(api_key="demo", log_limit=0) as server:
        ids = server.add_many(TASKS, duration=uniform(*SECONDS), failed=FAILED, prefix="demo")
        click.echo(f"{TASKS} made-up tasks of {SECONDS[0]:g} to {SECONDS[1]:g} s on a test server.")
        story = _Story()
        async with TaskClient("demo", base_url=server.url, poll=policy) as client:
            async for outcome in client.as_completed(ids):
                story.add(outcome)
            click.echo(story.summary(client.stats))
    return Exit.COMPLETED
