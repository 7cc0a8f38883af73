"""Every public name has its entry in the reference, every error its
advice, every command its help.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import public_api
import pytest

import xai_tasks

DOCS = Path(__file__).parent.parent / "docs"
sys.path.insert(0, str(DOCS / "scripts"))

import command_help  # noqa: E402 -- it lies among the docs

ENTRY = re.compile(r"^\.\. auto(?:class|exception|function|data):: (\S+)", re.MULTILINE)
ENTRIES = [
    name
    for page in sorted(DOCS.glob("*.md"))
    for name in ENTRY.findall(page.read_text(encoding="utf-8"))
]
NAMES = [
    name
    for name in public_api.interface()
    if name.rpartition(".")[0] in public_api.MODULES and not name.endswith(".__version__")
]
ERRORS = [
    name
    for name, value in vars(xai_tasks).items()
    if isinstance(value, type) and issubclass(value, Exception)
]


@pytest.mark.parametrize("name", NAMES)
def test_each_public_name_has_one_entry(name):
    assert ENTRIES.count(name) == 1, (
        f"docs/reference.md, or a page like it, needs an entry of {name}"
    )


def test_nothing_else_has_an_entry():
    assert sorted(set(ENTRIES) - set(NAMES)) == []


@pytest.mark.parametrize("page", command_help.PAGES, ids=lambda page: page.parent.name)
def test_helps_of_commands_are_current(page):
    text = page.read_text(encoding="utf-8")
    commands = [name for name, _ in command_help.helps()]

    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == commands
    assert text == command_help.with_helps(text), "python docs/scripts/command_help.py"


def test_chinese_page_explains_each_option():
    parts = re.split(r"^## (.+)\n", command_help.PAGES[1].read_text("utf-8"), flags=re.MULTILINE)
    prose = {name: text.partition("```text")[0] for name, text in zip(parts[1::2], parts[2::2])}
    helps = dict(command_help.helps())
    shared = set(re.findall(r"`(--[\w-]+)", prose["xai-tasks"]))  # explained once for all

    for name, text in helps.items():
        explained = set(re.findall(r"`(--[\w-]+)", prose[name]))
        options = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.MULTILINE))
        figures = text if name != "xai-tasks" else "".join(helps.values())
        assert options <= explained | shared, f"explain them in docs/zh: {name}"
        assert explained <= options or name == "xai-tasks"
        assert set(re.findall(r"\d+", prose[name])) <= set(re.findall(r"\d+", figures)), name


def advice():
    """Return the error guide's sections by their headings."""
    parts = re.split(
        r"^### (\w+)\n", (DOCS / "errors.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    return dict(zip(parts[1::2], parts[2::2]))


def test_the_error_guide_has_each_class_of_the_tree():
    assert sorted(advice()) == sorted(ERRORS)


@pytest.mark.parametrize("name", ERRORS)
def test_each_error_comes_with_what_to_do(name):
    assert "\n*Do:* " in advice()[name]


@pytest.mark.parametrize("name", ERRORS)
def test_the_error_guide_names_the_builtin_that_an_error_is_too(name):
    builtin = {
        base.__name__
        for base in getattr(xai_tasks, name).__bases__
        if base.__module__ == "builtins"
    }

    assert [each for each in builtin - {"Exception"} if f"`{each}`" not in advice()[name]] == []
