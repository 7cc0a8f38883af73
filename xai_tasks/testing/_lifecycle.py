"""Tasks that live on a clock: what a look at one says, and when it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from xai_tasks._models import TaskStatus

Step: TypeAlias = str | tuple[str, float | None]
"""A status and the seconds it lasts. None, or a status alone: until `TaskServer.advance`."""

Ending: TypeAlias = bool | str | tuple[str, int | float | str]
"""How a task that does not complete ends: True, its error message, or (error message, error code)."""

Dated: TypeAlias = Callable[[float], str]
"""Turns a time of the server's clock into the date that answers show."""


class Lifecycle:
    """One task: its steps, and the end behind them.

    Args:
        created: the server's clock at its birth, in seconds.
        steps: each status, and the seconds it lasts; None: until `advance`.
        ending: what is said of it after the last step, as `ending_of` gives it.

    """

    __slots__ = ("_created", "_ending", "_index", "_since", "_steps")

    def __init__(self, created: float, steps: tuple[tuple[str, float | None], ...], ending: str) -> None:
        self._created = created
        self._steps = steps
        self._ending = ending
        self._index = 0
        self._since = created

    def _settle(self, now: float) -> None:
        steps = self._steps
        while self._index < len(steps):
            seconds = steps[self._index][1]
            if seconds is None or self._since + seconds > now:
                return
            self._since += seconds
            self._index += 1

    def advance(self, now: float) -> None:
        """Begin the next step now, whatever was left of this one.

        Raises:
            ValueError: the task has ended.

        """
        self._settle(now)
        if self._index == len(self._steps):
            raise ValueError("the task has ended: there is no next step")
        self._index += 1
        self._since = now

    @property
    def ends_at(self) -> float | None:
        """The clock at which it ends or has ended; None while a step ahead has no length."""
        end = self._since
        for _, seconds in self._steps[self._index :]:
            if seconds is None:
                return None
            end += seconds
        return end

    def look(self, task_id: str, now: float, dated: Dated) -> bytes:
        """Answer a look at `now` with a `TaskResultDto` as JSON."""
        self._settle(now)
        if self._index < len(self._steps):
            said = f'"status":{json.dumps(self._steps[self._index][0])}'
        else:
            said = f'{self._ending},"finishedAt":"{dated(self._since)}"'
        return (
            f'{{"taskId":{json.dumps(task_id)},{said},"createdAt":"{dated(self._created)}",'
            f'"traceId":{json.dumps("trace-" + task_id)}}}'
        ).encode()


def steps_of(steps: str | Iterable[Step]) -> tuple[tuple[str, float | None], ...]:
    """Bring the ways to write steps into one.

    Raises:
        ValueError: a length of time is negative or NaN.

    """
    pairs: list[tuple[str, float | None]] = []
    for step in (steps,) if isinstance(steps, str) else steps:
        status, seconds = (step, None) if isinstance(step, str) else step
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"a step must last >= 0 seconds, not {seconds!r}")
        pairs.append((str(status), seconds))
    return tuple(pairs)


def ending_of(
    result: Any = None,
    failed: Ending | None = None,
    cancelled: Ending | None = None,
    timeout: Ending | None = None,
) -> str:
    """Give the JSON members that an ended task shows: its status and its result or error.

    Raises:
        ValueError: more than one of the four is given.
        TypeError: the result is nothing that JSON can hold.

    """
    others = {TaskStatus.FAILED: failed, TaskStatus.CANCELLED: cancelled, TaskStatus.TIMEOUT: timeout}
    given = {status: how for status, how in others.items() if how is not None and how is not False}
    if len(given) + (result is not None) > 1:
        raise ValueError("give only one of result, failed, cancelled and timeout")
    members: dict[str, Any] = {"status": TaskStatus.COMPLETED, "result": result}
    for status, how in given.items():
        members = {"status": status}
        if isinstance(how, str):
            members["errorMessage"] = how
        elif isinstance(how, tuple):
            members["errorMessage"], members["errorCode"] = how
    return json.dumps(members, separators=(",", ":"))[1:-1]
