"""Running a command to its exit code, and what SIGINT and SIGTERM do to it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from enum import IntEnum
from types import FrameType
from typing import Any, Self, cast


class Exit(IntEnum):
    """The exit codes."""

    COMPLETED = 0
    INCOMPLETE = 1
    """A task did not complete, or nobody read its line."""
    USAGE = 2
    """The command, the configuration or the machine it runs on does not allow it."""
    UNUSABLE = 3
    """The key was refused, or the API gave no usable answer."""
    TIMED_OUT = 4
    """The time for some ran out, and nothing worse happened."""
    INTERRUPTED = 130


class Interrupt:
    """SIGINT and SIGTERM while a command runs: the first cancels it, the second ends the process at once."""

    def __init__(self) -> None:
        self.received = False
        self._loop = asyncio.get_running_loop()
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Not the loop's own add_signal_handler: a loop that is busy or stuck would never come to the second signal.
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            os._exit(
                Exit.INTERRUPTED
            )  # pragma: no cover -- nothing of this process is left to tell of it
        self.received = True
        self._loop.call_soon_threadsafe(self._task.cancel)

    def swallow(self) -> None:
        """Take the cancellation back that the first signal caused, so that the command can end in good order."""
        self._task.uncancel()


def run_command(command: Callable[[Interrupt], Coroutine[Any, Any, int]]) -> int:
    """Run `command` in an event loop of its own.

    Returns:
        its exit code, or 130 if a signal ended it.

    """

    async def main() -> int:
        with Interrupt() as interrupt:
            try:
                return await command(interrupt)
            except asyncio.CancelledError:
                interrupt.swallow()  # nobody else cancels it
                return Exit.INTERRUPTED

    return asyncio.run(main())
