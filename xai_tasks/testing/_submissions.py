"""Submissions: the tasks that accepted POST requests create."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from aiohttp import web

from xai_tasks.testing._durations import Duration
from xai_tasks.testing._http import Reply, refusal
from xai_tasks.testing._lifecycle import (
    Ending,
    Lifecycle,
    Step,
    Steps,
    ending_of,
    in_two_steps,
    steps_of,
)
from xai_tasks.testing._tasks import TaskBook

RESULTS: dict[str, Callable[[str], Any]] = {
    "/xai/images": lambda file: {"imageUrls": [f"{file}.png"]},
    "/xai/videos": lambda file: {"videoUrl": f"{file}.mp4"},
}
"""The routes that take submissions, and the result of a task of each where `accept` names none:
made of the URL of the task's files, without their extension."""

_STEPS: Steps = (("pending", 0.1), ("processing", 0.4))


async def read_body(request: web.BaseRequest) -> bytes:
    """Return the whole body of a request, however large."""
    return await request.content.read()


class Submissions:
    """The accepted submissions, and what becomes of them. Thread-safe.

    Args:
        tasks: where the tasks are added.
        files: returns the URL under which their files are.

    """

    def __init__(self, tasks: TaskBook, files: Callable[[], str]) -> None:
        self._tasks = tasks
        self._files = files
        self._lock = threading.Lock()
        self._bodies: list[dict[str, Any]] = []
        self._random = Random(0)
        self._steps: Callable[[], Steps] = lambda: _STEPS
        self._ending: str | None = None

    def script(
        self,
        steps: str | Iterable[Step] | Duration,
        result: Any,
        failed: Ending | None,
        cancelled: Ending | None,
        timeout: Ending | None,
    ) -> None:
        """Set the lifecycle of the tasks to come; arguments as in `TaskServer.add`.

        Raises:
            ValueError: a step's time is negative, or more than one end is given.
            TypeError: the result can't be written as JSON.

        """
        ending = ending_of(result, failed=failed, cancelled=cancelled, timeout=timeout)
        if callable(steps):
            self._steps = lambda: in_two_steps(steps(self._random))
        else:
            fixed = steps_of(steps)
            self._steps = lambda: fixed
        self._ending = None if (result, failed, cancelled, timeout) == (None,) * 4 else ending

    def submit(self, path: str, body: bytes, now: float) -> Reply:
        """Create a task; return the answer, a `TaskIdDto`, or a 400 if the body is not a job's."""
        try:
            job = json.loads(body)
        except ValueError as error:
            return refusal(400, str(error))
        if problems := _problems(job):
            return refusal(400, problems)
        with self._lock:
            self._bodies.append(job)
            task_id = f"submitted-{len(self._bodies)}"
        ending = self._ending or ending_of(RESULTS[path](self._files() + task_id))
        self._tasks.add(task_id, Lifecycle(now, self._steps(), ending))
        return Reply(200, json.dumps({"taskId": task_id}).encode())

    def bodies(self) -> list[dict[str, Any]]:
        """Return the bodies of the accepted submissions, in order."""
        with self._lock:
            return list(self._bodies)

    def clear(self) -> None:
        """Remove all bodies, and restore the lifecycle of a new server."""
        with self._lock:
            self._bodies.clear()
            self._random = Random(0)
            self._steps = lambda: _STEPS
            self._ending = None


_TYPES: dict[str, tuple[Any, ...]] = {
    "prompt": ("a string", str),
    "model": ("a string", str),
    "aspectRatio": ("a string", str),
    "resolution": ("a string", str),
    "duration": ("a number", int, float),
    "images": ("an array", list),
}


def _problems(job: Any) -> list[str]:
    """Return what is wrong with a job's types. Values are not checked: they change over time."""
    if not isinstance(job, dict):
        return ["an object was expected"]
    problems = [f"{name} is required" for name in ("prompt", "model") if name not in job]
    for name, (word, *types) in _TYPES.items():
        if name in job and (not isinstance(job[name], tuple(types)) or isinstance(job[name], bool)):
            problems.append(f"{name} must be {word}")
    if job.get("prompt") == "":
        problems.append("prompt should not be empty")
    images = job.get("images")
    if isinstance(images, list) and not all(isinstance(image, str) for image in images):
        problems.append("each value in images must be a string")
    return problems
