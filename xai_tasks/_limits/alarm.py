"""One timer that is moved, instead of a timer for each thing that is due."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


class Alarm:
    """Calls a function once, at the earliest of the times that it was set to."""

    __slots__ = ("_callback", "_handle", "at")

    def __init__(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the time has come. It finds `at` as it was, and may set it again."""
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None
        self.at: float = math.inf
        """The loop's time that it was set to."""

    @property
    def is_set(self) -> bool:
        """Whether it is going to fire."""
        return self._handle is not None

    def set(self, when: float) -> None:
        """Make sure that it fires at `when` or before; infinity cancels it.

        One that is set to an earlier time is left alone: its callback then sets it again.
        """
        if self._handle is not None:
            if self.at <= when < math.inf:
                return
            self.cancel()
        if when < math.inf:
            self.at = when
            self._handle = asyncio.get_running_loop().call_at(when, self._fire)

    def cancel(self) -> None:
        """Cancel it, if it is set."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        self._callback()
