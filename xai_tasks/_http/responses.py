"""The words of an error, found in the body of its answer."""

from __future__ import annotations

from typing import Any

from xai_tasks._errors import printable
from xai_tasks._http.credentials import Redactor
from xai_tasks._models import parse_json

_MAX_EXCERPT_BYTES = 2**14
"""How much of a body is searched for what of it to show: a long key, all of it escaped, fits in."""

HINTS = {
    401: "the API key was refused",
    402: "the account's balance does not allow this request",
    403: "the API key may not see this task",
    404: "no such task: check the id, and that the key belongs to the account that made it",
}
"""What to do, where a status says what is wrong."""


def excerpt(body: bytes, redactor: Redactor) -> str:
    """Give the beginning of a body, fit to be shown."""
    return printable(redactor.text(body[:_MAX_EXCERPT_BYTES].decode("utf-8", "replace")))


def explain(body: bytes) -> tuple[str | None, str | None]:
    """Find the server's words and its trace id in the body of an error, whose shape nobody has published."""
    try:
        data = parse_json(body)
    except ValueError:
        return None, None
    trace_id = None
    if isinstance(data, dict):
        found = data.get("traceId") or data.get("trace_id")
        trace_id = found if isinstance(found, str) else None
    return _words(data), trace_id


def _words(data: Any, depth: int = 4) -> str | None:
    if isinstance(data, str):
        return data.strip() or None
    if depth == 0:
        return None
    if isinstance(data, dict):
        for name in ("message", "error", "errorMessage", "detail", "msg", "title"):
            if words := _words(data.get(name), depth - 1):
                return words
    if isinstance(data, list):
        return "; ".join(filter(None, (_words(item, depth - 1) for item in data[:5]))) or None
    return None
