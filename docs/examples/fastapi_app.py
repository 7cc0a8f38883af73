"""Tasks in a FastAPI app: one request, a long poll, server-sent events.

In a clone of xai_tasks:    pip install . 'fastapi>=0.135' uvicorn
Beside this file:           uvicorn fastapi_app:app --timeout-graceful-shutdown 5

MOUNTSEA_API_KEY holds the key. MOUNTSEA_BASE_URL, if set, is the API's URL.
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
    """Make one client for the process: all requests share its polls, connections and rate limit."""
    async with TaskClient() as client:
        yield {"client": client}


def task_client(request: Request) -> TaskClient:
    client: TaskClient = request.state.client
    return client


Client = Annotated[TaskClient, Depends(task_client)]

app = FastAPI(lifespan=lifespan)


# `:path` lets ids contain slashes. The longer paths come first, or the last would match them.
@app.get("/tasks/{task_id:path}/wait")
async def wait(
    task_id: str,
    client: Client,
    request: Request,
    response: Response,
    timeout: Annotated[float, Query(gt=0, le=60, description="seconds")] = 30,
) -> dict[str, Any]:
    """Return the task once it has ended.

    After `timeout` seconds, return 202 and its last status: the client asks again.
    """
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
    """Send each change of the task's status until it ends. FastAPI sends comments in between."""
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
async def get_task(task_id: str, client: Client) -> dict[str, Any]:
    """Return the task as it is now."""
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
