"""`xai-tasks get` and `xai-tasks watch`: some tasks, as they stand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from xai_tasks import (
    AuthenticationError,
    ConfigurationError,
    PermissionDeniedError,
    TaskClient,
    TaskError,
    TaskResult,
    XaiTasksError,
)
from xai_tasks._cli._account import Account, json_line
from xai_tasks._cli._output import LineSink

FATAL = (AuthenticationError, PermissionDeniedError, ConfigurationError)
"""What every other id would meet too."""


async def get(client: TaskClient, task_ids: Sequence[str], sink: LineSink) -> int:
    """Look at each task once, and tell of them in the order of `task_ids`."""
    account = Account()
    async with client:
        looks = [asyncio.create_task(_look(client, task_id)) for task_id in task_ids]
        try:
            for task_id, look in zip(task_ids, looks, strict=True):
                task, error = await look
                await sink.write(account.enter(task_id, task, error))
        finally:
            for look in looks:
                look.cancel()
            await asyncio.gather(*looks, return_exceptions=True)
    return account.code


async def _look(client: TaskClient, task_id: str) -> tuple[TaskResult | None, XaiTasksError | None]:
    try:
        task = await client.get(task_id)
    except FATAL:
        raise
    except XaiTasksError as error:
        return None, error
    return task, _end_of(task)


def _end_of(task: TaskResult) -> TaskError | None:
    try:
        task.raise_for_status()
    except TaskError as error:
        return error
    return None


async def watch(client: TaskClient, task_id: str, sink: LineSink) -> int:
    """Tell of a task at each change of its status, until it has ended."""
    account = Account()
    async with client, client.watch(task_id) as changes:
        try:
            async for task in changes:
                if task.done:
                    line = account.enter(task_id, task, _end_of(task))
                else:
                    line, _ = json_line(task_id, task)
                await sink.write(line)
        except FATAL:
            raise
        except XaiTasksError as error:
            await sink.write(account.enter(task_id, None, error))
    return account.code
