"""Where ids come from: arguments, a file, a pipe that may never end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from hashlib import blake2b

_CHUNK = 64 * 2**10
MAX_LINE = 16 * 2**20
"""Bytes: the largest answer that a client takes by default, so that whatever was put out can be put in again."""
_TOLD = 20
"""Lines without an id that are told one by one: a file of something else has a million."""
_SLICE = 100
"""Lines read before others on the loop get a turn: less than a millisecond."""


def digest(task_id: str) -> int:
    """Hash an id to 64 bits, the same on every machine and in every version."""
    # Ids may hold lone surrogates, from arguments that are no UTF-8 or from JSON; the client will refuse them in its turn.
    name = task_id.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(name, digest_size=8).digest())


def parse_line(line: bytes) -> str | None:
    """Read the id from a line: an id, or JSON: a string, or an object with a `taskId` or `task_id`.

    Returns:
        the id; None for a blank line or a comment.

    Raises:
        ValueError: there is none to be read; the message says why.

    """
    text = line.decode().strip()
    if not text or text.startswith("#"):
        return None
    if text[0] not in '{"':
        if not text.isprintable():
            raise ValueError("an id holds no control characters: one id a line, please, or JSON")
        return text
    try:
        value = json.loads(text)
    except RecursionError:
        value = None
    if isinstance(value, dict):
        value = value.get("taskId", value.get("task_id"))
    if not isinstance(value, str) or not value:
        raise ValueError("JSON without a taskId or task_id that is a string")
    return value


class LineSplitter:
    """Cuts chunks of bytes into lines, however they fall; of one that is longer than `MAX_LINE`, nothing is kept."""

    __slots__ = ("_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        """Take a chunk in and give the lines that end in it; None: one that is too long."""
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._keep(end)
            yield self._take()
        self._keep(rest)

    def last(self) -> Iterator[bytes | None]:
        """Give what is left at the end of the input, a line without its newline, if there is one."""
        if self._size:
            yield self._take()

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= MAX_LINE:
            self._parts.append(part)
        else:
            self._parts.clear()

    def _take(self) -> bytes | None:
        line = b"".join(self._parts) if self._size <= MAX_LINE else None
        self._parts.clear()
        self._size = 0
        return line


async def read_chunk(fd: int) -> bytes:
    """Read what there is, at most 64 KiB; empty at the end. Cancelled, it leaves no thread that the process must wait for.

    Raises:
        OSError: it can't be read.

    """

    def read() -> None:
        answer: bytes | OSError
        try:
            answer = os.read(fd, _CHUNK)
        except OSError as error:
            answer = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, answer)

    def settle(answer: bytes | OSError) -> None:
        if not future.done():
            future.set_result(answer)

    loop = asyncio.get_running_loop()
    future: asyncio.Future[bytes | OSError] = loop.create_future()
    # Any kind of file reads the same way in a thread. It is a daemon, since a pipe may stay silent for ever, and an executor
    # would be waited for at exit.
    threading.Thread(target=read, daemon=True).start()
    answer = await future
    if isinstance(answer, OSError):
        raise answer
    return answer


class IdSource:
    """The ids to wait for, as an async iterable that reads on only as it is asked for more.

    Args:
        task_ids: those that come first.
        fd: a file to read more from, one a line; None: there is none.
        wanted: says of an id whether to wait for it.
        complain: is told of each line that holds no id, and of a file that can't be read.

    """

    def __init__(
        self,
        task_ids: Iterable[str],
        fd: int | None,
        wanted: Callable[[str], bool],
        complain: Callable[[str], None],
    ) -> None:
        self._task_ids = task_ids
        self._fd = fd
        self._wanted = wanted
        self._complain = complain
        self._size = _size_of(fd)
        self._read = 0
        self._ended = False
        self.stopped = False
        """Set it to have no more ids pulled."""
        self.taken = 0
        """Ids given out."""
        self.misread = 0
        """Lines that hold no id."""
        self.broken = False
        """Whether the file could not be read to its end."""

    @property
    def expected(self) -> float | None:
        """How many ids there will be: exact at the end of the input, from the share read of a file before, else None."""
        if self._ended:
            return self.taken
        if self._size and self._read:
            return self.taken * max(1.0, self._size / self._read)
        return None

    async def __aiter__(self) -> AsyncIterator[str]:
        async for task_id in self._ids():
            if self.stopped:
                return
            if self._wanted(task_id):
                self.taken += 1
                yield task_id
        self._ended = True

    async def _ids(self) -> AsyncIterator[str]:
        for task_id in self._task_ids:
            yield task_id
        if self._fd is None:
            return
        number = 0
        async for line in self._lines(self._fd):
            number += 1
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            found = self._parse(number, line)
            if found is not None:
                yield found

    def _parse(self, number: int, line: bytes | None) -> str | None:
        try:
            if line is None:
                raise ValueError(f"longer than {MAX_LINE:,} bytes")
            return parse_line(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
        except ValueError as problem:
            self.misread += 1
            if self.misread <= _TOLD:
                self._complain(f"line {number} of the input is skipped: {problem}")
            elif self.misread == _TOLD + 1:
                self._complain("more lines are skipped; from here on they are counted only")
            return None

    async def _lines(self, fd: int) -> AsyncIterator[bytes | None]:
        splitter = LineSplitter()
        try:
            while chunk := await read_chunk(fd):
                self._read += len(chunk)
                for line in splitter.feed(chunk):
                    yield line
        except OSError as error:
            self.broken = True
            self._complain(f"the input can't be read on: {error.strerror}")
        for line in splitter.last():
            yield line


def _size_of(fd: int | None) -> int | None:
    """Say how many bytes are to come from a file; None if it is no regular one."""
    if fd is None:
        return None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size - os.lseek(fd, 0, os.SEEK_CUR)
