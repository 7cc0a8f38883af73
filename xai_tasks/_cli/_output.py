"""Where lines go, and what a file of an earlier run holds."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import click

from xai_tasks._cli._input import id_line, parse_line
from xai_tasks._cli._records import BEGINNINGS, parse_record

if sys.platform != "win32":  # pragma: no branch -- Windows has no flock; there, files go unlocked
    import fcntl

STDOUT = 1
_ATOMIC = 512
"""Bytes that a pipe takes in one piece wherever it takes any: POSIX's least PIPE_BUF."""


def has_room(fd: int) -> bool | None:
    """Return whether a short write to a pipe or terminal would go through at once.

    Returns:
        None where that can't be known: on Windows, whose `select` takes sockets only.

    """
    try:
        return bool(select.select([], [fd], [], 0)[1])
    except (OSError, ValueError):
        return None


class LineSink:
    """Writes lines, each whole and at once, without blocking the loop while a reader is slow.

    Args:
        fd: where to.
        name: how messages call it.

    """

    __slots__ = ("_fd", "is_file", "is_terminal", "name")

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self.name = name
        self.is_file: bool = stat.S_ISREG(os.fstat(fd).st_mode)
        self.is_terminal: bool = os.isatty(fd)
        """Whether the lines appear on a terminal."""

    async def write(self, line: bytes) -> None:
        """Write a line. Cancelled, it is written before the cancellation goes on.

        Raises:
            BrokenPipeError: the reader is gone.
            OSError: it can't be written; a file then ends with the line before it.

        """
        if self.is_file or (len(line) <= _ATOMIC and has_room(self._fd)):
            self._write(line)
            return
        writing = asyncio.get_running_loop().run_in_executor(None, self._write, line)
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await writing
            raise

    def _write(self, line: bytes) -> None:
        write_line(self._fd, line, self.name)


def write_line(fd: int, line: bytes, name: str) -> None:
    """Write a line at once, blocking until it is written.

    Args:
        fd: where to.
        line: the line.
        name: how messages call it.

    Raises:
        BrokenPipeError: the reader is gone.
        OSError: it can't be written; a file then ends with the line before it.

    """
    rest = memoryview(line)
    try:
        while rest:
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:
                # A process that shares the pipe has made it non-blocking.
                select.select([], [fd], [])
    except OSError as error:
        if stat.S_ISREG(os.fstat(fd).st_mode) and len(rest) < len(line):
            with contextlib.suppress(OSError):
                os.ftruncate(fd, os.fstat(fd).st_size - (len(line) - len(rest)))
        raise OSError(error.errno, error.strerror, name) from None


def open_output(name: str, on_record: Callable[[dict[str, Any]], None] | None) -> int:
    """Open a file to append lines to, locked against a second run; it is made if it is missing.

    A pipe is opened for writing only: opened for reading too, it would never break. A FIFO waits
    for its reader.

    Args:
        name: its path; "-": stdout.
        on_record: called with each record that the file holds, and a line cut off at its end is
            removed; None: nothing in the file is read.

    Returns:
        a file descriptor.

    Raises:
        OSError: it can't be opened.
        click.ClickException: another run writes it, or its last line is cut off and not ours.

    """
    fd = STDOUT if name == "-" else _open(name)
    if on_record is not None and not stat.S_ISREG(os.fstat(fd).st_mode):
        raise click.UsageError(f"--resume needs a regular file, which {name} is not")
    if name != "-" and stat.S_ISREG(os.fstat(fd).st_mode):
        _lock(fd, name)
        with open(fd, "rb", closefd=False) as file:
            _end_last_line(file, name, on_record)
    return fd


def _open(name: str) -> int:
    try:
        is_file = stat.S_ISREG(Path(name).stat().st_mode)
    except FileNotFoundError:
        is_file = True
    flags = os.O_RDWR | os.O_CREAT if is_file else os.O_WRONLY
    try:
        return os.open(name, flags | os.O_APPEND, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO and os.path.samestat(Path(name).stat(), os.fstat(STDOUT)):
            return STDOUT  # /dev/stdout is a socket, which can't be opened by its name
        raise


def _lock(fd: int, name: str) -> None:
    if sys.platform != "win32":  # pragma: no branch -- as above
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise click.UsageError(f"another run is writing to {name}") from None
        except OSError:  # pragma: no cover -- a file system without locks
            pass


def _end_last_line(
    file: BinaryIO, name: str, on_record: Callable[[dict[str, Any]], None] | None
) -> None:
    """Ensure that the next line begins on a line of its own."""
    if on_record is None:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read() not in (b"", b"\n"):
            os.write(file.fileno(), b"\n")
        return
    whole = 0
    for line in file:
        record = parse_record(line)
        if record is not None:
            on_record(record)
        if line.endswith(b"\n"):
            whole += len(line)
        elif record is not None:
            os.write(file.fileno(), b"\n")
        elif any(
            line.startswith(each) or each.startswith(line.rstrip(b"\0")) for each in BEGINNINGS
        ):
            # NULs alone are what a power cut may leave of a line.
            os.ftruncate(file.fileno(), whole)
        else:
            raise click.UsageError(
                f"{name} ends in a line that is not of this program: is it the right file?"
            )


class PendingFile:
    """`FILE.pending` beside an output file: ids that were read from a pipe and did not end.

    Args:
        output_name: the path of the output file.
        replace: whether what is written replaces what an earlier run left, as this run has read it.

    """

    def __init__(self, output_name: str, *, replace: bool) -> None:
        self.path = Path(f"{output_name}.pending")
        self._replace = replace

    def read(self) -> list[str]:
        """Return its ids; none if it is missing.

        Raises:
            OSError: it can't be read.

        """
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found: list[str] = []
        for line in lines:
            with contextlib.suppress(ValueError):
                task_id = parse_line(line)
                found += [] if task_id is None else [task_id]
        return found

    def write(self, task_ids: Sequence[str]) -> None:
        """Write ids; where there are none left, the file is removed.

        Raises:
            OSError: it can't be written; it is then as before.

        """
        if not self._replace:
            task_ids = [*self.read(), *task_ids]
        if not task_ids:
            self.path.unlink(missing_ok=True)
            return
        part = self.path.with_name(f"{self.path.name}.part")
        try:
            part.write_text("".join(f"{id_line(each)}\n" for each in task_ids), encoding="utf-8")
            part.replace(self.path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
