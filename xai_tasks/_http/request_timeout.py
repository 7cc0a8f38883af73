"""Cuts requests that take too long."""

from __future__ import annotations

import asyncio
from typing import Any, cast


class RequestTimeout:
    """Does what `asyncio.timeout` does, for all requests in flight, with a single timer.

    A timer for each request would cost 4 % of the request. All requests have the same timeout, so
    they expire in the order in which they began.
    """

    __slots__ = ("_cut", "_running", "_seconds", "_timer")

    def __init__(self, seconds: float) -> None:
        """Allow each request `seconds`, more than 0."""
        self._seconds = seconds
        # The time at which each task expires, and its cancellations by others before.
        self._running: dict[asyncio.Task[Any], tuple[float, int]] = {}
        self._cut: dict[asyncio.Task[Any], int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> asyncio.Task[Any]:
        """Start the timeout of the current task, which calls `stop` when its request is over."""
        loop = asyncio.get_running_loop()
        task = cast("asyncio.Task[Any]", asyncio.current_task(loop))
        due = loop.time() + self._seconds
        self._running[task] = (due, task.cancelling())
        if self._timer is None:
            self._timer = loop.call_at(due, self._expire)
        return task

    def stop(self, task: asyncio.Task[Any]) -> bool:
        """Stop the timeout; return whether it expired and nobody else cancelled the task."""
        if self._running.pop(task, None) is None:
            return task.uncancel() <= self._cut.pop(task)
        if not self._running and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return False

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer = None
        for task, (due, cancelling) in list(self._running.items()):
            if due > now:
                self._timer = loop.call_at(due, self._expire)
                break
            del self._running[task]
            self._cut[task] = cancelling
            task.cancel()
