"""Tasks that change with the clock: what the API answers about one, and when it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from xai_tasks._models import TaskStatus

Step: TypeAlias = str | tuple[str, float | None]
"""A status and the seconds it lasts. None, or a status alone: until `TaskServer.advance`."""

Steps: TypeAlias = tuple[tuple[str, float | None], ...]
"""Steps in one form."""

Ending: TypeAlias = bool | str | tuple[str, int | float | str]
"""How a task ends that does not complete: True, an error message, or (message, code)."""

Dated: TypeAlias = Callable[[float], str]
"""A function from a time of the server's clock to the date that answers show."""


class Lifecycle:
    """One task: its steps, then its end.

    Args:
        created: when it was created, in seconds of the server's clock.
        steps: each status, and the seconds it lasts; None: until `advance`.
        ending: the JSON members of the ended task, from `ending_of`.

    """

    __slots__ = ("_created", "_ending", "_index", "_since", "_steps")

    def __init__(
        self,
        created: float,
        steps: Steps,
        ending: str,
    ) -> None:
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
        """Begin the next step now, even if this one is not over.

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
        """When it ends or has ended; None while a step ahead waits for `advance`."""
        end = self._since
        for _, seconds in self._steps[self._index :]:
            if seconds is None:
                return None
            end += seconds
        return end

    def answer(self, task_id: str, now: float, dated: Dated) -> bytes:
        """Return the `TaskResultDto` at `now` as JSON."""
        self._settle(now)
        if self._index < len(self._steps):
            state = f'"status":{json.dumps(self._steps[self._index][0])}'
        else:
            state = f'{self._ending},"finishedAt":"{dated(self._since)}"'
        return (
            f'{{"taskId":{json.dumps(task_id)},{state},"createdAt":"{dated(self._created)}",'
            f'"traceId":{json.dumps("trace-" + task_id)}}}'
        ).encode()


def steps_of(steps: str | Iterable[Step]) -> Steps:
    """Return steps in one form, whichever way they were written.

    Raises:
        ValueError: a duration is negative or NaN.

    """
    pairs: list[tuple[str, float | None]] = []
    for step in (steps,) if isinstance(steps, str) else steps:
        status, seconds = (step, None) if isinstance(step, str) else step
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"a step must last >= 0 seconds, not {seconds!r}")
        pairs.append((str(status), seconds))
    return tuple(pairs)


def in_two_steps(seconds: float) -> Steps:
    """Return the steps of a made-up task: pending for a tenth of its time, then processing."""
    return (("pending", seconds * 0.1), ("processing", seconds * 0.9))


def ending_of(
    result: Any = None,
    failed: Ending | None = None,
    cancelled: Ending | None = None,
    timeout: Ending | None = None,
) -> str:
    """Return the JSON members of an ended task: its status and its result or error.

    Raises:
        ValueError: more than one of the four is given.
        TypeError: the result can't be written as JSON.

    """
    others = {
        TaskStatus.FAILED: failed,
        TaskStatus.CANCELLED: cancelled,
        TaskStatus.TIMEOUT: timeout,
    }
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
