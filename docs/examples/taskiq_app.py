"""Waits that survive the process: Taskiq workers over Redis streams.

Run `taskiq worker taskiq_app:broker` on as many machines as you like.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Annotated

from redis.asyncio import Redis
from taskiq import Context, TaskiqDepends, TaskiqEvents, TaskiqState
from taskiq_redis import RedisStreamBroker

from xai_tasks import ClientClosedError, TaskClient, WaitTimeoutError

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")
SLICE = float(os.environ.get("WAIT_SLICE", "60"))
"""Seconds of work on one message. What has not ended by then goes into a new message."""
RESULTS = "xai-tasks:results"

broker = RedisStreamBroker(
    REDIS_URL,
    queue_name="xai-tasks",
    consumer_id="0",  # from the first message on, also those sent before any worker existed
    idle_timeout=int(3 * SLICE * 1000),  # only a dead worker keeps a message for longer
    unacknowledged_lock_timeout=30,  # or the lock of a worker killed while it claims stays
    maxlen=100_000,  # acknowledged messages stay until newer ones push them out
)


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def start(state: TaskiqState) -> None:
    """Make one client for all waits of this process."""
    state.redis = Redis.from_url(REDIS_URL)
    state.client = await TaskClient().__aenter__()
    state.nudging = asyncio.create_task(keep_nudging())


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def stop(state: TaskiqState) -> None:
    """Close it. Open waits stay unacknowledged, and the next worker continues them."""
    state.nudging.cancel()
    await state.client.close()
    await state.redis.aclose()


async def keep_nudging() -> None:
    """Send an empty message now and then.

    The broker looks for the messages of dead workers only after a new message has arrived.
    """
    while True:
        await nudge.kiq()
        await asyncio.sleep(SLICE)


@broker.task
async def nudge() -> None:
    """Do nothing."""


@broker.task(ack_type="manual")
async def wait(
    task_ids: list[str], deadline: float, context: Annotated[Context, TaskiqDepends()]
) -> None:
    """Wait for `task_ids` until `deadline`, in Unix time, and keep each result in Redis.

    The message is acknowledged only when every id is done or in a new message. If the worker is
    killed, shut down or fails before that, also because of a refused key, the message is delivered
    again. So it may run twice: an id with a result costs no request, and the first result stays.
    """
    client, redis = context.state.client, context.state.redis
    known = await redis.hmget(RESULTS, task_ids)
    waiting = {task_id for task_id, result in zip(task_ids, known, strict=True) if result is None}
    async with client.as_completed(sorted(waiting), timeout=SLICE) as outcomes:
        async for outcome in outcomes:
            if isinstance(outcome.error, ClientClosedError):
                raise outcome.error
            if isinstance(outcome.error, WaitTimeoutError) and time.time() < deadline:
                continue
            await redis.hsetnx(RESULTS, outcome.task_id, json.dumps(outcome.to_dict()))
            waiting.discard(outcome.task_id)
    if waiting:
        await wait.kiq(sorted(waiting), deadline)
    await context.ack()
