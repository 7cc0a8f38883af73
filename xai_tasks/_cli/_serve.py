"""`xai-tasks serve`: the test server as a process."""

from __future__ import annotations

import asyncio
import json
import sys

from xai_tasks._cli._output import LineSink
from xai_tasks._cli._process import Exit, Interrupt
from xai_tasks.testing import Duration, TaskServer

API_KEY = "test"


async def serve(
    interrupt: Interrupt,
    sink: LineSink,
    *,
    port: int,
    tasks: int,
    duration: Duration,
    rate: float | None,
    fail: float,
) -> int:
    """Serve made-up tasks until a signal comes; the URL and the ids are told as JSON lines.

    Args:
        interrupt: the signal.
        sink: where the lines go.
        port: where to listen; 0: a free port.
        tasks: how many tasks to make up.
        duration: how long they take.
        rate: requests per second let in, in bursts of up to one second's worth; None: no limit.
        fail: the share of tasks that fail, 0 to 1.

    Returns:
        the exit code.

    """
    async with TaskServer(API_KEY, port=port, log_limit=0) as server:
        if rate is not None:
            server.limit(rate, max(1, int(rate)))
        ids = server.add_many(tasks, duration=duration, failed=fail)
        await sink.write(_line(url=server.url, apiKey=API_KEY))
        try:
            for task_id in ids:
                await sink.write(_line(taskId=task_id))
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            interrupt.swallow()
        sys.stderr.write(f"xai-tasks: answered {server.count():,} requests\n")
    return Exit.COMPLETED


def _line(**members: str) -> bytes:
    return json.dumps(members).encode() + b"\n"
