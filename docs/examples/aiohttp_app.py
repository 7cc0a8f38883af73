"""Tasks in an aiohttp.web app: one request, a long poll, and a live page of many tasks.

In a clone of xai_tasks:              pip install .
Beside this file and live_page.html:  python aiohttp_app.py

Then open http://127.0.0.1:8080/. PORT sets another port. MOUNTSEA_API_KEY holds the key.
MOUNTSEA_BASE_URL, if set, is the API's URL.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from xai_tasks import (
    APITimeoutError,
    BadRequestError,
    ClientClosedError,
    InvalidTaskIdError,
    NotFoundError,
    PollPolicy,
    RateLimitError,
    TaskClient,
    TaskResult,
    Update,
    WaitTimeoutError,
    XaiTasksError,
    wait_adaptive,
)

CLIENT = web.AppKey("client", TaskClient)

HEARTBEAT = 15.0
"""Seconds of silence after which a stream sends a comment, so that no proxy cuts it as idle."""

POLLING = wait_adaptive()
"""Learns how long tasks take; the page shows its estimate of the time left."""

MAX_IDS = 100
"""Ids in one stream: they are in its URL, and servers and proxies accept about 8 KB of that."""

PAGE = Path(__file__).with_name("live_page.html")

logger = logging.getLogger(__name__)
routes = web.RouteTableDef()


async def task_client(app: web.Application) -> AsyncIterator[None]:
    """Make one client for the process: all requests share its polls, connections and rate limit."""
    async with TaskClient(poll=PollPolicy(wait=POLLING)) as client:
        app[CLIENT] = client
        yield


async def close_client(app: web.Application) -> None:
    """End open streams and long polls when the server begins to stop, so that it need not wait."""
    await app[CLIENT].close()


@routes.get("/")
async def page(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(PAGE)


# The router matches the path before it decodes it: an id may contain a slash, sent as "%2F".
@routes.get("/tasks/{task_id:[^/]+}")
async def get_task(request: web.Request) -> web.StreamResponse:
    """Return the task as it is now."""
    task_id = request.match_info["task_id"]
    task = await request.app[CLIENT].get(task_id)
    return web.json_response(task.to_dict())


@routes.get("/tasks/{task_id:[^/]+}/wait")
async def wait(request: web.Request) -> web.StreamResponse:
    """Return the task once it has ended.

    After `timeout` seconds, return 202 and its last status: the client asks again. If the client
    disconnects, aiohttp cancels this handler (see `handler_cancellation` below), and so its wait.
    """
    task_id = request.match_info["task_id"]
    try:
        timeout = float(request.query.get("timeout", "30"))
    except ValueError:
        timeout = math.nan
    if not 0 < timeout <= 60:
        return web.json_response(
            {"detail": "timeout must be more than 0 and at most 60 seconds"}, status=422
        )
    try:
        task = await request.app[CLIENT].wait(task_id, timeout=timeout, check=False)
    except WaitTimeoutError as error:
        if error.last is None:
            raise
        return web.json_response(error.last.to_dict(), status=202)
    return web.json_response(task.to_dict())


@routes.get("/events")
async def events(request: web.Request) -> web.StreamResponse:
    """Send the changes of all tasks in `?id=...&id=...` until all have ended.

    One stream for many, because a browser opens at most six connections to a server. aiohttp
    cancels this handler if the client leaves.
    """
    task_ids = dict.fromkeys(request.query.getall("id", []))
    if not 1 <= len(task_ids) <= MAX_IDS or "" in task_ids:
        return web.json_response({"detail": f"name 1 to {MAX_IDS} ids"}, status=422)
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
        }
    )
    await response.prepare(request)
    try:
        async for part in stream(request.app[CLIENT], list(task_ids)):
            await response.write(part.encode())
    except ConnectionResetError:
        pass  # the client had just disconnected
    return response


async def stream(client: TaskClient, task_ids: list[str]) -> AsyncIterator[str]:
    running: dict[str, TaskResult] = {}
    try:
        async with client.watch_all(task_ids, timeout=None) as updates:
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT):
                        update = await anext(updates, None)
                except TimeoutError:
                    yield ": nothing new\n\n"
                    continue
                if update is None or isinstance(update.error, ClientClosedError):
                    return  # all have ended, or the server stops: the page connects again
                yield event("update", as_event(update, running))
    except XaiTasksError as error:  # the key was refused
        yield event("problem", {"detail": problem(error)[1]})


def event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def as_event(update: Update, running: dict[str, TaskResult]) -> dict[str, Any]:
    """Build what the page is sent. The errors' own messages are for the log, not for a browser.

    Args:
        update: what has changed.
        running: the stream's tasks that have not ended; they change with the update.

    """
    running.pop(update.task_id, None)
    if update.task is not None and not update.final:
        running[update.task_id] = update.task
    left = {task_id: POLLING.remaining(task) for task_id, task in running.items()}
    return {
        "taskId": update.task_id,
        "final": update.final,
        "task": update.task and update.task.to_dict(),
        "problem": None if update.error is None else problem(update.error)[1],
        "remaining": {task_id: time.total_seconds() for task_id, time in left.items() if time},
    }


def problem(error: XaiTasksError) -> tuple[int, str]:
    """Choose a status and a message that reveal nothing of the key or the account; log the rest."""
    match error:
        case NotFoundError():
            return 404, "there is no such task"
        case InvalidTaskIdError() | BadRequestError():
            return 422, "this is not a task id"
        case RateLimitError() | ClientClosedError():
            return 503, "too busy, try again later"
        case WaitTimeoutError() | APITimeoutError():
            return 504, "the task service did not answer in time"
    logger.error("%s: %s", type(error).__name__, error)
    return 502, "the task service cannot be used at the moment"


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except XaiTasksError as error:
        status, detail = problem(error)
        response = web.json_response({"detail": detail}, status=status)
        if status == 503:
            response.headers["Retry-After"] = str(
                math.ceil(getattr(error, "retry_after", None) or 5)
            )
        return response


def make_app() -> web.Application:
    app = web.Application(middlewares=[errors])
    app.add_routes(routes)
    app.cleanup_ctx.append(task_client)
    app.on_shutdown.append(close_client)
    return app


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8080"))
    web.run_app(make_app(), host="127.0.0.1", port=port, handler_cancellation=True)
