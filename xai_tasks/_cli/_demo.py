"""`xai-tasks demo`: a test server and a client in one process."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import cast

import click

from xai_tasks import ClientStats, Outcome, PollPolicy, TaskClient, TaskResult, wait_adaptive
from xai_tasks._cli._process import Exit, Interrupt
from xai_tasks.testing import TaskServer, uniform

WAVE = 100
"""Tasks that start at once, twice. The first teach the client how long such tasks take."""
PAUSE = 4.0
"""Seconds between the two: the first have ended by then."""
SECONDS = (2.0, 3.5)
FAILED = 0.04
"""The share of made-up tasks that fail, so that the output shows failures too."""
INTERVAL = 1.0
"""Seconds between polls until the client has learned how long tasks take: they are short."""
SAVED = 3
"""Videos that are saved in the end."""
BAR = 20
"""Characters."""


class _Story:
    """Prints a line every second, and a summary."""

    def __init__(self) -> None:
        self.completed: deque[TaskResult] = deque(maxlen=SAVED)
        """The last tasks that completed."""
        self._begun = time.monotonic()
        self._lines = 0
        self._completed = 0
        self._delays: tuple[list[float], list[float]] = ([], [])

    @property
    def _ended(self) -> int:
        return sum(map(len, self._delays))

    def add(self, outcome: Outcome) -> None:
        self._completed += outcome.ok
        task = cast("TaskResult", outcome.task)  # nothing goes wrong here but tasks
        if outcome.ok:
            self.completed.append(task)
        finished = cast("datetime", task.finished_at)
        delay = (datetime.now(UTC) - finished).total_seconds()
        self._delays[outcome.index >= WAVE].append(delay)
        elapsed = time.monotonic() - self._begun
        if elapsed >= self._lines + 1 or self._ended == 2 * WAVE:
            self._lines = int(elapsed)
            bar = ("#" * (BAR * self._ended // (2 * WAVE))).ljust(BAR, ".")
            ended = f"{self._ended:3} of {2 * WAVE} ended"
            click.echo(f"{elapsed:5.1f} s  {bar}  {ended}, last {task.task_id}: {task.status}")

    def summary(self, stats: ClientStats) -> str:
        first, later = (sum(delays) / len(delays) for delays in self._delays)
        return (
            f"{self._ended} tasks in {time.monotonic() - self._begun:.1f} s: "
            f"{self._completed} completed, {self._ended - self._completed} failed.\n"
            f"{stats.requests} requests; ends were noticed after {first:.2f} s at first, "
            f"{later:.2f} s once the client had learned."
        )


async def _ids(server: TaskServer) -> AsyncIterator[str]:
    for wave in ("one", "two"):
        for task_id in server.add_many(
            WAVE, duration=uniform(*SECONDS), failed=FAILED, prefix=f"demo-{wave}"
        ):
            yield task_id
        if wave == "one":
            await asyncio.sleep(PAUSE)


async def demo(interrupt: Interrupt) -> int:
    """Wait for 200 made-up tasks that start in two waves; no key, no network."""
    policy = PollPolicy(wait=wait_adaptive(interval=INTERVAL, minimum=0.1))
    async with TaskServer(api_key="demo", log_limit=0) as server:
        story = _Story()
        async with TaskClient("demo", base_url=server.url, poll=policy) as client:
            async for outcome in client.as_completed(_ids(server)):
                story.add(outcome)
            click.echo(story.summary(client.stats))
            directory = tempfile.mkdtemp(prefix="xai-tasks-demo-")
            for task in story.completed:
                await client.download(task, directory)
            click.echo(f"{len(story.completed)} of their videos are in {directory}")
    return Exit.COMPLETED
