"""Measure what a server accepts: counts of answers, at marks in time."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

__all__ = ["RateMeter", "Stretch"]

# Stretches begin at marks. There are up to so many, at first so many seconds apart (a twentieth of
# the stretch that decides in a climb). When there is no room, every second one is dropped, until
# they are a second apart. Then the oldest go.
_MARKS = 64
_SPACING = 0.02
_WIDEST = 1.0

_IDLE = 1.0
"""Seconds without an answer that are an idle time, or 8 requests' worth if that is longer."""


class Stretch(NamedTuple):
    """How much was accepted in how many seconds."""

    accepted: int
    seconds: float


class RateMeter:
    """Counts the answers of a run: the time since the last pause or idle time.

    Attributes:
        accepted: answers other than refusals, from the start.
        last: when the last of them came.
        run: when the run began.

    """

    __slots__ = ("_marks", "_next_mark", "_run_accepted", "_spacing", "accepted", "last", "run")

    def __init__(self) -> None:
        self.accepted = self._run_accepted = 0
        self.last = self.run = -math.inf
        self._marks: deque[tuple[float, int]] = deque(maxlen=_MARKS)
        self._spacing = _SPACING
        self._next_mark = -math.inf

    @property
    def run_accepted(self) -> int:
        """Answers accepted in the run."""
        return self.accepted - self._run_accepted

    def count(self, now: float, rate: float) -> bool:
        """Count an answer; return whether it ends an idle time at this `rate`."""
        idle = False
        if now >= self._next_mark:
            idle = self.forget_idle(now, rate)
            self._mark(now)
        self.accepted += 1
        self.last = now
        return idle

    def forget_idle(self, now: float, rate: float) -> bool:
        """Begin a run at `now` if the time before it was idle: it filled the server's bucket."""
        idle = bool(self._marks) and now - self.last > max(_IDLE, 8 / rate)
        if idle:
            self.begin_run(now)
        return idle

    def begin_run(self, now: float) -> None:
        """Forget the marks before `now`."""
        self._marks.clear()
        self._spacing, self._next_mark = _SPACING, -math.inf
        self.run, self._run_accepted = now, self.accepted

    def end_run(self, sent: float) -> None:
        """Set no more marks; if there is none, the run began when the request at `sent` left."""
        if not self._marks:
            self._marks.append((sent, self.accepted))
        self._next_mark = math.inf

    def stretches(self) -> list[Stretch]:
        """Return the stretches from each mark to the last answer, the longest first."""
        return [
            Stretch(self.accepted - count, max(0.0, self.last - time))
            for time, count in self._marks
        ]

    def first_mark(self) -> tuple[float, int]:
        """Return time and count of the oldest mark."""
        return self._marks[0]

    def _mark(self, now: float) -> None:
        if len(self._marks) == _MARKS and self._spacing < _WIDEST:
            kept = list(self._marks)[::2]
            self._marks.clear()
            self._marks.extend(kept)
            self._spacing *= 2
        self._marks.append((now, self.accepted))
        self._next_mark = now + self._spacing
