"""The exceptions of this library.

XaiTasksError
├── ConfigurationError(ValueError)
├── ClientClosedError(RuntimeError)
├── InvalidTaskIdError(ValueError)
├── APIError
│   ├── APIConnectionError
│   │   └── APITimeoutError(TimeoutError)
│   ├── APIResponseValidationError
│   ├── SubmissionUncertainError
│   └── APIStatusError
│       ├── BadRequestError              400, 422
│       ├── AuthenticationError          401
│       ├── PaymentRequiredError         402
│       ├── PermissionDeniedError        403
│       ├── NotFoundError                404
│       ├── RateLimitError               429
│       └── ServerError                  5xx
├── DownloadError
│   └── DownloadExpiredError             403, 404, 410
├── TaskError
│   ├── TaskFailedError
│   ├── TaskCancelledError
│   └── TaskTimedOutError
└── WaitTimeoutError(TimeoutError)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from xai_tasks._models import TaskResult
    from xai_tasks._requests import Request

E = TypeVar("E", bound="APIError")


def printable(text: str, limit: int = 500) -> str:
    r"""Return `text` from a server as one line for a message or a log, cut at `limit` characters.

    Characters that `str.isprintable` denies are escaped, as ``\x1b``: an answer can neither forge a
    log line nor drive a terminal.
    """
    cut = text if len(text) <= limit else f"{text[:limit]}…"
    if cut.isprintable():
        return cut
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in cut)


def _rebuild(
    cls: type[XaiTasksError], args: tuple[Any, ...], state: dict[str, Any]
) -> XaiTasksError:
    error = cls.__new__(cls, *args)
    error.args = args  # OSError, a base of the timeouts, would have set them in its __init__ only
    error.__dict__.update(state)
    return error


class XaiTasksError(Exception):
    """The base of every error of this library."""

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException would call the class with `args` alone, which misses the
        # keyword-only fields.
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class ConfigurationError(XaiTasksError, ValueError):
    """The client's arguments are unusable: no key, a malformed key, a bad base URL.

    The message names the argument and never shows the key.
    """


class ClientClosedError(XaiTasksError, RuntimeError):
    """The client was closed before or during the call."""


class InvalidTaskIdError(XaiTasksError, ValueError):
    """A task id that can't be sent: empty, not encodable, or (in bulk) not a string."""


class APIError(XaiTasksError):
    """A request got no usable answer.

    Attributes:
        task_id: the id that was asked for; "" for a submission, which has none yet.

    """

    task_id: str

    _transient: bool | None = None
    """Whether this error is transient, where its class and status do not decide it."""

    def __init__(self, detail: str, *, task_id: str) -> None:
        super().__init__(detail)
        self.task_id = task_id

    def __str__(self) -> str:
        subject = f"task {printable(self.task_id)!r}" if self.task_id else "submission"
        return f"{subject}: {self.args[0]}"

    def for_task(self, task_id: str) -> Self:
        """Return a copy of this error for `task_id`: an outage ends the waits for other ids too."""
        error = copy.copy(self)
        error.task_id = task_id
        return error


class APIConnectionError(APIError):
    """No whole answer came: refused, reset, cut off in the middle, or a DNS or TLS failure."""


class APITimeoutError(APIConnectionError, TimeoutError):
    """One request took longer than `request_timeout`."""


class APIResponseValidationError(APIError):
    """The answer is not what the API documents: not JSON, not the schema, or too large.

    Attributes:
        status_code: the HTTP status of the answer.
        body: the beginning of the answer's body.

    """

    status_code: int
    body: str

    def __init__(self, detail: str, *, task_id: str, status_code: int, body: str) -> None:
        super().__init__(detail, task_id=task_id)
        self.status_code = status_code
        self.body = body


class SubmissionUncertainError(APIError):
    """A request was sent, and no clear answer came: the task may or may not exist.

    It is not sent again, because a second task would cost money. Check the account first.

    Attributes:
        request: what was submitted.
        cause: what happened in place of a clear answer.

    """

    request: Request
    cause: APIError

    def __init__(self, request: Request, cause: APIError) -> None:
        super().__init__(
            f"{type(request).__name__}({printable(request.prompt, 60)!r}) was sent and may have "
            f"been accepted: {cause.args[0]}; check the account before you submit it again",
            task_id="",
        )
        self.request = request
        self.cause = cause


class APIStatusError(APIError):
    """The server answered with an HTTP status other than 2xx.

    Attributes:
        status_code: the HTTP status.
        body: the beginning of the answer's body.
        message: the server's message, if the body holds one.
        trace_id: the server's trace id, if the body holds one.
        retry_after: seconds that the server asked to wait, if it did.

    """

    status_code: int
    body: str
    message: str | None
    trace_id: str | None
    retry_after: float | None
    _quotas: Sequence[Any] = ()
    """What is left of the server's windows, for the throttle."""

    def __init__(
        self,
        detail: str,
        *,
        task_id: str,
        status_code: int,
        body: str = "",
        message: str | None = None,
        trace_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail, task_id=task_id)
        self.status_code = status_code
        self.body = body
        self.message = message
        self.trace_id = trace_id
        self.retry_after = retry_after


class BadRequestError(APIStatusError):
    """400 or 422: the server refuses the request, most likely because of the id."""


class AuthenticationError(APIStatusError):
    """401: the key is missing, unknown or expired."""


class PaymentRequiredError(APIStatusError):
    """402: the account's balance does not allow it."""


class PermissionDeniedError(APIStatusError):
    """403: the key is known but may not see this."""


class NotFoundError(APIStatusError):
    """404: the server knows no such task."""


class RateLimitError(APIStatusError):
    """429: too many requests; `retry_after` holds the seconds to wait, if the server named them."""


class ServerError(APIStatusError):
    """5xx: the server, or a gateway in front of it, failed."""


class DownloadError(XaiTasksError):
    """A file that a result points to could not be saved. The task itself is not touched by it.

    Attributes:
        task_id: the task's id.
        url: the file's URL, without its query, which may hold a signature.
        status_code: the HTTP status of the last answer; None if there was none.

    """

    task_id: str
    url: str
    status_code: int | None

    def __init__(
        self, detail: str, *, task_id: str, url: str, status_code: int | None = None
    ) -> None:
        super().__init__(detail)
        self.task_id = task_id
        self.url = url
        self.status_code = status_code

    def __str__(self) -> str:
        return (
            f"task {printable(self.task_id)!r}: could not download {printable(self.url)}: "
            f"{self.args[0]}"
        )


class DownloadExpiredError(DownloadError):
    """The file is not there, or no longer: 403, 404 or 410, again and again.

    Get the task again, since its result may then hold a new URL.
    """


class TaskError(XaiTasksError):
    """A task ended without completing; raised itself for an end that this version does not know.

    Attributes:
        task: the ended task.
        task_id: the id that was asked for.

    """

    task: TaskResult
    task_id: str

    def __init__(self, task: TaskResult, *, task_id: str | None = None) -> None:
        super().__init__(task)
        self.task = task
        self.task_id = task.task_id if task_id is None else task_id

    def __str__(self) -> str:
        task = self.task
        status = task.raw.get("status") or task.status.value
        text = f"task {printable(self.task_id)!r} ended as {printable(str(status))!r}"
        if task.error_message is not None:
            text += f": {printable(task.error_message)}"
        facts = [
            f"{name} {printable(str(value))}"
            for name, value in (("code", task.error_code), ("trace id", task.trace_id))
            if value is not None
        ]
        return f"{text} ({', '.join(facts)})" if facts else text


class TaskFailedError(TaskError):
    """The task failed on the server."""


class TaskCancelledError(TaskError):
    """The task was cancelled on the server."""


class TaskTimedOutError(TaskError):
    """The server stopped the task because it took too long."""


class WaitTimeoutError(XaiTasksError, TimeoutError):
    """A wait timed out; the task continues on the server and can be waited for again.

    Attributes:
        task_id: the id that was waited for.
        timeout: the wait's timeout in seconds.
        last: the last answer, if any. A `result` over 16 KiB is dropped from it.
        last_error: the last error of a poll, if any.

    """

    task_id: str
    timeout: float
    last: TaskResult | None
    last_error: APIError | None

    def __init__(
        self,
        task_id: str,
        timeout: float,
        last: TaskResult | None = None,
        last_error: APIError | None = None,
    ) -> None:
        super().__init__(
            task_id
        )  # nothing more: OSError would take two arguments for errno and strerror
        self.task_id = task_id
        self.timeout = timeout
        self.last = last
        self.last_error = last_error

    def __str__(self) -> str:
        if not self.task_id:
            text = f"the request was not sent within {self.timeout:g} s, so there is no task"
            return text if self.last_error is None else f"{text}; last error: {self.last_error}"
        text = f"task {printable(self.task_id)!r} had not ended after {self.timeout:g} s"
        if self.last is not None:
            text += f"; last seen {self.last.status.value!r}"
            if self.last.trace_id is not None:
                text += f" (trace id {printable(self.last.trace_id)})"
        if self.last_error is not None:
            text += f"; last error: {self.last_error}"
        return f"{text}; it may still be running: wait again, or with a longer timeout"


_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    402: PaymentRequiredError,
    403: PermissionDeniedError,
    404: NotFoundError,
    422: BadRequestError,
    429: RateLimitError,
}


def status_error_class(status: int) -> type[APIStatusError]:
    """Return the class of error for an HTTP status other than 2xx."""
    return _BY_STATUS.get(status, ServerError if status >= 500 else APIStatusError)


def is_transient(error: BaseException) -> bool:
    """Return whether an error is transient: it may pass by itself, and does not end a wait.

    Transient are connection faults, timeouts, 408, 429, 5xx and malformed answers; a redirect and
    other 4xx are not. An error that was marked by `mark_transient` is what its mark says.
    """
    mark = transient_mark(error)
    if mark is not None:
        return mark
    if isinstance(error, APIStatusError):
        return error.status_code in (408, 429) or error.status_code >= 500
    return isinstance(error, (APIConnectionError, APIResponseValidationError))


def mark_transient(error: E, transient: bool) -> E:
    """Mark an error as transient or not, whatever its class and status say, and return it.

    Marked are error pages of gateways (a 403 or 404 that is not the API's), which are transient,
    and faults that the next attempt would meet again, which are not: an untrusted certificate, an
    answer that is too large.
    """
    error._transient = transient  # noqa: SLF001 -- this module's own attribute
    return error


def transient_mark(error: BaseException) -> bool | None:
    """Return what `mark_transient` said of an error; None if it said nothing."""
    return error._transient if isinstance(error, APIError) else None  # noqa: SLF001 -- as above
