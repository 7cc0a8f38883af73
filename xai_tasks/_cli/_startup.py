"""The first answer of the server: what is said and done while there is none."""

from __future__ import annotations

import logging
from collections.abc import Callable

from xai_tasks import APIConnectionError, APIError, NotFoundError
from xai_tasks._cli._progress import Reporter


class Startup(logging.Handler):
    """Reads the client's log until the server has answered, and reports the first fault met.

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
        self._reported = False
        self._active = False

    def __enter__(self) -> None:
        self._active = True
        self._level = self._logger.level
        self._logger.setLevel(logging.DEBUG)
        self._logger.addHandler(self)

    def __exit__(self, *exc_info: object) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._active:
            self._active = False
            self._logger.removeHandler(self)
            self._logger.setLevel(self._level)

    def emit(self, record: logging.LogRecord) -> None:
        """Take a poll, or a retry, as the log tells of it."""
        arguments = record.args if isinstance(record.args, tuple) else ()
        error = next((each for each in arguments if isinstance(each, APIError)), None)
        if isinstance(error, APIConnectionError):
            if not self._reported:
                self._reported = True
                self._reporter.say(f"no answer from the server so far, trying on: {error}")
        elif not isinstance(error, NotFoundError):
            self._leave()
            self._on_answer()
