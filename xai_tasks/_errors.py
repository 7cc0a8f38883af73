"""Every exception that this library raises of its own.

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
├── TaskError
│   ├── TaskFailedError
│   ├── TaskCancelledError
│   └── TaskTimedOutError
└── WaitTimeoutError(TimeoutError)
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from xai_tasks._models import TaskResult
    from xai_tasks._requests import Request


def printable(text: str, limit: int = 500) -> str:
    r"""Make `text` from a server fit for a message or a log: one line, cut at `limit` characters.

    Control characters and whatever else `str.isprintable` denies come out as escapes such as ``\x1b``, so that
    an answer can neither forge a log line nor drive a terminal.
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
    """The base of every error of this library: catch it to catch them all."""

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException would call the class with `args` alone, which misses the keyword-only fields.
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class ConfigurationError(XaiTasksError, ValueError):
    """The client can't work as it is set up: no key, a malformed key, a bad base URL.

    The message names the argument and never shows the key.
    """


class ClientClosedError(XaiTasksError, RuntimeError):
    """The client was closed before the call, or while it was under way."""


class InvalidTaskIdError(XaiTasksError, ValueError):
    """A task id that can't be asked for: empty, not encodable, or (in bulk) no string."""


class APIError(XaiTasksError):
    """A request did not bring a usable answer.

    Attributes:
        task_id: the id that was asked for; "" for a submission, which has none yet.

    """

    task_id: str

    def __init__(self, detail: str, *, task_id: str) -> None:
        super().__init__(detail)
        self.task_id = task_id

    def __str__(self) -> str:
        subject = f"task {printable(self.task_id)!r}" if self.task_id else "submission"
        return f"{subject}: {self.args[0]}"

    def for_task(self, task_id: str) -> Self:
        """Give the same error said of `task_id`: an outage met by one poll ends the waits for other ids too."""
        error = copy.copy(self)
        error.task_id = task_id
        return error


class APIConnectionError(APIError):
    """No whole answer came: refused, reset, DNS or TLS trouble, or cut off in the middle."""


class APITimeoutError(APIConnectionError, TimeoutError):
    """One request took longer than `request_timeout`."""


class APIResponseValidationError(APIError):
    """An answer came that is not what the API promises: not JSON, not the schema, or too large.

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
            f"{type(request).__name__}({printable(request.prompt, 60)!r}) was sent and may have been "
            f"accepted: {cause.args[0]}; check the account before you submit it again",
            task_id="",
        )
        self.request = request
        self.cause = cause


class APIStatusError(APIError):
    """The server answered with an HTTP status that is no success.

    Attributes:
        status_code: the HTTP status.
        body: the beginning of the answer's body.
        message: the server's own words, where the body holds any.
        trace_id: the server's trace id, where the body holds one.
        retry_after: seconds that the server asked to wait, where it did.

    """

    status_code: int
    body: str
    message: str | None
    trace_id: str | None
    retry_after: float | None

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
    """400 or 422: the server does not accept the request, most likely the id."""


class AuthenticationError(APIStatusError):
    """401: the key is missing, unknown or expired."""


class PaymentRequiredError(APIStatusError):
    """402: the account's balance does not allow it."""


class PermissionDeniedError(APIStatusError):
    """403: the key is known but may not see this."""


class NotFoundError(APIStatusError):
    """404: the server knows no such task."""


class RateLimitError(APIStatusError):
    """429: too many requests; `retry_after` says how long the server wants silence."""


class ServerError(APIStatusError):
    """5xx: the server, or a gateway in front of it, is in trouble."""


class TaskError(XaiTasksError):
    """A task ended otherwise than completed; raised itself where the end is one this version does not know.

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
    """The server gave the task up because it took too long."""


class WaitTimeoutError(XaiTasksError, TimeoutError):
    """A wait's own time ran out; the task goes on at the server and can be waited for again.

    Attributes:
        task_id: the id that was waited for.
        timeout: the seconds that the wait was given.
        last: the last answer seen, if any.
        last_error: the last error met while polling, if any.

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
    """Give the class of error for an HTTP status that is no success."""
    return _BY_STATUS.get(status, ServerError if status >= 500 else APIStatusError)


def is_transient(error: BaseException) -> bool:
    """Tell whether a fault may pass by itself, so that a wait outlives it.

    Connection faults, timeouts, 408, 429, 5xx and malformed answers pass; a redirect and every other 4xx don't.
    """
    if isinstance(error, APIStatusError):
        return error.status_code in (408, 429) or error.status_code >= 500
    return isinstance(error, (APIConnectionError, APIResponseValidationError))
