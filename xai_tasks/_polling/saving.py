"""What stands between a producer and its stream where outcomes are to be completed first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import cast

from attrs import evolve

from xai_tasks._errors import DownloadError
from xai_tasks._http.file_transport import shown
from xai_tasks._models import Outcome, TaskResult
from xai_tasks._polling.producers import PASSED_ON

Save = Callable[[Outcome], Awaitable[Outcome]]
"""Saves the files of a completed task; returns its outcome with them."""

_AT_ONCE = 8
"""Outcomes that are completed at once; more would only wait for the client's own limit."""


class Saving:
    """Completes outcomes, a few at once, in the order in which they come.

    Args:
        save: completes one.
        deliver: called with each outcome, completed or with a `DownloadError`.
        fail: called once, with what `save` raises. The outcomes that are left are delivered after
            it, without files: their tasks have ended, and that must not be lost.

    """

    __slots__ = ("_cancelled", "_deliver", "_fail", "_failure", "_queue", "_save", "_workers")

    def __init__(
        self,
        save: Save,
        deliver: Callable[[Outcome], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._save = save
        self._deliver = deliver
        self._fail = fail
        self._failure: str | None = None
        """The type of what `save` raised; the error itself would keep its frames alive."""
        self._queue: deque[Outcome] = deque()
        self._cancelled = False
        self._workers: set[asyncio.Task[None]] = set()

    @property
    def is_empty(self) -> bool:
        """Whether every outcome has been delivered."""
        return not self._workers

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
        """Complete and deliver nothing more: nobody reads the stream."""
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
                outcome = await self._complete(self._queue.popleft())
                if not self._cancelled:
                    self._deliver(outcome)
        finally:
            # At once, not in the callback: the next outcome may come before that.
            self._workers.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _complete(self, outcome: Outcome) -> Outcome:
        if self._failure is None:
            try:
                return await self._save(outcome)
            except PASSED_ON:
                raise  # pragma: no cover -- it ends the program
            except BaseException as error:  # noqa: BLE001 -- the stream's
                if self._failure is None and not self._cancelled:
                    self._failure = type(error).__name__
                    self._fail(error)
        return evolve(outcome, error=_not_saved(outcome, self._failure))


def _not_saved(outcome: Outcome, failure: str | None) -> DownloadError:
    url = shown(cast("TaskResult", outcome.task).urls[0])
    text = f"the stream ended before, with {failure}"
    return DownloadError(text, task_id=outcome.task_id, url=url)
