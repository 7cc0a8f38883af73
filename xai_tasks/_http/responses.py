"""Status and body of an answer: the task, or an error and its text."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

from xai_tasks._errors import (
    APIResponseValidationError,
    APIStatusError,
    mark_transient,
    printable,
    status_error_class,
)
from xai_tasks._http.credentials import Redactor
from xai_tasks._http.hints import parse_hints
from xai_tasks._models import TaskResult, decode_task, parse_json

_MAX_EXCERPT_BYTES = 2**14
"""How much of a body is searched for text to show: room for a long key, all of it escaped."""
_MAX_WORDS = 120
"""Characters quoted of a body that is not JSON."""

_HINTS = {
    401: "the API key was refused",
    402: "the account's balance does not allow this request",
    403: "the API key may not see this task",
    404: "no such task: check the id, and that the key belongs to the account that made it",
}
_FOREIGN = "this is not the API's own error page, but probably a gateway's"
_NO_ROUTE = "the server has no such route: check base_url"

_UNKNOWN_ROUTE = re.compile(rb"Cannot (?:GET|POST) /")
"""How Express and NestJS answer a path that they do not know."""
_TAG = re.compile(r"<[^<>]*>?")


def excerpt(body: bytes, redactor: Redactor) -> str:
    """Return the beginning of a body as one printable line."""
    return printable(redactor.text(body[:_MAX_EXCERPT_BYTES].decode("utf-8", "replace")))


def read_task(status: int, body: bytes, redactor: Redactor, task_id: str) -> TaskResult:
    """Return the task in the body of a 2xx.

    Raises:
        APIResponseValidationError: the body is not JSON, or not a task.

    """
    try:
        return decode_task(body)
    except ValueError as error:
        problem = str(error) if body.strip() else "its body is empty"
    raise invalid_answer(status, f"the answer can't be read: {problem}", body, redactor, task_id)


def read_task_id(status: int, body: bytes, redactor: Redactor) -> str:
    """Return the id in the body of a 2xx to a submission.

    Raises:
        APIResponseValidationError: the body is not JSON, or has no `taskId`.

    """
    try:
        answer = parse_json(body)
        problem = f"an object was expected, not {type(answer).__name__}"
    except ValueError as error:
        answer = None
        problem = str(error) if body.strip() else "its body is empty"
    if isinstance(answer, dict):
        task_id = answer.get("taskId")
        if isinstance(task_id, str) and task_id:
            return task_id
        problem = "'taskId' is missing, empty or not a string"
    raise invalid_answer(status, f"the answer can't be read: {problem}", body, redactor, "")


def invalid_answer(
    status: int, problem: str, body: bytes, redactor: Redactor, task_id: str
) -> APIResponseValidationError:
    """Return the error of a 2xx whose body is not what the API documents."""
    shown = excerpt(body, redactor)
    return APIResponseValidationError(
        f"HTTP {status}, but {problem}: {shown!r}",
        task_id=task_id,
        status_code=status,
        body=shown,
    )


def too_large(
    status: int, limit: int, body: bytes, redactor: Redactor, task_id: str
) -> APIResponseValidationError:
    """Return the error of a 2xx larger than `limit` bytes; the next one would be as large."""
    problem = f"the answer is larger than {limit} bytes (max_response_bytes)"
    return mark_transient(invalid_answer(status, problem, body, redactor, task_id), False)


def status_error(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    redactor: Redactor,
    task_id: str,
    *,
    server_time: float | None,
    hint: str | None = None,
) -> APIStatusError:
    """Return the error of a status other than 2xx.

    Args:
        status: the HTTP status.
        headers: the answer's headers.
        body: the answer's body, or the beginning of a large one.
        redactor: removes the key from every text.
        task_id: the id that was asked for; "" for a submission.
        server_time: the answer's `Date`, in Unix seconds.
        hint: what to do about this status, where it is not what the API means by it.

    """
    data, is_json = _parse(body)
    texts = _explain(data, status) if is_json else (_text_of(body, redactor), None, None)
    message, code, trace_id = (text and printable(redactor.text(text)) for text in texts)
    foreign = status in (403, 404) and not is_json and bool(body.strip())
    retry_after, quotas = parse_hints(headers, server_time)
    detail = f"HTTP {status}"
    if message is not None:
        detail += f": {message}"
    if code is not None:
        detail += f" (code {code})"
    if trace_id is not None:
        detail += f" (trace id {trace_id})"
    if retry_after is not None:
        detail += f" (retry after {retry_after:g} s)"
    location = headers.get("Location")
    if 300 <= status < 400 and location is not None:
        location = printable(redactor.text(location))
        detail += f": a redirect to {location}, which is never followed; check base_url"
    else:
        if status == 404 and _UNKNOWN_ROUTE.search(body):
            hint = _NO_ROUTE
        elif foreign:
            hint = _FOREIGN
        if task_id or status in (401, 402):
            hint = hint or _HINTS.get(status)
        detail += f"; {hint}" if hint else ""
    error = status_error_class(status)(
        detail,
        task_id=task_id,
        status_code=status,
        body=excerpt(body, redactor),
        message=message,
        trace_id=trace_id,
        retry_after=retry_after,
    )
    error._quotas = quotas  # noqa: SLF001 -- for the throttle, not for users
    return mark_transient(error, True) if foreign else error


def _parse(body: bytes) -> tuple[Any, bool]:
    """Return the JSON in a body, and whether there is any."""
    try:
        return parse_json(body), True
    except ValueError:
        return None, False


def _explain(data: Any, status: int) -> tuple[str | None, str | None, str | None]:
    """Return message, error code and trace id from an error's JSON: its shape is undocumented."""
    code = trace_id = None
    if isinstance(data, dict):
        found = next((data[name] for name in ("errorCode", "code") if name in data), None)
        is_code = isinstance(found, (int, float, str)) and not isinstance(found, bool)
        code = str(found) if is_code and found not in ("", status, str(status)) else None
        found = data.get("traceId") or data.get("trace_id")
        trace_id = found if isinstance(found, str) else None
    return _message(data), code, trace_id


def _message(data: Any, depth: int = 4) -> str | None:
    if isinstance(data, str):
        return data.strip() or None
    if depth == 0:
        return None
    if isinstance(data, dict):
        for name in ("message", "error", "errorMessage", "detail", "msg", "title"):
            if words := _message(data.get(name), depth - 1):
                return words
        return _health(data.get("error"))
    if isinstance(data, list):
        return "; ".join(filter(None, (_message(item, depth - 1) for item in data[:5]))) or None
    return None


def _health(checks: Any) -> str | None:
    """Return what failed of NestJS's health checks: `{"database": {"status": "down"}}`."""
    if not isinstance(checks, dict):
        return None
    failed = (
        f"{name}: {_message(check) or check['status']}"
        for name, check in list(checks.items())[:5]
        if isinstance(check, dict) and isinstance(check.get("status"), str)
    )
    return "; ".join(failed) or None


def _text_of(body: bytes, redactor: Redactor) -> str | None:
    """Return the first words of a body that is not JSON, or the title of an HTML page."""
    text = redactor.text(body[:_MAX_EXCERPT_BYTES].decode("utf-8", "replace"))
    if len(body) > _MAX_EXCERPT_BYTES:
        text = text[: len(text) // 2]  # the cut may have left a part of the key at the end
    text = text.removeprefix("\ufeff").strip()
    if text.startswith("<"):
        text = html.unescape(_title(text) or _TAG.sub(" ", text))
    # Redacted once more: without its tags, a text may hold a key that they divided.
    words = " ".join(redactor.text(text).split())
    if len(words) > _MAX_WORDS:
        words = f"{words[:_MAX_WORDS]}…"
    return words or None


def _title(page: str) -> str:
    lowered = page.lower()
    begin = lowered.find(">", lowered.find("<title")) + 1 if "<title" in lowered else 0
    return page[begin : max(begin, lowered.find("</title", begin))].strip() if begin else ""
