"""Finds the rate that a server allows, from which requests it accepted and when it said 429.

A 429 silences the whole client for its `Retry-After`, so a sawtooth that runs into the limit again and again wastes
far more than the one request refused. This finder measures the limit instead, holds just under it, and asks seldom
whether it has moved.

The server is taken to be a token bucket of rate R and size B. In any stretch of w seconds it then accepts at most
B + R*w requests, and exactly that many in a stretch that begins with a full bucket and ends with a 429. So

- what was accepted up to the first 429, which comes before the client paces anything, is B;
- at each later 429, (A(w) - B) / w is at most R for every stretch that ends there, and R for the best of them;
- from one 429, where the bucket is empty, to another, A(w) / w is at most R, and R if the bucket never filled up.

The greatest of these is the ceiling, known to about one request in the A(w) that decided it. Windows, fixed or sliding, and several
clients on one limit fit no bucket exactly, but what they accept bounds them in the same way.
"""

from __future__ import annotations

import math
from collections import deque
from enum import Enum, auto

__all__ = ["RateFinder"]

_SAMPLES = 64  # the stretches measured begin at one of so many moments
_SPACING = 0.02  # seconds between them at first; doubled as the time since the last pause grows, up to:
_WIDEST = 1.0
_PAUSES = 8  # 429s remembered as moments at which the bucket was empty
_MARGIN = 0.01  # held below the ceiling beside what is uncertain about it
_SLOWEST = 1 / 60  # requests per second: also a client that is always refused asks once a minute
_STEP = 0.05  # seconds between two looks at how much of the rate has been used


class _Phase(Enum):
    FREE = auto()  # no 429 yet, no limit
    CLIMB = auto()  # doubling towards a ceiling, or one not known yet
    HOLD = auto()
    PROBE = auto()  # creeping, then doubling, away from the ceiling


class RateFinder:
    """The pace of one client, and how it learns from answers.

    It owns no clock and no timer: every method is given the time, in seconds of one monotonic clock. The caller paces
    requests by a token bucket filled at `pace()` that holds up to `burst`, is silent while a pause lasts, and starts
    from an empty bucket when it is over.

    Attributes:
        rate: Requests per second allowed now: `math.inf` before the first 429, afterwards positive and finite.
        burst: Tokens that the caller's bucket may hold now, 1 or more. It makes up for an event loop that stalled, and
            is less than the server's own bucket seems to hold.

    """

    __slots__ = (
        "_accepted",
        "_bucket",
        "_ceiling",
        "_climbed",
        "_empty",
        "_hold",
        "_interval",
        "_last",
        "_looked",
        "_looked_accepted",
        "_next_look",
        "_next_sample",
        "_pause",
        "_paused",
        "_phase",
        "_probe_at",
        "_resumed",
        "_resumed_accepted",
        "_samples",
        "_settled",
        "_spacing",
        "burst",
        "rate",
    )

    def __init__(self) -> None:
        self.rate = math.inf
        self.burst = 1.0
        self._phase = _Phase.FREE
        self._accepted = 0
        self._last = -math.inf
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)
        self._spacing = _SPACING
        self._next_sample = -math.inf
        self._empty: deque[tuple[float, int]] = deque(maxlen=_PAUSES)
        self._bucket = 1.0
        self._ceiling = self._hold = math.inf
        self._settled = True
        self._paused = self._resumed = -math.inf
        self._pause = 0.0
        self._resumed_accepted = 0
        self._looked = 0.0
        self._looked_accepted = 0
        self._next_look = math.inf
        self._climbed = 0.0
        self._interval = 0.0
        self._probe_at = 0.0

    def accepted(self, now: float) -> None:
        """Count an answer other than a 429, which came at `now`."""
        if now >= self._next_sample:
            self._sample(now)
        self._accepted += 1
        self._last = now

    def rejected(self, now: float, sent: float, pause: float) -> bool:
        """Count a 429, which came at `now` for a request that left at `sent`.

        Args:
            now: The time.
            sent: When the request left.
            pause: For how many seconds from now on the caller will be silent, 0 or more.

        Returns:
            Whether it begins a new pause. The requests that were in flight when one began say nothing new: their 429s
            can only make it longer.

        """
        new = sent > self._paused
        if new:
            self._paused = now
            self._next_sample = math.inf
            if not self._samples:
                self._samples.append((sent, self._accepted))
            self._settled = False
            self.rate = min(self.rate, 1.0) if self._phase is _Phase.FREE else self.rate
        self._next_look = now + pause if new else max(self._next_look, now + pause)
        return new

    def pace(self, now: float) -> float:
        """Give the requests per second to send from `now` on: `rate`, brought up to date."""
        if now >= self._next_look:
            if self._settled:
                self._adapt(now)
            else:
                self._settle(now)
            self._look(now)
        return self.rate

    def _sample(self, now: float) -> None:
        samples = self._samples
        if len(samples) == _SAMPLES and self._spacing < _WIDEST:
            thinned = list(samples)[::2]
            samples.clear()
            samples.extend(thinned)
            self._spacing *= 2
        samples.append((now, self._accepted))
        self._next_sample = now + self._spacing

    def _look(self, now: float) -> None:
        self.burst = max(1.0, min(0.7 * self._bucket, self.rate))
        self._looked, self._looked_accepted = now, self._accepted
        self._next_look = now + max(_STEP, 2 / self.rate)

    def _settle(self, now: float) -> None:
        """Learn from the pause that is over; not at its 429, because answers to earlier requests were still to come."""
        end = max(self._paused, self._last)
        pause = max(self._next_look - self._paused, 0.01)
        if self._phase is _Phase.FREE:
            self._start(end, pause)
        else:
            self._measure(now, end, pause)
        self._empty.append((self._paused, self._accepted))
        self._samples.clear()
        self._spacing, self._next_sample = _SPACING, -math.inf
        self._pause, self._resumed, self._resumed_accepted = pause, now, self._accepted
        self._settled = True

    def _start(self, end: float, pause: float) -> None:
        known = [(self._accepted - count, end - time) for time, count in self._samples]
        self.rate = max(min(1.0, 2 / pause), *(got / (width + pause / 2) for got, width in known))
        self._bucket = max(1.0, *(got - self.rate * width for got, width in known))
        self._phase = _Phase.CLIMB

    def _measure(self, now: float, end: float, pause: float) -> None:
        before = self._ceiling
        moved = self._is_below(before, end)
        if moved:
            while len(self._empty) > 1:
                self._empty.popleft()
        self._ceiling, size = self._estimate(end)
        uncertain = _MARGIN + min(0.25, 1.5 / size)
        self._hold = self._ceiling * (1 - uncertain)
        unit = max(pause, 0.25, 1.5 / self._ceiling)
        confirmed = not moved and abs(self._ceiling / before - 1) < 0.05 if before < math.inf else False
        if uncertain > 0.02 and not confirmed:
            self._interval = 0.0
        elif confirmed:
            self._interval = min(max(45 * unit, self._interval * 1.5), 120 * unit)
        else:
            self._interval = 45 * unit
        surprised = self._phase is _Phase.HOLD or (self._phase is _Phase.CLIMB and before < math.inf)
        if surprised and not moved:
            self.rate = 0.5 * self._hold
            self._phase = _Phase.CLIMB
        else:
            self._begin_hold(now)

    def _is_below(self, ceiling: float, end: float) -> bool:
        if ceiling == math.inf:
            return False
        expected = min(self._bucket, ceiling * self._pause) + ceiling * (end - self._resumed)
        return self._accepted - self._resumed_accepted < 0.9 * expected - 2

    def _estimate(self, end: float) -> tuple[float, int]:
        best, size = _SLOWEST, 1
        for time, count in self._samples:
            got = self._accepted - count
            if end - time > 0.05 and (rate := (got - self._bucket + 0.5) / (end - time)) > best:
                best, size = rate, got
        for time, count in self._empty:
            got = self._accepted - count
            if (rate := got / (end - time)) > best:
                best, size = rate, got
        return (max(best, self.rate / 2), size) if size < 8 else (best, size)

    def _begin_hold(self, now: float) -> None:
        self.rate = self._hold
        self._phase = _Phase.HOLD
        self._probe_at = now + self._interval

    def _adapt(self, now: float) -> None:
        got = self._accepted - self._looked_accepted
        if got < 0.7 * self.rate * (now - self._looked):
            return
        if self._phase is _Phase.CLIMB:
            self.rate *= 2 ** min(1.0, got / max(3.0, self.rate * 0.5))
            if self.rate >= self._hold:
                self._begin_hold(now)
        elif self._phase is _Phase.HOLD:
            if now >= self._probe_at:
                self._phase = _Phase.PROBE
                self._climbed = 0.0
        elif self._phase is _Phase.PROBE:
            self._climbed += got / max(6.0, self.rate)
            self.rate = self._hold + self._ceiling * 0.01 * (2**self._climbed - 1)
            if self.rate > 1.5 * self._ceiling + self._bucket:
                self._phase = _Phase.CLIMB
                self._ceiling = self._hold = math.inf
