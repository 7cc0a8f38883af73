"""From options to a client."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path

import click

from xai_tasks import ConfigurationError, PollPolicy, RetryPolicy, TaskClient, wait_adaptive

_IN_OPTIONS = (
    (re.compile(r",? or\s+pass\s+allow_insecure_http=True"), ""),
    (re.compile(r"pass api_key\b"), "name a file with --api-key-file"),
    (re.compile(r"pass the key as api_key\b"), "set $MOUNTSEA_API_KEY or use --api-key-file"),
    (re.compile(r"the function api_key gave"), "--api-key-file holds"),
    (re.compile(r"(?<![\w-])api_key\b"), "--api-key-file"),
    (re.compile(r"(?<![\w-])base_url\b"), "--base-url"),
    (re.compile(r"^proxy (?=must)"), "--proxy "),
)


def in_options(message: str) -> str:
    """Return a message of the client with the names of options in place of Python arguments."""
    for pattern, words in _IN_OPTIONS:
        message = pattern.sub(words, message)
    return message


def make_client(
    *,
    base_url: str | None,
    api_key_file: str | None,
    proxy: str | None = None,
    concurrency: int = 64,
    rate: float | None = None,
    timeout: float | None = 600.0,
    interval: float = 5.0,
    retry: RetryPolicy | None = None,
    submit_retry_statuses: Collection[int] = (429,),
) -> TaskClient:
    """Build the client that the options ask for.

    Raises:
        ConfigurationError: there is no key, or it is malformed; or the base URL or the proxy is.
        click.UsageError: a number is out of its range.
        OSError: the key can't be read.

    """
    try:
        learning = wait_adaptive(interval, min(0.5, interval), max(30.0, interval))
        return TaskClient(
            None if api_key_file is None else _key_source(Path(api_key_file)),
            base_url=base_url,
            proxy=proxy,
            trust_env=True,
            max_concurrency=concurrency,
            rate_limit=rate,
            poll=PollPolicy(wait=learning, timeout=timeout),
            retry=retry,
            submit_retry_statuses=submit_retry_statuses,
        )
    except ConfigurationError as error:
        raise ConfigurationError(in_options(str(error))) from None
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _key_source(path: Path) -> str | Callable[[], str]:
    """Return the key, or a function that reads it again after a 401: it may be replaced."""

    def read() -> str:
        try:
            return path.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError:
            problem = "is not text"
        except OSError as error:
            problem = f"can't be read: {error.strerror}"
        raise ConfigurationError(f"the key file {path} {problem}")

    key = read()
    if not path.is_file():
        return key  # a pipe, such as a shell's <(...), can be read once
    # Checked now: a bad key is better reported before the first request.
    TaskClient(key)
    return read
