"""The files that a job saves, and those that earlier runs left to be saved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from xai_tasks import (
    AuthenticationError,
    DownloadExpiredError,
    Outcome,
    TaskClient,
    TaskResult,
    XaiTasksError,
)
from xai_tasks._cli._records import digest, end_of, parse_record

_MAY_LACK_FILES = frozenset({"completed", "DownloadError", "DownloadExpiredError"})
"""How tasks end that have completed, though a file may not be on the disk."""


class Files:
    """Saves the files of a job, and counts them.

    Args:
        directory: where to; made if it is missing.

    Raises:
        OSError: it can't be made.

    """

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.count = 0
        self.size = 0
        """Bytes of all files."""
        self._lines = 0
        self._missing: dict[int, int] = {}
        """Where tasks without all of their files stand: a record's number by the id's hash."""

    def add(self, files: Sequence[Path]) -> list[str]:
        """Count files that were saved; return what the task's line says of them."""
        self.count += len(files)
        with contextlib.suppress(OSError):  # removed meanwhile
            self.size += sum(file.stat().st_size for file in files)
        return [str(file) for file in files]

    def on_record(self, record: dict[str, Any]) -> None:
        """Record whether a task of an earlier run lacks files; its last record counts."""
        self._lines += 1
        if isinstance(record.get("taskId"), str):
            self._missing.pop(digest(record["taskId"]), None)
            if end_of(record) in _MAY_LACK_FILES and _lacks_files(record):
                self._missing[digest(record["taskId"])] = self._lines

    def missing(self, output_name: str) -> Iterator[dict[str, Any]]:
        """Read the records of tasks without all of their files again, from the output file.

        Raises:
            OSError: it can't be read.

        """
        numbers = set(self._missing.values())
        if not numbers:
            return
        with Path(output_name).open("rb") as file:
            records = (record for record in map(parse_record, file) if record is not None)
            for number, record in enumerate(islice(records, self._lines), 1):
                if number in numbers:
                    yield record

    async def fetch(self, client: TaskClient, record: dict[str, Any]) -> Outcome:
        """Save the files of a task of an earlier run. It is polled only if a URL has expired.

        Raises:
            AuthenticationError: it was polled, and the key was refused.
            OSError: the disk is full.

        """
        task_id, task = record["taskId"], TaskResult.from_raw(record)
        try:
            try:
                files = await client.download(task, self.directory)
            except DownloadExpiredError:
                task = await client.get(task_id)
                files = await client.download(task, self.directory)
        except AuthenticationError:
            raise
        except XaiTasksError as error:
            return Outcome(task_id, 0, task, error)
        return Outcome(task_id, 0, task, files=tuple(files))

    def __str__(self) -> str:
        return f"{self.count:,} file{'s' * (self.count != 1)}, {format_size(self.size)}"


def format_size(size: int) -> str:
    """Return a number of bytes in the unit that fits: `512 B`, `1.2 MB`, `34 GB`."""
    if size < 1000:
        return f"{size} B"
    value, units = size / 1000, ["kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.{0 if value >= 9.95 else 1}f} {units[0]}"


def _lacks_files(record: dict[str, Any]) -> bool:
    files = record.get("files")
    if isinstance(files, list) and files and end_of(record) == "completed":
        return not all(isinstance(file, str) and Path(file).is_file() for file in files)
    try:
        return bool(TaskResult.from_raw(record).urls)
    except ValueError:  # a line that nobody wrote
        return False
