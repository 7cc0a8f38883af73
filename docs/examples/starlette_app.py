"""Tasks in a Starlette app: one request, a long poll, server-sent events.

In a clone of xai_tasks:    pip install . starlette uvicorn
Beside this file:           uvicorn starlette_app:app --timeout-graceful-shutdown 5

MOUNTSEA_API_KEY holds the key. MOUNTSEA_BASE_URL, if set, is the API's URL.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

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

T = TypeVar("T")

HEARTBEAT = 15.0
"""Seconds of silence after which a stream sends a comment, so that no proxy cuts it as idle."""

logger = logging.getLogger(__name__)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    """Make one client for the process: all requests share its polls, connections and rate limit."""
    async with TaskClient() as client:
        yield {"client": client}


async def get_task(request: Request) -> Response:
    """Return the task as it is now."""
    task_id = request.path_params["task_id"]
    return JSONResponse(as_json(task_id, await request.state.client.get(task_id)))


async def wait(request: Request) -> Response:
    """Return the task once it has ended.

    After `timeout` seconds, return 202 and its last status: the client asks again.
    """
    task_id = request.path_params["task_id"]
    try:
        timeout = float(request.query_params.get("timeout", "30"))
    except ValueError:
        timeout = math.nan
    if not 0 < timeout <= 60:
        return JSONResponse({"detail": "timeout must be more than 0 and at most 60 seconds"}, 422)
    waiting = request.state.client.wait(task_id, timeout=timeout, check=False)
    try:
        return JSONResponse(as_json(task_id, await unless_gone(request, waiting)))
    except WaitTimeoutError as error:
        if error.last is None:
            raise
        return JSONResponse(as_json(task_id, error.last), 202)


async def events(request: Request) -> Response:
    """Send each change of the task's status until it ends."""
    return StreamingResponse(
        changes(request.state.client, request.path_params["task_id"]),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def changes(client: TaskClient, task_id: str) -> AsyncIterator[str]:
    try:
        async with client.watch(task_id, timeout=None) as watch:
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT):
                        task = await anext(watch, None)
                except TimeoutError as error:
                    if isinstance(error, XaiTasksError):  # an APITimeoutError is a TimeoutError too
                        raise
                    yield ": nothing new\n\n"
                    continue
                if task is None:
                    return
                yield event("task", as_json(task_id, task))
    except XaiTasksError as error:
        status, detail = problem(error)
        yield event("problem", {"taskId": task_id, "status": status, "detail": detail})


def event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def as_json(task_id: str, task: TaskResult) -> dict[str, Any]:
    return {
        "taskId": task_id,
        "status": task.status,
        "done": task.done,
        "result": task.result,
        "errorMessage": task.error_message,
        "errorCode": task.error_code,
    }


async def unless_gone(request: Request, waiting: Coroutine[Any, Any, T]) -> T:
    """Await `waiting`, and cancel it if the client disconnects first.

    An ASGI server does not cancel the handler of a client that has gone.
    """

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, gone = asyncio.ensure_future(waiting), asyncio.ensure_future(hung_up())
    try:
        await asyncio.wait([answer, gone], return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)


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


async def on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, XaiTasksError)
    status, detail = problem(error)
    headers = (
        {"Retry-After": str(math.ceil(getattr(error, "retry_after", None) or 5))}
        if status == 503
        else None
    )
    return JSONResponse({"detail": detail}, status, headers)


async def on_hang_up(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # for the access log: "client closed request"


app = Starlette(
    routes=[
        # `:path` lets ids contain slashes. The longer paths come first, or the last matches all.
        Route("/tasks/{task_id:path}/wait", wait),
        Route("/tasks/{task_id:path}/events", events),
        Route("/tasks/{task_id:path}", get_task),
    ],
    exception_handlers={XaiTasksError: on_error, ClientDisconnect: on_hang_up},
    lifespan=lifespan,
)
