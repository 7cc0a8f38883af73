"""Finds the rate that a server allows, from what it accepted and when it refused.

A refusal silences the whole client for its `Retry-After`. A sawtooth that keeps running into the
limit to find out where it is (AIMD, CUBIC) therefore wastes far more than the requests refused.
This finder measures the limit, holds just under it, and probes rarely whether it has moved.

The *ceiling* is found in a few pauses: one ends the free run and shows the burst, one ends a climb
that doubles the rate every half second, and one ends a slow probe, in which the deciding stretch is
long and so the ceiling sharp. Then the rate is held for long, and probed at growing intervals.

A ceiling that does not agree with the one before means that the limit moves, or that others share
it. Then holding would be unfair: who came first would keep what it has. So the rate is cut at each
refusal and grows, the faster the longer it was not refused. As all are refused equally often for
each request, who has less is refused less often, and grows. Once two ceilings agree, the limit is
the client's own again.

The numbers below were chosen in `tests/rate_simulation.py`; `docs/rate-discovery.md` shows what
comes of them.
"""

from __future__ import annotations

import math
from enum import Enum, auto

from xai_tasks._limits.rate_estimates import (
    JITTER,
    SLOWEST,
    Estimate,
    estimate_ceiling,
    estimate_start,
)
from xai_tasks._limits.rate_meter import RateMeter, Stretch

__all__ = ["RateFinder"]

_MARGIN = 0.008  # of the ceiling: held below it, besides what jitter makes uncertain
_UPDATE = 0.05  # seconds between two updates; with fewer, single answers count at 50 requests/s
_USED = 0.7  # of the rate that has to be used for it to prove anything
_DOUBLING = 0.5  # seconds, in a climb
_SLOPE = 0.015  # of the ceiling, by which a probe grows in a second: 10 at 200/s are spent in 4 s
_AGREE = 0.05  # two ceilings that differ by no more confirm each other
_HOLD = 45  # how many times what a pause costs to hold before the next probe: it then costs 2 %
_LONGEST_HOLD = 120  # the same once it has been confirmed again and again
_LATE = 45.0  # seconds until a limit that has doubled is noticed, unless pauses are long
_LONGEST_WAIT = 600.0  # seconds, however long the pauses are
_FASTER = 1.5  # seconds in which a probe doubles its growth once the ceiling isn't there any more
_FALLEN = 0.25  # of the best ceiling: below it the server seems to be in trouble
_FADING = 0.97  # of the best ceiling that is left at each probe: forgotten after half an hour
_RECOVERY = 20.0  # seconds between two probes, if the ceiling has fallen so far
_SOON = 6.0  # seconds of such a probe until it grows faster
_UNCERTAIN = 0.1  # of a ceiling that fewer than 10 answers decided: not only a limit sets such
_SLOW = 1.0  # requests per second: below, answers are too rare to be counted
_HEALING = 10.0  # seconds in which a climb doubles a rate that is not used

# Where others share the limit:
_SAME = 0.02  # ceilings of a limit that is the client's own differ by no more
_TIMES_SAME = 2  # so many in a row, for by chance two agree
_CUT = 0.8  # of the rate that was refused: what is left of it
_CYCLE = 10  # how many times what a pause costs, until the cut is made good
_ADDED = 0.1  # requests per second that all add in a second, so that who has little gets more


class _Phase(Enum):
    FREE = auto()  # no refusal yet and so no limit
    CLIMB = auto()  # double, up to the ceiling where one is known
    HOLD = auto()  # just under the ceiling
    PROBE = auto()  # creep over it, then faster and faster where it isn't there any more
    SHARE = auto()  # cut and grow, the faster the longer it was not refused


class _Usage:
    """How much of the rate was used since the last update: one that was not proves nothing."""

    __slots__ = ("_accepted", "_since", "got", "seconds", "share")

    def __init__(self) -> None:
        self._since = 0.0
        self._accepted = 0
        self.got = 0
        self.seconds = 0.0
        self.share = 1.0
        """Of the rate, in the last second, or in four requests' time if that is longer."""

    def begin(self, now: float, accepted: int) -> None:
        self._since, self._accepted = now, accepted

    def update(self, now: float, accepted: int, rate: float) -> None:
        self.got, self.seconds = accepted - self._accepted, max(0.0, now - self._since)
        self.begin(now, accepted)
        window = max(1.0, 4 / rate, self.seconds)
        self.share += (self.got / rate - self.share * self.seconds) / window


class _Probe:
    """When to ask for more than the ceiling, and how fast."""

    __slots__ = ("_best", "_climbed", "_due", "_soon", "at", "held", "interval", "slope")

    def __init__(self) -> None:
        self.interval = self.at = 0.0
        self.slope = _SLOPE
        self.held = math.inf
        """The rate just under the ceiling."""
        self._climbed = self._due = self._best = 0.0
        self._soon = False
        """Whether to grow fast soon: something other than a limit may have set the ceiling."""

    def plan(self, estimate: Estimate, ceiling: float, cost: float, change: float) -> None:
        """Plan the next one: the more a pause costs, the later; at once if the ceiling changed."""
        self._best = max(ceiling, _FADING * self._best)
        fallen = ceiling < _FALLEN * self._best
        doubtful = fallen or estimate.uncertainty > _UNCERTAIN
        self._soon = fallen or (doubtful and ceiling < _SLOW)
        if change > _AGREE:
            self.interval = 0.0
            return
        # As they confirm each other they come more rarely, if that is not too late for a new limit.
        longest = min(max(_HOLD * cost, _LATE), _LONGEST_HOLD * cost, _LONGEST_WAIT)
        first = min(_HOLD * cost, _RECOVERY) if doubtful else _HOLD * cost
        self.interval = min(max(first, 1.5 * self.interval), longest)
        if fallen:
            self.interval = min(self.interval, _RECOVERY)

    def begin(self, ceiling: float, burst: float) -> None:
        """Begin to grow: in `_due` seconds the ceiling is reached, and twice the burst spent."""
        self._climbed = 0.0
        spent = math.sqrt(4 * burst * self.slope / ceiling)
        self._due = 2.0 + (1 - self.held / ceiling + spent) / self.slope
        if self._soon:
            self._due = min(self._due, _SOON)

    def grow(self, seconds: float) -> float:
        """Return the part of the ceiling to add: evenly at first, then faster and faster."""
        self._climbed += seconds
        late = max(0.0, self._climbed - self._due)
        return self.slope * (self._climbed - late + 2 * (2 ** (late / _FASTER) - 1))


class _Share:
    """Whether others share the limit, and the growth of the rate if they do."""

    __slots__ = ("_base", "_climbed", "_cycle", "_disagreed", "_last", "agreed", "shared")

    def __init__(self) -> None:
        self.shared = False
        self._last: float | None = None
        self.agreed = 0
        self._disagreed = 0
        self._base = self._climbed = 0.0
        self._cycle = 1.0

    def compare(self, estimate: Estimate, *, probed: bool) -> None:
        """Compare an estimate of the ceiling with the one before."""
        last, self._last = self._last, estimate.rate
        if last is None:
            return
        change = abs(estimate.rate / last - 1)
        if change > _AGREE + 2 * estimate.uncertainty:
            self._disagreed += 1
            self.shared = self.shared or self._disagreed >= _TIMES_SAME
        else:
            self._disagreed = 0
        if change > _SAME + min(2 * estimate.uncertainty, _SAME) or not probed:
            self.agreed = 0
        else:
            self.agreed += 1
            if self.agreed >= _TIMES_SAME:
                self.shared = False

    def forget(self) -> None:
        """Compare no estimate with one before this time."""
        self._last = None

    def cut(self, rate: float, cost: float) -> float:
        """Return what is left of a rate that was refused."""
        self._base, self._climbed, self._cycle = max(SLOWEST, _CUT * rate), 0.0, _CYCLE * cost
        return self._base

    def grow(self, seconds: float) -> float:
        """Return the rate after so many more seconds."""
        self._climbed += seconds
        cycles = min(4.0, self._climbed / self._cycle)
        growth: float = (1 / _CUT) ** (cycles * cycles)
        return self._base * growth + _ADDED * self._climbed


class RateFinder:
    """The pace of one client.

    It has no clock and no timer of its own: each method is told the time, in seconds of one
    monotonic clock. The caller paces requests with a token bucket that is filled at `pace()` and
    holds up to `burst`. While a pause lasts it is silent, and then starts from an empty bucket.

    Attributes:
        rate: requests per second that may leave now; `math.inf` before the first refusal, positive
            and finite after it.
        burst: tokens that the caller's bucket may hold now, at least 1. They make up for a stalled
            event loop, and are fewer than the server's own bucket seems to hold.

    """

    __slots__ = (
        "_ceiling",
        "_empty",
        "_meter",
        "_paused",
        "_phase",
        "_probe",
        "_server_burst",
        "_settled",
        "_share",
        "_sustained",
        "_update_at",
        "_usage",
        "burst",
        "rate",
    )

    def __init__(self) -> None:
        self.rate = math.inf
        self.burst = 1.0
        self._phase = _Phase.FREE
        self._meter = RateMeter()
        self._usage = _Usage()
        self._probe = _Probe()
        self._share = _Share()
        self._server_burst = 1.0
        self._ceiling = math.inf
        self._empty: tuple[float, int] | None = None
        self._sustained = (0.0, 0)
        self._update_at = math.inf
        # The pause that was last, and whether its lesson has been learned.
        self._paused = -math.inf
        self._settled = True

    def accepted(self, now: float) -> None:
        """Count an answer that is no refusal, which came at `now`."""
        if self._meter.count(now, self.rate):
            self._empty = None

    def rejected(self, now: float, sent: float, pause: float) -> bool:
        """Count a refusal.

        Args:
            now: when it came.
            sent: when its request left.
            pause: seconds from now on for which the caller will be silent, 0 or more.

        Returns:
            whether it begins a new pause. A request that left before the last one began says
            nothing new: its refusal can only make the pause longer.

        """
        new = sent > self._paused
        if new:
            if self._meter.forget_idle(sent, self.rate):
                self._empty = None
            self._meter.end_run(sent)
            self._paused = now
            self._update_at = now + pause
            self._settled = False
            if self._phase is _Phase.FREE:
                self.rate = 1.0
        self._update_at = max(self._update_at, now + pause)
        return new

    def pace(self, now: float) -> float:
        """Return `rate`, brought up to date: what may leave from `now` on, per second."""
        if now >= self._update_at:
            if not self._settled:
                self._settle(now)
                # From the end of the pause on, for the client may have been idle since.
                self._usage.begin(self._update_at, self._meter.accepted)
            self._usage.update(now, self._meter.accepted, self.rate)
            self._adapt(now)
            self.burst = max(1.0, min(0.6 * self._server_burst, self.rate))
            self._update_at = now + max(_UPDATE, (2 if self.rate > _SLOW else 0.9) / self.rate)
        return self.rate

    def _settle(self, now: float) -> None:
        """Learn from a refusal when its pause is over: earlier requests were answered meanwhile."""
        pause = max(self._update_at - self._paused, 0.01)
        meter = self._meter
        if self._phase is _Phase.FREE:
            self.rate, self._server_burst = estimate_start(meter.stretches(), pause)
            self._sustained = meter.first_mark()
            self._phase = _Phase.CLIMB
        elif meter.run_accepted == 0 or self._usage.share < _USED:
            self._slow_down()
        else:
            self._measure(now, pause)
        if meter.run_accepted > 0 or self._empty is None:
            self._empty = self._paused, meter.accepted
        self.rate = max(self.rate, SLOWEST)
        self._settled = True
        meter.begin_run(now)

    def _slow_down(self) -> None:
        """Slow down for a moment after a refusal that says nothing new of the ceiling.

        The pause before it was too short for one request, or the rate was not used. But do not
        slow down below what went before on average.
        """
        since, count = self._sustained
        average = (self._meter.accepted - count) / (self._paused - since)
        rate = max(self.rate / 2, average)
        self._usage.share = min(1.0, self._usage.share * self.rate / rate)
        self.rate = rate
        self._phase = _Phase.CLIMB
        self._share.forget()

    def _measure(self, now: float, pause: float) -> None:
        before, probed = self._ceiling, self._phase in (_Phase.PROBE, _Phase.SHARE)
        known = before < math.inf
        estimate = estimate_ceiling(
            self._meter.stretches(), self._server_burst, self._between_refusals()
        )
        self._share.compare(estimate, probed=probed)
        ceiling = estimate.rate
        if known:
            # What was held until it was probed has proved itself. Otherwise the limit may have
            # fallen, but one pause is not believed more than that it halved: something else may
            # have cut the run short.
            kept = probed and not self._share.shared
            ceiling = max(ceiling, before if kept else before / 2)
        change = abs(ceiling / before - 1) if known and ceiling > SLOWEST else 1.0
        self._sustained = (self._meter.run, self._meter.accepted - self._meter.run_accepted)
        self._ceiling = ceiling
        self._probe.held = max(SLOWEST, ceiling / (1 + _MARGIN + JITTER / estimate.seconds))
        self._probe.slope = max(_SLOPE, min(estimate.uncertainty, change, 0.5) / 2)
        # A pause in which the server's bucket fills up costs only what would have overflowed.
        cost = max(pause - self._server_burst / ceiling, 0.25, 1.5 / ceiling)
        self._probe.plan(estimate, ceiling, cost, change)
        if self._share.shared and not self._share.agreed:
            self.rate = self._share.cut(self.rate, max(min(pause, 1.0), 0.25, 1.5 / ceiling))
            self._phase = _Phase.SHARE
        elif known and not probed and not self._share.shared:
            self.rate = self._probe.held / 2
            self._phase = _Phase.CLIMB
        else:
            self._begin_hold(now)

    def _between_refusals(self) -> Stretch | None:
        if self._empty is None:
            return None
        time, count = self._empty
        return Stretch(self._meter.accepted - count, self._paused - time)

    def _begin_hold(self, now: float) -> None:
        self.rate = self._probe.held
        self._phase = _Phase.HOLD
        self._probe.at = now + (0.0 if self._share.shared else self._probe.interval)

    def _adapt(self, now: float) -> None:
        """Climb, hold or probe on, as far as the rate was used since the last update."""
        got = self._usage.got
        used = got >= _USED * self.rate * self._usage.seconds
        # Where the whole rate is used. A low one goes by time, as answers are rare.
        seconds = got / (self.rate if self.rate < _SLOW else max(4.0, self.rate))
        if self._phase is _Phase.CLIMB:
            self._climb(now, used=used)
        elif not used:
            return
        elif self._phase is _Phase.PROBE:
            rate = self._probe.held + self._ceiling * self._probe.grow(seconds)
            self.rate = min(rate, 2 * self.rate)
        elif self._phase is _Phase.SHARE:
            self.rate = self._share.grow(seconds)
        elif now >= self._probe.at:
            self._phase = _Phase.PROBE
            self._probe.begin(self._ceiling, self._server_burst)

    def _climb(self, now: float, *, used: bool) -> None:
        """Climb with the answers to a rate that is used, or else with time.

        With time no higher than to what was there before, or to a rate too low to do any harm.
        """
        held = self._probe.held
        if used:
            answers = 1.0 if self.rate < _SLOW else max(3.0, self.rate * _DOUBLING)
            self.rate *= 2 ** min(1.0, self._usage.got / answers)
        else:
            goal = held if held < math.inf else max(self.rate, _SLOW)
            self.rate = min(goal, self.rate * 2 ** min(10.0, self._usage.seconds / _HEALING))
        if self.rate >= held:
            self._begin_hold(now)
