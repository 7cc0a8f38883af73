"""Is the server gone? Then one probe at a time goes out, instead of everybody's polls.

Elsewhere this is called a circuit breaker. An outage is one thing for the whole client, and means
that the server is gone. An id that always fails, or nine of them, is no outage.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

from xai_tasks._errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    ServerError,
    is_transient,
)

logger = logging.getLogger("xai_tasks")

THRESHOLD = 10
"""Different ids whose requests must have failed, with no answer in between."""
FIRST_PROBE = 0.5
"""Seconds from the beginning of an outage to its first probe; the distance doubles each time."""
LONGEST_DISTANCE = 15.0
"""Seconds between probes at most: how late the end of a long outage is noticed."""

_MAX_TROUBLED = 10_000
"""Ids of which it is remembered that they failed while the server was there."""


def is_no_answer(error: APIError) -> bool:
    """Return whether a failed request leaves it open that the server is gone.

    A connection fault, a timeout and a 5xx do. Any other answer, an unreadable 200 or
    a 429 included, shows that the server is there; so does an untrusted certificate, which is not
    transient.
    """
    return is_transient(error) and isinstance(error, (APIConnectionError, ServerError))


class PollsStopped(Exception):  # noqa: N818 -- not an error: the poll is made later
    """Raised in a poll that has not been sent when an outage begins."""


class Outage:
    """Counts ids that fail with no answer in between, and knows when the next probe may leave.

    An id that failed while the server was there says nothing new when it fails again, so it does
    not count until it has been answered well. All times are the event loop's.
    """

    __slots__ = (
        "_distance",
        "_failed_ids",
        "_last",
        "_troubled",
        "answered_at",
        "on_change",
        "probe_at",
        "since",
    )

    answered_at: float
    """When a request was last answered well; minus infinity if none was."""
    on_change: Callable[[], None]
    """Called when an outage begins and when it is over."""
    probe_at: float
    """When the next probe may leave."""
    since: float | None
    """When the outage began; None while there is none."""

    def __init__(self) -> None:
        self._failed_ids: set[str] = set()
        self._troubled: dict[str, None] = {}
        """Ids that failed while the server was there; the oldest is forgotten first."""
        self._distance = FIRST_PROBE
        self._last: APIError | None = None
        self.answered_at = -math.inf
        self.on_change = _nothing
        self.probe_at = math.inf
        self.since = None

    def failed(self, error: APIError) -> None:
        """Record a request that failed in a way that `is_no_answer`; an outage may begin."""
        # A copy: the error itself is raised, and would keep the frames of its traceback alive.
        self._last = error.for_task(error.task_id)
        if error.task_id not in self._troubled:
            self._failed_ids.add(error.task_id)
        if self.since is None and len(self._failed_ids) >= THRESHOLD:
            self.since = asyncio.get_running_loop().time()
            self._distance = FIRST_PROBE
            self.probe_at = self.since + FIRST_PROBE
            logger.warning(
                "an outage has begun: polls stop but for one probe at a time; last error: %s",
                error,
                extra={"task_id": error.task_id, "error": type(error).__name__},
            )
            self.on_change()

    def probe_ended(self, *, failed: bool) -> None:
        """Record that a probe brought no answer.

        If it failed, the next may leave after twice as long. If it was aborted, it shows nothing.
        """
        if failed:
            self._distance = min(2 * self._distance, LONGEST_DISTANCE)
        self.probe_at = asyncio.get_running_loop().time() + self._distance

    def answered_well(self, task_id: str, now: float) -> None:
        """Record a good answer for an id."""
        self.answered_at = now
        self.answered()
        if self._troubled:
            self._troubled.pop(task_id, None)

    def answered(self) -> None:
        """Record an answer, whatever it says: the server is there."""
        if self._failed_ids:
            if self.since is None:
                self._troubled.update(dict.fromkeys(self._failed_ids))
            self._failed_ids.clear()
            while len(self._troubled) > _MAX_TROUBLED:
                del self._troubled[next(iter(self._troubled))]
        if self.since is not None:
            seconds = asyncio.get_running_loop().time() - self.since
            self.since = None
            logger.warning(
                "the outage is over: the server answers again, %.3g s after it began",
                seconds,
                extra={"seconds": seconds},
            )
            self.on_change()

    def error_for(self, task_id: str, own: APIError | None) -> APIError:
        """Return the error of a wait that the outage ends.

        Args:
            task_id: the id that was waited for.
            own: the error that its own requests met, if they did.

        """
        seconds = asyncio.get_running_loop().time() - (self.since or 0.0)
        about = f"the server has answered no request for {seconds:.3g} s"
        if own is not None:
            return _with_detail(own, f"{own.args[0]}; {about}")
        last = self._last
        if isinstance(last, APIStatusError):
            about += f" with anything but HTTP {last.status_code}"
            return type(last)(about, task_id=task_id, status_code=last.status_code)
        cls = APITimeoutError if isinstance(last, APITimeoutError) else APIConnectionError
        return cls(f"{about}, and this task was not asked for", task_id=task_id)


def _with_detail(error: APIError, detail: str) -> APIError:
    error = error.for_task(error.task_id)
    error.args = (detail,)
    return error


def _nothing() -> None:
    """Stand in for a callback that nobody has set."""
