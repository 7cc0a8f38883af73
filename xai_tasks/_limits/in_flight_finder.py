"""Finds a limit on requests in flight.

Such a server refuses whenever too many requests are in flight, at whatever rate they come. It shows
in what was in flight when answers came: refusals come above some number, good answers below it.
Then that number is tried with no limit on the rate. A refusal soon after it proves it wrong.
"""

from __future__ import annotations

import math
from collections import Counter, deque

_PAUSES = 4
"""Pauses whose refusals must agree."""
_ABOVE = 0.02
"""Of the good answers, at most this share may have come above the limit: from the way back."""
_TRIAL = 200
"""Good answers after which a limit that was tried counts as found."""
_RAISE = 10.0
"""Seconds after which one more is tried; doubled each time that this is refused."""
_LONGEST_RAISE = 600.0
_RETRY = 600.0
"""Seconds before another limit is tried, after one that was wrong; doubled each time."""


class InFlightFinder:
    """The limit on requests in flight of one server.

    Attributes:
        limit: requests that may be in flight; infinity if none was found.

    """

    __slots__ = (
        "_accepted",
        "_good",
        "_raise_after",
        "_raise_at",
        "_refused",
        "_retry",
        "_wrong",
        "limit",
    )

    def __init__(self) -> None:
        self.limit = math.inf
        self._accepted: Counter[int] = Counter()
        """Good answers by how many requests were in flight."""
        self._refused: deque[int] = deque(maxlen=_PAUSES)
        """The least number in flight at a refusal, for each of the last pauses."""
        self._good = 0
        self._raise_after = _RAISE
        self._raise_at = 0.0
        self._wrong = 0
        self._retry = -math.inf

    def accepted(self, now: float, in_flight: int) -> None:
        """Record a good answer, and how many were in flight when it came, itself included."""
        if self.limit == math.inf:
            self._accepted[in_flight] += 1
            return
        self._good += 1
        if in_flight >= self.limit and now >= self._raise_at:
            self.limit += 1
            self._raise_at = now + self._raise_after

    def refused(self, now: float, in_flight: int, *, new: bool) -> bool:
        """Record a refusal, and how many were in flight when it came, itself included.

        Args:
            now: when it came.
            in_flight: how many were in flight.
            new: whether it begins a new pause.

        Returns:
            whether what was learned of the rate is void.

        """
        if self.limit < math.inf:
            return new and self._contradicted(now, in_flight)
        if new:
            self._refused.append(in_flight)
        elif self._refused:
            self._refused[-1] = min(self._refused[-1], in_flight)
        if len(self._refused) < _PAUSES or now < self._retry:
            return False
        least = min(self._refused)
        above = sum(count for level, count in self._accepted.items() if level >= least)
        if least < 2 or above > 2 + _ABOVE * self._accepted.total():
            return False
        self.limit = least - 1
        self._good = 0
        self._raise_at = now + self._raise_after
        return True

    def _contradicted(self, now: float, in_flight: int) -> bool:
        if self._good >= _TRIAL and in_flight >= self.limit > 1:
            self.limit -= 1
            self._raise_after = min(2 * self._raise_after, _LONGEST_RAISE)
            self._raise_at = now + self._raise_after
            return True
        self.limit = math.inf
        self._accepted.clear()
        self._refused.clear()
        self._retry = now + _RETRY * 2**self._wrong
        self._wrong += 1
        return True
