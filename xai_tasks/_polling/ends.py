"""Which failed polls end a wait, and what ends it when the client is closed."""

from __future__ import annotations

from xai_tasks._errors import (
    APIError,
    ClientClosedError,
    NotFoundError,
    RateLimitError,
    ServerError,
    is_transient,
    printable,
)
from xai_tasks._polling.entries import Entry


def closed_while_waiting(task_id: str) -> ClientClosedError:
    """Return the error of a wait that the end of the client has ended."""
    return ClientClosedError(
        f"the client was closed while task {printable(task_id)!r} was waited for"
    )


def is_not_found(error: BaseException) -> bool:
    """Return whether the API does not know an id. A gateway's 404 is transient, and is none."""
    return isinstance(error, NotFoundError) and not is_transient(error)


def is_final(entry: Entry, error: BaseException, now: float, answered_at: float) -> bool:
    """Return whether a failed poll ends the waits for an entry.

    Args:
        entry: what was polled; it has recorded the failure.
        error: how the poll failed.
        now: when it failed.
        answered_at: when any request of the client was last answered well.

    """
    failures, policy = entry.failures, entry.group.policy
    if failures is None or not isinstance(error, APIError):
        return True
    if is_not_found(error) and failures.not_found_since is not None:
        return now >= failures.not_found_since + policy.not_found_grace
    if not is_transient(error):
        return True
    since = failures.since
    if policy.max_outage is None or since is None or isinstance(error, RateLimitError):
        return False
    if isinstance(error, ServerError) and error.status_code == 503 and answered_at >= since:
        return False  # while others are answered, it means "later", as a 429 does
    return now >= since + policy.max_outage


def end_of_grace(entry: Entry, now: float) -> float:
    """Return when an id that was answered 404 has had its `not_found_grace`."""
    since = None if entry.failures is None else entry.failures.not_found_since
    return (now if since is None else since) + entry.group.policy.not_found_grace
