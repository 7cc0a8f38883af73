"""The process: its exit codes, its signals, and running a command in it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from enum import IntEnum
from types import FrameType
from typing import Any, Self, cast

import click


class Exit(IntEnum):
    """The exit codes."""

    COMPLETED = 0
    INCOMPLETE = 1
    """A task did not complete, or the reader of the output is gone."""
    USAGE = 2
    """The command, the configuration or the machine does not allow it."""
    UNUSABLE = 3
    """The key was refused, or the API gave no usable answer. A later run may complete the job."""
    TIMED_OUT = 4
    """Some waits timed out, and nothing worse happened. A later run may complete the job."""
    INTERRUPTED = 130


_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_SAME = 0.1
"""Seconds in which signals count as one: `timeout` sends its own twice, to us and to our group."""


class Interrupt:
    """Handles SIGINT, SIGTERM and SIGHUP while a command runs.

    The first cancels the command, a second one, a tenth of a second later or more, ends the process
    at once. A signal that the parent process ignores, as a shell does for a job in the background
    or `nohup`, stays ignored.
    """

    def __init__(self) -> None:
        self.received = False
        self._received_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Not the loop's own add_signal_handler: a loop that is busy or stuck would never come to
        # the second signal.
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.received:
            return  # the process is ending, and further signals mean the same as before
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._received_at = True, now
            self._loop.call_soon_threadsafe(self._task.cancel)
        elif now - self._received_at >= _SAME:
            os._exit(Exit.INTERRUPTED)

    def swallow(self) -> None:
        """Undo the cancellation by the first signal, so that the command can end in order."""
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
                interrupt.swallow()  # nothing but a signal cancels it
                return Exit.INTERRUPTED

    return asyncio.run(main())


def exit_code_of(error: Exception) -> int:
    """Return the exit code for an error that ends a command."""
    from xai_tasks import APIError  # noqa: PLC0415 -- only where there was an error

    if isinstance(error, click.ClickException):
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        return Exit.INCOMPLETE
    return Exit.UNUSABLE if isinstance(error, APIError) else Exit.USAGE
