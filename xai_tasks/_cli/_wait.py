"""`xai-tasks wait`: any number of ids in, a line out for each as its task ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from xai_tasks import ConfigurationError, Outcome, OutcomeStream, TaskClient, XaiTasksError
from xai_tasks._cli._account import Account
from xai_tasks._cli._ids import IdSource, digest
from xai_tasks._cli._output import Held, LineSink
from xai_tasks._cli._progress import LogHandler, Reporter, Snapshot, spell
from xai_tasks._cli._running import Exit, Interrupt

_HOPELESS = 100
"""Ids in a row without a usable answer after which the rest is left for a better day, instead of being run through."""
_GRACE = 0.1
"""Seconds for an outcome that should be at hand to come out of the stream."""


class Selection:
    """Which ids this run waits for.

    Args:
        shard: K and N: of N parts, into which ids fall by their hash, the Kth; None: all.
        held: those not to wait for again; None: there are none.

    """

    __slots__ = ("_held", "_shard")

    def __init__(self, shard: tuple[int, int] | None, held: Held | None) -> None:
        self._shard = shard
        self._held = held

    def __call__(self, task_id: str) -> bool:
        """Say whether to wait for an id."""
        if self._shard is not None:
            part, parts = self._shard
            if digest(task_id) % parts != part - 1:
                return False
        return self._held is None or self._held.claim(task_id)


class Job:
    """One run of `wait`.

    Args:
        source: gives the ids.
        sink: takes the lines.
        reporter: tells how it goes.
        held: counts the ids of earlier runs; None: nothing is resumed.
        hint: how to go on after an interruption.
        max_pending: ids in rotation at most.

    """

    def __init__(
        self,
        source: IdSource,
        sink: LineSink,
        reporter: Reporter,
        held: Held | None,
        hint: str,
        max_pending: int,
    ) -> None:
        self._source = source
        self._sink = sink
        self._reporter = reporter
        self._held = held
        self._hint = hint
        self._max_pending = max_pending
        self._account = Account()

    async def run(self, client: TaskClient, interrupt: Interrupt) -> int:
        """Wait for all ids, and give the exit code.

        Raises:
            AuthenticationError, PermissionDeniedError, ConfigurationError: the key is of no use, or no longer.
            APIError: the API gave no usable answer for many ids on end.
            OSError: a line can't be written.

        """
        begun = time.monotonic()
        handler = LogHandler(self._reporter)
        logging.getLogger("xai_tasks").addHandler(handler)
        try:
            async with (
                client,
                client.as_completed(self._source, max_pending=self._max_pending) as stream,
            ):
                await self._follow(client, stream, interrupt)
        except XaiTasksError:
            self._reporter.say(self._hint)
            raise
        finally:
            logging.getLogger("xai_tasks").removeHandler(handler)
            self._reporter.clear()
        self._reporter.sum_up(self._summary(time.monotonic() - begun, client.stats.requests))
        if interrupt.received:
            self._reporter.say(f"interrupted; {self._hint}")
            return Exit.INTERRUPTED
        return self._code()

    async def _follow(
        self, client: TaskClient, stream: OutcomeStream, interrupt: Interrupt
    ) -> None:
        progress = asyncio.create_task(
            self._reporter.follow(lambda: self._snapshot(client, stream))
        )
        try:
            # Not `async for`: its end would close the stream, and an interrupt wants what has ended by then.
            while (outcome := await anext(stream, None)) is not None:
                await self._take(outcome)
        except asyncio.CancelledError:
            interrupt.swallow()
            await self._drain(client, stream)
        finally:
            progress.cancel()

    async def _drain(self, client: TaskClient, stream: OutcomeStream) -> None:
        """Write what has ended and has not been taken yet, and pull no further id."""
        self._source.stopped = True
        with contextlib.suppress(TimeoutError, StopAsyncIteration):
            for _ in range(stream.pending - client.stats.waiting):
                async with asyncio.timeout(_GRACE):
                    outcome = await anext(stream)
                await self._take(outcome)

    async def _take(self, outcome: Outcome) -> None:
        if isinstance(outcome.error, ConfigurationError):
            raise outcome.error  # the key file went bad: every other id would meet the same
        if self._sink.is_terminal:
            self._reporter.clear()
        await self._sink.write(self._account.enter(outcome.task_id, outcome.task, outcome.error))
        if self._account.faults_in_a_row >= _HOPELESS and outcome.error is not None:
            raise outcome.error

    def _snapshot(self, client: TaskClient, stream: OutcomeStream) -> Snapshot:
        stats = client.stats
        return Snapshot(
            self._account.completed,
            self._account.incomplete,
            stream.pending,
            stats.polls,
            stats.rate_limited,
            self._source.expected,
        )

    def _summary(self, seconds: float, requests: int) -> str:
        account, source = self._account, self._source
        parts = [
            f"{account.ended:,} task{'s' * (account.ended != 1)} in {spell(seconds)}: {account}",
            f"{requests:,} requests",
        ]
        if self._held is not None and self._held.skipped:
            parts.append(f"{self._held.skipped:,} skipped, as they are in the output")
        if source.misread:
            parts.append(f"lines without an id: {source.misread:,}")
        return "; ".join(parts)

    def _code(self) -> Exit:
        if self._source.broken:
            return Exit.USAGE
        code = self._account.code
        if self._source.misread or (self._held is not None and self._held.failed):
            # What earlier runs met counts too: a job in pieces ends as it would have ended in one.
            return Exit.INCOMPLETE if code is not Exit.UNUSABLE else code
        return code
