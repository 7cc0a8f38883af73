"""When the server is gone: one probe at a time instead of everybody's polls."""

from __future__ import annotations

import math

from xai_tasks._errors import APIError

THRESHOLD = 10
"""Requests in a row that must have failed with transient errors before the server counts as gone."""
FIRST_PROBE = 0.5
"""Seconds from the beginning of an outage to its first probe; the distance doubles from probe to probe."""
LONGEST_DISTANCE = 15.0
"""Seconds between probes at most: how late the end of a long outage is noticed."""


class Outage:
    """Counts failures in a row and, once there are too many, says when the next probe may leave.

    All times are the event loop's.
    """

    __slots__ = ("_distance", "_failures", "_probe_at", "error", "probing", "since")

    error: APIError | None
    """The last transient error that any request met."""
    probing: bool
    """Whether a probe is under way."""
    since: float | None
    """When the outage began; None while there is none."""

    def __init__(self) -> None:
        self._failures = 0
        self._distance = FIRST_PROBE
        self._probe_at = 0.0
        self.error = None
        self.probing = False
        self.since = None

    def failed(self, error: APIError, now: float, *, probe: bool) -> bool:
        """Note a transient error other than 429; True if with it an outage begins."""
        # A copy: the error itself is raised, and would keep its traceback's frames alive for as long as the client.
        self.error = error.for_task(error.task_id)
        if self.since is not None:
            if probe:
                self._distance = min(2 * self._distance, LONGEST_DISTANCE)
                self._probe_at = now + self._distance
            return False
        self._failures += 1
        if self._failures < THRESHOLD:
            return False
        self.since = now
        self._distance = FIRST_PROBE
        self._probe_at = now + FIRST_PROBE
        return True

    def answered(self) -> bool:
        """Note an answer of a server that is there; True if with it an outage is over."""
        self._failures = 0
        over = self.since is not None
        self.since = None
        return over

    def delay(self, now: float) -> float:
        """Give the seconds before the next poll may leave as a probe; infinity while one is under way."""
        if self.since is None:
            return 0.0
        return math.inf if self.probing else self._probe_at - now
