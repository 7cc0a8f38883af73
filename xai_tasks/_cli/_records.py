"""Lines of an output file: what each of them says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

STATUSES = ("completed", "failed", "cancelled", "timeout", "unknown")
ENDED = frozenset(STATUSES)
"""How a task ends on the server. `unknown`: an end date, and a status of a later version."""
UNCERTAIN, REFUSED, NOT_SENT = "uncertain", "refused", "not sent"
"""How requests end that have no task: it may exist; the server said no; it does not exist."""
SUBMITTED = "submitted"
"""How requests stand that have a task."""
BEGINNINGS = (b'{"taskId":', b'{"request":')
"""What each line begins with, so that one that was cut off can be told from a foreign file."""


def digest(task_id: str) -> int:
    """Hash an id to 64 bits, the same on every machine and in every version."""
    # Ids may hold lone surrogates, from JSON or from arguments that are not UTF-8.
    name = task_id.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(name, digest_size=8).digest())


def parse_record(line: bytes) -> dict[str, Any] | None:
    """Parse a line; None if it is not a JSON object."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def end_of(record: dict[str, Any]) -> str | None:
    """Return how a line says that the wait for a task ended.

    Returns:
        one of `ENDED`; or the type of the error with which the wait ended; None: it did not.

    """
    status, error = record.get("status"), record.get("error")
    if not isinstance(record.get("taskId"), str):
        return None
    if isinstance(error, dict) and isinstance(error.get("type"), str):
        return str(error["type"])
    if not isinstance(status, str):
        return None
    if status in ENDED:
        return status
    from xai_tasks import TaskResult, TaskStatus  # noqa: PLC0415 -- only for a status of the future

    known = status in TaskStatus.__members__.values()
    ended = not known and TaskResult(record["taskId"], TaskStatus.UNKNOWN, raw=record).done
    return "unknown" if ended else None


def request_of(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the request that a line of `run` is about; None for any other line."""
    request = record.get("request")
    return request if isinstance(request, dict) and "kind" in record else None


def state_of(record: Mapping[str, Any]) -> str:
    """Return how a request stands, as a line of `run` says that is not about its end."""
    if isinstance(record.get("taskId"), str):
        return SUBMITTED
    state = record.get("state")
    return state if state in (REFUSED, NOT_SENT) else UNCERTAIN


class CompletedIds:
    """How each id of an output file ended, by a 64-bit hash of it: which need no wait any more.

    A million take 75 MB. That two of a million ids hash alike, so that one is skipped, has a
    chance of 1 in 37 million.
    """

    __slots__ = ("_ends", "counts", "skipped")

    def __init__(self) -> None:
        self._ends: dict[int, str] = {}
        self.counts: dict[str, int] = {}
        """Ids of the file by how they ended, but for those that are waited for again."""
        self.skipped = 0
        """Ids asked for that are not waited for: they have ended, or came before in the input."""

    def add(self, record: dict[str, Any]) -> None:
        """Record what a line of the file says; a later line of the same id counts."""
        end = end_of(record)
        if end is not None:
            key = digest(record["taskId"])
            self._count(self._ends.get(key), -1)
            self._ends[key] = end
            self._count(end, 1)

    def claim(self, task_id: str) -> bool:
        """Return whether to wait for an id; once it has been claimed it is no more."""
        key = digest(task_id)
        end = self._ends.get(key)
        if end in ENDED or end == _CLAIMED:
            self.skipped += 1
            return False
        self._count(end, -1)
        self._ends[key] = _CLAIMED
        return True

    def retake(self, task_id: str) -> None:
        """Take back how an id ended, as another line will say: it is not waited for again."""
        key = digest(task_id)
        self._count(self._ends.get(key), -1)
        self._ends[key] = _CLAIMED

    def _count(self, end: str | None, change: int) -> None:
        if end is not None:
            self.counts[end] = self.counts.get(end, 0) + change


_CLAIMED = ""
