"""How ids ended: the JSON line of each, the counts, and the exit code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from xai_tasks import (
    APIResponseValidationError,
    TaskError,
    TaskResult,
    WaitTimeoutError,
    XaiTasksError,
)
from xai_tasks._cli._process import Exit
from xai_tasks._cli._records import ENDED, NOT_SENT, REFUSED, STATUSES, UNCERTAIN

TASK_FIELDS = (
    "taskId",
    "status",
    "result",
    "errorMessage",
    "errorCode",
    "createdAt",
    "finishedAt",
    "traceId",
)
_ABSENT: dict[str, Any] = dict.fromkeys(TASK_FIELDS)
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

NOT_KNOWN = frozenset({"NotFoundError", "BadRequestError", "InvalidTaskIdError"})
"""Errors of ids that the server, or the SDK, does not take for one."""
_MAY_PASS = frozenset(
    {"APIConnectionError", "APITimeoutError", "RateLimitError", "ServerError", NOT_SENT}
)
"""Errors that a later run may not meet."""

_WORDS = {
    "failed": "failed",
    "cancelled": "cancelled",
    "timeout": "timed out on the server",
    "unknown": "with an unknown end",
    "WaitTimeoutError": "timed out",
    UNCERTAIN: "submitted or not (uncertain)",
    REFUSED: "refused",
    NOT_SENT: "not submitted",
    **dict.fromkeys(sorted(NOT_KNOWN), "not known to the server"),
    "DownloadError": "not downloaded",
    "DownloadExpiredError": "expired before the download",
}
_UNANSWERED = "without a usable answer"


def json_line(
    task_id: str,
    task: TaskResult | None,
    error: XaiTasksError | None = None,
    extra: Mapping[str, Any] | None = None,
) -> tuple[bytes, XaiTasksError | None]:
    """Build the line of a task, ASCII JSON: the server's answer, and `error` if the wait ended so.

    The fields that the API documents are always there, null where the answer lacks them, `taskId`
    as it was asked for; fields beyond them follow, then `extra`. `error` is the SDK's alone: a
    field of that name in the answer is left out.

    Returns:
        the line, and the error that it tells of: another than was passed if the answer is valid
        JSON that can't be written again (a number beyond a double, nesting too deep).

    """
    record = _ABSENT.copy()
    if task is not None:
        record.update(task.raw)
        record.pop("error", None)
    record["taskId"] = task_id
    if extra:
        record.update(extra)
    if error is not None and not isinstance(error, TaskError):
        record["error"] = {"type": type(error).__name__, "message": str(error)}
    try:
        return _encode(record).encode() + b"\n", error
    except (ValueError, RecursionError) as problem:
        detail = f"the answer can't be written as JSON: {problem}"
    return json_line(
        task_id, None, APIResponseValidationError(detail, task_id=task_id, status_code=200, body="")
    )


class Tally:
    """Counts how ids ended.

    Args:
        earlier: the counts of earlier runs of the same job, which `CompletedIds` keeps up to date.

    """

    __slots__ = ("_earlier", "_last", "_now", "answered", "failures_in_a_row")

    def __init__(self, earlier: Mapping[str, int] | None = None) -> None:
        self._earlier = {} if earlier is None else earlier
        self._now: Counter[str] = Counter()
        self._last = ""
        self.answered = any(end in ENDED for end in self._earlier)
        """Whether the server has told of a task at all."""
        self.failures_in_a_row = 0
        """How many of the last ids got no usable answer."""

    @property
    def counts(self) -> Counter[str]:
        """Ids by how they ended, in earlier runs too: a status, or the type of an error."""
        return +(self._now + Counter(self._earlier))

    @property
    def earlier(self) -> int:
        """Ids that ended in earlier runs, but for those that are waited for again."""
        return sum(self._earlier.values())

    @property
    def now(self) -> int:
        """Ids that ended in this run."""
        return self._now.total()

    @property
    def completed(self) -> int:
        """Tasks that completed, those of earlier runs included."""
        return self._now["completed"] + self._earlier.get("completed", 0)

    @property
    def incomplete(self) -> int:
        """Ids that came to another end, those of earlier runs included."""
        return self._now.total() + self.earlier - self.completed

    @property
    def all_not_known(self) -> int:
        """Ids of this run that the server does not know, if it has not told of any task; else 0."""
        return 0 if self.answered or self.now > self._now["NotFoundError"] else self.now

    def record(
        self,
        task_id: str,
        task: TaskResult | None,
        error: XaiTasksError | None,
        extra: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Count how an id ended, by its last answer and its error, and build its line."""
        if task is None and isinstance(error, WaitTimeoutError):
            task = error.last
        line, error = json_line(task_id, task, error, extra)
        self.answered = self.answered or task is not None
        if error is None:
            end = "completed"
        elif isinstance(error, TaskError):
            end = error.task.status.value
        else:
            end = type(error).__name__
        has_answer = task is not None or end in NOT_KNOWN or end == "WaitTimeoutError"
        self.failures_in_a_row = 0 if has_answer else self.failures_in_a_row + 1
        self._last = end
        self._now[end] += 1
        return line

    def count(self, end: str) -> None:
        """Count a request that has no task."""
        self._now[end] += 1

    def take_back(self) -> None:
        """Discount the id that was recorded last: its line could not be written."""
        self._now[self._last] -= 1

    @property
    def code(self) -> Exit:
        """The exit code of the whole job: 3 or 4 for what a later run can mend, 1 for the rest."""
        counts = self.counts
        abandoned = {end for end in counts if end not in ENDED}
        clear = NOT_KNOWN | {UNCERTAIN, REFUSED}
        unanswered = abandoned - clear - {"WaitTimeoutError"}
        if unanswered and not self.answered and not abandoned & clear:
            return Exit.UNUSABLE
        if counts.total() - sum(
            counts[end] for end in _MAY_PASS | {"WaitTimeoutError", "completed"}
        ):
            return Exit.INCOMPLETE
        if unanswered:
            return Exit.UNUSABLE
        return Exit.TIMED_OUT if abandoned else Exit.COMPLETED

    def __str__(self) -> str:
        return counts_in_words(self.counts)


def counts_in_words(counts: Mapping[str, int]) -> str:
    """Put counts by how ids ended into words: those completed first, then all others."""
    words = dict.fromkeys((*_WORDS.values(), _UNANSWERED), 0)
    for end, count in counts.items():
        if end != "completed":
            words[_WORDS.get(end, _UNANSWERED)] += count
    parts = [f"{counts.get('completed', 0):,} completed"]
    return ", ".join([*parts, *(f"{count:,} {name}" for name, count in words.items() if count)])


def as_json(counts: Mapping[str, int]) -> dict[str, Any]:
    """Return counts as JSON-ready data: one for each status, and abandoned ids by type of error."""
    abandoned = {end: count for end, count in sorted(counts.items()) if count and end not in ENDED}
    return {
        "tasks": sum(counts.values()),
        **{end: counts.get(end, 0) for end in STATUSES},
        "givenUp": sum(abandoned.values()),
        "errors": abandoned,
    }
