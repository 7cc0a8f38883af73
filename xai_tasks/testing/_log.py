"""The log of requests, and a way to wait for more of them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping

from attrs import field, frozen


@frozen
class RequestRecord:
    """One request as the server received it."""

    task_id: str | None
    """The `taskId` requested; None if the request had none."""
    time: float
    """When it came, in seconds of the server's event loop clock."""
    headers: Mapping[str, str] = field(repr=False)
    """Its headers; names are case-insensitive. Not in the repr, because they hold the key."""
    status: int | None
    """The HTTP status of the answer; None if a fault sent none."""
    method: str = "GET"
    path: str = "/xai/tasks"
    """The path of the request target, without its query."""
    query: str = ""
    """The query of the request target, as it came."""


class RequestLog:
    """The requests received: all are counted, the newest are kept.

    Args:
        limit: how many records to keep; None: all.

    """

    def __init__(self, limit: int | None) -> None:
        self._records = deque[RequestRecord](maxlen=limit)
        self._waiters: list[asyncio.Future[None]] = []
        self._lock = threading.Lock()
        self.total = 0
        """Requests received."""

    def add(self, record: RequestRecord) -> None:
        """Record a request, and wake the waiters."""
        self._records.append(record)
        self.total += 1
        if self._waiters:
            with self._lock:
                waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                # The waiter's loop may run in another thread, and may be closed by now.
                if not waiter.get_loop().is_closed():
                    waiter.get_loop().call_soon_threadsafe(_wake, waiter)

    async def wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait until a request makes `reached` true. Works in any loop of any thread."""
        while True:
            waiter = asyncio.get_running_loop().create_future()
            with self._lock:
                self._waiters.append(waiter)
            # Checked only after the waiter is registered, so no request in between is missed.
            if reached():
                return
            await waiter

    def records(self) -> list[RequestRecord]:
        """Return the records kept, oldest first."""
        return list(self._records)

    def clear(self) -> None:
        """Remove all records. Waiters keep waiting."""
        self._records.clear()
        self.total = 0


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
