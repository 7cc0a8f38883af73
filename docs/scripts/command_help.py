"""Write the help of each command into docs/command-line.md and its Chinese twin.

python docs/scripts/command_help.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from xai_tasks._cli._app import cli

DOCS = Path(__file__).parent.parent
PAGES = [DOCS / "command-line.md", DOCS / "zh" / "command-line.md"]
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
    """Return the page with the text block of each command's section brought up to date."""
    for name, text in helps():
        section = rf"^## {name}\n(?:(?!## )[^\n]*\n)*?```text\n(.*?)^```$"
        found = re.search(section, page, flags=re.MULTILINE | re.DOTALL)
        if found is None:
            raise ValueError(f"the page needs a section '## {name}' with a text block")
        page = page[: found.start(1)] + text.rstrip() + "\n" + page[found.end(1) :]
    return page


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_helps(page.read_text(encoding="utf-8")), encoding="utf-8")
