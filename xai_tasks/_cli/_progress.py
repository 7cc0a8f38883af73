"""Telling on stderr where a job stands."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable

from attrs import frozen

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
    """How many ids there will be, where that can be told."""

    @property
    def ended(self) -> int:
        """Ids that came to an end, whichever."""
        return self.completed + self.failed


class Pace:
    """Rates over the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Snapshot]] = deque()

    def note(self, moment: float, snapshot: Snapshot) -> None:
        """Take in where the job stands at `moment`, in seconds of any clock that runs evenly."""
        self._seen.append((moment, snapshot))
        while len(self._seen) > 2 and moment - self._seen[1][0] >= _WINDOW:
            self._seen.popleft()

    @property
    def polls(self) -> float:
        """Polls per second."""
        (begin, first), (end, last) = self._seen[0], self._seen[-1]
        return (last.polls - first.polls) / (end - begin) if end > begin else 0.0

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take at this pace, where that can be told."""
        (begin, first), (end, last) = self._seen[0], self._seen[-1]
        if last.expected is None or last.ended == first.ended:
            return None
        return (last.expected - last.ended) * (end - begin) / (last.ended - first.ended)


def spell(seconds: float) -> str:
    """Say a length of time in two units at most: `7.2 s`, `42 s`, `3 min 20 s`, `5 h 2 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def write_stderr(text: str) -> None:
    """Write to stderr; where nobody reads it any more, the job goes on without."""
    if sys.stderr is not None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            sys.stderr = None  # or its flush at exit would change the exit code


class Reporter:
    """Tells errors and warnings, and nothing of how it goes: what `--quiet` asks for."""

    interval: float | None = None
    """Seconds between two looks at where the job stands; None: there are none."""

    def say(self, message: str) -> None:
        """Tell something that the user must know."""
        self.clear()
        write_stderr(f"xai-tasks: {message}\n")

    def sum_up(self, message: str) -> None:
        """Tell something at the end that a user may want to know."""

    def clear(self) -> None:
        """Make way for a line on the terminal."""

    def show(self, snapshot: Snapshot, pace: Pace) -> None:
        """Tell where the job stands, and how fast it goes."""

    async def follow(self, look: Callable[[], Snapshot]) -> None:
        """Tell where the job stands, again and again, until cancelled."""
        if self.interval is None:
            return
        pace = Pace()
        pace.note(asyncio.get_running_loop().time(), look())
        while True:
            await asyncio.sleep(self.interval)
            snapshot = look()
            pace.note(asyncio.get_running_loop().time(), snapshot)
            self.show(snapshot, pace)


class PlainReporter(Reporter):
    """Tells how it goes in a line every 30 s."""

    interval = 30.0

    def sum_up(self, message: str) -> None:
        self.say(message)

    def show(self, snapshot: Snapshot, pace: Pace) -> None:
        self.say(", ".join(facts(snapshot, pace)))


def facts(snapshot: Snapshot, pace: Pace) -> list[str]:
    """Put where the job stands into words."""
    said = [
        f"{snapshot.completed:,} completed",
        f"{snapshot.failed:,} failed",
        f"{snapshot.waiting:,} waiting",
        f"{pace.polls:.1f} polls/s",
        f"{snapshot.rate_limited:,} rate limited",
    ]
    return said if pace.left is None else [*said, f"{spell(pace.left)} left"]


class LogHandler(logging.Handler):
    """Hands the client's warnings on to a reporter."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        """Tell a warning."""
        self._reporter.say(record.getMessage())
