"""The journal of `run`: lines in the output file that say which requests were begun.

A line is written before a request is sent, and another one when it is answered. So after a kill at
any moment each request is not begun, uncertain, or known by its `taskId`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import define

from xai_tasks import XaiTasksError
from xai_tasks._cli._output import write_line
from xai_tasks._cli._records import (
    ENDED,
    NOT_SENT,
    REFUSED,
    SUBMITTED,
    UNCERTAIN,
    end_of,
    parse_record,
    request_of,
    state_of,
)
from xai_tasks._cli._requests import Wanted, from_fields

_SUBMITTING = "submitting"


@define
class Entry:
    """What a journal says of one request."""

    wanted: Wanted
    copy: int
    """How many equal requests came before it."""
    state: str
    task_id: str = ""

    @property
    def record(self) -> dict[str, Any]:
        """What a line of the output says of the request."""
        return {**self.wanted.record, **({"copy": self.copy} if self.copy else {})}


def holds_requests(path: Path) -> bool:
    """Return whether a file holds lines of a run.

    Raises:
        OSError: it can't be read.

    """
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return any(request_of(parse_record(line) or {}) is not None for line in file)


class Journal:
    """The requests that earlier runs began, read from the output file."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, int], Entry] = {}
        self._ended: set[str] = set()
        self._claimed: Counter[str] = Counter()
        self._next: dict[str, int] = {}
        """The first free number for a request, by its key."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Record what a line of the file says; a later line about the same request counts."""
        request = request_of(record)
        if request is None:
            return
        try:
            wanted = from_fields(record["kind"], request, record.get("id"))
        except (KeyError, ValueError):
            return
        copy, task_id = record.get("copy", 0), record.get("taskId")
        entry = self._entries.get((wanted.key, copy)) or self._add(wanted, copy)
        entry.state = state_of(record)
        if isinstance(task_id, str):
            entry.task_id = task_id
            if end_of(dict(record)) in ENDED:
                self._ended.add(task_id)

    def claim(self, wanted: Wanted, *, is_more: bool = False) -> Entry | None:
        """Return the entry to submit for a request of the input; None if it was begun before.

        The nth of equal requests in the input is the nth in the journal, so an input can be read
        again by each run. With `is_more`, the request comes after all of those.
        """
        if is_more:
            return self._add(wanted, self._next.get(wanted.key, 0))
        copy = self._claimed[wanted.key]
        self._claimed[wanted.key] += 1
        return None if (wanted.key, copy) in self._entries else self._add(wanted, copy)

    def _add(self, wanted: Wanted, copy: int) -> Entry:
        entry = self._entries[wanted.key, copy] = Entry(wanted, copy, "")
        self._next[wanted.key] = max(copy + 1, self._next.get(wanted.key, 0))
        return entry

    def open_tasks(self) -> Iterator[Entry]:
        """Return the requests that have a task whose end is not in the file."""
        return (
            each
            for each in self._entries.values()
            if each.state == SUBMITTED and each.task_id not in self._ended
        )

    def unsent(self) -> Iterator[Entry]:
        """Return the requests that surely were not accepted, and not refused either."""
        return (each for each in self._entries.values() if each.state == NOT_SENT)

    def uncertain(self) -> list[Entry]:
        """Return the requests that may or may not have been accepted."""
        return [each for each in self._entries.values() if each.state == UNCERTAIN]

    def refused(self) -> int:
        """Return how many requests the server refused."""
        return sum(each.state == REFUSED for each in self._entries.values())


class JournalWriter:
    """Writes the lines of a journal, each on the disk before it returns.

    It blocks the loop for that long: what follows a line must not begin before.

    Args:
        fd: the output file; None: nothing is written.
        name: how messages call it.

    """

    def __init__(self, fd: int | None, name: str) -> None:
        self._fd = fd
        self._name = name

    def begin(self, entry: Entry) -> None:
        """Write that a request is about to be sent."""
        self._write(entry, state=_SUBMITTING)

    def submitted(self, entry: Entry, task_id: str) -> None:
        """Write that a request was accepted."""
        self._write(entry, taskId=task_id, state=SUBMITTED)

    def waiting(self, entry: Entry) -> None:
        """Write that a request was not accepted, and will be sent again."""
        self._write(entry, state=NOT_SENT)

    def failed(self, entry: Entry, end: str, error: XaiTasksError) -> None:
        """Write why a request has no task, or may have none."""
        told = {"type": type(error).__name__, "message": str(error)}
        self._write(entry, state=end, error=told)

    def _write(self, entry: Entry, **more: Any) -> None:
        if self._fd is None:
            return
        record = {**entry.record, **more}
        write_line(self._fd, json.dumps(record, separators=(",", ":")).encode() + b"\n", self._name)
        # A machine that fails must not forget what was paid for.
        os.fsync(self._fd)
