"""What the library is compared with: aiohttp alone, and the loop that
a user would write around it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from functools import partial
from typing import Any

import aiohttp
from attrs import frozen
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_delay,
    wait_fixed,
)

CONNECTIONS = 100


@frozen
class Task:
    """An answer as a user without the library would hold it."""

    task_id: str
    status: str
    result: Any
    error_message: str | None
    error_code: float | None
    created_at: datetime | None
    finished_at: datetime | None
    trace_id: str | None


def decode(body: bytes) -> Task:
    data = json.loads(body)
    created_at, finished_at = data.get("createdAt"), data.get("finishedAt")
    return Task(
        data["taskId"],
        data["status"],
        data.get("result"),
        data.get("errorMessage"),
        data.get("errorCode"),
        None if created_at is None else datetime.fromisoformat(created_at),
        None if finished_at is None else datetime.fromisoformat(finished_at),
        data.get("traceId"),
    )


def session() -> aiohttp.ClientSession:
    """Return a session with aiohttp's defaults, which are 100 connections."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CONNECTIONS),
        headers={"Authorization": "Bearer made-up-key"},
    )


async def get(http: aiohttp.ClientSession, url: str, task_id: str) -> Task:
    """Make one bare request."""
    async with http.get(f"{url}/xai/tasks?taskId={task_id}") as response:
        response.raise_for_status()
        return decode(await response.read())


async def get_each(get: Callable[[str], Awaitable[Any]], task_ids: Iterable[str]) -> None:
    """Call `get` for each id, as many at once as there are connections."""
    ids = iter(task_ids)

    async def work() -> None:
        for task_id in ids:
            await get(task_id)

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))


async def get_all(http: aiohttp.ClientSession, url: str, task_ids: Iterable[str]) -> None:
    """Make a bare request per id, as many at once as there are connections."""
    await get_each(partial(get, http, url), task_ids)


def is_open(task: Task) -> bool:
    return task.status not in ("completed", "failed", "cancelled", "timeout")


async def wait(
    http: aiohttp.ClientSession,
    url: str,
    task_id: str,
    semaphore: asyncio.Semaphore,
    interval: float,
) -> Task:
    """Poll one task every `interval` seconds until it has ended: the
    loop that a user would write.
    """

    async def request() -> Task:
        async with semaphore:
            return await get(http, url, task_id)

    retrying = AsyncRetrying(
        retry=retry_if_result(is_open) | retry_if_exception_type(aiohttp.ClientError),
        wait=wait_fixed(interval),
        stop=stop_after_delay(7200),
    )
    return await retrying(request)
