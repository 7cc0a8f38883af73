"""Tasks in Django's async views, under ASGI: one request, a long poll, and a live page of many.

In a clone of xai_tasks:              pip install . 'django>=5.2' uvicorn
Beside this file and live_page.html:  uvicorn django_app:application --timeout-graceful-shutdown 5

One file, to try it out. In a project, `settings.configure` is `settings.py`, the views are in an
app, and `Lifespan` goes around the application in `asgi.py`.

MOUNTSEA_API_KEY holds the key. MOUNTSEA_BASE_URL, if set, is the API's URL.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

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

HEARTBEAT = 15.0
"""Seconds of silence after which a stream sends a comment, so that no proxy cuts it as idle."""

POLLING = wait_adaptive()
"""Learns how long tasks take; the page shows its estimate of the time left."""

MAX_IDS = 100
"""Ids in one stream: they are in its URL, and servers and proxies accept about 8 KB of that."""

PAGE = Path(__file__).with_name("live_page.html")

logger = logging.getLogger(__name__)

settings.configure(ALLOWED_HOSTS=["127.0.0.1", "localhost"], ROOT_URLCONF=__name__)


class Lifespan:
    """Make one client for the process: all requests share its polls, connections and rate limit.

    Django does not speak ASGI's lifespan protocol. This does, and passes all else on to Django.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        await receive()  # lifespan.startup
        async with TaskClient(poll=PollPolicy(wait=POLLING)) as client:
            scope["state"]["client"] = client
            await send({"type": "lifespan.startup.complete"})
            await receive()  # lifespan.shutdown
        await send({"type": "lifespan.shutdown.complete"})


def task_client(request: Any) -> TaskClient:
    client: TaskClient = request.scope["state"]["client"]
    return client


async def get_task(request: HttpRequest, task_id: str) -> HttpResponse:
    """Return the task as it is now."""
    try:
        return JsonResponse((await task_client(request).get(task_id)).to_dict())
    except XaiTasksError as error:
        return failure(error)


async def wait(request: HttpRequest, task_id: str) -> HttpResponse:
    """Return the task once it has ended.

    After `timeout` seconds, return 202 and its last status: the client asks again. If the client
    disconnects, Django cancels this view, and so its wait.
    """
    try:
        timeout = float(request.GET.get("timeout", "30"))
    except ValueError:
        timeout = math.nan
    if not 0 < timeout <= 60:
        detail = "timeout must be more than 0 and at most 60 seconds"
        return JsonResponse({"detail": detail}, status=422)
    try:
        task = await task_client(request).wait(task_id, timeout=timeout, check=False)
    except WaitTimeoutError as error:
        if error.last is None:
            return failure(error)
        return JsonResponse(error.last.to_dict(), status=202)
    except XaiTasksError as error:
        return failure(error)
    return JsonResponse(task.to_dict())


async def events(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
    """Send the changes of all tasks in `?id=...&id=...` until all have ended.

    One stream for many, because a browser opens at most six connections to a server.
    """
    task_ids = list(dict.fromkeys(request.GET.getlist("id")))
    if not 1 <= len(task_ids) <= MAX_IDS or "" in task_ids:
        return JsonResponse({"detail": f"name 1 to {MAX_IDS} ids"}, status=422)
    return StreamingHttpResponse(
        updates(task_client(request), task_ids),
        content_type="text/event-stream",
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


def failure(error: XaiTasksError) -> HttpResponse:
    status, detail = problem(error)
    response = JsonResponse({"detail": detail}, status=status)
    if status == 503:
        response["Retry-After"] = str(math.ceil(getattr(error, "retry_after", None) or 5))
    return response


async def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(PAGE.read_bytes())


urlpatterns = [
    path("", page),
    path("events", events),
    # `path` lets ids contain slashes. The longer path comes first, or the other would match it.
    path("tasks/<path:task_id>/wait", wait),
    path("tasks/<path:task_id>", get_task),
]

application = Lifespan(get_asgi_application())
