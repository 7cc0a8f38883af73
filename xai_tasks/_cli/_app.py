"""The commands and their options."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from xai_tasks import APIError, XaiTasksError, __version__
from xai_tasks._cli._ids import IdSource
from xai_tasks._cli._looks import get, watch
from xai_tasks._cli._output import Held, LineSink, open_output
from xai_tasks._cli._progress import PlainReporter, Reporter, write_stderr
from xai_tasks._cli._running import Exit, run_command
from xai_tasks._cli._settings import Seconds, Shard, make_client, pending_at_most
from xai_tasks._cli._wait import Job, Selection

F = TypeVar("F", bound=Callable[..., Any])

_STDIN, _STDOUT = 0, 1

_POSITIVE = click.FloatRange(min=0, min_open=True)


def _filled(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    if not all(value if isinstance(value, tuple) else (value,)):
        raise click.BadParameter("an id is empty")
    return value


def _api_options(command: F) -> F:
    """Add the options of every command that asks the API."""
    for option in (
        click.option(
            "--api-key-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Where the key is; read again when the server refuses it.  [default: $MOUNTSEA_API_KEY]",
        ),
        click.option(
            "--base-url",
            metavar="URL",
            help="Where the API is.  [default: $MOUNTSEA_BASE_URL, or Mountsea's]",
        ),
    ):
        command = option(command)
    return command


def _pace_options(command: F) -> F:
    """Add the options of every command that polls."""
    for option in (
        click.option(
            "--interval",
            type=_POSITIVE,
            metavar="S",
            default=5.0,
            show_default=True,
            help="Seconds between polls of a task, until it is learned how long tasks take; then no more polls than this would make.",
        ),
        click.option(
            "--timeout",
            type=Seconds(),
            metavar="S",
            default="600",
            show_default=True,
            help="Seconds to wait for a task; none: no limit.",
        ),
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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

    Every command puts out one JSON object a line: the server's answer, plus an error where none came.
    The key is read from $MOUNTSEA_API_KEY or a file, never from an argument.

    Exit codes: 0 all completed; 1 some did not; 2 usage or configuration; 3 key refused or API unusable;
    4 some timed out and nothing worse; 130 interrupted.
    """  # noqa: D301 -- \b is click's mark for lines to be kept


@cli.command("get")
@click.argument("task_ids", nargs=-1, required=True, metavar="ID...", callback=_filled)
@_api_options
def get_command(task_ids: tuple[str, ...], base_url: str | None, api_key_file: Path | None) -> int:
    """Look at tasks once.

    A task that has not ended is told of as it stands, and is no failure.
    """
    client = make_client(base_url=base_url, api_key_file=api_key_file)
    sink = LineSink(_STDOUT, "stdout")
    return run_command(lambda _: get(client, task_ids, sink))


@cli.command("watch")
@click.argument("task_id", metavar="ID", callback=_filled)
@_pace_options
@_api_options
def watch_command(task_id: str, **settings: Any) -> int:
    """Follow a task: a line for each change of its status, until it has ended."""
    client = make_client(**settings)
    sink = LineSink(_STDOUT, "stdout")
    return run_command(lambda _: watch(client, task_id, sink))


@cli.command("wait")
@click.argument("task_ids", nargs=-1, metavar="[ID]...", callback=_filled)
@click.option(
    "-i",
    "--input",
    "input_name",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="More ids, one a line: an id, or JSON with a taskId or task_id; -: from stdin, as they come.",
)
@click.option(
    "-o",
    "--output",
    "output_name",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Append the lines to FILE instead of putting them out.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Skip ids that the output file holds as ended, and any that come twice.",
)
@click.option(
    "--shard", type=Shard(), metavar="K/N", help="Wait for the Kth of N parts only, for N machines."
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    metavar="N",
    default=64,
    show_default=True,
    help="Requests in flight at most.",
)
@click.option(
    "--rate", type=_POSITIVE, metavar="R", help="Requests per second at most.  [default: found out]"
)
@click.option("-q", "--quiet", is_flag=True, help="Tell errors only.")
@_pace_options
@_api_options
def wait_command(
    task_ids: tuple[str, ...],
    input_name: str | None,
    output_name: str | None,
    *,
    resume: bool,
    shard: tuple[int, int] | None,
    quiet: bool,
    **settings: Any,
) -> int:
    """Wait until tasks have ended, and put out a line for each in the order they end.

    \b
    Examples:
      xai-tasks wait 5f2c1e 77ab02
      xai-tasks wait -i ids.txt -o out.jsonl --resume     # may be killed, and started again
      xai-tasks wait -i ids.txt -o 3.jsonl --shard 3/8    # the third machine of eight
    """  # noqa: D301 -- \b is click's mark for lines to be kept
    if not task_ids and input_name is None:
        raise click.UsageError("name ids, or a file of them with --input")
    if resume and output_name is None:
        raise click.UsageError("--resume needs --output: the file to go on with")
    client = make_client(**settings)
    held = Held() if resume else None
    in_fd = (
        _STDIN
        if input_name == "-"
        else None
        if input_name is None
        else os.open(input_name, os.O_RDONLY)
    )
    out_fd = _STDOUT if output_name is None else open_output(output_name, held)
    if (
        in_fd is not None
        and output_name is not None
        and os.path.samestat(os.fstat(in_fd), os.fstat(out_fd))
    ):
        raise click.UsageError("the input and the output are the same file")
    reporter = _reporter(quiet=quiet)
    max_pending = pending_at_most(settings["rate"], settings["timeout"])
    source = IdSource(task_ids, in_fd, Selection(shard, held), reporter.say)
    job = Job(
        source,
        LineSink(out_fd, output_name or "stdout"),
        reporter,
        held,
        _hint(output_name, resume=resume),
        max_pending,
    )
    return run_command(partial(job.run, client))


def _reporter(*, quiet: bool) -> Reporter:
    if quiet:
        return Reporter()
    if (
        sys.stderr is None
        or not sys.stderr.isatty()
        or os.environ.get("TERM", "dumb") in ("dumb", "unknown")
    ):
        return PlainReporter()
    from xai_tasks._cli._bar import BarReporter  # noqa: PLC0415 -- rich is slow to import

    return BarReporter()


def _hint(output_name: str | None, *, resume: bool) -> str:
    if output_name is None:
        return "what has ended is put out; with --output FILE and --resume a later run goes on from there"
    command = shlex.join(["xai-tasks", *sys.argv[1:], *([] if resume else ["--resume"])])
    return f"what has ended is in {output_name}; go on with: {command}"


@cli.command("serve")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="P",
    help="Where to listen.  [default: a free port]",
)
@click.option(
    "--tasks",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    metavar="N",
    help="How many tasks.",
)
@click.option(
    "--duration",
    default="lognormal:45:0.5",
    show_default=True,
    metavar="D",
    help="How long tasks take: constant:SECONDS, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA.",
)
@click.option(
    "--rate", type=_POSITIVE, metavar="R", help="Requests per second let in.  [default: no limit]"
)
@click.option(
    "--fail",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    metavar="F",
    help="The share of tasks that fail.",
)
def serve_command(*, duration: str, **settings: Any) -> int:
    """Serve made-up tasks on a loopback port, until SIGINT or SIGTERM.

    The first line tells the URL and the key, each further one the id of a task:

    \b
      xai-tasks serve > served.jsonl & sleep 1
      export MOUNTSEA_BASE_URL=$(head -1 served.jsonl | jq -r .url) MOUNTSEA_API_KEY=test
      tail -n +2 served.jsonl | xai-tasks wait -i -
    """  # noqa: D301 -- \b is click's mark for lines to be kept
    from xai_tasks._cli._serve import serve  # noqa: PLC0415 -- aiohttp's server is slow to import
    from xai_tasks.testing import parse_duration  # noqa: PLC0415

    try:
        settings["duration"] = parse_duration(duration)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--duration") from None
    return run_command(partial(serve, sink=LineSink(_STDOUT, "stdout"), **settings))


@cli.command("demo")
def demo_command() -> int:
    """Wait for 200 made-up tasks at once: no key, no network, ten seconds."""
    from xai_tasks._cli._demo import demo  # noqa: PLC0415 -- aiohttp's server is slow to import

    return run_command(demo)


def run() -> int:
    """Run the program.

    Returns:
        its exit code.

    Raises:
        SystemExit: with 1, where nobody reads stdout any more: click ends quietly then.

    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # Closed by who started this: the next file or socket would take its place, and be written to.
            os.open(os.devnull, os.O_RDWR)
    try:
        return int(cli.main(prog_name="xai-tasks", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (XaiTasksError, OSError) as error:
        write_stderr(f"xai-tasks: {error}\n")
        return Exit.UNUSABLE if isinstance(error, APIError) else Exit.USAGE
    except click.Abort:  # SIGINT before a command runs
        return Exit.INTERRUPTED
