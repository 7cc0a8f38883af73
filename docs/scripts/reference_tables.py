"""Write a table of names above each block of `autodoc` directives.

python docs/scripts/reference_tables.py

Only the site runs the directives. Where the page is read as plain Markdown,
the tables show what there is.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent
PAGES = [DOCS / "reference.md", DOCS / "testing.md"]
BLOCK = re.compile(
    r"(?:<!-- names: .*?<!-- end of names -->\n\n)?(```\{eval-rst\}\n.*?```)", re.DOTALL
)
ENTRY = re.compile(r"^\.\. auto(class|exception|function|data):: (\S+)", re.MULTILINE)
BEGIN = "<!-- names: made by docs/scripts/reference_tables.py -->"
END = "<!-- end of names -->"


def with_tables(page: str) -> str:
    """Return the page with its tables brought up to date."""
    return BLOCK.sub(lambda match: _table(match[1]) + match[1], page)


def _table(block: str) -> str:
    rows = [row for kind, name in ENTRY.findall(block) for row in _rows(kind, name)]
    if not rows:
        return ""
    lines = ["| name | what it is |", "| --- | --- |"]
    lines += [f"| `{name}` | {summary} |" for name, summary in rows]
    return "\n".join([BEGIN, "", *lines, "", END, "", ""])


def _rows(kind: str, path: str) -> Iterator[tuple[str, str]]:
    module, _, name = path.rpartition(".")
    value = getattr(importlib.import_module(module), name)
    if kind == "data":
        yield name, _comment(module, name)
        return
    yield name + (_signature(value) if kind == "function" else ""), _summary(value)
    if kind == "class" and not issubclass(value, str):
        for attribute, member in inspect.getmembers_static(value):
            if attribute.startswith("_") or not inspect.getdoc(member):
                continue
            if isinstance(member, property):
                yield f"{name}.{attribute}", _summary(member)
            elif inspect.isroutine(member):
                yield f"{name}.{attribute}{_signature(getattr(value, attribute))}", _summary(member)


def _signature(function: Any) -> str:
    """Return the parameters of a function, without types."""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
    ]
    shown = str(inspect.Signature(parameters)).replace("|", "\\|")
    return re.sub(r"<(.*?)>", r"\1", shown)


def _summary(value: Any) -> str:
    """Return the first sentence of a docstring, as a table's cell."""
    if isinstance(value, (classmethod, staticmethod)):
        value = value.__func__
    return (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def _comment(module: str, name: str) -> str:
    """Return the string below the definition of a name, in any module of the package."""
    source = importlib.import_module(module)
    folder = Path(source.__file__ or "").parent
    for file in sorted(folder.glob("*.py")):
        found = re.search(
            rf'^{name}\b[^\n]*=.*?\n"""(.*?)(?:\n\n|""")',
            file.read_text(encoding="utf-8"),
            re.MULTILINE | re.DOTALL,
        )
        if found:
            return found[1].replace("\n", " ").replace("|", "\\|")
    raise LookupError(name)


if __name__ == "__main__":
    for file in PAGES:
        file.write_text(with_tables(file.read_text(encoding="utf-8")), encoding="utf-8")
