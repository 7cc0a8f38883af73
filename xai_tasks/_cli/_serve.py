"""`xai-tasks serve`: the test server as a process."""

from __future__ import annotations

import asyncio
import json
import sys

from xai_tasks._cli._output import LineSink
from xai_tasks._cli._process import Exit, Interrupt
from xai_tasks.testing import Duration, TaskServer, lognormal, uniform

API_KEY = "test"
_MADE_UP = lognormal(45, 0.5)
_SUBMITTED = uniform(2, 6)


async def serve(
    interrupt: Interrupt,
    sink: LineSink,
    *,
    port: int,
    tasks: int,
    duration: Duration | None,
    rate: float | None,
    fail: float,
) -> int:
    """Serve made-up tasks, and take submissions, until a signal comes.

    The URL and the ids are put out as JSON lines.

    Args:
        interrupt: the signal.
        sink: where the lines go.
        port: where to listen; 0: a free port.
        tasks: how many tasks to make up.
        duration: how long tasks take, submitted ones too; None: those made up about 45 s, those
            submitted a few seconds.
        rate: requests per second let in, in bursts of up to one second's worth; None: no limit.
        fail: the share of tasks that fail, 0 to 1.

    Returns:
        the exit code.

    """
    async with TaskServer(API_KEY, port=port, log_limit=0) as server:
        if rate is not None:
            server.limit(rate, max(1, int(rate)))
        server.accept(duration or _SUBMITTED)
        ids = server.add_many(tasks, duration=duration or _MADE_UP, failed=fail)
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
