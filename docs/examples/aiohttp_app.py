"""Tasks in an aiohttp.web app: one request, a long poll, events, and a live page of many tasks.

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
from collections.abc import AsyncIterator, Iterable
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
    RateLimitError,
    TaskClient,
    TaskResult,
    WaitTimeoutError,
    XaiTasksError,
)

CLIENT = web.AppKey("client", TaskClient)

HEARTBEAT = 15.0
"""Seconds after which a stream sends a comment, so that no proxy cuts it as idle."""

MAX_IDS = 100
"""Ids in one stream: they are in its URL, and servers and proxies accept about 8 KB of that."""

PAGE = Path(__file__).with_name("live_page.html")

logger = logging.getLogger(__name__)
routes = web.RouteTableDef()


async def task_client(app: web.Application) -> AsyncIterator[None]:
    """Make one client for the process: all requests share its polls, connections and rate limit."""
    async with TaskClient() as client:
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
    return web.json_response(as_json(task_id, await request.app[CLIENT].get(task_id)))


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
        return web.json_response(as_json(task_id, error.last), status=202)
    return web.json_response(as_json(task_id, task))


@routes.get("/tasks/{task_id:[^/]+}/events")
async def events(request: web.Request) -> web.StreamResponse:
    """Send each change of the task's status until it ends."""
    return await stream(request, [request.match_info["task_id"]])


@routes.get("/events")
async def events_of_many(request: web.Request) -> web.StreamResponse:
    """Send the changes of all tasks in `?id=...&id=...` until the last one has ended.

    One stream for many, because a browser opens at most six connections to a server.
    """
    task_ids = dict.fromkeys(request.query.getall("id", []))
    if not 1 <= len(task_ids) <= MAX_IDS or "" in task_ids:
        return web.json_response({"detail": f"name 1 to {MAX_IDS} ids"}, status=422)
    return await stream(request, task_ids)


async def stream(request: web.Request, task_ids: Iterable[str]) -> web.StreamResponse:
    """Send the changes of tasks as server-sent events. aiohttp cancels it if the client leaves."""
    client = request.app[CLIENT]
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
        }
    )
    await response.prepare(request)

    async def send(name: str, data: dict[str, Any]) -> None:
        await response.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())

    async def follow(task_id: str) -> None:
        try:
            async with client.watch(task_id, timeout=None) as changes:
                async for task in changes:
                    await send("task", as_json(task_id, task))
        except ClientClosedError:
            pass  # the server stops: the stream ends, and the browser connects again
        except XaiTasksError as error:
            status, detail = problem(error)
            await send("problem", {"taskId": task_id, "status": status, "detail": detail})

    async def beat() -> None:
        while True:
            await asyncio.sleep(HEARTBEAT)
            await response.write(b": still here\n\n")

    try:
        async with asyncio.TaskGroup() as heart:
            beating = heart.create_task(beat())
            async with asyncio.TaskGroup() as followers:
                for task_id in task_ids:
                    followers.create_task(follow(task_id))
            beating.cancel()
    except* ConnectionResetError:
        pass  # the client had just disconnected
    return response


def as_json(task_id: str, task: TaskResult) -> dict[str, Any]:
    return {
        "taskId": task_id,
        "status": task.status,
        "done": task.done,
        "result": task.result,
        "errorMessage": task.error_message,
        "errorCode": task.error_code,
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
