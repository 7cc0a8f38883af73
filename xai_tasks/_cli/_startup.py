"""The first answer of the server: what is said and done while there is none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Self

from xai_tasks import APIConnectionError, APIError, NotFoundError
from xai_tasks._cli._progress import Reporter

_DELAY = 2.0
"""Seconds after a first fault in which an answer shows that it was transient."""


class Startup(logging.Handler):
    """Reads the client's log until the server has answered, and reports that it does not.

    A wrong host name looks like an outage to the client, which tries for minutes without a word.

    Args:
        reporter: what reports it.
        on_answer: called at the first answer other than 404.

    """

    def __init__(self, reporter: Reporter, on_answer: Callable[[], None] = lambda: None) -> None:
        super().__init__(logging.DEBUG)
        self._reporter = reporter
        self._on_answer = on_answer
        self._logger = logging.getLogger("xai_tasks")
        self._level = logging.NOTSET
        self._active = False
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._active = True
        self._level = self._logger.level
        self._logger.setLevel(logging.DEBUG)
        self._logger.addHandler(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._active:
            self._active = False
            self._logger.removeHandler(self)
            self._logger.setLevel(self._level)

    def answered(self) -> None:
        """Stop reading the log: the server has answered."""
        if self._active:
            self._leave()
            self._on_answer()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a poll, or a retry, as the log tells of it."""
        arguments = record.args if isinstance(record.args, tuple) else ()
        error = next((each for each in arguments if isinstance(each, APIError)), None)
        if isinstance(error, APIConnectionError):
            if self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(_DELAY, self._report, str(error))
        elif not isinstance(error, NotFoundError):
            self.answered()

    def _report(self, problem: str) -> None:
        self._reporter.say(f"no answer from the server so far, still trying: {problem}")
