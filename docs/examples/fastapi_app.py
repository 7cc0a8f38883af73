"""Tasks in a FastAPI app: one look, a long poll, server-sent events.

In a clone of xai_tasks:    pip install . 'fastapi>=0.135' uvicorn
Beside this file:           uvicorn fastapi_app:app --timeout-graceful-shutdown 5

MOUNTSEA_API_KEY holds the key; MOUNTSEA_BASE_URL, if set, says where the API is.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.requests import ClientDisconnect

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

logger = logging.getLogger(__name__)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Have one client for the whole process: all requests share its polls, connections and rate limit."""
    async with TaskClient() as client:
        yield {"client": client}


def task_client(request: Request) -> TaskClient:
    client: TaskClient = request.state.client
    return client


Client = Annotated[TaskClient, Depends(task_client)]

app = FastAPI(lifespan=lifespan)


# `:path` lets ids hold slashes. The longer paths come first, or the last one would take them for ids.
@app.get("/tasks/{task_id:path}/wait")
async def wait(
    task_id: str,
    client: Client,
    request: Request,
    response: Response,
    timeout: Annotated[float, Query(gt=0, le=60, description="seconds")] = 30,
) -> dict[str, Any]:
    """Answer once the task has ended; after `timeout` with 202 and its last status: ask again."""
    waiting = client.wait(task_id, timeout=timeout, check=False)
    try:
        return as_json(task_id, await unless_gone(request, waiting))
    except WaitTimeoutError as error:
        if error.last is None:
            raise
        response.status_code = 202
        return as_json(task_id, error.last)


@app.get("/tasks/{task_id:path}/events", response_class=EventSourceResponse)
async def events(task_id: str, client: Client) -> AsyncIterator[ServerSentEvent]:
    """Send each change of the task's status, up to its end. FastAPI keeps the line busy in between."""
    try:
        async with client.watch(task_id, timeout=None) as changes:
            async for task in changes:
                yield ServerSentEvent(event="task", data=as_json(task_id, task))
    except XaiTasksError as error:
        status, detail = problem(error)
        yield ServerSentEvent(
            event="problem", data={"taskId": task_id, "status": status, "detail": detail}
        )


@app.get("/tasks/{task_id:path}")
async def look(task_id: str, client: Client) -> dict[str, Any]:
    """Answer with the task as it stands."""
    return as_json(task_id, await client.get(task_id))


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
    """Await `waiting`, and give it up if the client hangs up first: ASGI servers cancel no handler for that."""

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
    """Choose the HTTP status for an error, and words that tell nothing of the key or the account: the log has those."""
    match error:
        case NotFoundError():
            return 404, "there is no such task"
        case InvalidTaskIdError() | BadRequestError():
            return 422, "this is no task id"
        case RateLimitError() | ClientClosedError():
            return 503, "too busy, try again later"
        case WaitTimeoutError() | APITimeoutError():
            return 504, "the task service did not answer in time"
    logger.error("%s: %s", type(error).__name__, error)
    return 502, "the task service can't be used at the moment"


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
    return Response(
        status_code=499
    )  # nobody reads it; access logs know it as "client closed request"
