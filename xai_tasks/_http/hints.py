"""What the headers of an answer say of limits. `_ROLES` is the one table of their names."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from functools import lru_cache
from typing import NamedTuple

__all__ = ["NO_HINTS", "Hints", "Quota", "parse_date", "parse_hints"]

_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)
_MAX_REMAINING = 10**9
_MAX_RESET = 86_400.0
"""Seconds. Some servers send Unix time instead of seconds: more than a day is ignored."""
_MAX_TEXT = 1000
"""Characters of a header that are read: a list of ten windows is shorter."""


class _Role(Enum):
    RETRY_AFTER = auto()  # seconds or an HTTP date
    RETRY_AFTER_MS = auto()
    WINDOWS = auto()  # a list of windows, each with what is left and when there is more
    REMAINING = auto()
    RESET = auto()
    X_REMAINING = auto()  # what is left; nobody agrees on what X-RateLimit-Reset means


_Found = tuple[_Role, str, str]
"""A header of interest: its role, name and text."""

_ROLES = {
    "retry-after": _Role.RETRY_AFTER,
    "retry-after-ms": _Role.RETRY_AFTER_MS,
    "ratelimit": _Role.WINDOWS,
    "ratelimit-remaining": _Role.REMAINING,
    "ratelimit-reset": _Role.RESET,
    "x-ratelimit-remaining": _Role.X_REMAINING,
}
_NAMED = {"retry-after-": _Role.RETRY_AFTER, "x-ratelimit-remaining-": _Role.X_REMAINING}
"""Prefixes of headers that end in the name of a window, as NestJS's named throttlers send."""


class Quota(NamedTuple):
    """What is left of one of the server's windows."""

    name: str
    """Which window, where the server has several; "" for the only one."""
    remaining: int
    """Requests left."""
    reset: float | None = None
    """Seconds until there are more; None if the server does not say."""


class Hints(NamedTuple):
    """What one answer says of limits."""

    retry_after: float | None = None
    """Seconds before which the server does not want to be asked again."""
    quotas: tuple[Quota, ...] = ()
    """What is left, for each window that the answer tells of."""


NO_HINTS = Hints()


def parse_hints(headers: Mapping[str, str], server_time: float | None) -> Hints:
    """Parse what an answer's headers say of limits. What can't be read, or is absurd, is ignored.

    Args:
        headers: the answer's headers; names in any case.
        server_time: Unix seconds of the answer's `Date`, from which a date in `Retry-After`
            counts, so that neither clock needs to be right; None: count from our own clock.

    """
    if not _any_hints(tuple(headers)):
        return NO_HINTS
    found = [(role, *item) for item in headers.items() if (role := _role(item[0])) is not None]
    return Hints(_retry_after(found, server_time), tuple(_quotas(found)))


def _retry_after(found: list[_Found], server_time: float | None) -> float | None:
    """Return the pause asked for: in milliseconds, or else the longest of those in seconds."""
    milliseconds = [_number(text) for role, _, text in found if role is _Role.RETRY_AFTER_MS]
    if milliseconds and milliseconds[0] is not None:
        return milliseconds[0] / 1000
    texts = (text for role, _, text in found if role is _Role.RETRY_AFTER)
    seconds = (_seconds_or_date(text, server_time) for text in texts)
    return max((each for each in seconds if each is not None), default=None)


def _quotas(found: list[_Found]) -> list[Quota]:
    quotas: list[Quota] = []
    numbers: dict[_Role, float | None] = {}
    for role, name, text in found:
        if role is _Role.WINDOWS:
            quotas += _parse_windows(text)
        elif role is _Role.X_REMAINING:
            window = name.lower().removeprefix("x-ratelimit-remaining").removeprefix("-")
            quotas += _quota(window, _number(text), None)
        else:
            numbers[role] = _number(text)
    if not any(quota.reset is not None for quota in quotas):
        quotas += _quota("", numbers.get(_Role.REMAINING), numbers.get(_Role.RESET))
    return quotas


@lru_cache(maxsize=64)
def _any_hints(names: tuple[str, ...]) -> bool:
    """Return whether any header matters. All good answers of a server have the same names."""
    return any(_role(name) is not None for name in names)


def _role(name: str) -> _Role | None:
    name = name.lower()
    if (role := _ROLES.get(name)) is not None:
        return role
    return next((role for prefix, role in _NAMED.items() if name.startswith(prefix)), None)


def _seconds_or_date(text: str, server_time: float | None) -> float | None:
    seconds = _number(text)
    if seconds is not None:
        return seconds
    date = parse_date(text)
    if date is None:
        return None
    delay = date - (time.time() if server_time is None else server_time)
    return delay if delay >= 0 else None


def _parse_windows(text: str) -> Iterator[Quota]:
    """Parse `limit=9, remaining=5, reset=7` (draft 7) or `"name"; r=5; t=7` (draft 8 and later)."""
    if len(text) > _MAX_TEXT:
        return
    values: dict[str, float | None] = {}
    for item in _split(text, ","):
        name, *parameters = (part.strip() for part in _split(item, ";") or ("",))
        key, equals, value = name.partition("=")
        if equals and not name.startswith('"'):
            values[key.strip().lower()] = _number(value)
            continue
        pairs = (parameter.partition("=") for parameter in parameters)
        said = {key.strip().lower(): _number(value) for key, _, value in pairs}
        yield from _quota(name.strip('"'), said.get("r"), said.get("t"))
    yield from _quota("", values.get("remaining"), values.get("reset"))


def _split(text: str, separator: str) -> list[str]:
    """Split at a separator that does not stand in quotes."""
    return re.findall(rf'(?:[^{separator}"]|"[^"]*")+', text)


def _quota(name: str, remaining: float | None, reset: float | None) -> Iterator[Quota]:
    if remaining is not None and remaining <= _MAX_REMAINING and remaining == int(remaining):
        sane = reset is not None and reset <= _MAX_RESET
        yield Quota(name, int(remaining), reset if sane else None)


def _number(text: str | None) -> float | None:
    if text is None or not _NUMBER.fullmatch(text.strip()):
        return None
    value = float(text.strip())
    return value if math.isfinite(value) else None


def parse_date(text: str) -> float | None:
    """Return the Unix seconds of an HTTP date, or None if it is not a date."""
    try:
        date = parsedate_to_datetime(text)
        # An HTTP date is in UTC, also in the old form that does not say so.
        return (date.replace(tzinfo=UTC) if date.tzinfo is None else date).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):  # the parser raises these on garbage
        return None
