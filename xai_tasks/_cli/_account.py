"""What came of each id: its JSON line, the counts, and the exit code that they make."""

from __future__ import annotations

import json
from typing import Any

from xai_tasks import (
    APIResponseValidationError,
    BadRequestError,
    InvalidTaskIdError,
    NotFoundError,
    TaskError,
    TaskResult,
    WaitTimeoutError,
    XaiTasksError,
)
from xai_tasks._cli._running import Exit

_FIELDS = (
    "taskId",
    "status",
    "result",
    "errorMessage",
    "errorCode",
    "createdAt",
    "finishedAt",
    "traceId",
)
_ABSENT: dict[str, Any] = dict.fromkeys(_FIELDS)
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def json_line(
    task_id: str, task: TaskResult | None, error: XaiTasksError | None = None
) -> tuple[bytes, XaiTasksError | None]:
    """Tell of a task in one line of JSON, in ASCII: the server's answer, and `error` where the SDK gave up.

    The fields that the API documents are always there, null where the answer lacks them, `taskId` as it was asked for; fields
    beyond them follow. `error` is the SDK's alone: a field of that name in the answer is left out.

    Returns:
        the line, and the error that it tells: another one than was given if the answer is valid JSON that can't be written
        again (a number beyond a double, nesting too deep).

    """
    record = _ABSENT.copy()
    if task is not None:
        record.update(task.raw)
        record.pop("error", None)
    record["taskId"] = task_id
    if error is not None and not isinstance(error, TaskError):
        record["error"] = {"type": type(error).__name__, "message": str(error)}
    try:
        return _encode(record).encode() + b"\n", error
    except (ValueError, RecursionError) as problem:
        detail = f"the answer can't be written as JSON: {problem}"
    return json_line(
        task_id, None, APIResponseValidationError(detail, task_id=task_id, status_code=200, body="")
    )


class Account:
    """Counts how ids ended."""

    __slots__ = (
        "answered",
        "completed",
        "failed",
        "faulted",
        "faults_in_a_row",
        "timed_out",
        "unknown",
    )

    def __init__(self) -> None:
        self.completed = 0
        self.failed = 0
        """Tasks that ended otherwise."""
        self.timed_out = 0
        """Waits whose own time ran out."""
        self.unknown = 0
        """Ids that the server, or the SDK, does not take for one."""
        self.faulted = 0
        """Ids for which the API gave no usable answer."""
        self.faults_in_a_row = 0
        """How many of the last ids those were."""
        self.answered = False
        """Whether the server has shown any task at all."""

    @property
    def ended(self) -> int:
        """Ids that came to an end, whichever."""
        return self.completed + self.incomplete

    @property
    def incomplete(self) -> int:
        """Ids that came to another end than completed."""
        return self.failed + self.timed_out + self.unknown + self.faulted

    def enter(self, task_id: str, task: TaskResult | None, error: XaiTasksError | None) -> bytes:
        """Count how an id ended, by its last answer and what the SDK makes of it, and give its JSON line."""
        if task is None and isinstance(error, WaitTimeoutError):
            task = error.last
        line, error = json_line(task_id, task, error)
        self._count(task, error)
        return line

    def _count(self, task: TaskResult | None, error: XaiTasksError | None) -> None:
        self.answered = self.answered or task is not None
        faults, self.faults_in_a_row = self.faults_in_a_row, 0
        if error is None:
            self.completed += 1
        elif isinstance(error, TaskError):
            self.failed += 1
        elif isinstance(error, WaitTimeoutError):
            self.timed_out += 1
        elif isinstance(error, (NotFoundError, BadRequestError, InvalidTaskIdError)):
            self.unknown += 1
        else:
            self.faulted += 1
            self.faults_in_a_row = faults + 1

    @property
    def code(self) -> Exit:
        """The exit code."""
        if self.faulted and not self.answered and not self.unknown:
            return Exit.UNUSABLE
        if self.failed or self.unknown or self.faulted:
            return Exit.INCOMPLETE
        return Exit.TIMED_OUT if self.timed_out else Exit.COMPLETED

    def __str__(self) -> str:
        counts = (
            (self.failed, "failed"),
            (self.timed_out, "timed out"),
            (self.unknown, "not known to the server"),
            (self.faulted, "without a usable answer"),
        )
        return ", ".join(
            [f"{self.completed:,} completed", *(f"{n:,} {what}" for n, what in counts if n)]
        )
