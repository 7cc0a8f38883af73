"""The commands. Each imports what it needs when it runs: `--help` and completion are quick."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

import click

from xai_tasks import __version__
from xai_tasks._cli import _options as options

_EPILOG = """\
\b
To complete commands and options with the Tab key, put one line into your shell's start-up file:
  bash, ~/.bashrc:  eval "$(_XAI_TASKS_COMPLETE=bash_source xai-tasks)"
  zsh, ~/.zshrc:    eval "$(_XAI_TASKS_COMPLETE=zsh_source xai-tasks)"
  fish, ~/.config/fish/completions/xai-tasks.fish:
                    _XAI_TASKS_COMPLETE=fish_source xai-tasks | source
"""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(__version__, prog_name="xai-tasks")
def cli() -> None:
    """Wait for Mountsea generation tasks: one or a million.

    \b
    Examples:
      xai-tasks demo
      xai-tasks get 5f2c1e
      xai-tasks watch 5f2c1e
      xai-tasks wait -i ids.txt -o out.jsonl --resume
      submit-jobs | xai-tasks wait -i - | jq -r .result.videoUrl

    Every command puts out one JSON object a line: the server's answer, plus an error where none
    came. The key is read from $MOUNTSEA_API_KEY or a file, never from an argument.

    Exit codes: 0 all completed; 1 some did not; 2 usage or configuration; 3 key refused or API
    unusable; 4 some timed out and nothing worse; 130 interrupted.
    """  # noqa: D301 -- \b is click's mark for lines to be kept


@cli.command("get")
@click.argument("task_ids", nargs=-1, required=True, metavar="ID...", callback=options.filled)
@options.log_options
@options.api_options
def get_command(task_ids: tuple[str, ...], *, quiet: bool, verbose: int, **settings: Any) -> int:
    """Ask for tasks once.

    A task that has not ended is put out as it stands, and is no failure.
    """
    from xai_tasks._cli._process import run_command  # noqa: PLC0415
    from xai_tasks._cli._settings import make_client  # noqa: PLC0415
    from xai_tasks._cli._single import get  # noqa: PLC0415

    client = make_client(**settings)
    return run_command(lambda _: get(client, task_ids, quiet=quiet, verbose=verbose))


@cli.command("watch")
@click.argument("task_id", metavar="ID", callback=options.filled)
@options.log_options
@options.pace_options
@options.api_options
def watch_command(task_id: str, *, quiet: bool, verbose: int, **settings: Any) -> int:
    """Follow a task: a line for each change of its status, until it has ended."""
    from xai_tasks._cli._process import run_command  # noqa: PLC0415
    from xai_tasks._cli._settings import make_client  # noqa: PLC0415
    from xai_tasks._cli._single import watch  # noqa: PLC0415

    client = make_client(**settings)
    return run_command(lambda _: watch(client, task_id, quiet=quiet, verbose=verbose))


@cli.command("wait")
@click.argument("task_ids", nargs=-1, metavar="[ID]...", callback=options.filled)
@click.option(
    "-i",
    "--input",
    "input_names",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="More ids: one a line, JSON lines, or a CSV or TSV table with a header; -: from stdin, as "
    "they come. May be given more than once.",
)
@click.option(
    "--id-column",
    metavar="NAME",
    help="The column of a table, or the member of JSON objects, that holds the ids.  "
    "[default: taskId or task_id]",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Skip ids that have ended in the output file, and any that come twice.",
)
@click.option(
    "--shard",
    type=options.shard,
    metavar="K/N",
    help="Wait for the Kth of N parts only, for N machines.",
)
@options.download_option
@options.output_options
@options.log_options
@options.bulk_options
@options.pace_options
@options.api_options
def wait_command(
    task_ids: tuple[str, ...],
    input_names: tuple[str, ...],
    id_column: str | None,
    output_name: str | None,
    summary_name: str | None,
    *,
    resume: bool,
    shard: tuple[int, int] | None,
    directory: str | None,
    quiet: bool,
    verbose: int,
    **settings: Any,
) -> int:
    """Wait until tasks have ended, and put out a line for each in the order they end.

    \b
    Examples:
      xai-tasks wait 5f2c1e 77ab02
      xai-tasks wait -i ids.txt -o out.jsonl --resume     # may be killed, and started again
      xai-tasks wait -i jobs.csv --id-column job -o out.jsonl
      xai-tasks wait -i ids.txt -o out.jsonl --download videos/
      xai-tasks wait -i ids.txt -o 3.jsonl --shard 3/8    # the third machine of eight
    """  # noqa: D301 -- \b is click's mark for lines to be kept
    from xai_tasks._cli import _job as job  # noqa: PLC0415
    from xai_tasks._cli._files import Files  # noqa: PLC0415
    from xai_tasks._cli._input import IdSource  # noqa: PLC0415
    from xai_tasks._cli._process import run_command  # noqa: PLC0415
    from xai_tasks._cli._progress import make_reporter  # noqa: PLC0415
    from xai_tasks._cli._settings import make_client  # noqa: PLC0415

    if resume and output_name in (None, "-"):
        raise click.UsageError("--resume needs --output: the file to go on with")
    has_pending = resume and os.path.exists(f"{output_name}.pending")  # noqa: PTH110 -- quick
    if not task_ids and not input_names and not has_pending:
        raise click.UsageError("name ids, or a file of them with --input")
    client = make_client(**settings)
    files = None if directory is None else Files(directory)
    on_record = (lambda record: None) if files is None else files.on_record
    output = job.Output(output_name, resume=resume, on_record=on_record)
    inputs = job.open_inputs(input_names, id_column, output.fd)
    summary = None if summary_name is None else job.SummaryFile(summary_name)
    reporter = make_reporter(quiet=quiet)
    source = IdSource(
        task_ids,
        inputs,
        job.Selection(shard, output.completed),
        reporter.say,
        kept=output.pending.read() if resume and output.pending is not None else (),
    )
    run = job.Job(
        source,
        output,
        reporter,
        summary=summary,
        hint=_hint(output.name, resume=resume),
        rate=settings["rate"],
        timeout=settings["timeout"],
        files=files,
        verbose=verbose,
    )
    return run_command(partial(run.run, client))


@cli.command("report")
@click.argument(
    "names",
    nargs=-1,
    required=True,
    metavar="FILE...",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
)
@click.option(
    "--failed",
    "listing",
    flag_value="failed",
    help="Put out the id of every task that did not complete, as `wait -i -` reads them.",
)
@click.option(
    "--unknown",
    "listing",
    flag_value="unknown",
    help="Put out the ids that the server does not know.",
)
@click.option(
    "--uncertain",
    "listing",
    flag_value="uncertain",
    help="Put out the requests of `run` that may or may not have been accepted, as it reads them.",
)
@click.option("--json", "in_json", is_flag=True, help="Put the report out as JSON.")
def report_command(names: tuple[str, ...], listing: str | None, *, in_json: bool) -> int:
    """Report what output files say: counts, failures by their messages, durations.

    Of several lines with the same id the last counts. It exits with 0 whatever the files say.

    \b
    Examples:
      xai-tasks report out.jsonl
      xai-tasks report --failed out.jsonl | xai-tasks wait -i - -o again.jsonl
    """  # noqa: D301 -- \b is click's mark for lines to be kept
    from xai_tasks._cli._report import report  # noqa: PLC0415

    report(names, listing=listing, in_json=in_json)
    return 0


@cli.command("run")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@click.option("--image", is_flag=True, help="Make images.")
@click.option("--video", is_flag=True, help="Make videos.")
@click.option(
    "-i",
    "--input",
    "input_names",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="More requests: a prompt a line, or JSON lines with the API's own fields and an id of "
    "your own; -: from stdin. May be given more than once.",
)
@options.request_options
@click.option("--resume", is_flag=True, help="Go on with what the output file holds.")
@click.option(
    "--retry-uncertain",
    is_flag=True,
    help="With --resume: submit again what may have been accepted without an answer.",
)
@click.option(
    "--shard",
    type=options.shard,
    metavar="K/N",
    help="Take the Kth of N parts of the requests only, for N machines.",
)
@options.download_option
@click.option(
    "--max-pending",
    type=options.whole_number(1),
    metavar="N",
    default="100",
    show_default=True,
    help="Tasks that have not ended, at most.",
)
@click.option(
    "--submit-retry-status",
    "retry_statuses",
    multiple=True,
    type=options.whole_number(400, 599),
    metavar="N",
    help="An answer, beside 429, that surely means that a request was not accepted: 503 behind "
    "nginx's limit_req.",
)
@options.output_options
@options.log_options
@options.bulk_options
@options.pace_options
@options.api_options
def run_command_(
    prompts: tuple[str, ...],
    input_names: tuple[str, ...],
    output_name: str | None,
    summary_name: str | None,
    *,
    image: bool,
    video: bool,
    resume: bool,
    retry_uncertain: bool,
    shard: tuple[int, int] | None,
    directory: str | None,
    max_pending: int,
    retry_statuses: tuple[int, ...],
    quiet: bool,
    verbose: int,
    **settings: Any,
) -> int:
    """Submit requests, wait for their tasks, and put out a line for each as it ends.

    Each request is paid for once: before it is sent, and again when it is accepted, a line is
    written to the output file. A run that was killed goes on with --resume.

    \b
    Examples:
      xai-tasks run --video "a cat eats a fish" -o out.jsonl
      xai-tasks run --video -i prompts.txt --duration 10 -o out.jsonl --max-pending 20
      xai-tasks run --video -i prompts.txt --duration 10 -o out.jsonl --max-pending 20 --resume
    """  # noqa: D301 -- \b is click's mark for lines to be kept
    from xai_tasks._cli._process import run_command  # noqa: PLC0415
    from xai_tasks._cli._run import RunOptions, make_run  # noqa: PLC0415

    if image == video:
        raise click.UsageError("say what to make: --image or --video, one of the two")
    run = make_run(
        RunOptions(
            prompts=prompts,
            kind="image" if image else "video",
            input_names=input_names,
            fields=options.take_fields(settings),
            output_name=output_name,
            summary_name=summary_name,
            resume=resume,
            retry_uncertain=retry_uncertain,
            shard=shard,
            directory=directory,
            max_pending=max_pending,
            retry_statuses=retry_statuses,
            hint=_hint(None if output_name == "-" else output_name, resume=resume),
            quiet=quiet,
            verbose=verbose,
        ),
        settings,
    )
    return run_command(run)


def _hint(output_name: str | None, *, resume: bool) -> str:
    if output_name is None:
        return "what has ended is put out; with --output FILE and --resume a later run can go on"
    from shlex import join  # noqa: PLC0415

    command = join(["xai-tasks", *sys.argv[1:], *([] if resume else ["--resume"])])
    return f"what has ended is in {output_name}; go on with: {command}"


@cli.command("serve")
@click.option(
    "--port",
    type=options.whole_number(0, 65535),
    default="0",
    metavar="P",
    help="Where to listen.  [default: a free port]",
)
@click.option(
    "--tasks",
    type=options.whole_number(0),
    default="100",
    show_default=True,
    metavar="N",
    help="How many tasks.",
)
@click.option(
    "--duration",
    metavar="D",
    help="How long tasks take: constant:SECONDS, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA.  "
    "[default: lognormal:45:0.5; for those that are submitted, uniform:2:6]",
)
@click.option(
    "--rate",
    type=options.rate,
    metavar="R",
    help="Requests per second let in.  [default: no limit]",
)
@click.option(
    "--fail",
    type=options.share,
    default="0",
    show_default=True,
    metavar="F",
    help="The share of tasks that fail.",
)
def serve_command(*, duration: str | None, **settings: Any) -> int:
    """Serve made-up tasks on a loopback port, and take submissions, until SIGINT or SIGTERM.

    The first line holds the URL and the key, each further one the id of a task:

    \b
      xai-tasks serve > served.jsonl & sleep 1
      export MOUNTSEA_BASE_URL=$(head -1 served.jsonl | jq -r .url) MOUNTSEA_API_KEY=test
      tail -n +2 served.jsonl | xai-tasks wait -i -
    """  # noqa: D301 -- \b is click's mark for lines to be kept
    from xai_tasks._cli._output import STDOUT, LineSink  # noqa: PLC0415
    from xai_tasks._cli._process import run_command  # noqa: PLC0415
    from xai_tasks._cli._serve import serve  # noqa: PLC0415
    from xai_tasks.testing import parse_duration  # noqa: PLC0415

    try:
        settings["duration"] = None if duration is None else parse_duration(duration)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--duration") from None
    return run_command(partial(serve, sink=LineSink(STDOUT, "stdout"), **settings))


@cli.command("demo")
def demo_command() -> int:
    """Wait for 200 made-up tasks: no key, no network, ten seconds."""
    click.echo("200 made-up tasks of 2 to 3.5 s on a test server, half of them started later.")
    from xai_tasks._cli._demo import demo  # noqa: PLC0415
    from xai_tasks._cli._process import run_command  # noqa: PLC0415

    return run_command(demo)


def run() -> int:
    """Run the program.

    Returns:
        its exit code.

    Raises:
        SystemExit: with 1, where the reader of stdout is gone: click ends quietly then.

    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # Closed by the parent process: the next file or socket would get this number, and be
            # written to.
            os.open(os.devnull, os.O_RDWR)
    try:
        return int(cli.main(prog_name="xai-tasks", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:  # SIGINT before a command runs, or after
        from xai_tasks._cli._progress import write_stderr  # noqa: PLC0415

        write_stderr("xai-tasks: interrupted\n")
        return 130
    except Exception as error:
        from xai_tasks import XaiTasksError  # noqa: PLC0415
        from xai_tasks._cli._process import exit_code_of  # noqa: PLC0415
        from xai_tasks._cli._progress import write_stderr  # noqa: PLC0415
        from xai_tasks._cli._settings import in_options  # noqa: PLC0415

        if not isinstance(error, (XaiTasksError, OSError)):
            raise
        write_stderr(f"xai-tasks: {in_options(str(error))}\n")
        return exit_code_of(error)
