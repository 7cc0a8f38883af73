"""What the server saw: its request log, and waiting for it to grow."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping

from attrs import field, frozen


@frozen
class RequestRecord:
    """One request as the server saw it."""

    task_id: str | None
    """The `taskId` asked for; None where the request had none."""
    time: float
    """When it came, in seconds of the server's event loop clock."""
    headers: Mapping[str, str] = field(repr=False)
    """Its headers, names case-insensitive. Not in the repr: they hold the key."""
    status: int | None
    """The HTTP status it was answered with; None where a fault let none out."""


class RequestLog:
    """The requests seen: all counted, the newest kept.

    Args:
        limit: how many records to keep; None: all.

    """

    def __init__(self, limit: int | None) -> None:
        self._records = deque[RequestRecord](maxlen=limit)
        self._waiters: list[asyncio.Future[None]] = []
        self._lock = threading.Lock()
        self.total = 0
        """Requests seen."""

    def add(self, record: RequestRecord) -> None:
        """Take a request in; whoever waits for it is woken."""
        self._records.append(record)
        self.total += 1
        if self._waiters:
            with self._lock:
                waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                # The waiter's loop may run in another thread than the server's, and may be closed by now.
                if not waiter.get_loop().is_closed():
                    waiter.get_loop().call_soon_threadsafe(_wake, waiter)

    async def wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait, in whichever loop the caller runs, until a request makes `reached` true."""
        while True:
            waiter = asyncio.get_running_loop().create_future()
            with self._lock:
                self._waiters.append(waiter)
            # Asked only now that the next request will wake us: one that comes in between is not missed.
            if reached():
                return
            await waiter

    def records(self) -> list[RequestRecord]:
        """Copy the records kept, oldest first."""
        return list(self._records)

    def clear(self) -> None:
        """Forget all requests; who waits goes on waiting."""
        self._records.clear()
        self.total = 0


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
