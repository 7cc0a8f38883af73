"""`xai-tasks run`: from its options to a job."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from attrs import frozen
from tenacity import RetryCallState, stop_after_attempt

from xai_tasks import ImageRequest, RetryPolicy, VideoRequest
from xai_tasks._cli._files import Files
from xai_tasks._cli._input import IdSource
from xai_tasks._cli._job import Job, Output, Selection, SummaryFile, open_inputs
from xai_tasks._cli._journal import Journal, JournalWriter, holds_requests
from xai_tasks._cli._process import Interrupt
from xai_tasks._cli._progress import make_reporter
from xai_tasks._cli._requests import RequestLines
from xai_tasks._cli._settings import make_client
from xai_tasks._cli._submit import Plan, RequestSource

_stop = stop_after_attempt(4)


def _retry_policy() -> RetryPolicy:
    """Return a policy that leaves repeating submissions to us, as each attempt is journaled."""

    def stop(state: RetryCallState) -> bool:
        return isinstance(state.args[0], (ImageRequest, VideoRequest)) or _stop(state)

    return RetryPolicy(stop=stop, max_retry_after=3600.0)


@frozen
class RunOptions:
    """The options of the command, but for those of the client."""

    prompts: Sequence[str]
    kind: str
    """A key of `KINDS`."""
    input_names: Sequence[str]
    fields: Mapping[str, Any]
    """The API's fields that hold where a line has none of that name."""
    output_name: str | None
    summary_name: str | None
    resume: bool
    retry_uncertain: bool
    shard: tuple[int, int] | None
    directory: str | None
    max_pending: int
    retry_statuses: Sequence[int]
    hint: str
    quiet: bool
    verbose: int


def make_run(
    options: RunOptions, settings: dict[str, Any]
) -> Callable[[Interrupt], Coroutine[Any, Any, int]]:
    """Check the options, open the files, and return what does the job.

    Raises:
        click.ClickException: the options don't fit together, or the output can't be used.
        ConfigurationError: there is no key, or it is malformed; or the base URL is.
        OSError: a file can't be opened.

    """
    _check(options)
    statuses = frozenset({429, *options.retry_statuses})
    client = make_client(**settings, retry=_retry_policy(), submit_retry_statuses=statuses)
    parser = RequestLines(options.kind, options.fields)
    journal = Journal()
    files = None if options.directory is None else Files(options.directory)

    def on_record(record: dict[str, Any]) -> None:
        journal.add(record)
        if files is not None:
            files.on_record(record)

    output = Output(options.output_name, resume=options.resume, on_record=on_record)
    inputs = open_inputs(options.input_names, None, output.fd, lambda: parser)
    summary = None if options.summary_name is None else SummaryFile(options.summary_name)
    reporter = make_reporter(quiet=options.quiet)
    is_journal = output.name is not None and output.sink.is_file
    if not is_journal:
        reporter.say("without --output FILE, a run that is killed can't be resumed")
    lines = IdSource(
        [parser.parse_prompt(prompt) for prompt in options.prompts],
        inputs,
        Selection(options.shard, None),
        reporter.say,
        kept=output.pending.read() if options.resume and output.pending is not None else (),
    )
    plan = Plan(lines, parser, journal, output.completed, retry_uncertain=options.retry_uncertain)

    async def run(interrupt: Interrupt) -> int:
        source = RequestSource(
            client,
            plan,
            JournalWriter(output.fd if is_journal else None, output.sink.name),
            output.tally,
            reporter.say,
            max_pending=options.max_pending,
            retry_statuses=statuses,
        )
        job = Job(
            source,
            output,
            reporter,
            summary=summary,
            hint=options.hint,
            max_pending=options.max_pending,
            rate=settings["rate"],
            timeout=settings["timeout"],
            files=files,
            verbose=options.verbose,
        )
        return await job.run(client, interrupt)

    return run


def _check(options: RunOptions) -> None:
    """Check that the options fit together."""
    if options.resume and options.output_name in (None, "-"):
        raise click.UsageError("--resume needs --output: the file to go on with")
    if options.retry_uncertain and not options.resume:
        raise click.UsageError("--retry-uncertain needs --resume")
    if not options.prompts and not options.input_names and not options.resume:
        raise click.UsageError("give prompts, or a file of them with --input")
    for field in ("duration", "resolution"):
        if options.kind == "image" and field in options.fields:
            raise click.UsageError(f"--{field} is for videos")
    name = options.output_name
    if not options.resume and name is not None and name != "-" and holds_requests(Path(name)):
        raise click.UsageError(
            f"{name} holds the requests of an earlier run: go on with it with --resume, or name "
            "another file"
        )
