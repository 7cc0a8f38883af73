"""Finds the rate that a server allows, from what it accepted and when it said 429.

A 429 silences the whole client for its `Retry-After`. A sawtooth that keeps running into the limit to find out where it
is (AIMD, CUBIC) therefore wastes far more than the requests refused. This finder measures the limit, holds just under it, and asks
seldom whether it has moved.

The server is taken to be a token bucket: R requests a second, and up to B at once. In a stretch of w seconds it accepts
A(w) <= B + R*w, and that many less a part of one request when the stretch begins with a full bucket and ends with a 429. So

- the burst accepted up to the first 429, when nothing is paced yet, is B;
- (A(w) - B) / w is at most R for every stretch that ends with a 429, and R, but for a part of a request, for the greatest of them;
- from a 429, which found the bucket empty, to another, A(w) / w is at most R, whatever B is.

The greatest of these is the *ceiling*. It is found in a few pauses: one ends the free run and tells B, one ends a climb that doubles the
rate every half second, and one ends a slow probe, in which the deciding stretch is long and so the ceiling sharp. Then the rate is held
for long, and probed again at growing intervals.

Other servers are not quite buckets: windows, fixed or sliding, or limits that several clients share. What they accept
bounds them in the same way, and a ceiling that turns out wrong is measured anew.

The numbers below were chosen in `tests/rate_simulation.py`; `docs/rate-discovery.md` shows what comes of them.
"""

from __future__ import annotations

import math
from collections import deque
from enum import Enum, auto

__all__ = ["RateFinder"]

# Stretches begin at samples: up to so many, at first so many seconds apart (a twentieth of a climb's deciding stretch), and
# every second one dropped whenever there is no room, until they are a second apart. Then the oldest go.
_SAMPLES = 64
_SPACING = 0.02
_WIDEST = 1.0

_JITTER = 0.002  # seconds by which answers may bunch up: an event loop's late timer, there and back
_MARGIN = 0.008  # of the ceiling: held below it, besides what jitter makes uncertain
_SLOWEST = (
    1 / 60
)  # requests a second, however often the server refuses: nobody wants to find out in an hour
_LOOK = 0.05  # seconds between two looks at what was used; fewer would be counting single answers at 50 requests/s
_USED = 0.7  # of the rate that has to be used for it to prove anything
_DOUBLING = 0.5  # seconds, in a climb
_SLOPE = 0.015  # of the ceiling, by which a probe grows in a second: a burst of 10 at 200/s is spent in 4 s
_AGREE = 0.05  # two ceilings that differ by no more confirm each other
_HOLD = 45  # how many times what a pause costs to hold before the next probe: it then costs 2 %
_LONGEST_HOLD = 120  # the same once it has been confirmed again and again: under 1 %
_LONGEST_WAIT = 600.0  # seconds, however long the pauses are


class _Phase(Enum):
    FREE = auto()  # no 429 yet and so no limit
    CLIMB = auto()  # double, up to the ceiling where one is known
    HOLD = auto()  # just under the ceiling
    PROBE = auto()  # creep over it, then faster and faster where it isn't there any more


class RateFinder:
    """The pace of one client.

    It has no clock and no timer of its own: each method is told the time, in seconds of one monotonic clock. The caller paces requests with a
    token bucket that is filled at `pace()` and holds up to `burst`; while a pause lasts it is silent, and afterwards it
    starts from an empty bucket.

    Attributes:
        rate: requests per second that may leave now; `math.inf` before the first 429, positive and finite after it.
        burst: tokens that the caller's bucket may hold now, at least 1. They make up for a stalled event loop, and
            are fewer than the server's own bucket seems to hold.

    """

    __slots__ = (
        "_accepted",
        "_bucket",
        "_ceiling",
        "_climbed",
        "_due",
        "_empty",
        "_hold",
        "_interval",
        "_last",
        "_looked",
        "_looked_accepted",
        "_next_look",
        "_next_sample",
        "_paused",
        "_phase",
        "_probe_at",
        "_run",
        "_run_accepted",
        "_samples",
        "_settled",
        "_slope",
        "_spacing",
        "_sustained",
        "burst",
        "rate",
    )

    def __init__(self) -> None:
        self.rate = math.inf
        self.burst = 1.0
        self._phase = _Phase.FREE
        self._bucket = 1.0
        self._ceiling = self._hold = math.inf
        # What was accepted, by when, and the run since the last pause or idle time that it is measured in.
        self._accepted = self._run_accepted = self._looked_accepted = 0
        self._last = self._run = self._looked = -math.inf
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)
        self._empty: tuple[float, int] | None = None
        self._sustained = (0.0, 0)
        self._spacing = _SPACING
        self._next_sample = -math.inf
        self._next_look = math.inf
        # The pause that was last, and whether its lesson has been learnt.
        self._paused = -math.inf
        self._settled = True
        # The probe that is next.
        self._interval = self._probe_at = 0.0
        self._slope = _SLOPE
        self._climbed = self._due = 0.0

    def accepted(self, now: float) -> None:
        """Count an answer other than a 429, which came at `now`."""
        if now >= self._next_sample:
            self._sample(now)
        self._accepted += 1
        self._last = now

    def rejected(self, now: float, sent: float, pause: float) -> bool:
        """Count a 429.

        Args:
            now: when it came.
            sent: when its request left.
            pause: seconds from now on for which the caller will be silent, 0 or more.

        Returns:
            whether it begins a new pause. A request that left before the last one began says nothing new: its 429 can only
            make the pause longer.

        """
        new = sent > self._paused
        if new:
            self._leave_idle(sent)
            if not self._samples:
                self._samples.append((sent, self._accepted))
            self._paused = now
            self._next_sample = math.inf
            self._next_look = now + pause
            self._settled = False
            if self._phase is _Phase.FREE:
                self.rate = 1.0
        self._next_look = max(self._next_look, now + pause)
        return new

    def pace(self, now: float) -> float:
        """Return `rate`, brought up to date: what may leave from `now` on, in requests per second."""
        if now >= self._next_look:
            if self._settled:
                self._adapt(now)
            else:
                self._settle(now)
            self.burst = max(1.0, min(0.6 * self._bucket, self.rate))
            self._looked, self._looked_accepted = now, self._accepted
            self._next_look = now + max(_LOOK, 2 / self.rate)
        return self.rate

    def _sample(self, now: float) -> None:
        self._leave_idle(now)
        if len(self._samples) == _SAMPLES and self._spacing < _WIDEST:
            kept = list(self._samples)[::2]
            self._samples.clear()
            self._samples.extend(kept)
            self._spacing *= 2
        self._samples.append((now, self._accepted))
        self._next_sample = now + self._spacing

    def _leave_idle(self, now: float) -> None:
        """Forget what was before an idle time: it filled the bucket unseen."""
        if self._samples and now - self._last > max(1.0, 8 / self.rate):
            self._begin_run(now)
            self._empty = None

    def _begin_run(self, now: float) -> None:
        self._samples.clear()
        self._spacing, self._next_sample = _SPACING, -math.inf
        self._run, self._run_accepted = now, self._accepted

    def _settle(self, now: float) -> None:
        """Learn from a 429 when its pause is over: answers to requests sent before it came in meanwhile."""
        pause = max(self._next_look - self._paused, 0.01)
        if self._phase is _Phase.FREE:
            self._start(pause)
        elif self._accepted == self._run_accepted:
            self._wait_longer()
        else:
            self._measure(now, pause)
        if self._accepted > self._run_accepted or self._empty is None:
            self._empty = self._paused, self._accepted
        self.rate = max(self.rate, _SLOWEST)
        self._settled = True
        self._begin_run(now)

    def _stretches(self) -> list[tuple[int, float]]:
        """Give A(w) and w of the stretches from each sample to the last answer that was accepted."""
        return [
            (self._accepted - count, max(0.0, self._last - time)) for time, count in self._samples
        ]

    def _start(self, pause: float) -> None:
        """Begin to pace: with twice what the server would have given if the burst had been all of it, and the pause its price."""
        known = self._stretches()
        whole, width = known[0]
        self.rate = max(min(1.0, 2 / pause), *(got / (width + pause / 2) for got, width in known))
        # Only what was sustained for a while may be taken off the burst; a short burst was all burst.
        sustained = max(
            (got / width for got, width in known if width >= 0.5), default=whole / (width + 1.0)
        )
        self._bucket = max(1.0, *(got - sustained * width for got, width in known))
        self._sustained = self._samples[0]
        self._phase = _Phase.CLIMB

    def _wait_longer(self) -> None:
        """Slow down after a pause that was too short for even one request, but not below what went before on average."""
        since, count = self._sustained
        self.rate = max(self.rate / 2, (self._accepted - count) / (self._paused - since))
        self._phase = _Phase.CLIMB

    def _measure(self, now: float, pause: float) -> None:
        before, known, probed = self._ceiling, self._ceiling < math.inf, self._phase is _Phase.PROBE
        ceiling, width, doubt = self._estimate()
        if known:
            # What was held until it was probed has proved itself. Otherwise the limit may have fallen, but one pause is not
            # believed more than that it halved: something else may have cut the run short.
            ceiling = max(ceiling, before if probed else before / 2)
        change = abs(ceiling / before - 1) if known else 1.0
        self._sustained = (self._run, self._run_accepted)
        self._ceiling = ceiling
        self._hold = max(_SLOWEST, ceiling / (1 + _MARGIN + _JITTER / width))
        self._slope = max(_SLOPE, min(doubt, change, 0.5) / 2)
        # A pause in which the server's bucket fills up costs only what would have overflowed.
        cost = max(pause - self._bucket / ceiling, 0.25, 1.5 / ceiling)
        if change > _AGREE:
            self._interval = 0.0
        else:
            self._interval = min(
                max(_HOLD * cost, 1.5 * self._interval), _LONGEST_HOLD * cost, _LONGEST_WAIT
            )
        if known and not probed:
            self.rate = self._hold / 2
            self._phase = _Phase.CLIMB
        else:
            self._begin_hold(now)

    def _estimate(self) -> tuple[float, float, float]:
        """Give the greatest lower bound of R, the seconds of the stretch that decided it, and by what part it may be too low."""
        best, decided, doubt = _SLOWEST, 1.0, 1.0
        for got, width in self._stretches():
            if (rate := (got - self._bucket) / (width + _JITTER)) > best:
                best, decided = rate, width + _JITTER
                doubt = 1 / (got - self._bucket) + _JITTER / decided
        if self._empty is not None:
            time, count = self._empty
            got, width = self._accepted - count, self._paused - time
            if got / width > best:
                best, decided, doubt = got / width, width, 1 / got + _JITTER / width
        return best, decided, doubt

    def _begin_hold(self, now: float) -> None:
        self.rate = self._hold
        self._phase = _Phase.HOLD
        self._probe_at = now + self._interval

    def _adapt(self, now: float) -> None:
        """Climb, hold or probe on, as far as the rate was used since the last look: one that was not proves nothing."""
        got = self._accepted - self._looked_accepted
        if got < _USED * self.rate * (now - self._looked):
            return
        if self._phase is _Phase.CLIMB:
            self.rate *= 2 ** min(1.0, got / max(3.0, self.rate * _DOUBLING))
            if self.rate >= self._hold:
                self._begin_hold(now)
        elif self._phase is _Phase.PROBE:
            self._probe(got)
        elif now >= self._probe_at:
            self._phase = _Phase.PROBE
            self._climbed = 0.0
            # In so many seconds the ceiling is reached, and twice the server's burst spent on top.
            below = 1 - self._hold / self._ceiling
            spent = math.sqrt(4 * self._bucket * self._slope / self._ceiling)
            self._due = 2.0 + (below + spent) / self._slope

    def _probe(self, got: int) -> None:
        """Grow evenly while the ceiling may be there, then faster and faster, until it is plain that it has gone."""
        self._climbed += got / max(4.0, self.rate)  # seconds, where the whole rate is used
        late = max(0.0, self._climbed - self._due)
        grown = self._climbed - late + 2 * (2 ** (late / 2) - 1)
        self.rate = self._hold + self._ceiling * self._slope * grown
