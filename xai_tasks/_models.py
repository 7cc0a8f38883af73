"""What the API tells of a task, and how its bytes become that."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Self, TypeVar

from attrs import field, frozen

from xai_tasks._errors import (
    TaskCancelledError,
    TaskError,
    TaskFailedError,
    TaskTimedOutError,
    XaiTasksError,
    printable,
)
from xai_tasks._requests import Request

try:
    import orjson
except ImportError:  # the extra `speed`
    orjson = None  # type: ignore[assignment]

T = TypeVar("T")


class TaskStatus(StrEnum):
    """Where a task stands; the values are the API's own words."""

    PENDING = "pending"
    READY = "ready"
    """Ready to be run: *not* an end."""
    ASSIGNED = "assigned"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    UNKNOWN = "unknown"
    """A status that this version does not know; `TaskResult.raw` holds the server's word."""


_STATUSES = {status.value: status for status in TaskStatus}

_ERRORS: dict[TaskStatus, type[TaskError] | None] = {
    TaskStatus.COMPLETED: None,
    TaskStatus.FAILED: TaskFailedError,
    TaskStatus.CANCELLED: TaskCancelledError,
    TaskStatus.TIMEOUT: TaskTimedOutError,
}
"""The statuses that are ends, and the error that each stands for."""


@frozen(repr=False)
class TaskResult:
    """One look at a task: what the server said of it at that moment."""

    task_id: str
    """The id that the server gave."""
    status: TaskStatus
    result: Any = field(default=None, hash=False)
    """What the task made: the server's JSON, untouched; its shape depends on the kind of task."""
    error_message: str | None = None
    error_code: int | float | str | None = None
    created_at: datetime | None = None
    """When the task was made; aware, in UTC. None where the server gave no date that can be read."""
    finished_at: datetime | None = None
    """When the task ended; aware, in UTC. None where the server gave no date that can be read."""
    trace_id: str | None = None
    raw: Mapping[str, Any] = field(factory=dict[str, Any], hash=False)
    """The whole answer, with the fields that this version does not know."""

    def __repr__(self) -> str:
        parts = [f"task_id={printable(self.task_id)!r}", f"status={self.status.value!r}"]
        for name, value in (
            ("error_message", self.error_message),
            ("error_code", self.error_code),
            ("trace_id", self.trace_id),
        ):
            if value is not None:
                parts.append(f"{name}={printable(value) if isinstance(value, str) else value!r}")
        return f"TaskResult({', '.join(parts)})"

    @property
    def done(self) -> bool:
        """Whether the task has ended; so has one with an unknown status once it has a `finishedAt`."""
        if self.status is TaskStatus.UNKNOWN:
            return self.finished_at is not None or self.raw.get("finishedAt") is not None
        return self.status in _ERRORS

    @property
    def succeeded(self) -> bool:
        """Whether the task has completed."""
        return self.status is TaskStatus.COMPLETED

    @property
    def elapsed(self) -> timedelta | None:
        """The time from `created_at` to `finished_at`, or None where either is missing."""
        if self.created_at is None or self.finished_at is None:
            return None
        return self.finished_at - self.created_at

    def raise_for_status(self) -> Self:
        """Return the task itself if it completed or has not ended.

        Raises:
            TaskError: the task ended otherwise: `TaskFailedError`, `TaskCancelledError`, `TaskTimedOutError`, or
                `TaskError` itself for an end that this version does not know.

        """
        error = task_error(self, self.task_id)
        if error is not None:
            raise error
        return self

    def result_as(self, convert: Callable[[Any], T]) -> T:
        """Give `convert(result)`: a `cattrs` hook, `msgspec.convert` or pydantic's `validate_python` bound to a type.

        Raises whatever `convert` raises.
        """
        return convert(self.result)


def task_error(task: TaskResult, task_id: str) -> TaskError | None:
    """Give the error that an ended `task`, asked for as `task_id`, stands for; None if it completed or has not ended."""
    if not task.done:
        return None
    cls = _ERRORS.get(task.status, TaskError)
    return None if cls is None else cls(task, task_id=task_id)


@frozen
class Outcome:
    """How the wait for one id of many ended."""

    task_id: str
    """The id as it was asked for; for one that is no string, its `repr`."""
    index: int
    """The id's place in the input, counted from 0."""
    task: TaskResult | None = None
    """The ended task; also there, beside a `TaskError`, if it ended otherwise than completed."""
    error: XaiTasksError | None = field(default=None, eq=False)
    """None if the task completed."""
    request: Request | None = None
    """The request, where the input held one in place of an id."""

    @property
    def ok(self) -> bool:
        """Whether the task completed."""
        return self.error is None

    def unwrap(self) -> TaskResult:
        """Return the completed task.

        Raises:
            XaiTasksError: `error`, where there is one.

        """
        if self.error is not None:
            raise self.error
        if self.task is None:
            raise ValueError(
                f"the outcome of task {printable(self.task_id)!r} holds neither task nor error"
            )
        return self.task


@frozen
class ClientStats:
    """What a client has done so far, at one moment."""

    requests: int = 0
    """Attempts made: HTTP requests sent, whatever came back."""
    retries: int = 0
    """Attempts after a first one."""
    polls: int = 0
    """Looks made for waits."""
    rate_limited: int = 0
    """429 answers."""
    waiting: int = 0
    """Ids in rotation now."""
    in_flight: int = 0
    """Requests under way now."""


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_json = json.JSONDecoder(parse_constant=_no_constant)

_DIGITS = bytes(b"0"[0] if byte in b"0123456789" else b" "[0] for byte in range(256))
_LONG_NUMBER = b"0" * 19
"""An integer from 2**63 on, which orjson would round to a float, has at least as many digits."""


def parse_json(body: bytes) -> Any:
    """Parse a body as strict JSON: UTF-8 (a byte order mark may lead), no NaN, no infinity by name.

    A number beyond a float's range, such as 1e999, is legal JSON and comes out as an infinity. orjson, where it is installed, reads what
    it reads as the standard library does, and leaves the rest to that.

    Raises:
        ValueError: it is not; also for nesting deeper, or an integer longer, than Python takes.

    """
    if orjson is not None and _LONG_NUMBER not in body.translate(_DIGITS):
        try:
            return orjson.loads(body)
        except ValueError:
            pass
    text = body.decode("utf-8")  # a UnicodeDecodeError is a ValueError
    try:
        return _json.decode(text.removeprefix("\ufeff"))
    except RecursionError:
        problem = "nested too deeply"
    raise ValueError(problem)


def decode_task(body: bytes) -> TaskResult:
    """Turn the body of an answer into a `TaskResult`.

    Raises:
        ValueError: the body is not JSON, or not of the schema; the message says what is wrong.

    """
    raw = parse_json(body)
    if not isinstance(raw, dict):
        raise ValueError(f"an object was expected, not {type(raw).__name__}")
    task_id, status = raw.get("taskId"), raw.get("status")
    if not isinstance(task_id, str) or not isinstance(status, str):
        name = "status" if isinstance(task_id, str) else "taskId"
        raise ValueError(f"{name!r} is missing or no string")
    error_code = raw.get("errorCode")
    return TaskResult(
        task_id,
        _STATUSES.get(status, TaskStatus.UNKNOWN),
        raw.get("result"),
        _string(raw.get("errorMessage")),
        error_code
        if isinstance(error_code, (int, float, str)) and not isinstance(error_code, bool)
        else None,
        _date(raw.get("createdAt")),
        _date(raw.get("finishedAt")),
        _string(raw.get("traceId")),
        raw,
    )


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _date(value: Any) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        date = datetime.fromisoformat(value)
        if date.tzinfo is None:
            return date.replace(tzinfo=UTC)
        return date if date.tzinfo is UTC else date.astimezone(UTC)
    except (
        ValueError,
        OverflowError,
    ):  # the latter from a date whose UTC lies outside years 1 to 9999
        return None
