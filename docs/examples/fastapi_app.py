"""Tasks in a FastAPI app: one request, a long poll, and a live page of many tasks.

In a clone of xai_tasks:              pip install . 'fastapi>=0.135' uvicorn
Beside this file and live_page.html:  uvicorn fastapi_app:app --timeout-graceful-shutdown 5

MOUNTSEA_API_KEY holds the key. MOUNTSEA_BASE_URL, if set, is the API's URL.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import StringConstraints
from starlette.requests import ClientDisconnect

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

POLLING = wait_adaptive()
"""Learns how long tasks take; the page shows its estimate of the time left."""

MAX_IDS = 100
"""Ids in one stream: they are in its URL, and servers and proxies accept about 8 KB of that."""

PAGE = Path(__file__).with_name("live_page.html")

logger = logging.getLogger(__name__)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Make one client for the process: all requests share its polls, connections and rate limit."""
    async with TaskClient(poll=PollPolicy(wait=POLLING)) as client:
        yield {"client": client}


def task_client(request: Request) -> TaskClient:
    client: TaskClient = request.state.client
    return client


Client = Annotated[TaskClient, Depends(task_client)]
TaskId = Annotated[str, StringConstraints(min_length=1)]

app = FastAPI(lifespan=lifespan)


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    return FileResponse(PAGE)


# `:path` lets ids contain slashes. The longer path comes first, or the other would match it.
@app.get("/tasks/{task_id:path}/wait")
async def wait(
    task_id: str,
    client: Client,
    request: Request,
    response: Response,
    timeout: Annotated[float, Query(gt=0, le=60, description="seconds")] = 30,
) -> TaskResult:
    """Return the task once it has ended.

    After `timeout` seconds, return 202 and its last status: the client asks again.
    """
    waiting = client.wait(task_id, timeout=timeout, check=False)
    try:
        return await unless_gone(request, waiting)
    except WaitTimeoutError as error:
        if error.last is None:
            raise
        response.status_code = 202
        return error.last


@app.get("/tasks/{task_id:path}")
async def get_task(task_id: str, client: Client) -> TaskResult:
    """Return the task as it is now."""
    return await client.get(task_id)


@app.get("/events", response_class=EventSourceResponse)
async def events(
    client: Client, ids: Annotated[list[TaskId], Query(alias="id", max_length=MAX_IDS)]
) -> AsyncIterator[ServerSentEvent]:
    """Send the changes of all tasks in `?id=...&id=...` until all have ended.

    One stream for many, because a browser opens at most six connections to a server. FastAPI sends
    comments in between, so that no proxy cuts the stream as idle.
    """
    running: dict[str, TaskResult] = {}
    try:
        async with client.watch_all(dict.fromkeys(ids), timeout=None) as updates:
            async for update in updates:
                if isinstance(update.error, ClientClosedError):
                    return  # the server stops: the page connects again
                yield ServerSentEvent(event="update", data=as_event(update, running))
    except XaiTasksError as error:  # the key was refused
        yield ServerSentEvent(event="problem", data={"detail": problem(error)[1]})


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


@app.exception_handler(XaiTasksError)
async def on_error(request: Request, error: XaiTasksError) -> JSONResponse:
    status, detail = problem(error)
    headers = (
        {"Retry-After": str(math.ceil(getattr(error, "retry_after", None) or 5))}
        if status == 503
        else None
    )
    return JSONResponse({"detail": detail}, status, headers)


@app.exception_handler(ClientDisconnect)
async def on_hang_up(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # for the access log: "client closed request"
