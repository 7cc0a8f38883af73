"""The tasks that make the requests of polls."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import cast

from xai_tasks._errors import XaiTasksError
from xai_tasks._http.transport import Response
from xai_tasks._limits.outage import PollsStopped
from xai_tasks._limits.retrying import RetryingFetcher
from xai_tasks._polling.entries import Entry

Answer = Response | BaseException | None
"""What came of a poll; None if no request was made, or it was aborted."""


class Workers:
    """At most so many tasks, each with one entry in flight.

    A worker polls the entry it was started for and then whatever is due, until nothing is.
    """

    __slots__ = (
        "_fetcher",
        "_in_flight",
        "_landed",
        "_limit",
        "_on_idle",
        "_on_poll",
        "_take",
        "tasks",
    )

    def __init__(
        self,
        limit: int,
        fetcher: RetryingFetcher,
        *,
        take: Callable[[float], Entry | None],
        on_poll: Callable[[Entry, Answer, float], None],
        on_idle: Callable[[], None],
    ) -> None:
        """Make requests with `fetcher`.

        Args:
            limit: the number of tasks at most.
            fetcher: the client's.
            take: called with the time; returns the entry to poll next, if one is due.
            on_poll: called with an entry, what came of its poll, and the time.
            on_idle: called when a worker has ended, most often because nothing is due.

        """
        self._limit = limit
        self._fetcher = fetcher
        self._take = take
        self._on_poll = on_poll
        self._on_idle = on_idle
        self._in_flight: dict[Entry, asyncio.Task[None]] = {}
        self._landed: asyncio.Future[None] | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def free(self) -> bool:
        """Whether one more may be started."""
        return len(self.tasks) < self._limit

    def start_due(self, now: float) -> None:
        """Start a worker for each entry that is due, as far as there may be more."""
        while len(self.tasks) < self._limit:
            entry = self._take(now)
            if entry is None:
                return
            loop = asyncio.get_running_loop()
            # In an empty context, so that it does not inherit the first waiter's contextvars.
            # A task factory of the old form takes no `context` argument.
            task = contextvars.Context().run(loop.create_task, self._work(entry))
            self.tasks.add(task)
            task.add_done_callback(self._on_task_end)
            self._in_flight[entry] = task

    def abort(self, entry: Entry) -> None:
        """Cancel the request for `entry`, if one is in flight."""
        task = self._in_flight.get(entry)
        if task is not None:
            task.cancel()

    def abort_all(self) -> None:
        """Cancel every request in flight."""
        for task in self._in_flight.values():
            task.cancel()

    async def aborted(self) -> None:
        """Wait until no request is in flight that nobody waits for."""
        while any(entry.subscribers is None for entry in self._in_flight):
            if self._landed is None:
                self._landed = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._landed)

    async def _work(self, entry: Entry) -> None:
        worker = cast("asyncio.Task[None]", asyncio.current_task())
        clock = asyncio.get_running_loop().time
        following: Entry | None = entry
        while following is not None:
            entry = following
            answer = await self._fetch(entry, worker)
            now = clock()
            self._land(entry)
            self._on_poll(entry, answer, now)
            del answer  # an error's frames lead back to this one
            following = self._take(now)
            if following is not None:
                self._in_flight[following] = worker
                self.start_due(now)

    async def _fetch(self, entry: Entry, worker: asyncio.Task[None]) -> Answer:
        try:
            return await self._fetcher.fetch(entry.task_id, poll=entry)
        except PollsStopped:
            return None
        except asyncio.CancelledError as error:
            if not worker.cancelling():
                return error  # raised by a key function
            if entry.subscribers is not None or worker.uncancel():
                raise  # cancelled from outside, and not only by `abort`
            return None
        except XaiTasksError as error:
            return error.with_traceback(None)  # its frames hold the entry, which holds the error
        except Exception as error:  # noqa: BLE001 -- a key function may raise anything
            return error

    def _land(self, entry: Entry) -> None:
        self._in_flight.pop(entry, None)
        if self._landed is not None:
            self._landed.set_result(None)
            self._landed = None

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        now = asyncio.get_running_loop().time()
        for entry in [entry for entry, by in self._in_flight.items() if by is task]:
            # Cancelled before its first step, or from outside. Otherwise a key function has raised
            # what is no `Exception`.
            answer = None if task.cancelled() else task.exception()
            self._land(entry)
            self._on_poll(entry, answer, now)
        self._on_idle()
