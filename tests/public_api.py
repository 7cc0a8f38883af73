"""Write down the public interface, one line a name, to tests/public_api.txt.

python tests/public_api.py              # after a change that is meant
python tests/public_api.py --released   # at a release: what the next version is compared with
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from enum import EnumType
from pathlib import Path
from typing import Generic, get_overloads

import attrs

MODULES = ("xai_tasks", "xai_tasks.dask", "xai_tasks.testing", "xai_tasks.testing.pytest_plugin")
HERE = Path(__file__).parent
SNAPSHOT = HERE / "public_api.txt"
RELEASED = HERE / "public_api_released.txt"
"""That of the last version released; not there before the first."""

# Users get these from methods, and never call their constructors.
MADE_BY_THE_LIBRARY = {"ClusterStream", "Fault", "OutcomeStream"}

# What syntax calls, so that it is used without being named.
SYNTAX = {
    "__aenter__", "__aexit__", "__aiter__", "__anext__", "__call__", "__enter__", "__exit__",
    "__iter__", "__next__",
}  # fmt: skip


def interface() -> dict[str, str]:
    """Return each public name, dotted, and what it is: the same words on every Python."""
    return dict(line for module in MODULES for line in _module(importlib.import_module(module)))


def text(lines: dict[str, str]) -> str:
    """Return an interface as it stands in the file."""
    return "".join(f"{name} = {what}\n" for name, what in lines.items())


def read(path: Path) -> dict[str, str]:
    """Return an interface that was written down; an empty one where there is none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return dict(line.split(" = ", 1) for line in lines)


def _module(module) -> Iterator[tuple[str, str]]:
    for name in getattr(module, "__all__", None) or _fixtures(module):
        value = getattr(module, name)
        dotted = f"{module.__name__}.{name}"
        if inspect.isclass(value):
            yield dotted, f"class({', '.join(base.__qualname__ for base in _public_bases(value))})"
            for member, what in _class(value):
                yield f"{dotted}.{member}", what
        elif name in _fixtures(module):
            yield dotted, f"fixture{_signature(inspect.unwrap(value))}"
        elif inspect.isfunction(value):
            yield dotted, _function(value)
        elif name == "__version__":
            yield dotted, "str"
        else:
            yield dotted, repr(value).replace("collections.abc.", "")


def _fixtures(module) -> list[str]:
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and type(value).__name__ == "FixtureFunctionDefinition"
    )


def _public_bases(cls) -> Iterator[type]:
    """Return the bases that a user can name; a private one stands for its own."""
    for base in cls.__bases__:
        if base.__name__.startswith("_"):
            yield from _public_bases(base)
        elif base not in (object, Generic):
            yield base


def _own(cls) -> dict[str, object]:
    """Return what a class adds to its public bases."""
    members: dict[str, object] = {}
    for base in cls.__bases__:
        if base.__name__.startswith("_"):
            members |= _own(base)
    return members | {
        name: value
        for name, value in vars(cls).items()
        if not name.startswith("_") or name in SYNTAX
    }


def _class(cls) -> Iterator[tuple[str, str]]:
    if isinstance(cls, EnumType):
        for member in cls:
            yield member.name, repr(member.value)
        return
    if "__init__" in vars(cls) and cls.__name__ not in MADE_BY_THE_LIBRARY:
        yield "__init__", _signature(cls.__init__)
    if attrs.has(cls):
        for field in attrs.fields(cls):
            if not field.name.startswith("_"):
                yield field.name, f"field: {_annotation(field.type)}"
    else:
        for name, annotation in vars(cls).get("__annotations__", {}).items():
            if not name.startswith("_"):
                yield name, f"attribute: {_annotation(annotation)}"
    for name, value in sorted(_own(cls).items()):
        if isinstance(value, property):
            kind = "property" if value.fset is None else "settable property"
            yield name, f"{kind}: {_annotation(inspect.signature(value.fget).return_annotation)}"
        elif isinstance(value, (classmethod, staticmethod)):
            yield name, f"{type(value).__name__} {_function(value.__func__)}"
        elif inspect.isfunction(value):
            overloads = get_overloads(value)
            yield name, " | ".join(_function(each) for each in overloads or [value])


def _function(function) -> str:
    unwrapped = inspect.unwrap(function)
    kind = "async def" if inspect.iscoroutinefunction(unwrapped) else "def"
    manager = "context manager " if unwrapped is not function else ""
    return f"{manager}{kind}{_signature(unwrapped)}"


def _signature(function) -> str:
    """Write a signature without help from `inspect`, whose words change
    from one Python to the next.
    """
    signature = inspect.signature(function)
    parts: list[str] = []
    star_due = True
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            star_due = False
        if parameter.kind is parameter.KEYWORD_ONLY and star_due:
            parts.append("*")
            star_due = False
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        part = f"{stars}{parameter.name}"
        if parameter.annotation is not parameter.empty:
            part += f": {_annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            part += f" = {_default(parameter.default)}"
        parts.append(part)
    returned = signature.return_annotation
    arrow = "" if returned is signature.empty else f" -> {_annotation(returned)}"
    return f"({', '.join(parts)}){arrow}"


def _annotation(annotation) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _default(value) -> str:
    if value is attrs.NOTHING:
        return "<a new one>"
    if isinstance(value, frozenset):
        return f"{{{', '.join(map(repr, sorted(value)))}}}"
    return "..." if value is Ellipsis else repr(value)


if __name__ == "__main__":
    for path in [SNAPSHOT, *([RELEASED] if "--released" in sys.argv[1:] else [])]:
        path.write_text(text(interface()), encoding="utf-8")
