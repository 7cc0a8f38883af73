"""What an HTTP answer says beside the task: the words of an error, and when to come again."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from xai_tasks._credentials import Redactor
from xai_tasks._errors import printable
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


_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)


def parse_retry_after(headers: Mapping[str, str], server_time: float | None) -> float | None:
    """Give the seconds that an answer asks to wait, or None where it doesn't or where it makes no sense.

    `retry-after-ms` goes before `Retry-After`, which holds seconds or an HTTP date; a date counts from the answer's
    own `Date` where there is one, so that neither clock needs to be right.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("Retry-After")
    seconds = _number(text)
    if seconds is not None or text is None:
        return seconds
    date = parse_date(text)
    if date is None:
        return None
    delay = date - (time.time() if server_time is None else server_time)
    return delay if delay >= 0 else None


def _number(text: str | None) -> float | None:
    if text is None or not _NUMBER.fullmatch(text.strip()):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def parse_date(text: str) -> float | None:
    """Give the Unix seconds of an HTTP date, or None where it is none."""
    try:
        date = parsedate_to_datetime(text)
        # An HTTP date is in UTC, also in the old form that does not say so.
        return (date.replace(tzinfo=UTC) if date.tzinfo is None else date).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):  # what the parser raises on garbage
        return None
