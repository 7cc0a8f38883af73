"""The tasks that make the requests of polls."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

from xai_tasks._polling.entries import Entry


class Workers:
    """At most so many tasks, each with one entry in flight."""

    __slots__ = ("_in_flight", "_landed", "_limit", "_on_end", "tasks")

    def __init__(self, limit: int, on_end: Callable[[list[Entry]], None]) -> None:
        """Allow `limit` tasks; call `on_end` with the entries that a task leaves in flight."""
        self._limit = limit
        self._on_end = on_end
        self._in_flight: dict[Entry, asyncio.Task[None]] = {}
        self._landed: asyncio.Future[None] | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def free(self) -> bool:
        """Whether one more may be started."""
        return len(self.tasks) < self._limit

    @property
    def in_flight(self) -> list[Entry]:
        """The entries in flight."""
        return list(self._in_flight)

    def start(self, entry: Entry, work: Coroutine[Any, Any, None]) -> None:
        """Start a task for `entry`."""
        loop = asyncio.get_running_loop()
        # In an empty context, so that it does not inherit the first waiter's contextvars. A task
        # factory of the old form takes no `context` argument.
        task = contextvars.Context().run(loop.create_task, work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        self._in_flight[entry] = task

    def take(self, entry: Entry, task: asyncio.Task[None]) -> None:
        """Record that `task` goes on with `entry`."""
        self._in_flight[entry] = task

    def land(self, entry: Entry) -> None:
        """Record that the request for `entry` has ended."""
        self._in_flight.pop(entry, None)
        if self._landed is not None:
            self._landed.set_result(None)
            self._landed = None

    def abort(self, entry: Entry) -> None:
        """Cancel the request for `entry`, if one is in flight."""
        task = self._in_flight.get(entry)
        if task is not None:
            task.cancel()

    async def aborted(self) -> None:
        """Wait until no request is in flight that nobody waits for."""
        while any(entry.subscribers is None for entry in self._in_flight):
            if self._landed is None:
                self._landed = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._landed)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        left = [entry for entry, by in self._in_flight.items() if by is task]
        for entry in left:
            self.land(entry)
        self._on_end(left)
