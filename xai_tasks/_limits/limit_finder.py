"""Finds which limit a server has: on the rate, on requests in flight, or none."""

from __future__ import annotations

import math

from xai_tasks._limits.in_flight_finder import InFlightFinder
from xai_tasks._limits.rate_finder import RateFinder
from xai_tasks._limits.refusals import SlowerTest

_ANSWERED = 0.5
"""Seconds before a 503 in which another request was answered, if the 503 is taken for a limit.
At a low rate it is two requests' time."""


class LimitFinder:
    """What a client learns from the answers to its requests.

    Attributes:
        answered: requests answered, refusals not counted.

    """

    __slots__ = ("_accepted_at", "_in_flight", "_rate", "_tests", "answered")

    def __init__(self) -> None:
        self.answered: int = 0
        self._accepted_at = -math.inf
        self.forget()

    def forget(self) -> None:
        """Start again: what was learned had other reasons than a limit."""
        self._rate = RateFinder()
        self._in_flight = InFlightFinder()
        self._tests: dict[int, SlowerTest] = {}

    @property
    def limited(self) -> bool:
        """Whether any refusal was taken for a limit."""
        return bool(self._tests)

    @property
    def rate(self) -> float:
        """Requests per second; infinity before the first refusal."""
        return self._rate.rate

    @property
    def burst(self) -> float:
        """Requests that may leave at once, at least 1."""
        return self._rate.burst

    @property
    def max_in_flight(self) -> float:
        """Requests that may be in flight; infinity if no limit on them was found."""
        return self._in_flight.limit

    def pace(self, now: float) -> float:
        """Return `rate`, brought up to date."""
        return self._rate.pace(now)

    def is_answered(self, sent: float) -> bool:
        """Return whether others were answered when a request left, or since."""
        return sent < self._accepted_at + max(_ANSWERED, 2 / self.rate)

    def accepted(self, now: float, sent: float, in_flight: int) -> None:
        """Record an answer that is no refusal, with how many were in flight when it came."""
        self.answered += 1
        self._accepted_at = now
        self._rate.accepted(now)
        if self._tests:
            for test in self._tests.values():
                test.accepted(sent)
            self._in_flight.accepted(now, in_flight)

    def refused(self, now: float, sent: float, pause: float, in_flight: int, status: int) -> bool:
        """Record a refusal.

        Args:
            now: when it came.
            sent: when its request left.
            pause: seconds from now on for which the caller will be silent.
            in_flight: requests in flight when it came.
            status: 429 or 503; each is tested by itself.

        Returns:
            whether it is taken for a limit.

        """
        test = self._tests.get(status)
        if test is None:
            test = self._tests[status] = SlowerTest(self.answered, now)
        limits = test.limits
        test.refused(now, sent)
        if not test.limits:
            if limits and not any(each.limits for each in self._tests.values()):
                self._rate = RateFinder()
                self._in_flight = InFlightFinder()
            return False
        new = self._rate.rejected(now, sent, pause)
        if self._in_flight.refused(now, in_flight, new=new):
            self._rate = RateFinder()
        return True
