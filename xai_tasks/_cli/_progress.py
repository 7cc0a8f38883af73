"""What is shown on stderr while a job runs."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable

from attrs import frozen

_HAS_TERM = os.name == "posix"
"""Whether terminals are told apart by TERM, which Windows does not have."""
_WINDOW = 30.0
"""Seconds that rates are taken over: steady to the eye, and soon past an outage."""


@frozen
class Snapshot:
    """Where a job stands."""

    completed: int
    failed: int
    """Ids that came to another end, or to none that is known."""
    waiting: int
    polls: int
    rate_limited: int
    """429 answers."""
    expected: float | None
    """How many ids there will be, where that is known."""
    files: str | None = None
    """The number of files saved and their size; None if none are to be."""

    @property
    def ended(self) -> int:
        """Ids that came to an end."""
        return self.completed + self.failed


class Pace:
    """Rates over the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Snapshot]] = deque()

    def add(self, moment: float, snapshot: Snapshot) -> None:
        """Record where the job stands at `moment`, in seconds of a monotonic clock."""
        self._seen.append((moment, snapshot))
        while len(self._seen) > 2 and moment - self._seen[1][0] >= _WINDOW:
            self._seen.popleft()

    @property
    def seconds(self) -> float:
        """Seconds that the rates are taken over."""
        return self._seen[-1][0] - self._seen[0][0]

    @property
    def polls(self) -> float:
        """Polls per second."""
        first, last = self._seen[0][1], self._seen[-1][1]
        return (last.polls - first.polls) / self.seconds if self.seconds > 0 else 0.0

    @property
    def is_limited(self) -> bool:
        """Whether the server has refused requests for their rate."""
        return self._seen[-1][1].rate_limited > self._seen[0][1].rate_limited

    @property
    def left(self) -> float | None:
        """Seconds that the rest takes at this pace, where that is known."""
        first, last = self._seen[0][1], self._seen[-1][1]
        if last.expected is None or last.ended == first.ended:
            return None
        return (last.expected - last.ended) * self.seconds / (last.ended - first.ended)


def format_duration(seconds: float) -> str:
    """Return a length of time in two units at most: `7.2 s`, `42 s`, `3 min 20 s`, `5 h 2 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def write_stderr(text: str) -> None:
    """Write to stderr; once its reader is gone, the job goes on without."""
    if sys.stderr is not None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            sys.stderr = None  # or its flush at exit would change the exit code


class Reporter:
    """Reports errors and warnings, and no progress: what `--quiet` asks for."""

    interval: float | None = None
    """Seconds between two reports of progress; None: there are none."""

    def say(self, message: str) -> None:
        """Report what the user must know."""
        self.clear()
        write_stderr(f"xai-tasks: {message}\n")

    def sum_up(self, message: str) -> None:
        """Report at the end what the user may want to know."""

    def clear(self) -> None:
        """Make way for a line on the terminal."""

    def show(self, snapshot: Snapshot, pace: Pace) -> None:
        """Report where the job stands, and how fast it goes."""

    async def follow(
        self, look: Callable[[], Snapshot], check: Callable[[Snapshot, Pace], None] | None = None
    ) -> None:
        """Report progress until cancelled.

        Args:
            look: returns where the job stands.
            check: called each time beside it, also where no progress is shown.

        """
        if self.interval is None and check is None:
            return
        pace = Pace()
        pace.add(asyncio.get_running_loop().time(), look())
        while True:
            await asyncio.sleep(self.interval or _WINDOW)
            snapshot = look()
            pace.add(asyncio.get_running_loop().time(), snapshot)
            if check is not None:
                check(snapshot, pace)
            self.show(snapshot, pace)


class PlainReporter(Reporter):
    """Reports progress in a line every 30 s."""

    interval = 30.0

    def sum_up(self, message: str) -> None:
        self.say(message)

    def show(self, snapshot: Snapshot, pace: Pace) -> None:
        self.say(", ".join(facts(snapshot, pace)))


def make_reporter(*, quiet: bool) -> Reporter:
    """Choose how progress is reported: a bar on a terminal, a line now and then elsewhere."""
    if quiet:
        return Reporter()
    term = os.environ.get("TERM", "dumb" if _HAS_TERM else "")
    if sys.stderr is None or not sys.stderr.isatty() or term in ("dumb", "unknown"):
        return PlainReporter()
    from xai_tasks._cli._bar import BarReporter  # noqa: PLC0415 -- rich is slow to import

    return BarReporter()


def facts(snapshot: Snapshot, pace: Pace) -> list[str]:
    """Put where the job stands into words, the most useful first."""
    said = [
        f"{snapshot.completed:,} completed",
        f"{snapshot.failed:,} failed",
        *([] if snapshot.files is None else [snapshot.files]),
        f"{snapshot.waiting:,} waiting",
        f"{pace.polls:.1f} polls/s",
        f"{snapshot.rate_limited:,} rate limited",
    ]
    return said if pace.left is None else [f"{format_duration(pace.left)} left", *said]


class LogHandler(logging.Handler):
    """Passes the log of the client on to a reporter.

    Args:
        reporter: what reports it.
        verbose: 0: warnings; 1: retries, pauses and polls too; 2: with the time, and aiohttp's log.

    """

    def __init__(self, reporter: Reporter, verbose: int = 0) -> None:
        super().__init__(logging.DEBUG if verbose else logging.WARNING)
        self._reporter = reporter
        self._with_time = verbose > 1
        self._loggers = ["xai_tasks", "aiohttp", "asyncio"][: 3 if verbose > 1 else 1]
        self._levels: list[int] = []

    def __enter__(self) -> None:
        for name in self._loggers:
            logger = logging.getLogger(name)
            self._levels.append(logger.level)
            logger.addHandler(self)
            if self.level < logging.WARNING:
                logger.setLevel(self.level)

    def __exit__(self, *exc_info: object) -> None:
        for name, level in zip(self._loggers, self._levels, strict=True):
            logging.getLogger(name).removeHandler(self)
            logging.getLogger(name).setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        """Report a record."""
        message = record.getMessage()
        if self._with_time:
            clock = time.strftime("%H:%M:%S", time.localtime(record.created))
            message = f"{clock}.{record.msecs:03.0f} {record.name}: {message}"
        self._reporter.say(message)
