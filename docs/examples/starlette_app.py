"""Tasks in a Starlette app: one request, a long poll, and a live page of many tasks.

In a clone of xai_tasks:              pip install . starlette uvicorn
Beside this file and live_page.html:  uvicorn starlette_app:app --timeout-graceful-shutdown 5

MOUNTSEA_API_KEY holds the key. MOUNTSEA_BASE_URL, if set, is the API's URL.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

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

T = TypeVar("T")

HEARTBEAT = 15.0
"""Seconds of silence after which a stream sends a comment, so that no proxy cuts it as idle."""

POLLING = wait_adaptive()
"""Learns how long tasks take; the page shows its estimate of the time left."""

MAX_IDS = 100
"""Ids in one stream: they are in its URL, and servers and proxies accept about 8 KB of that."""

PAGE = Path(__file__).with_name("live_page.html")

logger = logging.getLogger(__name__)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    """Make one client for the process: all requests share its polls, connections and rate limit."""
    async with TaskClient(poll=PollPolicy(wait=POLLING)) as client:
        yield {"client": client}


async def page(request: Request) -> Response:
    return FileResponse(PAGE)


async def get_task(request: Request) -> Response:
    """Return the task as it is now."""
    task_id = request.path_params["task_id"]
    return JSONResponse((await request.state.client.get(task_id)).to_dict())


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
        return JSONResponse((await unless_gone(request, waiting)).to_dict())
    except WaitTimeoutError as error:
        if error.last is None:
            raise
        return JSONResponse(error.last.to_dict(), 202)


async def events(request: Request) -> Response:
    """Send the changes of all tasks in `?id=...&id=...` until all have ended.

    One stream for many, because a browser opens at most six connections to a server.
    """
    task_ids = list(dict.fromkeys(request.query_params.getlist("id")))
    if not 1 <= len(task_ids) <= MAX_IDS or "" in task_ids:
        return JSONResponse({"detail": f"name 1 to {MAX_IDS} ids"}, 422)
    return StreamingResponse(
        updates(request.state.client, task_ids),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def updates(client: TaskClient, task_ids: list[str]) -> AsyncIterator[str]:
    running: dict[str, TaskResult] = {}
    try:
        async with client.watch_all(task_ids, timeout=None) as stream:
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT):
                        update = await anext(stream, None)
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
        # `:path` lets ids contain slashes. The longer path comes first, or the other matches it.
        Route("/tasks/{task_id:path}/wait", wait),
        Route("/tasks/{task_id:path}", get_task),
        Route("/events", events),
        Route("/", page),
    ],
    exception_handlers={XaiTasksError: on_error, ClientDisconnect: on_hang_up},
    lifespan=lifespan,
)
