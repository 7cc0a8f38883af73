"""Where ids come from: arguments, files, tables, and pipes that may never end."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import csv
import json
import os
import re
import select
import stat
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import click

_CHUNK = 64 * 2**10
MAX_LINE = 16 * 2**20
"""Bytes: the largest answer that a client takes by default: what was put out can be put in."""
_REPORTED = 20
"""Lines without an id that are reported one by one: a file of something else has a million."""
_SLICE = 100
"""Lines read before other tasks of the loop get a turn: less than a millisecond."""
_UNPROVEN = 200
"""Ids that are pulled before the server has shown that it knows any."""
ID_COLUMNS = ("taskId", "task_id")

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DELIMITERS = "\t,;"
_STRANGE = frozenset(range(32)) - frozenset(b"\t\n\v\f\r\x1b")
_PLAIN_ID = re.compile(r"[\w.~:/@+=-]+")


class InputError(click.ClickException):
    """An input that holds no ids, as can be told from its beginning."""

    exit_code = 2


# What a line says.


def parse_line(line: bytes, keys: Sequence[str] = ID_COLUMNS) -> str | None:
    """Parse a line: an id, or JSON: a string, or an object with the id under one of `keys`.

    Returns:
        the id; None for a blank line or a comment.

    Raises:
        ValueError: it holds no id; the message says why.

    """
    text = line.decode().strip()
    if not text or text.startswith("#"):
        return None
    if text[0] not in '{"':
        if not text.isprintable():
            raise ValueError("an id holds no control characters: one id a line, or JSON")
        return text
    try:
        value = json.loads(text)
    except RecursionError:
        value = None
    if isinstance(value, dict):
        value = next((value[key] for key in keys if key in value), None)
    if not isinstance(value, str) or not value:
        raise ValueError(f"JSON without a {' or '.join(keys)} that is a string")
    return value


def id_line(task_id: str) -> str:
    """Build a line that `parse_line` reads as `task_id`, also where it is the first of a file."""
    return (
        task_id
        if _PLAIN_ID.fullmatch(task_id) and task_id not in ID_COLUMNS
        else json.dumps(task_id)
    )


class LineParser(Protocol):
    """Reads ids, or requests, from lines."""

    def feed(self, line: bytes) -> str | None:
        """Parse a line; None if it holds none, as a blank one.

        Raises:
            ValueError: it should hold one; the message says why it does not.

        """

    def end(self) -> None:
        """Check what is left after the last line.

        Raises:
            ValueError: something is missing.

        """


class _Lines:
    """Reads ids from lines of text or JSON."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = keys

    def feed(self, line: bytes) -> str | None:
        return parse_line(line, self._keys)

    def end(self) -> None:
        """Check nothing: each line stands alone."""


class _Table:
    """Reads ids from a column of CSV or TSV; a quoted field may hold delimiters and line breaks."""

    _MAX_ROW = 2**20
    """Bytes of a row: a quotation mark that is missing must not swallow the rest of the file."""

    def __init__(self, delimiter: str, column: int, name: str) -> None:
        self._delimiter = delimiter
        self._column = column
        self._name = name
        self._row = ""

    def feed(self, line: bytes) -> str | None:
        self._row += line.decode() + "\n"
        if _is_open(self._row, self._delimiter):
            if len(self._row) > self._MAX_ROW:
                self._row = ""
                raise ValueError(
                    f"a row longer than {self._MAX_ROW:,} bytes: is a quotation mark missing?"
                )
            return None
        row, self._row = self._row, ""
        try:
            fields = next(csv.reader([row], delimiter=self._delimiter), [])
        except csv.Error as error:
            raise ValueError(str(error)) from None
        if not any(fields):
            return None
        task_id = fields[self._column].strip() if self._column < len(fields) else ""
        if not task_id:
            raise ValueError(f"a row without a {self._name}")
        if not task_id.isprintable():
            raise ValueError("an id holds no control characters")
        return task_id

    def end(self) -> None:
        if self._row:
            self._row = ""
            raise ValueError("the last row has a quotation mark that is not closed")


def _is_open(row: str, delimiter: str) -> bool:
    """Return whether a row of a table ends within a quoted field."""
    if '"' not in row:
        return False
    at = 0
    while True:
        if row.startswith('"', at):
            # A doubled quotation mark stands for one.
            while (end := row.find('"', at + 1)) >= 0 and row.startswith('""', end):
                at = end + 1
            if end < 0:
                return True
            at = end + 1
        following = row.find(delimiter, at)
        if following < 0:
            return False
        at = following + 1


def _parser_for(line: bytes, name: str, id_column: str | None) -> tuple[_Lines | _Table, bool]:
    """Choose how to read an input by its first line that is neither blank nor a comment.

    Returns:
        what reads it, and whether that line is a header.

    Raises:
        InputError: it is a table without a known column of ids.

    """
    keys = ID_COLUMNS if id_column is None else (id_column,)
    text = line.decode(errors="replace").strip("\r\n")
    if text.lstrip().startswith("{"):
        return _Lines(keys), False
    if text.lstrip().startswith("["):
        raise InputError(f"{name} is a JSON array; put one object a line, as jq -c '.[]' does")
    suffix = name.lower()[-4:]
    delimiters = "\t" if suffix == ".tsv" else _DELIMITERS
    headers = [(_fields(text, delimiter), delimiter) for delimiter in delimiters]
    header, delimiter = max(headers, key=lambda each: len(each[0]))
    known = [key for key in keys if key in header]
    if known:
        return _Table(delimiter, header.index(known[0]), known[0]), True
    if _is_json_string(text) or (len(header) == 1 and suffix not in (".csv", ".tsv")):
        return _Lines(keys), False
    columns = ", ".join(repr(field[:30]) for field in header[:8]) + ", ..." * (len(header) > 8)
    raise InputError(
        f"{name} is a table without a column {' or '.join(map(repr, keys))}; "
        f"its first line is: {columns}. "
        "Name the column of the ids with --id-column"
    )


def _is_json_string(text: str) -> bool:
    try:
        return isinstance(json.loads(text), str)
    except ValueError:
        return False


def _fields(text: str, delimiter: str) -> list[str]:
    try:
        return [field.strip() for field in next(csv.reader([text], delimiter=delimiter), [""])]
    except csv.Error:
        return [""]


# From bytes to lines.


class LineSplitter:
    """Cuts chunks of bytes into lines; of one that is longer than `MAX_LINE`, nothing is kept."""

    __slots__ = ("_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        """Yield the lines that end in a chunk; None: one that is too long."""
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._keep(end)
            yield self._take()
        self._keep(rest)

    def last(self) -> Iterator[bytes | None]:
        """Yield a last line that has no newline, if there is one."""
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


class _Decoder:
    """Turns UTF-8 and UTF-16 with a byte order mark into UTF-8, and refuses what is not text."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._head: bytes | None = b""
        self._utf16: codecs.IncrementalDecoder | None = None
        self._is_broken = False

    def decode(self, chunk: bytes, *, final: bool = False) -> bytes:
        if self._head is not None:
            chunk = self._head + chunk
            if not final and len(chunk) < 3 and any(mark.startswith(chunk) for mark, _ in _MARKS):
                self._head = chunk
                return b""
            self._head = None
            chunk = self._begin(chunk)
        if self._utf16 is None:
            return chunk
        if not self._is_broken:
            try:
                return self._utf16.decode(chunk, final).encode()
            except UnicodeDecodeError as error:
                self._is_broken = True
                if not final:  # what comes before the fault is still read
                    return error.object[: error.start].decode(error.encoding).encode()
        raise OSError(0, "it is not UTF-16, as its byte order mark says")

    def _begin(self, chunk: bytes) -> bytes:
        for mark, encoding in _MARKS:
            if chunk.startswith(mark):
                if encoding != "utf-8":
                    self._utf16 = codecs.getincrementaldecoder(encoding)()
                return chunk.removeprefix(mark)
        if _is_binary(chunk):
            raise InputError(
                f"{self._name} is a binary file, not lines of ids (UTF-16 needs a byte order mark)"
            )
        return chunk


def _is_binary(chunk: bytes) -> bool:
    """Return whether bytes are hardly text: one is NUL, or a third are no characters."""
    undecodable = chunk.decode(errors="replace").count("\ufffd")
    return b"\0" in chunk or 3 * (undecodable + sum(byte in _STRANGE for byte in chunk)) > len(
        chunk
    )


class _Reader:
    """Reads chunks of any kind of file in a thread, without blocking the loop.

    Once it is stopped, no byte of a pipe is taken any more.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._lock = threading.Lock()
        self._stopped = False
        self._late: bytes = b""

    async def read(self) -> bytes:
        """Read what there is, at most 64 KiB; empty at the end. Cancelled, it holds up no exit.

        Raises:
            OSError: it can't be read.

        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes | OSError] = loop.create_future()

        def read() -> None:
            answer = self._read()
            with contextlib.suppress(
                RuntimeError
            ):  # the loop is closed, and nothing waits any more
                loop.call_soon_threadsafe(settle, answer)

        def settle(answer: bytes | OSError) -> None:
            if not future.done():
                future.set_result(answer)

        # A daemon, since a pipe may stay silent for ever, and exit would wait for an executor.
        threading.Thread(target=read, daemon=True).start()
        answer = await future
        self._late = b""
        if isinstance(answer, OSError):
            raise answer
        return answer

    def _read(self) -> bytes | OSError:
        try:
            while True:
                _wait_until_readable(self.fd)
                with self._lock, contextlib.suppress(BlockingIOError):  # another reader was quicker
                    self._late = b"" if self._stopped else os.read(self.fd, _CHUNK)
                    return self._late
        except OSError as error:
            return error

    def stop(self) -> bytes:
        """Read no more, and return what was read and not taken."""
        # If another process took what there was to read, the thread is stuck in its read.
        if self._lock.acquire(timeout=1.0):
            self._stopped = True
            self._lock.release()
        return self._late


def _wait_until_readable(fd: int) -> None:
    """Block until a read would not, as the file may be in non-blocking mode."""
    if hasattr(select, "poll"):  # pragma: no branch -- not on Windows, where such pipes are rare
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll()


class Input:
    """A file, pipe or table of ids.

    Args:
        name: how messages call it.
        fd: its descriptor.
        id_column: the column, or member of JSON objects, that holds the ids; None: `ID_COLUMNS`.
        parser: reads the lines; None: it is chosen by the first of them.

    """

    def __init__(
        self,
        name: str,
        fd: int,
        id_column: str | None = None,
        parser: LineParser | None = None,
    ) -> None:
        self.name = name
        self.fd = fd
        self._id_column = id_column
        status = os.fstat(fd)
        self.is_file = stat.S_ISREG(status.st_mode)
        """Whether it can be read once more by a later run."""
        self.size: int | None = (
            status.st_size - os.lseek(fd, 0, os.SEEK_CUR) if self.is_file else None
        )
        self.read = 0
        """Bytes read so far."""
        self._reader = _Reader(fd)
        self._decoder = _Decoder(name)
        self._splitter = LineSplitter()
        self._parser: LineParser | None = parser
        self._lines: deque[bytes | None] = deque()
        self._number = 0

    def check(self) -> None:
        """Check the beginning of a regular file, before anything is done with any input.

        Raises:
            InputError: it is binary, or a table without a known column of ids.

        """
        if not self.is_file or self._parser is not None:
            return
        with contextlib.suppress(OSError):  # what can't be read is reported when its turn comes
            start = os.lseek(self.fd, 0, os.SEEK_CUR)
            head = os.read(self.fd, _CHUNK)
            os.lseek(self.fd, start, os.SEEK_SET)
            for line in _Decoder(self.name).decode(head).split(b"\n"):
                if line.strip() and not line.strip().startswith(b"#"):
                    _parser_for(line, self.name, self._id_column)
                    return

    async def ids(self, misread: Callable[[int, str], None]) -> AsyncIterator[str]:
        """Yield the ids, reading on only as far as it is asked for more.

        Args:
            misread: called with the number of a line that holds no id, and why.

        Raises:
            InputError: as `check` does.
            OSError: it can't be read on.

        """
        ended = False
        while not ended:
            chunk = b""
            try:
                chunk = await self._reader.read()
                self.read += len(chunk)
                self._split(chunk)
            except OSError:
                self._lines.extend(self._splitter.last())
                for task_id in self._parse(misread):
                    yield task_id
                raise
            ended = not chunk
            for task_id in self._parse(misread):
                yield task_id
                if self._number % _SLICE == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(0)
        if self._parser is not None:
            try:
                self._parser.end()
            except ValueError as problem:
                misread(self._number, str(problem))

    def unread(self) -> list[str]:
        """Read no more, and return the ids that were read and not taken."""
        with contextlib.suppress(OSError):
            self._split(self._reader.stop(), final=False)
        return list(self._parse(lambda number, problem: None))

    def _split(self, chunk: bytes, *, final: bool | None = None) -> None:
        final = not chunk if final is None else final
        self._lines.extend(self._splitter.feed(self._decoder.decode(chunk, final=final)))
        if final:
            self._lines.extend(self._splitter.last())

    def _parse(self, misread: Callable[[int, str], None]) -> Iterator[str]:
        while self._lines:
            line = self._lines.popleft()
            self._number += 1
            try:
                if line is None:
                    raise ValueError(f"longer than {MAX_LINE:,} bytes")
                task_id = self._id_in(line)
            except ValueError as problem:
                misread(self._number, str(problem))
                continue
            if task_id is not None:
                yield task_id

    def _id_in(self, line: bytes) -> str | None:
        if self._parser is None:
            text = line.strip()
            if not text or text.startswith(b"#"):
                return None
            self._parser, is_header = _parser_for(line, self.name, self._id_column)
            if is_header:
                return None
        return self._parser.feed(line)


class IdSource:
    """The ids to wait for, as an async iterable that reads on only as it is asked for more.

    Args:
        task_ids: those that come first.
        inputs: where more of them come from, one after another.
        wanted: returns whether to wait for an id.
        complain: called with a message for a line that holds no id, or a file that can't be read.
        kept: ids that an earlier run read from a pipe and did not finish; they come first.

    """

    def __init__(
        self,
        task_ids: Iterable[str],
        inputs: Sequence[Input],
        wanted: Callable[[str], bool],
        complain: Callable[[str], None],
        kept: Sequence[str] = (),
    ) -> None:
        self._task_ids = task_ids
        self._inputs = inputs
        self._wanted = wanted
        self._complain = complain
        self.kept = tuple(kept)
        self._kept = deque(kept)
        self._unrepeatable: dict[int, str] = {}
        self._proven = asyncio.Event()
        self._ended = False
        self.stopped = False
        """Set it, and no more ids are pulled."""
        self.taken = 0
        """Ids given out."""
        self.misread = 0
        """Lines that hold no id."""
        self.broken = False
        """Whether an input could not be read to its end."""

    @property
    def expected(self) -> float | None:
        """How many ids there will be, estimated from the share read; None: not known."""
        if self._ended:
            return self.taken
        read, total = 0, 0
        for each in self._inputs:
            if each.size is None:
                return None
            read += each.read
            total += each.size
        return self.taken * max(1.0, total / read) if read else None

    def prove(self) -> None:
        """Release ids without a limit: the server has shown that it knows some."""
        self._proven.set()

    def settle(self, index: int) -> None:
        """Record that the id with this index, counted from 0 in the order given out, has ended."""
        self._unrepeatable.pop(index, None)

    def about(self, index: int) -> Mapping[str, object]:
        """Return what is put out beside the task with this index: nothing."""
        return {}

    def unfinished(self) -> list[str]:
        """Stop, and return the ids that no later run can read once more and that have not ended."""
        self.stopped = True
        unread = [each for input_ in self._inputs if not input_.is_file for each in input_.unread()]
        return [*self._unrepeatable.values(), *filter(self._wanted, [*self._kept, *unread])]

    async def __aiter__(self) -> AsyncIterator[str]:
        async for task_id, repeatable in self._ids():
            if not self._wanted(task_id):
                continue
            if not repeatable:
                self._unrepeatable[self.taken] = task_id
            if self.taken >= _UNPROVEN:
                await self._proven.wait()
            if self.stopped:
                return
            self.taken += 1
            yield task_id
        self._ended = True

    async def _ids(self) -> AsyncIterator[tuple[str, bool]]:
        while self._kept:
            yield self._kept.popleft(), False
        for task_id in self._task_ids:
            yield task_id, True
        for each in self._inputs:
            name = each.name if len(self._inputs) > 1 else "the input"
            try:
                async for task_id in each.ids(partial(self._misread, name)):
                    yield task_id, each.is_file
            except OSError as error:
                self.broken = True
                self._complain(f"{name} can't be read on: {error.strerror}")
            except InputError as error:
                if not self.taken:
                    raise
                self.broken = True  # the waits that go on are not lost for it
                self._complain(error.message)

    def _misread(self, name: str, number: int, problem: str) -> None:
        self.misread += 1
        if self.misread <= _REPORTED:
            self._complain(f"line {number} of {name} is skipped: {problem}")
        elif self.misread == _REPORTED + 1:
            self._complain("more lines are skipped; from here on they are only counted")
