"""Tasks and outcomes, and how the bytes of an answer become a task."""

from __future__ import annotations

import json
import re
from abc import ABCMeta
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

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
from xai_tasks._schemas import OUTCOME_SCHEMA, TASK_SCHEMA, UPDATE_SCHEMA, JSONModel

try:
    import orjson
except ImportError:  # the extra `speed`
    orjson = None  # type: ignore[assignment]

T = TypeVar("T")


class TaskStatus(StrEnum):
    """The status of a task; the values are the API's own words."""

    PENDING = "pending"
    READY = "ready"
    """Ready to start: *not* an end."""
    ASSIGNED = "assigned"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    UNKNOWN = "unknown"
    """A status that this version does not know; `TaskResult.raw` holds the server's word."""


_URL = re.compile(r"(?:https?://[^\s/?#]|data:[^\s,]*,)\S*", re.IGNORECASE)

_STATUSES: dict[str, TaskStatus] = {status.value: status for status in TaskStatus}

_ERRORS: dict[TaskStatus, type[TaskError] | None] = {
    TaskStatus.COMPLETED: None,
    TaskStatus.FAILED: TaskFailedError,
    TaskStatus.CANCELLED: TaskCancelledError,
    TaskStatus.TIMEOUT: TaskTimedOutError,
}
"""The end statuses, and the error of each."""


def _status(value: str) -> TaskStatus:
    if not isinstance(value, str):
        raise TypeError(f"status must be a string, not {type(value).__name__}")
    return _STATUSES.get(value, TaskStatus.UNKNOWN)


def _utc(date: datetime) -> datetime:
    """Return a date in UTC; a naive one is taken for that."""
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)


@frozen(repr=False)
class TaskResult(JSONModel):
    """A task, as the server described it in one answer."""

    _JSON_SCHEMA: ClassVar[dict[str, Any]] = TASK_SCHEMA

    task_id: str
    """The id in the answer."""
    status: TaskStatus = field(converter=_status)
    """The status; a string is converted, an unknown word to `TaskStatus.UNKNOWN`."""
    result: Any = field(default=None, hash=False)
    """What the task made: the server's JSON, unchanged. Its shape depends on the kind of task."""
    error_message: str | None = None
    error_code: int | float | str | None = None
    created_at: datetime | None = None
    """When the task was made; aware, in UTC. None if the answer holds no readable date."""
    finished_at: datetime | None = None
    """When the task ended; aware, in UTC. None if the answer holds no readable date."""
    trace_id: str | None = None
    raw: Mapping[str, Any] = field(factory=dict[str, Any], hash=False)
    """The whole answer, including fields that this version does not know."""

    def __attrs_post_init__(self) -> None:
        # Not converters: pyright would not take a field with one for the `datetime` of a protocol.
        created, finished = self.created_at, self.finished_at
        if created is not None and created.tzinfo is not UTC:
            object.__setattr__(self, "created_at", _utc(created))
        if finished is not None and finished.tzinfo is not UTC:
            object.__setattr__(self, "finished_at", _utc(finished))

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
        """Whether the task has ended; with an unknown status, whether it has a `finishedAt`.

        Zero, empty values and dates up to 1970-01-01 are placeholders, and no `finishedAt`.
        """
        if self.status is TaskStatus.UNKNOWN:
            if self.finished_at is not None:
                return self.finished_at >= _FIRST_DATE
            return _is_date(self.raw.get("finishedAt"))
        return self.status in _ERRORS

    @property
    def succeeded(self) -> bool:
        """Whether the task has completed."""
        return self.status is TaskStatus.COMPLETED

    @property
    def elapsed(self) -> timedelta | None:
        """The time from `created_at` to `finished_at`, or None if either is missing."""
        if self.created_at is None or self.finished_at is None:
            return None
        return self.finished_at - self.created_at

    @property
    def urls(self) -> tuple[str, ...]:
        """The `https:`, `http:` and `data:` URLs in `result`, in document order, each once.

        Only strings that are a URL as a whole count, wherever they stand.
        """
        found: dict[str, None] = {}
        rest = [self.result]
        while rest:
            value = rest.pop()
            if isinstance(value, str):
                if _URL.fullmatch(value):
                    found[value] = None
            elif isinstance(value, Mapping):
                rest.extend(reversed(list(value.values())))
            elif isinstance(value, (list, tuple)):
                rest.extend(reversed(value))
        return tuple(found)

    def raise_for_status(self) -> Self:
        """Return the task itself if it completed or has not ended.

        Raises:
            TaskError: the task ended without completing: `TaskFailedError`, `TaskCancelledError`,
                `TaskTimedOutError`, or `TaskError` itself for an end this version does not know.

        """
        error = task_error(self, self.task_id)
        if error is not None:
            raise error
        return self

    def result_as(self, convert: Callable[[Any], T]) -> T:
        """Return `convert(result)`; raise what it raises.

        Pass a `cattrs` hook, or `msgspec.convert` or pydantic's `validate_python` bound to a type.
        """
        return convert(self.result)

    @classmethod
    def from_raw(cls, raw: Mapping[str, Any]) -> Self:
        """Build a task from the JSON object of an answer, or of a line the command line wrote.

        Args:
            raw: what the API or the command line wrote; kept as `raw`.

        Raises:
            ValueError: it is not a task: `taskId` or `status` is missing or not a string.
            TypeError: it is not a mapping.

        """
        # A dict first: asking an ABC takes longer.
        if not isinstance(raw, dict) and (not isinstance(raw, Mapping) or isinstance(raw, cls)):
            raise TypeError(f"raw must be a mapping, not {type(raw).__name__}")
        task_id, status = raw.get("taskId"), raw.get("status")
        if not isinstance(task_id, str) or not isinstance(status, str):
            name = "status" if isinstance(task_id, str) else "taskId"
            raise ValueError(f"{name!r} is missing or not a string")
        error_code = raw.get("errorCode")
        return cls(
            task_id,
            status,
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

    def to_dict(self) -> dict[str, Any]:
        """Return the task as JSON-ready data, which `from_raw` reads: `raw`, or the API's fields.

        The API's fields are built where `raw` is empty: for a `TaskResult` made by hand.
        """
        if self.raw:
            return dict(self.raw)
        return {
            "taskId": self.task_id,
            "status": self.status.value,
            "result": self.result,
            "errorMessage": self.error_message,
            "errorCode": self.error_code,
            "createdAt": self.created_at and self.created_at.isoformat(),
            "finishedAt": self.finished_at and self.finished_at.isoformat(),
            "traceId": self.trace_id,
        }

    @classmethod
    def _read(cls, value: object) -> Self:
        return cls.from_raw(value) if isinstance(value, Mapping) else super()._read(value)


# FastAPI takes a handler's parameter from the request's body only if its class is one of those that
# JSON objects become. Of these, a virtual `Mapping` alone changes nothing else.
cast("ABCMeta", Mapping).register(TaskResult)


def task_error(task: TaskResult, task_id: str) -> TaskError | None:
    """Return the error of an ended task, for the id that was asked for; None if there is none."""
    if not task.done:
        return None
    cls = _ERRORS.get(task.status, TaskError)
    return None if cls is None else cls(task, task_id=task_id)


@frozen
class Outcome(JSONModel):
    """How the wait for one id of many ended."""

    _JSON_SCHEMA: ClassVar[dict[str, Any]] = OUTCOME_SCHEMA

    task_id: str
    """The id that was asked for; the `repr` of one that is empty or not a string."""
    index: int
    """The id's position in the input, from 0."""
    task: TaskResult | None = None
    """The ended task; one that did not complete stands here beside its `TaskError`."""
    error: XaiTasksError | None = field(default=None, eq=False)
    """None if the task completed, and its files were saved where that was asked for."""
    request: Request | None = None
    """The request, where the input held one in place of an id."""
    files: tuple[Path, ...] = ()
    """The files saved, in the order of `TaskResult.urls`: see `download_to` of `as_completed`."""

    @property
    def ok(self) -> bool:
        """Whether the task completed, and nothing went wrong."""
        return self.error is None and self.task is not None and self.task.succeeded

    def unwrap(self) -> TaskResult:
        """Return the completed task.

        Raises:
            XaiTasksError: `error`, if there is one.

        """
        if self.error is not None:
            raise self.error
        if self.task is None:
            raise ValueError(
                f"the outcome of task {printable(self.task_id)!r} holds neither task nor error"
            )
        return self.task

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON-ready data, with the task as the API wrote it.

        An error becomes its class and message. The message is for the operator: it quotes what the
        API answered.
        """
        return {
            "taskId": self.task_id,
            "index": self.index,
            "ok": self.ok,
            "task": self.task and self.task.to_dict(),
            "error": _error_dict(self.error),
            "request": self.request and self.request.to_json(),
            "files": [str(path) for path in self.files],
        }


@frozen
class Update(JSONModel):
    """One id of many: an answer with another status, or how the wait for the id ended."""

    _JSON_SCHEMA: ClassVar[dict[str, Any]] = UPDATE_SCHEMA

    task_id: str
    """The id that was asked for."""
    index: int
    """The id's position in the input, from 0; ids that are added later continue the count."""
    task: TaskResult | None = None
    """The last answer; None if there was none."""
    error: XaiTasksError | None = field(default=None, eq=False)
    """Why the wait ended without an ended task; None for a task that ended, in whatever way."""
    final: bool = False
    """Whether this is the last update of this id."""

    def to_dict(self) -> dict[str, Any]:
        """Return the update as JSON-ready data, with the task as the API wrote it.

        An error becomes its class and message. The message is for the operator: it quotes what the
        API answered.
        """
        return {
            "taskId": self.task_id,
            "index": self.index,
            "final": self.final,
            "task": self.task and self.task.to_dict(),
            "error": _error_dict(self.error),
        }


def _error_dict(error: XaiTasksError | None) -> dict[str, str] | None:
    return None if error is None else {"type": type(error).__name__, "message": str(error)}


@frozen
class ClientStats:
    """What a client has done so far: a snapshot."""

    requests: int = 0
    """Attempts: HTTP requests sent, answered or not."""
    retries: int = 0
    """Attempts after a first one."""
    polls: int = 0
    """Polls made for waits."""
    rate_limited: int = 0
    """429 answers."""
    waiting: int = 0
    """Ids in rotation now."""
    in_flight: int = 0
    """Requests in flight now."""


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_json = json.JSONDecoder(parse_constant=_no_constant)

_DIGITS = bytes(b"0"[0] if byte in b"0123456789" else b" "[0] for byte in range(256))
_LONG_NUMBER = b"0" * 19
"""orjson rounds integers from 2**63 on to floats; they have at least this many digits."""


def parse_json(body: bytes) -> Any:
    """Parse a body as strict JSON: UTF-8 (a byte order mark may lead), no NaN, no infinity by name.

    A number beyond a float's range, such as 1e999, is legal JSON and becomes an infinity. orjson is
    used where it is installed; what it refuses, the standard library parses.

    Raises:
        ValueError: it is not JSON, or its nesting or an integer in it exceeds Python's limits.

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
    """Parse the body of an answer.

    Raises:
        ValueError: the body is not JSON, or not a task; the message says what is wrong.

    """
    raw = parse_json(body)
    if not isinstance(raw, dict):
        raise ValueError(f"an object was expected, not {type(raw).__name__}")
    return TaskResult.from_raw(raw)


_MAX_KEPT_RESULT = 16 * 2**10


def body_to_keep(task: TaskResult, body: bytes) -> bytes:
    """Return the answer to keep of a task that has not ended: without a `result` over 16 KiB.

    Args:
        task: the task that `body` was decoded to.
        body: the answer; `decode_task` reads what is returned, as it reads this.

    """
    if len(body) <= _MAX_KEPT_RESULT:
        return body
    try:
        rest = json.dumps({**task.raw, "result": None}, allow_nan=False).encode()
    except (ValueError, RecursionError):  # infinite or nested too deeply to be written again
        return body
    return rest if len(body) - len(rest) > _MAX_KEPT_RESULT else body


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _date(value: Any) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        date = datetime.fromisoformat(value)
        return date if date.tzinfo is UTC else _utc(date)
    except (
        ValueError,
        OverflowError,
    ):  # the latter from a date whose UTC lies outside years 1 to 9999
        return None


_FIRST_DATE = datetime(1970, 1, 2, tzinfo=UTC)
"""Servers write earlier dates for "none": year 1, or the beginning of Unix time in some zone."""


def _is_date(value: Any) -> bool:
    """Return whether `value`, which `_date` could not read, may still be a date."""
    if isinstance(value, str):
        return bool(value.strip("0 -:./+TZ")) and not value.startswith("000")
    return isinstance(value, (int, float)) and value >= _FIRST_DATE.timestamp()
