"""Write the help of each command into docs/command-line.md.

python docs/scripts/command_help.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from xai_tasks._cli._app import cli

PAGE = Path(__file__).parent.parent / "command-line.md"
BEGIN, END = "<!-- made by docs/scripts/command_help.py -->", "<!-- end of what is made -->"
WIDTH = 88
"""Characters that the site shows without scrolling."""


def helps() -> Iterator[tuple[str, str]]:
    """Yield each command, as it is typed, and its help."""
    settings = {**cli.context_settings, "terminal_width": WIDTH}
    with click.Context(cli, info_name="xai-tasks", **settings) as context:
        yield "xai-tasks", cli.get_help(context)
        for name in sorted(cli.commands):
            command = cli.commands[name]
            with click.Context(command, info_name=name, parent=context) as inner:
                yield f"xai-tasks {name}", command.get_help(inner)


def with_helps(page: str) -> str:
    """Return the page with its help texts brought up to date."""
    made = "\n\n".join(f"## {name}\n\n```text\n{text.rstrip()}\n```" for name, text in helps())
    pattern = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
    page, found = re.subn(pattern, lambda _: f"{BEGIN}\n\n{made}\n\n{END}", page, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"{PAGE.name} must hold {BEGIN} and {END} once")
    return page


if __name__ == "__main__":
    PAGE.write_text(with_helps(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
