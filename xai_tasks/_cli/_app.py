"""The commands and their options."""

from __future__ import annotations

import click

from xai_tasks import __version__
from xai_tasks._cli._running import Exit, run_command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="xai-tasks")
def cli() -> None:
    """Wait for Mountsea generation tasks."""


@cli.command()
def demo() -> int:
    """Wait for 200 made-up tasks at once: no key, no network, ten seconds."""
    from xai_tasks._cli._demo import demo  # noqa: PLC0415 -- aiohttp's server is slow to import

    return run_command(demo)


def run() -> int:
    """Run the program and give its exit code."""
    try:
        code = cli.main(prog_name="xai-tasks", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    return int(code or 0)
