"""What stands between a producer and its stream where outcomes are to be completed first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import cast

from xai_tasks._models import Outcome

Save = Callable[[Outcome], Awaitable[Outcome]]
"""Saves the files of a completed task; returns its outcome with them."""

_AT_ONCE = 8
"""Outcomes that are completed at once; more would only wait for the client's own limit."""


class Saving:
    """Completes outcomes, a few at once, in the order in which they come.

    Args:
        save: completes one.
        deliver: called with each completed one.
        fail: called once, with what `save` raises. Nothing is delivered after it.

    """

    __slots__ = ("_cancelled", "_deliver", "_fail", "_queue", "_save", "_workers")

    def __init__(
        self,
        save: Save,
        deliver: Callable[[Outcome], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._save = save
        self._deliver = deliver
        self._fail = fail
        self._queue: deque[Outcome] = deque()
        self._cancelled = False
        self._workers: set[asyncio.Task[None]] = set()

    def add(self, outcome: Outcome) -> None:
        """Complete an outcome as soon as there is room; deliver one without files at once."""
        if outcome.task is None or not outcome.ok or not outcome.task.urls:
            self._deliver(outcome)
            return
        self._queue.append(outcome)
        if len(self._workers) < _AT_ONCE:
            worker = asyncio.get_running_loop().create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    def cancel(self) -> None:
        """Complete nothing more."""
        self._cancelled = True
        self._queue.clear()
        for worker in self._workers:
            worker.cancel()

    async def settled(self) -> None:
        """Wait until what `cancel` ended has come to its end."""
        if self._workers:
            await asyncio.wait(self._workers)

    async def _work(self) -> None:
        try:
            while self._queue:
                self._deliver(await self._save(self._queue.popleft()))
        except Exception as error:  # noqa: BLE001 -- the stream raises it
            if not self._cancelled:
                self._fail(error)
        finally:
            # At once, not in the callback: the next outcome may come before that.
            self._workers.discard(cast("asyncio.Task[None]", asyncio.current_task()))
