"""One run of `xai-tasks wait`: ids in, a line out for each as its task ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import click

from xai_tasks import ConfigurationError, Outcome, OutcomeStream, TaskClient, XaiTasksError
from xai_tasks._cli._files import Files
from xai_tasks._cli._input import Input, LineParser
from xai_tasks._cli._output import LineSink, PendingFile, open_output
from xai_tasks._cli._process import Exit, Interrupt, exit_code_of
from xai_tasks._cli._progress import LogHandler, Pace, Reporter, Snapshot, format_duration
from xai_tasks._cli._records import CompletedIds, digest
from xai_tasks._cli._settings import in_options
from xai_tasks._cli._startup import Startup
from xai_tasks._cli._tally import TASK_FIELDS, Tally, as_json

_HOPELESS = 100
"""Ids in a row without a usable answer after which the rest is left to a later run."""
_NOT_IDS = 100
"""Ids at the beginning of a job, all unknown to the server, after which it stops."""
_FETCHERS = 8
"""Tasks of earlier runs whose files are saved at once."""
_MAX_PENDING = 10_000
"""Ids in rotation at most: the client's default."""
_GRACE = 0.1
"""Seconds for an outcome that should be at hand to come out of the stream."""
_SURE = 10.0
"""Seconds of polling after which its pace says whether the rate allows for the timeout."""


class Output:
    """Where a job's lines go, and what earlier runs left there.

    Args:
        name: the path; "-": stdout, as for None.
        resume: whether to go on with what the file holds.
        on_record: called with each record of a file that is resumed.

    Raises:
        OSError: it can't be opened.
        click.ClickException: it can't be resumed, or another run writes it.

    """

    def __init__(
        self,
        name: str | None,
        *,
        resume: bool,
        on_record: Callable[[dict[str, Any]], None] = lambda record: None,
    ) -> None:
        completed = CompletedIds()
        self.completed = completed if resume else None

        def add(record: dict[str, Any]) -> None:
            on_record(record)
            completed.add(record)

        self.fd = open_output(name or "-", add if resume else None)
        self.name = None if name == "-" else name
        self.sink = LineSink(self.fd, self.name or "stdout")
        self.pending = None
        if self.name is not None and self.sink.is_file:
            self.pending = PendingFile(self.name, replace=resume)
        self.tally = Tally(None if self.completed is None else self.completed.counts)


class Source(Protocol):
    """Where the ids of a job come from; `IdSource` says what each member means."""

    stopped: bool

    @property
    def expected(self) -> float | None: ...
    @property
    def misread(self) -> int: ...
    @property
    def broken(self) -> bool: ...
    def __aiter__(self) -> AsyncIterator[str]: ...
    def prove(self) -> None: ...
    def settle(self, index: int) -> None: ...
    def about(self, index: int) -> Mapping[str, Any]: ...
    def unfinished(self) -> list[str]: ...


class Selection:
    """Which ids this run waits for.

    Args:
        shard: K and N: of N parts, into which ids fall by their hash, the Kth; None: all.
        completed: those not to wait for again; None: there are none.

    """

    __slots__ = ("_completed", "_shard")

    def __init__(self, shard: tuple[int, int] | None, completed: CompletedIds | None) -> None:
        self._shard = shard
        self._completed = completed

    def __call__(self, task_id: str) -> bool:
        """Return whether to wait for an id."""
        if self._shard is not None:
            part, parts = self._shard
            if digest(task_id) % parts != part - 1:
                return False
        return self._completed is None or self._completed.claim(task_id)


class SummaryFile:
    """The file that `--summary` names; it is opened before the job, where a wrong name ends it."""

    def __init__(self, name: str) -> None:
        self._fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o666)

    def write(self, summary: dict[str, object]) -> None:
        """Write the summary in place of what the file held.

        Raises:
            OSError: it can't be written.

        """
        text = json.dumps(summary, indent=2).encode() + b"\n"
        with contextlib.suppress(OSError):  # a pipe has no length
            os.ftruncate(self._fd, 0)
        os.write(self._fd, text)
        os.close(self._fd)


class Job:
    """One run of `wait`.

    Args:
        source: gives the ids: an `IdSource` or what works like one.
        output: takes the lines.
        reporter: reports how it goes.
        summary: takes the counts at the end; None: there is no such file.
        hint: how to go on after an early end.
        max_pending: ids in rotation at most.
        rate: requests per second at most; None: learned.
        timeout: seconds to wait for a task; None: no limit.
        files: saves the files of completed tasks; None: they are not saved.
        verbose: how much of the log to show, 0 to 2.

    """

    def __init__(
        self,
        source: Source,
        output: Output,
        reporter: Reporter,
        *,
        summary: SummaryFile | None,
        hint: str,
        rate: float | None,
        timeout: float | None,
        files: Files | None = None,
        max_pending: int = _MAX_PENDING,
        verbose: int = 0,
    ) -> None:
        self._source = source
        self._output = output
        self._tally = output.tally
        self._reporter = reporter
        self._summary_file = summary
        self._hint = hint
        self._max_pending = max_pending
        self._rate = rate
        self._timeout = timeout
        self._files = files
        self._verbose = verbose
        self._warned = False

    async def run(self, client: TaskClient, interrupt: Interrupt) -> int:
        """Wait for all ids, and return the exit code.

        An error that ends the job is reported before the summary, which is the last line.

        Raises:
            BrokenPipeError: the reader of the output is gone.
            click.ClickException: the input holds no ids, as its beginning shows.

        """
        begun = time.monotonic()
        code, error, pending = int(Exit.INTERRUPTED), None, 0
        with (
            LogHandler(self._reporter, self._verbose),
            Startup(self._reporter, self._source.prove) as self._startup,
        ):
            try:
                async with (
                    client,
                    client.as_completed(
                        self._source,
                        max_pending=self._max_pending,
                        download_to=None if self._files is None else self._files.directory,
                    ) as stream,
                ):
                    try:
                        await self._follow(client, stream, interrupt)
                    finally:
                        pending = stream.pending
                code = Exit.INTERRUPTED if interrupt.received else self._code()
            except (XaiTasksError, OSError, click.ClickException) as problem:
                code, error = exit_code_of(problem), problem
                if self._is_usage(problem) or isinstance(problem, BrokenPipeError):
                    raise
            finally:
                self._finish(code, error, pending, time.monotonic() - begun, client.stats.requests)
        return code

    async def _follow(
        self, client: TaskClient, stream: OutcomeStream, interrupt: Interrupt
    ) -> None:
        progress = asyncio.create_task(
            self._reporter.follow(lambda: self._snapshot(client, stream), self._check_pace)
        )
        try:
            if self._files is not None:
                await self._fetch_missing(client, self._files)
            # Not `async for`: its end would close the stream, and an interrupt needs what has
            # ended by then.
            while (outcome := await anext(stream, None)) is not None:
                await self._take(outcome)
        except asyncio.CancelledError:
            interrupt.swallow()
            await self._drain(client, stream)
        finally:
            progress.cancel()

    async def _drain(self, client: TaskClient, stream: OutcomeStream) -> None:
        """Write what has ended and has not been taken yet, and pull no further id."""
        self._source.stopped = True
        with contextlib.suppress(TimeoutError, StopAsyncIteration):
            for _ in range(stream.pending - client.stats.waiting):
                async with asyncio.timeout(_GRACE):
                    outcome = await anext(stream)
                await self._take(outcome)

    async def _fetch_missing(self, client: TaskClient, files: Files) -> None:
        """Save files that earlier runs did not, first, since their URLs expire the soonest."""
        output, completed = self._output.name, self._output.completed
        if output is None or completed is None:
            return
        records = files.missing(output)

        async def work() -> None:
            for record in records:
                outcome = await files.fetch(client, record)
                completed.retake(outcome.task_id)
                known = {*TASK_FIELDS, "error"}
                about = {name: record[name] for name in record if name not in known}
                await self._write(outcome, about)

        workers = [asyncio.create_task(work()) for _ in range(_FETCHERS)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)

    async def _write(self, outcome: Outcome, about: Mapping[str, Any]) -> None:
        """Count an outcome, and write its line."""
        if self._output.sink.is_terminal:
            self._reporter.clear()
        if self._files is not None:
            about = {**about, "files": self._files.add(outcome.files)}
        line = self._tally.record(outcome.task_id, outcome.task, outcome.error, about)
        try:
            await self._output.sink.write(line)
        except OSError:
            self._tally.take_back()
            raise

    async def _take(self, outcome: Outcome) -> None:
        if isinstance(outcome.error, ConfigurationError):
            raise outcome.error  # the key file went bad: every other id would meet the same
        try:
            await self._write(outcome, self._source.about(outcome.index))
        except asyncio.CancelledError:
            self._source.settle(outcome.index)  # the line was written first
            raise
        self._source.settle(outcome.index)
        if self._tally.failures_in_a_row >= _HOPELESS and outcome.error is not None:
            raise outcome.error
        if self._tally.all_not_known >= _NOT_IDS:
            raise NotIdsError(
                f"the server knows none of the first {_NOT_IDS} ids, the last of them "
                f"{outcome.task_id[:60]!r}: is this a file of ids, and of this account?"
            )
        if not self._tally.all_not_known:
            self._startup.answered()

    def _snapshot(self, client: TaskClient, stream: OutcomeStream) -> Snapshot:
        stats, skipped = client.stats, self._tally.earlier
        expected = self._source.expected
        return Snapshot(
            self._tally.completed,
            self._tally.incomplete,
            stream.pending,
            stats.polls,
            stats.rate_limited,
            None if expected is None else expected + skipped,
            None if self._files is None else str(self._files),
        )

    def _check_pace(self, snapshot: Snapshot, pace: Pace) -> None:
        """Warn once, and early, where the rate is too low for the timeout."""
        limited = self._rate is not None or pace.is_limited
        if self._warned or self._timeout is None or not limited or pace.seconds < _SURE:
            return
        late = snapshot.waiting - int(pace.polls * self._timeout)
        if late > 0:
            self._warned = True
            self._reporter.say(
                f"at {pace.polls:.3g} requests/s about {late:,} of the {snapshot.waiting:,} ids "
                f"that are waited for will time out after {format_duration(self._timeout)}; "
                "give more with --timeout"
            )

    def _finish(
        self, code: int, error: Exception | None, pending: int, seconds: float, requests: int
    ) -> None:
        """Keep what would be lost, say how to go on, and sum up."""
        self._reporter.clear()
        unfinished = self._source.unfinished()
        quiet_end = isinstance(error, BrokenPipeError)  # as `cat` ends
        hints = [] if quiet_end else self._keep(unfinished)
        if code == Exit.INTERRUPTED:
            self._reporter.say(f"interrupted; {self._hint}")
        elif error is not None and not quiet_end and not self._is_usage(error):
            if isinstance(error, click.ClickException):
                self._reporter.say(error.message)
            else:
                self._reporter.say(in_options(str(error)))
                self._reporter.say(self._hint)
        for hint in hints:
            self._reporter.say(hint)
        if self._summary_file is not None:
            try:
                self._summary_file.write(self._as_json(code, seconds, requests, pending))
            except OSError as problem:
                self._reporter.say(f"the summary can't be written: {problem.strerror}")
        if not quiet_end and not (error is not None and self._is_usage(error)):
            self._reporter.sum_up(self._summary(seconds, requests, pending))

    def _is_usage(self, error: Exception) -> bool:
        """Return whether an error is about the command, and nothing was done yet."""
        return isinstance(error, click.ClickException) and not self._tally.now

    def _keep(self, task_ids: Sequence[str]) -> list[str]:
        """Keep ids that were read from a pipe and did not end; return what to say of them."""
        what = f"{len(task_ids):,} ids that were read from a pipe have not ended"
        if self._output.pending is None:
            return [what] if task_ids else []
        try:
            self._output.pending.write(task_ids)
        except OSError as problem:
            return [f"{what}, and can't be kept: {problem.strerror}"]
        return (
            [f"{what}; they are in {self._output.pending.path}, which --resume reads"]
            if task_ids
            else []
        )

    def _summary(self, seconds: float, requests: int, pending: int) -> str:
        tally, source = self._tally, self._source
        total = tally.completed + tally.incomplete
        tasks = f"{total:,} task{'s' * (total != 1)}"
        if tally.earlier:
            tasks += f", {tally.now:,} of them in this run,"
        parts = [f"{tasks} in {format_duration(seconds)}: {tally}"]
        if pending:
            parts.append(f"{pending:,} not ended")
        if self._files is not None:
            parts.append(str(self._files))
        parts.append(f"{requests:,} requests")
        completed = self._output.completed
        if completed is not None and completed.skipped:
            parts.append(f"{completed.skipped:,} skipped, as they are in the output")
        if source.misread:
            parts.append(f"lines without an id: {source.misread:,}")
        return "; ".join(parts)

    def _as_json(self, code: int, seconds: float, requests: int, pending: int) -> dict[str, object]:
        completed, files = self._output.completed, self._files
        return {
            **as_json(self._tally.counts),
            "notEnded": pending,
            "skipped": 0 if completed is None else completed.skipped,
            "misreadLines": self._source.misread,
            "thisRun": {
                "tasks": self._tally.now,
                "requests": requests,
                "seconds": round(seconds, 3),
                "exitCode": int(code),
                **({} if files is None else {"files": files.count, "bytes": files.size}),
            },
        }

    def _code(self) -> Exit:
        if self._source.broken:
            return Exit.USAGE
        code = self._tally.code
        if self._source.misread and code is not Exit.UNUSABLE:
            return Exit.INCOMPLETE
        return code


class NotIdsError(click.ClickException):
    """The input holds something else than ids of tasks."""

    exit_code = 2


def open_inputs(
    names: Sequence[str],
    id_column: str | None,
    output_fd: int,
    parser: Callable[[], LineParser] | None = None,
) -> list[Input]:
    """Open the inputs, and check the beginning of those that are files.

    Args:
        names: their paths; "-": stdin.
        id_column: the column that holds the ids; None: the usual ones.
        output_fd: where the lines go, which must be another file.
        parser: makes what reads the lines of an input; None: it is chosen by the first of them.

    Raises:
        OSError: one can't be opened.
        click.ClickException: one holds no ids, or is the output.

    """
    inputs: list[Input] = []
    for name in names:
        fd = 0 if name == "-" else os.open(name, os.O_RDONLY)
        if os.path.samestat(os.fstat(fd), os.fstat(output_fd)) and not os.isatty(fd):
            raise click.UsageError("the input and the output are the same file")
        label = "stdin" if name == "-" else Path(name).name
        inputs.append(Input(label, fd, id_column, None if parser is None else parser()))
    for each in inputs:
        each.check()
    return inputs
