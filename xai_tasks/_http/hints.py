"""What the headers of an answer say of limits: when to come again."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

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
