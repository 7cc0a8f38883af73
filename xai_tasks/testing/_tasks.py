"""All tasks of a server: those added one by one, and made-up ones by the million."""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, overload

from xai_tasks.testing._durations import Duration
from xai_tasks.testing._lifecycle import Dated, Lifecycle, ending_of

_FAILURE = ending_of(failed=("made-up failure", 500))


class MadeUpTasks(Sequence[str]):
    """The ids of a made-up workload, a sequence that holds no strings.

    A task is nine bytes and its tally of requests eight more: ids and lifecycles are made when they are asked for.

    Args:
        prefix: ids are this, a hyphen and a number from 0.
        n: how many.
        created: the server's clock at their birth, in seconds.
        duration: draws how long each takes.
        failed: the share of them that fails, 0 to 1.
        result: the result of each that completes; None: a made-up URL of a video.
        random: where durations and failures are drawn from.

    """

    __slots__ = ("_created", "_durations", "_ending", "_fails", "_prefix", "_video", "tally")

    def __init__(
        self,
        prefix: str,
        n: int,
        *,
        created: float,
        duration: Duration,
        failed: float,
        result: Any,
        random: Random,
    ) -> None:
        self._prefix = prefix
        self._created = created
        self._durations = array("d", (duration(random) for _ in range(n)))
        self._fails = bytearray(random.random() < failed for _ in range(n))
        self._ending = None if result is None else ending_of(result)
        # Cut off before the id's number, so that a look need not write JSON anew.
        self._video = ending_of({"videoUrl": f"https://videos.invalid/{prefix}-"})[: -len('"}')]
        self.tally = array("L", bytes(n * array("L").itemsize))
        """Requests seen for each."""

    def __len__(self) -> int:
        return len(self._durations)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        numbers = range(len(self))[index]
        if isinstance(numbers, int):
            return f"{self._prefix}-{numbers}"
        return [f"{self._prefix}-{number}" for number in numbers]

    def __contains__(self, task_id: object) -> bool:
        return isinstance(task_id, str) and self.place(task_id) is not None

    def __repr__(self) -> str:
        return f"<{len(self)} task ids from {self._prefix}-0>"

    def place(self, task_id: str) -> int | None:
        """Say where the id stands, None if it is none of these."""
        number = task_id[len(self._prefix) + 1 :]
        # The length is looked at first: int() is slow, and past 4,300 digits an error, on what a stranger may send.
        if len(number) > len(str(len(self))) or not number.isdecimal():
            return None
        place = int(number)
        return place if place < len(self) and task_id == f"{self._prefix}-{place}" else None

    def lifecycle(self, place: int) -> Lifecycle:
        """Make the lifecycle of the task at `place`: pending for a tenth of its time, then processing."""
        seconds = self._durations[place]
        ending = _FAILURE if self._fails[place] else self._ending or f'{self._video}{place}.mp4"}}'
        return Lifecycle(self._created, (("pending", seconds * 0.1), ("processing", seconds * 0.9)), ending)


class TaskBook:
    """Finds tasks by id, and counts the requests for each. Fit for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[str, Lifecycle] = {}
        self._made_up: dict[str, MadeUpTasks] = {}
        self._tally = Counter[str]()

    def add(self, task_id: str, task: Lifecycle) -> None:
        """Take a task in, in place of an older one of that id."""
        self._tasks[task_id] = task

    def new_prefix(self, prefix: str | None) -> str:
        """Give the prefix for more made-up tasks; None: the next of `task1`, `task2` and so on.

        Raises:
            ValueError: it is in use.

        """
        prefix = prefix or f"task{len(self._made_up) + 1}"
        if prefix in self._made_up:
            raise ValueError(f"there are made-up tasks of the prefix {prefix!r} already")
        return prefix

    def add_many(self, prefix: str, tasks: MadeUpTasks) -> None:
        """Take made-up tasks in, whose ids begin with `prefix`."""
        self._made_up[prefix] = tasks

    def find(self, task_id: str) -> Lifecycle:
        """Give the task of that id.

        Raises:
            KeyError: there is none.

        """
        if (task := self._tasks.get(task_id)) is None:
            made_up, place = self._place(task_id)
            if made_up is None:
                raise KeyError(task_id)
            return made_up.lifecycle(place)
        return task

    def look(self, task_id: str, now: float, dated: Dated) -> bytes:
        """Answer a look at a task, as `Lifecycle.look` does.

        Raises:
            KeyError: there is no such task.

        """
        with self._lock:
            return self.find(task_id).look(task_id, now, dated)

    def advance(self, task_id: str, now: float) -> None:
        """Begin a task's next step, as `Lifecycle.advance` does.

        Raises:
            KeyError: there is no such task.
            ValueError: it has ended.

        """
        with self._lock:
            task = self.find(task_id)
            task.advance(now)
            self._tasks[task_id] = task  # a made-up one has a life of its own from here on

    def tick(self, task_id: str) -> None:
        """Count a request for an id, known or not."""
        made_up, place = self._place(task_id)
        if made_up is None:
            self._tally[task_id] += 1
        else:
            made_up.tally[place] += 1

    def count(self, task_id: str) -> int:
        """Give the number of requests for an id, known or not."""
        made_up, place = self._place(task_id)
        return self._tally[task_id] if made_up is None else made_up.tally[place]

    def clear(self) -> None:
        """Forget all tasks and counts."""
        with self._lock:
            self._tasks.clear()
            self._made_up.clear()
            self._tally.clear()

    def _place(self, task_id: str) -> tuple[MadeUpTasks | None, int]:
        made_up = self._made_up.get(task_id.rpartition("-")[0])
        place = None if made_up is None else made_up.place(task_id)
        return (None, 0) if place is None else (made_up, place)
