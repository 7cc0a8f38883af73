"""Where lines go, and what a file of an earlier run holds already."""

from __future__ import annotations

import asyncio
import json
import os
import select
import stat
import sys
from typing import Any, BinaryIO

import click

from xai_tasks import TaskResult, TaskStatus
from xai_tasks._cli._ids import digest

if sys.platform != "win32":  # pragma: no branch -- Windows has no flock; there, files go unlocked
    import fcntl

_STATUSES = frozenset(TaskStatus)
_ATOMIC = 512
"""Bytes that a pipe takes in one piece wherever it takes any: POSIX's least PIPE_BUF."""
_BEGINNING = b'{"taskId":'
"""What every line begins with, so that one cut off can be told from a file that is none of ours."""


def has_room(fd: int) -> bool:
    """Say whether a short write to a pipe or terminal would go through at once."""
    try:
        return bool(select.select([], [fd], [], 0)[1])
    except OSError:  # pragma: no cover -- Windows, which can ask sockets only
        return False


class LineSink:
    """Writes lines, each in one piece and at once, without blocking the loop where a reader is slow.

    Args:
        fd: where to.
        name: how messages call it.

    """

    __slots__ = ("_fd", "_is_file", "_name", "is_terminal")

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self.is_terminal: bool = os.isatty(fd)
        """Whether the lines appear on a terminal."""

    async def write(self, line: bytes) -> None:
        """Write a line; cancelled, it is still written first.

        Raises:
            BrokenPipeError: nobody reads any more.
            OSError: it can't be written.

        """
        if self._is_file or (len(line) <= _ATOMIC and has_room(self._fd)):
            self._write(line)
            return
        writing = asyncio.get_running_loop().run_in_executor(None, self._write, line)
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await writing
            raise

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._fd, rest) :]
                except BlockingIOError:
                    # Somebody who shares the pipe has made it non-blocking.
                    select.select([], [self._fd], [])
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._name) from None


class Held:
    """The ids not to wait for again: those that an output file holds as ended, and those of this run, as 64-bit hashes.

    A million take 80 MB. That two of a million ids hash alike, so that one is skipped, has a chance of 1 in 37 million.
    """

    __slots__ = ("_failed", "_hashes", "failed", "skipped")

    def __init__(self) -> None:
        self._hashes: set[int] = set()
        self._failed: set[int] = set()
        self.skipped = 0
        """Ids asked for that were held."""
        self.failed = 0
        """Those among them that had not completed."""

    def add(self, record: dict[str, Any]) -> None:
        """Take in a line of the file, and keep its id if it has ended there."""
        task_id, word = record.get("taskId"), record.get("status")
        if not isinstance(task_id, str) or not isinstance(word, str):
            return
        status = TaskStatus(word) if word in _STATUSES else TaskStatus.UNKNOWN
        if TaskResult(task_id, status, raw=record).done:
            key = digest(task_id)
            self._hashes.add(key)
            if status is TaskStatus.COMPLETED:
                self._failed.discard(key)
            else:
                self._failed.add(key)

    def claim(self, task_id: str) -> bool:
        """Say whether an id is not held, and hold it from now on."""
        key = digest(task_id)
        if key not in self._hashes:
            self._hashes.add(key)
            return True
        self.skipped += 1
        self.failed += key in self._failed
        return False


def open_output(name: str, held: Held | None) -> int:
    """Open a file to append lines to, locked against a second run; it is made if it is not there.

    Args:
        name: its path.
        held: is given what the file holds, and a line cut off at its end is taken away; None: nothing in it is touched.

    Returns:
        a file descriptor.

    Raises:
        OSError: it can't be opened.
        click.ClickException: another run writes it, or its last line is cut off and none of ours.

    """
    fd = os.open(name, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        _lock(fd, name)
        with open(fd, "rb", closefd=False) as file:
            _end_last_line(file, name, held)
    elif held is not None:
        raise click.UsageError(f"--resume needs a regular file, which {name} is not")
    return fd


def _lock(fd: int, name: str) -> None:
    if sys.platform != "win32":  # pragma: no branch -- as above
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise click.UsageError(f"another run is writing to {name}") from None
        except OSError:  # pragma: no cover -- a file system without locks
            pass


def _end_last_line(file: BinaryIO, name: str, held: Held | None) -> None:
    """See that the next line begins on a line of its own."""
    if held is None:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read() not in (b"", b"\n"):
            os.write(file.fileno(), b"\n")
        return
    whole = 0
    for line in file:
        record = _parse(line)
        if record is not None:
            held.add(record)
        if line.endswith(b"\n"):
            whole += len(line)
        elif record is not None:
            os.write(file.fileno(), b"\n")
        elif line.startswith(_BEGINNING) or _BEGINNING.startswith(line.rstrip(b"\0")):
            # NULs alone are what a power cut may leave of a line.
            os.ftruncate(file.fileno(), whole)
        else:
            raise click.UsageError(
                f"{name} ends in a line that is none of this program's: is it the right file?"
            )


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
