"""Tasks in a Litestar app: one request, a long poll, server-sent events.

In a clone of xai_tasks:    pip install . 'litestar>=2.23' uvicorn
Beside this file:           uvicorn litestar_app:app --timeout-graceful-shutdown 5

MOUNTSEA_API_KEY holds the key. MOUNTSEA_BASE_URL, if set, is the API's URL.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from litestar import Litestar, Request, Response, get
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, QueryParameter
from litestar.response import ServerSentEvent, ServerSentEventMessage
from litestar.serialization import encode_json

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
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    """Make one client for the process: all requests share its polls, connections and rate limit."""
    async with TaskClient() as client:
        app.state.client = client
        yield


def task_client(state: State) -> TaskClient:
    client: TaskClient = state.client
    return client


Client = NamedDependency[TaskClient]


# Litestar decodes the path before it splits it: an id with a slash matches no route.
@get("/tasks/{task_id:str}")
async def get_task(task_id: FromPath[str], client: Client) -> dict[str, Any]:
    """Return the task as it is now."""
    return as_json(task_id, await client.get(task_id))


@get("/tasks/{task_id:str}/wait")
async def wait(
    task_id: FromPath[str],
    client: Client,
    request: Request[Any, Any, Any],
    timeout: Annotated[float, QueryParameter(gt=0, le=60, description="seconds")] = 30.0,
) -> Response[dict[str, Any]]:
    """Return the task once it has ended.

    After `timeout` seconds, return 202 and its last status: the client asks again.
    """
    waiting = client.wait(task_id, timeout=timeout, check=False)
    try:
        return Response(as_json(task_id, await unless_gone(request, waiting)))
    except WaitTimeoutError as error:
        if error.last is None:
            raise
        return Response(as_json(task_id, error.last), status_code=202)


@get("/tasks/{task_id:str}/events")
async def events(task_id: FromPath[str], client: Client) -> ServerSentEvent:
    """Send each change of the task's status until it ends."""
    return ServerSentEvent(changes(client, task_id))


async def changes(client: TaskClient, task_id: str) -> AsyncIterator[ServerSentEventMessage]:
    try:
        async with client.watch(task_id, timeout=None) as watch:
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT):
                        task = await anext(watch, None)
                except TimeoutError as error:
                    if isinstance(error, XaiTasksError):  # an APITimeoutError is a TimeoutError too
                        raise
                    yield ServerSentEventMessage(comment="nothing new", data=None)
                    continue
                if task is None:
                    return
                yield event("task", as_json(task_id, task))
    except XaiTasksError as error:
        status, detail = problem(error)
        yield event("problem", {"taskId": task_id, "status": status, "detail": detail})


def event(name: str, data: dict[str, Any]) -> ServerSentEventMessage:
    return ServerSentEventMessage(event=name, data=encode_json(data))


def as_json(task_id: str, task: TaskResult) -> dict[str, Any]:
    return {
        "taskId": task_id,
        "status": task.status,
        "done": task.done,
        "result": task.result,
        "errorMessage": task.error_message,
        "errorCode": task.error_code,
    }


class HungUpError(Exception):
    """The client disconnected before its answer."""


async def unless_gone(request: Request[Any, Any, Any], waiting: Coroutine[Any, Any, T]) -> T:
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
            raise HungUpError
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


def on_error(request: Request[Any, Any, Any], error: XaiTasksError) -> Response[dict[str, str]]:
    status, detail = problem(error)
    headers = (
        {"Retry-After": str(math.ceil(getattr(error, "retry_after", None) or 5))}
        if status == 503
        else None
    )
    return Response({"detail": detail}, status_code=status, headers=headers)


def on_hang_up(request: Request[Any, Any, Any], error: HungUpError) -> Response[None]:
    return Response(None, status_code=499)  # for the access log: "client closed request"


app = Litestar(
    route_handlers=[get_task, wait, events],
    dependencies={"client": Provide(task_client, sync_to_thread=False)},
    exception_handlers={XaiTasksError: on_error, HungUpError: on_hang_up},
    lifespan=[lifespan],
)
