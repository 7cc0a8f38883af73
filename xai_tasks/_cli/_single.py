"""`xai-tasks get` and `xai-tasks watch`: some tasks, as they stand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

from xai_tasks import (
    AuthenticationError,
    ConfigurationError,
    TaskClient,
    TaskError,
    TaskResult,
    XaiTasksError,
)
from xai_tasks._cli._output import STDOUT, LineSink
from xai_tasks._cli._progress import LogHandler, Reporter
from xai_tasks._cli._startup import Startup
from xai_tasks._cli._tally import Tally, json_line

FATAL = (AuthenticationError, ConfigurationError)
"""What every other id would meet too."""


async def get(
    client: TaskClient, task_ids: Sequence[str], *, quiet: bool = False, verbose: int = 0
) -> int:
    """Ask for each task once, and put them out in the order of `task_ids`."""
    tally, sink = Tally(), LineSink(STDOUT, "stdout")
    async with contextlib.AsyncExitStack() as stack:
        startup = stack.enter_context(_log(quiet=quiet, verbose=verbose))
        await stack.enter_async_context(client)
        requests = [asyncio.create_task(_get(client, task_id)) for task_id in task_ids]
        try:
            for task_id, request in zip(task_ids, requests, strict=True):
                task, error = await request
                startup.answered()
                await sink.write(tally.record(task_id, task, error))
        finally:
            for request in requests:
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)
    return tally.code


async def _get(client: TaskClient, task_id: str) -> tuple[TaskResult | None, XaiTasksError | None]:
    try:
        task = await client.get(task_id)
    except FATAL:
        raise
    except XaiTasksError as error:
        return None, error
    return task, _error_of(task)


def _error_of(task: TaskResult) -> TaskError | None:
    try:
        task.raise_for_status()
    except TaskError as error:
        return error
    return None


async def watch(client: TaskClient, task_id: str, *, quiet: bool = False, verbose: int = 0) -> int:
    """Put out a task at each change of its status, until it has ended."""
    tally, sink = Tally(), LineSink(STDOUT, "stdout")
    with _log(quiet=quiet, verbose=verbose) as startup:
        async with client, client.watch(task_id) as changes:
            try:
                async for task in changes:
                    startup.answered()
                    if task.done:
                        line = tally.record(task_id, task, _error_of(task))
                    else:
                        line, _ = json_line(task_id, task)
                    await sink.write(line)
            except FATAL:
                raise
            except XaiTasksError as error:
                await sink.write(tally.record(task_id, None, error))
    return tally.code


@contextlib.contextmanager
def _log(*, quiet: bool, verbose: int) -> Iterator[Startup]:
    """Show the client's log, and that there is no answer from the server."""
    reporter = Reporter()
    with LogHandler(reporter, verbose), Startup(reporter) as startup:
        if quiet:
            startup.answered()
        yield startup
