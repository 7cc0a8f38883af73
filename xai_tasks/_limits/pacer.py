"""When the next request may leave: rate, requests in flight, what is left, pauses. No asyncio.

Whatever the client knows of limits comes together here. All times are seconds of one monotonic
clock, which each method is told, so that `tests/rate_simulation.py` runs an hour in a moment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from xai_tasks._http.hints import Quota
from xai_tasks._limits.limit_finder import LimitFinder
from xai_tasks._limits.quotas import Quotas
from xai_tasks._limits.refusals import RefusedIds

_GROWTH = 0.05
"""Seconds in which requests in flight grow by one after a pause, even if none is answered."""
_AT_ONCE = 0.1
"""Seconds' worth of a given rate that may leave at once, to make up for a stalled event loop."""
_CATCH_UP = 0.9
"""The least distance of two requests at a given rate, as a part of the even distance."""
_TIMER = 0.01
"""Seconds: requests at a given rate that are nearer to each other leave in groups."""


class Bucket:
    """A token bucket: a request takes one token, tokens come back at a rate, up to a burst."""

    __slots__ = ("_stamp", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        """Start full.

        Args:
            rate: tokens per second; infinity for no limit.
            burst: tokens that fit in, at least 1.

        """
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._stamp = 0.0

    def delay(self, now: float) -> float:
        """Return the seconds until there is a token."""
        if self.rate == math.inf:
            return 0.0
        if now > self._stamp:
            self._tokens = min(self.burst, self._tokens + (now - self._stamp) * self.rate)
            self._stamp = now
        # A millionth of a token is rounding: a timer would fire, miss it, and fire again.
        return 0.0 if self._tokens >= 1 - 1e-6 else (1 - self._tokens) / self.rate

    def take(self) -> None:
        """Take the token that `delay` found."""
        self._tokens -= 1

    def give_back(self) -> None:
        """Return the token of a request that was never sent."""
        self._tokens = min(self.burst, self._tokens + 1)

    def hold(self, until: float) -> None:
        """Keep at most one token at `until`: then one request may leave, others at the rate."""
        gained = math.inf if self.rate == math.inf else max(0.0, until - self._stamp) * self.rate
        self._tokens = min(1.0, self._tokens + gained)
        self._stamp = until


class Pacer:
    """All that is known of a server's limits on one kind of request.

    Attributes:
        finder: learns the limit; None where a rate was given.
        in_flight: requests that have left and are not answered.
        paused_until: when the pause that the server asked for is over.

    """

    __slots__ = (
        "_bucket",
        "_grown",
        "_ids",
        "_max",
        "_quotas",
        "_refused_at",
        "_spacing",
        "_window",
        "finder",
        "in_flight",
        "paused_until",
    )

    def __init__(self, max_concurrency: int, rate_limit: float | None) -> None:
        """Take `TaskClient`'s arguments; without `rate_limit` the limit is learned."""
        self._max = max_concurrency
        self._window = max_concurrency
        self._grown = 0.0
        self._bucket = Bucket(math.inf, 1.0)
        self._spacing = Bucket(math.inf, 1.0)
        if rate_limit is not None:
            self._bucket = Bucket(rate_limit, max(1.0, _AT_ONCE * rate_limit))
            spacing = rate_limit / _CATCH_UP
            self._spacing = Bucket(spacing, max(1.0, _TIMER * spacing))
        self._quotas = Quotas()
        self._ids = RefusedIds()
        self._refused_at = -math.inf
        self.finder = LimitFinder() if rate_limit is None else None
        self.in_flight: int = 0
        self.paused_until: float = 0.0

    @property
    def rate(self) -> float:
        """Requests per second, as given, learned or said by headers; infinity if none is known."""
        if self.finder is None:
            return self._bucket.rate
        return self._quotas.rate if self._quotas.guide else self.finder.rate

    @property
    def answered(self) -> float:
        """Requests that were answered while the limit was learned; infinity if it was given."""
        return math.inf if self.finder is None else self.finder.answered

    def delay(self, now: float) -> float:
        """Return the seconds until a request may leave; infinity if that takes an answer."""
        if now < self.paused_until:
            return self.paused_until - now
        while self._window < self._max and now >= self._grown + _GROWTH:
            self._window += 1
            self._grown += _GROWTH
        if self.in_flight >= self._window:
            return math.inf if self._window == self._max else self._grown + _GROWTH - now
        # Most servers never refuse: until then there is nothing to ask but the pause.
        finder, bucket = self.finder, self._bucket
        if finder is None:
            delay = max(bucket.delay(now), self._spacing.delay(now))
        elif finder.limited:
            if self.in_flight >= finder.max_in_flight:
                return math.inf
            bucket.rate = math.inf if self._quotas.guide else finder.pace(now)
            bucket.burst = finder.burst
            delay = bucket.delay(now)
        else:
            bucket.rate = math.inf
            delay = 0.0
        if self._quotas.known:
            delay = max(delay, self._quotas.delay(now, self.in_flight))
        return delay

    def take(self, now: float) -> None:
        """Record that a request leaves."""
        self.in_flight += 1
        self._bucket.take()
        if self.finder is None:
            self._spacing.take()
        if self._quotas.known:
            self._quotas.take(now)

    def give_back(self) -> None:
        """Record that a request that was to leave was never sent."""
        self.in_flight -= 1
        self._bucket.give_back()
        self._spacing.give_back()
        self._quotas.give_back()

    def release(self) -> None:
        """Record that a request has ended."""
        self.in_flight -= 1

    def accepted(self, now: float, sent: float, task_id: str, quotas: Sequence[Quota]) -> None:
        """Record an answer that is no refusal.

        Args:
            now: when it came.
            sent: when its request left.
            task_id: what was asked for.
            quotas: what it says is left.

        """
        # One that comes in a pause was asked for before it, and does not end it.
        if self._window < self._max and now >= self.paused_until:
            self._window += 1
        if self._ids.ids:
            self._ids.accepted(task_id, sent)
        if quotas or self._quotas.known:
            self._quotas.accepted(quotas, now, sent)
        if self.finder is not None and not (self._quotas.known and self._quotas.guide):
            self.finder.accepted(now, sent, self.in_flight)

    def refused(
        self, now: float, sent: float, seconds: float, task_id: str, quotas: Sequence[Quota]
    ) -> bool:
        """Record a 429.

        Args:
            now: when it came.
            sent: when its request left.
            seconds: the pause that it asks for.
            task_id: what was asked for.
            quotas: what it says is left.

        Returns:
            whether a pause begins; none does if the refusal has nothing to do with the rate.

        """
        if task_id and self._ids.refused(task_id, now, new=sent > self._refused_at):
            if self._ids.counted == 0 and self.finder is not None:
                self.finder.forget()
            return False
        if sent > self._refused_at:
            self._refused_at = now
            self._quotas.refused(quotas, now, sent, seconds)
        return self._limited(now, sent, seconds, 429)

    def unavailable(self, now: float, sent: float, seconds: float) -> bool:
        """Record a 503 that names no pause; return whether it is taken for a limit.

        nginx's `limit_req` answers so by default. It counts while going slower makes it rarer.
        `seconds` is the pause that begins then.
        """
        if self.finder is None or not self.finder.is_answered(sent):
            return False
        return self._limited(now, sent, seconds, 503)

    def _limited(self, now: float, sent: float, seconds: float, status: int) -> bool:
        if (
            self.finder is not None
            and not self._quotas.guide
            and not self.finder.refused(now, sent, seconds, self.in_flight, status)
        ):
            return False
        return self.pause(now, seconds)

    def pause(self, now: float, seconds: float) -> bool:
        """Hold all requests for `seconds`; of two pauses the longer holds.

        Returns:
            whether a pause begins, rather than one that was there going on.

        """
        begins = now >= self.paused_until
        until = now + seconds
        if until <= self.paused_until:
            return False
        self.paused_until = until
        self.start_slowly(until)
        self._bucket.hold(until)
        self._spacing.hold(until)
        return begins

    def start_slowly(self, when: float) -> None:
        """Limit requests in flight to one at `when`, and to more from then on."""
        self._window = 1
        self._grown = when
