"""From options to a client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from xai_tasks import ConfigurationError, PollPolicy, TaskClient, wait_adaptive

_PENDING = 10_000
"""Ids in rotation at most: what the client takes by itself."""


class Seconds(click.ParamType[float | None]):
    """A number of seconds, or `none` for no limit."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        """Read the option."""
        if value == "none":
            return None
        return click.FloatRange(min=0).convert(value, param, ctx)


class Shard(click.ParamType[tuple[int, int]]):
    """`K/N`: the Kth of N parts."""

    name = "K/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Read the option."""
        first, _, second = str(value).partition("/")
        if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
            self.fail(f"{value!r} is no K/N with 1 <= K <= N, such as 1/4", param, ctx)
        return int(first), int(second)


def make_client(
    *,
    base_url: str | None,
    api_key_file: Path | None,
    concurrency: int = 64,
    rate: float | None = None,
    timeout: float | None = 600.0,
    interval: float = 5.0,
) -> TaskClient:
    """Build the client that the options ask for.

    Raises:
        ConfigurationError: there is no key, or it is malformed; or the base URL is.
        click.UsageError: a number is out of its range.
        OSError: the key can't be read.

    """
    try:
        learning = wait_adaptive(interval, min(0.5, interval), max(30.0, interval))
        return TaskClient(
            None if api_key_file is None else _key_source(api_key_file),
            base_url=base_url,
            max_concurrency=concurrency,
            rate_limit=rate,
            poll=PollPolicy(wait=learning, timeout=timeout),
        )
    except ConfigurationError:
        raise
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def pending_at_most(rate: float | None, timeout: float | None) -> int:
    """Say how many ids may be in rotation, so that each is asked for ten times before its time runs out."""
    if rate is None or timeout is None:
        return _PENDING
    return min(_PENDING, max(1, int(rate * timeout / 10)))


def _key_source(path: Path) -> str | Callable[[], str]:
    """Give the key, or where it may change while the job runs, what reads it again after a 401."""

    def read() -> str:
        return path.read_text().strip()

    key = read()
    if not path.is_file():
        return key  # a pipe, such as a shell's <(...), can be read once
    # Checked now: a bad key is better told before the first request.
    TaskClient(key)
    return read
