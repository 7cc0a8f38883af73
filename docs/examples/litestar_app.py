"""Tasks in a Litestar app: one request, a long poll, and a live page of many tasks.

In a clone of xai_tasks:              pip install . 'litestar>=2.23' uvicorn
Beside this file and live_page.html:  uvicorn litestar_app:app --timeout-graceful-shutdown 5

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

from litestar import Litestar, Request, Response, get
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.exceptions import ValidationException
from litestar.params import FromPath, QueryParameter
from litestar.response import File, ServerSentEvent, ServerSentEventMessage
from litestar.serialization import encode_json

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
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    """Make one client for the process: all requests share its polls, connections and rate limit."""
    async with TaskClient(poll=PollPolicy(wait=POLLING)) as client:
        app.state.client = client
        yield


def task_client(state: State) -> TaskClient:
    client: TaskClient = state.client
    return client


Client = NamedDependency[TaskClient]


@get("/")
async def page() -> File:
    return File(PAGE, media_type="text/html", content_disposition_type="inline")


# Litestar decodes the path before it splits it: an id with a slash matches no route.
@get("/tasks/{task_id:str}")
async def get_task(task_id: FromPath[str], client: Client) -> dict[str, Any]:
    """Return the task as it is now."""
    return (await client.get(task_id)).to_dict()


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
        return Response((await unless_gone(request, waiting)).to_dict())
    except WaitTimeoutError as error:
        if error.last is None:
            raise
        return Response(error.last.to_dict(), status_code=202)


@get("/events")
async def events(
    client: Client,
    ids: Annotated[list[str], QueryParameter(name="id", min_items=1, max_items=MAX_IDS)],
) -> ServerSentEvent:
    """Send the changes of all tasks in `?id=...&id=...` until all have ended.

    One stream for many, because a browser opens at most six connections to a server.
    """
    if "" in ids:
        raise ValidationException("an id is empty")
    return ServerSentEvent(updates(client, list(dict.fromkeys(ids))))


async def updates(client: TaskClient, task_ids: list[str]) -> AsyncIterator[ServerSentEventMessage]:
    running: dict[str, TaskResult] = {}
    try:
        async with client.watch_all(task_ids, timeout=None) as stream:
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT):
                        update = await anext(stream, None)
                except TimeoutError:
                    yield ServerSentEventMessage(comment="nothing new", data=None)
                    continue
                if update is None or isinstance(update.error, ClientClosedError):
                    return  # all have ended, or the server stops: the page connects again
                yield event("update", as_event(update, running))
    except XaiTasksError as error:  # the key was refused
        yield event("problem", {"detail": problem(error)[1]})


def event(name: str, data: dict[str, Any]) -> ServerSentEventMessage:
    return ServerSentEventMessage(event=name, data=encode_json(data))


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
    route_handlers=[page, get_task, wait, events],
    dependencies={"client": Provide(task_client, sync_to_thread=False)},
    exception_handlers={XaiTasksError: on_error, HungUpError: on_hang_up},
    lifespan=[lifespan],
)
