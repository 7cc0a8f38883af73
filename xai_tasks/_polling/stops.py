"""Notices whether the process was stopped."""

from __future__ import annotations

import math

_MIN_STOP = 0.25
"""Seconds by which a timer must be late: more than a busy loop makes it.

A stop that began while a request was in flight shows at the deadline alone, so it may be much
longer than that. One taken for a stop by mistake costs a poll of the ids that just ran out of time.
"""


class Stops:
    """Notices that the process was stopped, or its loop blocked, when a timer is far too late."""

    __slots__ = ("_begin", "_last", "end")

    def __init__(self) -> None:
        self._begin = self._last = -math.inf
        self.end: float = -math.inf
        """When the last stop was over."""

    def observe(self, due: float, now: float) -> None:
        """Record that a timer that was due at `due` fires at `now`."""
        expected = max(due, self._last)
        if now > expected + _MIN_STOP:
            self._begin, self.end = due, now
        self._last = now

    def cover(self, moment: float) -> bool:
        """Return whether `moment` lies in the last stop."""
        return self._begin <= moment <= self.end
