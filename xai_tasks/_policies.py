"""The policies of retrying and polling, made of tenacity's own strategies."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from attrs import Attribute, field, frozen
from tenacity import RetryCallState, stop_after_attempt, wait_random_exponential

from xai_tasks._learning.adaptive import wait_adaptive

WaitStrategy = Callable[[RetryCallState], float]
"""A tenacity wait strategy: seconds to sleep, from the state of the attempts so far."""
StopStrategy = Callable[[RetryCallState], bool]
"""A tenacity stop strategy: whether to stop, from the state of the attempts so far."""


def check_seconds(
    name: str, value: object, *, optional: bool = False, positive: bool = False
) -> None:
    """Check that the argument `name` is a number of seconds: 0 or more; if `positive`, more than 0.

    Raises:
        TypeError: it is not a number. With `optional`, None is allowed.
        ValueError: it is negative, NaN or infinite, or 0 where it must be positive.

    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = " or None for no limit" if optional else ""
        raise TypeError(f"{name} must be a number of seconds{hint}, not {type(value).__name__}")
    # Compared, not given to math.isfinite, which takes no integer beyond a float's range.
    if not 0 <= value <= sys.float_info.max or (positive and value == 0):
        bound = "more than 0" if positive else "0 or more"
        hint = "; None means no limit" if optional else ""
        is_long = isinstance(value, int) and abs(value) > sys.float_info.max
        shown = "an integer beyond a float's range" if is_long else repr(value)
        raise ValueError(f"{name} must be finite and {bound}, not {shown}{hint}")


def check_count(name: str, value: object, minimum: int) -> None:
    """Check that the argument called `name` is a whole number of at least `minimum`.

    Raises:
        TypeError: it is not an int.
        ValueError: it is less than `minimum`.

    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {value}")


def _seconds(instance: object, attribute: Attribute[Any], value: object) -> None:
    check_seconds(attribute.name, value)


def _seconds_or_none(instance: object, attribute: Attribute[Any], value: object) -> None:
    check_seconds(attribute.name, value, optional=True)


def _count(instance: object, attribute: Attribute[Any], value: object) -> None:
    check_count(attribute.name, value, 0)


def _strategy(instance: object, attribute: Attribute[Any], value: object) -> None:
    if isinstance(value, type):
        raise TypeError(
            f"{attribute.name} must be a tenacity strategy, not a class of them: "
            f"call {value.__name__}"
        )
    if not callable(value):
        raise TypeError(f"{attribute.name} must be a tenacity strategy, not {type(value).__name__}")


def check_statuses(name: str, value: Iterable[int]) -> frozenset[int]:
    """Return the HTTP statuses in the argument called `name`.

    Raises:
        TypeError: it is not iterable, or holds something else than whole numbers.

    """
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be a set of HTTP statuses, not {type(value).__name__}")
    statuses = frozenset(value)
    for status in statuses:
        if isinstance(status, bool) or not isinstance(status, int):
            raise TypeError(f"{name} must be whole numbers, not {type(status).__name__}")
    return statuses


def _statuses(value: Iterable[int]) -> frozenset[int]:
    return check_statuses("statuses", value)


@frozen
class RetryPolicy:
    """How one request is retried.

    Two policies are equal only if they hold the very same strategy objects.
    """

    stop: StopStrategy = field(factory=lambda: stop_after_attempt(4), eq=id, validator=_strategy)
    """When to stop retrying a request: any tenacity stop strategy."""
    wait: WaitStrategy = field(
        factory=lambda: wait_random_exponential(multiplier=0.5, max=8), eq=id, validator=_strategy
    )
    """Seconds between attempts if the server names none: any tenacity wait strategy. The default is
    backoff with full jitter: random from 0 to a bound that starts at 0.5 s and doubles up to 8 s.
    """
    statuses: frozenset[int] = field(
        default=frozenset({408, 429, 500, 502, 503, 504}), converter=_statuses
    )
    """The HTTP statuses that are retried. Connection errors, timeouts and malformed answers always
    are."""
    max_retry_after: float = field(default=60.0, validator=_seconds)
    """Seconds: a longer `Retry-After` fails the request instead, and a pause is never longer."""
    budget: int = field(default=500, validator=_count)
    """Tokens that all retries of a client share. A retry takes 5, and each success returns 1, up to
    this number. With fewer than 5 left, no request is retried. 500 is the quota of botocore."""


@frozen
class PollPolicy:
    """How a task is polled until it ends.

    Waits share a poll loop if their id and their policy are equal.
    """

    wait: WaitStrategy = field(factory=wait_adaptive, eq=id, validator=_strategy)
    """Seconds from one poll to the next; any tenacity wait strategy."""
    timeout: float | None = field(default=600.0, validator=_seconds_or_none)
    """Seconds that a wait may take where the call names none; None: no limit."""
    max_outage: float | None = field(default=300.0, validator=_seconds_or_none)
    """Seconds for which polls of an id may fail, with no good answer in between, before its waits
    end with the last error; also seconds for which an outage may last. 0: the first failed poll
    ends the wait. None: no limit."""
    not_found_grace: float = field(default=5.0, validator=_seconds)
    """Seconds for which an id may be answered 404, with no good answer in between, before its waits
    end: a task that has just been submitted may not be known yet. 0: the first 404 ends the wait.
    """
