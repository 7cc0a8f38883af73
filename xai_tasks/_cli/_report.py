"""`xai-tasks report`: what the lines of output files say."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Any, BinaryIO, cast

from attrs import frozen

from xai_tasks import TaskResult
from xai_tasks._cli._input import id_line
from xai_tasks._cli._journal import Journal
from xai_tasks._cli._progress import format_duration
from xai_tasks._cli._records import (
    ENDED,
    SUBMITTED,
    UNCERTAIN,
    digest,
    end_of,
    parse_record,
    request_of,
    state_of,
)
from xai_tasks._cli._tally import NOT_KNOWN, as_json, counts_in_words

_WORDS = 8
"""Words of a message that failures are told apart by."""
_MAX_KINDS = 10_000
"""Kinds of ends that are kept apart, so that messages that are all different need no memory."""
_BATCH = 1000
"""Lines between two updates of the progress bar."""
_MUCH = 20 * 2**20
"""Bytes from which on a progress bar is shown."""
_SHOWN = 20
"""Kinds of failures that are shown."""

_STEP = math.log(1.02)
_PERCENTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}
_BARS = 12

Progress = Callable[[int], None]


@frozen
class Kind:
    """What ids that ended alike have in common."""

    end: str
    """A status, or the type of the SDK's error."""
    code: int | float | str | None = None
    message: str = ""
    """Its first words, without the id and numbers."""
    files: int = 0
    """Files that were saved for such an id."""


class Durations:
    """A distribution of durations in buckets of 2 %: flat in memory, and exact to 1 %."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()

    def add(self, bucket: int, count: int) -> None:
        """Add so many durations of one bucket."""
        self._buckets[bucket] += count

    @property
    def count(self) -> int:
        """How many durations there are."""
        return self._buckets.total()

    def percentile(self, share: float) -> float:
        """Return the duration, in seconds, that this share of all does not exceed."""
        rank = max(1, math.ceil(share * self.count))
        ends = accumulate(count for _, count in sorted(self._buckets.items()))
        place = next(place for place, end in enumerate(ends) if end >= rank)
        return seconds_in(sorted(self._buckets)[place])

    def bars(self) -> list[tuple[float, float, int]]:
        """Return a histogram: from and to, in seconds, and how many durations are between them."""
        width = _round_up(seconds_in(max(self._buckets)) / _BARS)
        bars: Counter[int] = Counter()
        for bucket, count in self._buckets.items():
            bars[int(seconds_in(bucket) / width)] += count
        return [(n * width, (n + 1) * width, bars[n]) for n in range(min(bars), max(bars) + 1)]


def bucket_of(seconds: float) -> int:
    """Return the bucket of a duration; durations below a millisecond share one."""
    return round(math.log(max(seconds, 0.001)) / _STEP)


def seconds_in(bucket: int) -> float:
    """Return the duration that stands for a bucket."""
    return math.exp(bucket * _STEP)


def _round_up(seconds: float) -> float:
    """Round up to a length of time that reads well: 1, 2 or 5 times a power of ten, or minutes."""
    for unit in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800):
        if seconds <= unit:
            return unit
    return 3600.0 * math.ceil(seconds / 3600)


class Report:
    """What the lines of output files say; of several lines with the same id the last counts.

    It holds about 100 bytes for each id, and nothing of its line.
    """

    def __init__(self) -> None:
        self._numbers: dict[tuple[Kind, int | None], int] = {}
        self._kinds: list[tuple[Kind, int | None]] = []
        self._last: dict[int, int] = {}
        self._requests: dict[int, int | Kind] = {}
        """How each request of `run` stands: the hash of its task, or how it ended without one."""
        self.lines = 0
        """Lines read."""
        self.others = 0
        """Lines that tell of no end of a task."""

    def add(self, record: dict[str, Any]) -> None:
        """Take in one line."""
        end = end_of(record)
        request = request_of(record)
        if request is not None:
            key = [record.get(name) for name in ("request", "kind", "id", "copy")]
            self._requests[digest(json.dumps(key, sort_keys=True))] = (
                digest(record["taskId"])
                if state_of(record) == SUBMITTED
                else self._kinds[self._number(_kind_of_request(record), None)][0]
            )
        if end is None or not isinstance(record.get("taskId"), str):
            self.others += request is None
            return
        duration = _duration(record) if end == "completed" else None
        number = self._number(_kind(record, end), duration)
        self._last[digest(record["taskId"])] = number

    def _number(self, kind: Kind, duration: int | None) -> int:
        """Return the number that stands for what ids that ended alike have in common."""
        number = self._numbers.get((kind, duration))
        if number is None:
            if len(self._kinds) >= _MAX_KINDS:
                kind = Kind(kind.end, None, "other messages")
            number = self._numbers.setdefault((kind, duration), len(self._kinds))
            if number == len(self._kinds):
                self._kinds.append((kind, duration))
        return number

    def read(self, file: BinaryIO, progress: Progress) -> None:
        """Take in the lines of a file."""
        for line in _lines(file, progress):
            self.lines += 1
            record = parse_record(line)
            if record is None:
                self.others += 1
            else:
                self.add(record)

    def take(self, task_id: str) -> str | None:
        """Return how an id ended, the first time that it is asked for; then None."""
        number = self._last.pop(digest(task_id), None)
        return None if number is None else self._kinds[number][0].end

    def totals(self) -> Totals:
        """Count."""
        counts: Counter[str] = Counter()
        failures: Counter[Kind] = Counter()
        durations = Durations()
        files = 0
        for number, count in Counter(self._last.values()).items():
            kind, bucket = self._kinds[number]
            counts[kind.end] += count
            files += kind.files * count
            if kind.end != "completed":
                failures[Kind(kind.end, kind.code, kind.message)] += count
            if bucket is not None:
                durations.add(bucket, count)
        running = 0
        for state, count in Counter(self._requests.values()).items():
            if isinstance(state, Kind):
                counts[state.end] += count
                failures[state] += count
            elif state not in self._last:
                running += count
        return Totals(counts, failures, durations, files, running, self.others)


@frozen
class Totals:
    """The figures of a report."""

    counts: Mapping[str, int]
    """Ids by how they ended."""
    failures: Counter[Kind]
    durations: Durations
    """Of the tasks that completed."""
    files: int
    """Files saved."""
    running: int
    """Requests whose tasks have not ended."""
    others: int
    """Lines that tell of no end of a task."""

    def as_json(self) -> dict[str, Any]:
        """Return them as JSON-ready data."""
        durations: dict[str, Any] = {"count": self.durations.count}
        if self.durations.count:
            durations |= {
                name: round(self.durations.percentile(share), 3)
                for name, share in _PERCENTILES.items()
            }
            durations["histogram"] = [
                {"from": low, "to": high, "count": count}
                for low, high, count in self.durations.bars()
            ]
        return {
            **as_json(self.counts),
            "failures": [
                {
                    "type": kind.end,
                    "errorCode": kind.code,
                    "message": kind.message or None,
                    "count": count,
                }
                for kind, count in self.failures.most_common()
            ],
            "durations": durations,
            "files": self.files,
            "notEnded": self.running,
            "otherLines": self.others,
        }


def _kind(record: dict[str, Any], end: str) -> Kind:
    files = record.get("files")
    saved = len(files) if isinstance(files, list) else 0
    if end == "completed":
        return Kind(end, files=saved)
    error = record.get("error")
    if end in ENDED:
        task = TaskResult.from_raw(record)
        code, message = task.error_code, task.error_message
    else:
        code, message = None, error.get("message") if isinstance(error, dict) else None
    return Kind(
        end,
        code[:60] if isinstance(code, str) else code,
        _first_words(message, record["taskId"]) if isinstance(message, str) else "",
        saved,
    )


def _kind_of_request(record: dict[str, Any]) -> Kind:
    """Return how a request ended that has no task."""
    state, error = state_of(record), record.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    if state == UNCERTAIN or not isinstance(message, str):  # which would hold the prompt
        return Kind(state)
    return Kind(state, None, _words_of(message.removeprefix("submission: ")))


def _first_words(message: str, task_id: str) -> str:
    """Return the first words of a message, without what is different for each task."""
    name = re.escape(task_id)
    message = re.sub(
        rf"(?:task )?(?:{re.escape(repr(task_id))}|(?<!\w){name}(?!\w)):?", "", message[:400]
    )
    return _words_of(message)


def _words_of(message: str) -> str:
    words = message[:400].split()
    text = " ".join(re.sub(r"\d+", "N", word) for word in words[:_WORDS])
    return f"{text} ..." if len(words) > _WORDS else text


def _duration(record: dict[str, Any]) -> int | None:
    elapsed = TaskResult.from_raw(record).elapsed
    seconds = -1.0 if elapsed is None else elapsed.total_seconds()
    return None if seconds < 0 else bucket_of(seconds)


def _lines(file: BinaryIO, progress: Progress) -> Iterator[bytes]:
    size = 0
    for number, line in enumerate(file, 1):
        size += len(line)
        if number % _BATCH == 0:
            progress(size)
            size = 0
        yield line
    progress(size)


# What is put out.


def report(names: Sequence[str], *, listing: str | None, in_json: bool) -> None:
    """Read output files, and put out what they say.

    Args:
        names: their paths; "-": stdin.
        listing: one of `LISTINGS`: put out these ids instead; "uncertain": put out the requests
            that may have been accepted; None: a summary.
        in_json: put the summary out as JSON.

    Raises:
        OSError: one can't be read.

    """
    with _opened(names) as files:
        found = Report()
        size = sum(os.fstat(file.fileno()).st_size for file in files)
        with _progress_bar(size * (1 if listing is None else 2)) as progress:
            for file in files:
                found.read(file, progress)
            if listing == UNCERTAIN:
                _list_uncertain(files, progress)
            elif listing is not None:
                _list_ids(files, found, LISTINGS[listing], progress)
        if listing is None:
            totals = found.totals()
            if in_json:
                _put_out(json.dumps(totals.as_json(), indent=2))
            elif sys.stdout.isatty():
                _draw(totals)
            else:
                _put_out("\n".join(_plain(totals)))
    sys.stdout.buffer.flush()


LISTINGS: dict[str, Callable[[str], bool]] = {
    "failed": lambda end: end != "completed",
    "unknown": lambda end: end in NOT_KNOWN,
}
"""Ids that can be put out, by how they ended."""


def _put_out(line: str) -> None:
    sys.stdout.buffer.write(line.encode() + b"\n")


def _list_ids(
    files: Sequence[BinaryIO], found: Report, wanted: Callable[[str], bool], progress: Progress
) -> None:
    """Put out the ids whose last line is wanted, in the order of their first lines."""
    for file in files:
        file.seek(0)
        for line in _lines(file, progress):
            record = parse_record(line)
            task_id = None if record is None else record.get("taskId")
            end = found.take(task_id) if isinstance(task_id, str) else None
            if end is not None and wanted(end):
                _put_out(id_line(str(task_id)))


def _list_uncertain(files: Sequence[BinaryIO], progress: Progress) -> None:
    """Put out the requests that may or may not have been accepted, as lines that `run` reads."""
    for file in files:
        file.seek(0)
        journal = Journal()
        for line in _lines(file, progress):
            journal.add(parse_record(line) or {})
        for entry in journal.uncertain():
            _put_out(entry.wanted.line)


def _headline(totals: Totals) -> str:
    count = sum(totals.counts.values())
    text = f"{count:,} task{'s' * (count != 1)}: {counts_in_words(totals.counts)}"
    if totals.files:
        text += f"; {totals.files:,} files saved"
    if totals.running:
        text += f"; {totals.running:,} not ended"
    return text + (f"; {totals.others:,} other lines" if totals.others else "")


def _failures(totals: Totals) -> Iterator[tuple[str, str, str, str]]:
    for kind, count in totals.failures.most_common(_SHOWN):
        yield f"{count:,}", kind.end, "" if kind.code is None else str(kind.code), kind.message
    rest = totals.failures.most_common()[_SHOWN:]
    if rest:
        count = sum(count for _, count in rest)
        yield f"{count:,}", "", "", f"of {len(rest):,} other kinds, which --json shows"


def _percentiles(durations: Durations) -> str:
    parts = (
        f"{name} {format_duration(durations.percentile(share))}"
        for name, share in _PERCENTILES.items()
    )
    return f"Durations of {durations.count:,} completed tasks: {', '.join(parts)}"


def _plain(totals: Totals) -> Iterator[str]:
    """Yield the lines of a report for a file or a pipe."""
    yield _headline(totals)
    if totals.failures:
        yield ""
        yield "Not completed:"
        for row in _failures(totals):
            yield "  ".join(["", row[0].rjust(9), *filter(None, row[1:])])
    if totals.durations.count:
        yield ""
        yield _percentiles(totals.durations)
        for low, high, count in totals.durations.bars():
            yield f"  {format_duration(low):>12} - {format_duration(high):<12} {count:>11,}"


def _draw(totals: Totals) -> None:
    """Draw a report on a terminal.

    By rich, which draws the progress bar too: its bars have steps of an eighth of a character, and
    a dependency for plots alone would draw them no better.
    """
    from rich.bar import Bar  # noqa: PLC0415 -- rich is slow to import
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console()
    console.print(Text(_headline(totals), "bold"))
    if totals.failures:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("Ids", justify="right", style="red", no_wrap=True)
        table.add_column("Not completed", no_wrap=True)
        table.add_column("Code", no_wrap=True)
        table.add_column("Message", overflow="ellipsis", no_wrap=True)
        for row in _failures(totals):
            table.add_row(*map(Text, row))
        console.print()
        console.print(table)
    if totals.durations.count:
        bars = totals.durations.bars()
        most = max(count for *_, count in bars)
        table = Table.grid(padding=(0, 2, 0, 0), expand=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(ratio=1)
        for low, high, count in bars:
            span = f"{format_duration(low)} - {format_duration(high)}"
            table.add_row(span, f"{count:,}", Bar(most, 0, count, color="cyan"))
        console.print()
        console.print(Text(_percentiles(totals.durations)))
        console.print(table)


@contextmanager
def _opened(names: Sequence[str]) -> Iterator[list[BinaryIO]]:
    """Open files, and copy what can be read only once to temporary files."""
    with ExitStack() as stack:
        files: list[BinaryIO] = []
        for name in names:
            source: int | str = 0 if name == "-" else name
            file: BinaryIO = stack.enter_context(open(source, "rb", closefd=name != "-"))
            if not file.seekable():
                copy = cast("BinaryIO", stack.enter_context(tempfile.TemporaryFile()))
                shutil.copyfileobj(file, copy)
                copy.seek(0)
                file = copy
            files.append(file)
        yield files


@contextmanager
def _progress_bar(size: int) -> Iterator[Progress]:
    """Show a bar on stderr while many bytes are read, if that is a terminal."""
    if size < _MUCH or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console  # noqa: PLC0415 -- rich is slow to import
    from rich.progress import Progress as ProgressBar  # noqa: PLC0415

    with ProgressBar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Reading", total=size)
        yield lambda count: bar.advance(task, count)
