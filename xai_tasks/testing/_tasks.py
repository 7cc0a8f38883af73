"""All tasks of a server: those added one by one, and made-up ones in bulk."""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, overload
from urllib.parse import quote

from xai_tasks.testing._durations import Duration
from xai_tasks.testing._lifecycle import Dated, Lifecycle, ending_of, in_two_steps

_FAILURE = ending_of(failed=("made-up failure", 500))


class MadeUpTasks(Sequence[str]):
    """The ids of a made-up workload: a sequence that computes its strings on demand.

    A task takes nine bytes, and its request count eight more.

    Args:
        prefix: ids are this, a hyphen and a number from 0.
        n: how many.
        created: when they were created, in seconds of the server's clock.
        duration: how long each takes.
        failed: the share that fails, 0 to 1.
        result: the result of each that completes; None: the URL of a video under `files`.
        files: a URL that ends in `/`.
        random: the generator for durations and failures.

    """

    __slots__ = ("_created", "_durations", "_ending", "_fails", "_prefix", "_video", "counts")

    def __init__(
        self,
        prefix: str,
        n: int,
        *,
        created: float,
        duration: Duration,
        failed: float,
        result: Any,
        files: str,
        random: Random,
    ) -> None:
        self._prefix = prefix
        self._created = created
        self._durations = array("d", (duration(random) for _ in range(n)))
        self._fails = bytearray(random.random() < failed for _ in range(n))
        self._ending = None if result is None else ending_of(result)
        # Cut before the id's number, so that an answer needs no JSON encoder.
        self._video = ending_of({"videoUrl": f"{files}{quote(prefix)}-"})[: -len('"}')]
        self.counts = array("L", bytes(n * array("L").itemsize))
        """Requests received for each."""

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
        return isinstance(task_id, str) and self.find(task_id) is not None

    def __repr__(self) -> str:
        return f"<{len(self)} task ids from {self._prefix}-0>"

    def find(self, task_id: str) -> int | None:
        """Return the index of an id, None if it is not one of these."""
        number = task_id[len(self._prefix) + 1 :]
        # Check the length first: int() is slow on long input, and fails beyond 4,300 digits.
        if len(number) > len(str(len(self))) or not number.isdecimal():
            return None
        index = int(number)
        return index if index < len(self) and task_id == f"{self._prefix}-{index}" else None

    def lifecycle(self, index: int) -> Lifecycle:
        """Build the lifecycle of a task: pending for a tenth of its time, then processing."""
        seconds = self._durations[index]
        ending = _FAILURE if self._fails[index] else self._ending or f'{self._video}{index}.mp4"}}'
        return Lifecycle(self._created, in_two_steps(seconds), ending)


class TaskBook:
    """Finds tasks by id, and counts the requests for each. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[str, Lifecycle] = {}
        self._made_up: dict[str, MadeUpTasks] = {}
        self._counts = Counter[str]()

    def add(self, task_id: str, task: Lifecycle) -> None:
        """Add a task. It replaces an older one of the same id."""
        self._tasks[task_id] = task

    def new_prefix(self, prefix: str | None) -> str:
        """Return the prefix for more made-up tasks; None: the next of `task1`, `task2` and so on.

        Raises:
            ValueError: it is in use.

        """
        prefix = prefix or f"task{len(self._made_up) + 1}"
        if prefix in self._made_up:
            raise ValueError(f"there are made-up tasks with the prefix {prefix!r} already")
        return prefix

    def add_many(self, prefix: str, tasks: MadeUpTasks) -> None:
        """Add made-up tasks whose ids begin with `prefix`."""
        self._made_up[prefix] = tasks

    def find(self, task_id: str) -> Lifecycle:
        """Return the task with an id.

        Raises:
            KeyError: there is none.

        """
        if (task := self._tasks.get(task_id)) is None:
            made_up, index = self._find_made_up(task_id)
            if made_up is None:
                raise KeyError(task_id)
            return made_up.lifecycle(index)
        return task

    def knows(self, task_id: str) -> bool:
        """Return whether there is a task of that id."""
        return task_id in self._tasks or self._find_made_up(task_id)[0] is not None

    def answer(self, task_id: str, now: float, dated: Dated) -> bytes:
        """Return the answer about a task, as `Lifecycle.answer` does.

        Raises:
            KeyError: there is no such task.

        """
        with self._lock:
            return self.find(task_id).answer(task_id, now, dated)

    def advance(self, task_id: str, now: float) -> None:
        """Begin a task's next step, as `Lifecycle.advance` does.

        Raises:
            KeyError: there is no such task.
            ValueError: it has ended.

        """
        with self._lock:
            task = self.find(task_id)
            task.advance(now)
            self._tasks[task_id] = task  # a made-up one is now kept

    def count_request(self, task_id: str) -> None:
        """Count a request for an id, known or not."""
        made_up, index = self._find_made_up(task_id)
        if made_up is None:
            self._counts[task_id] += 1
        else:
            made_up.counts[index] += 1

    def count(self, task_id: str) -> int:
        """Return the number of requests for an id, known or not."""
        made_up, index = self._find_made_up(task_id)
        return self._counts[task_id] if made_up is None else made_up.counts[index]

    def clear(self) -> None:
        """Remove all tasks and counts."""
        with self._lock:
            self._tasks.clear()
            self._made_up.clear()
            self._counts.clear()

    def _find_made_up(self, task_id: str) -> tuple[MadeUpTasks | None, int]:
        made_up = self._made_up.get(task_id.rpartition("-")[0])
        index = None if made_up is None else made_up.find(task_id)
        return (None, 0) if index is None else (made_up, index)
