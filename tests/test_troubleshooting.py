"""Each message of the page on troubleshooting is one that the package has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"
MESSAGES = re.findall(r"^### `(.+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def strings(tree):
    """Yield the strings of a module, without what is filled in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "\0" for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


TEXTS = {
    text
    for file in sorted((ROOT / "xai_tasks").rglob("*.py"))
    for text in strings(ast.parse(file.read_text(encoding="utf-8")))
}


def known(message):
    """Return whether each part of a message stands in some string of the package."""
    parts = re.split(r"'?\.\.\.'?|'\w*'|; |: |\bHTTP 200, but |\$\w+", message)
    return all(
        any(part in text for text in TEXTS) for part in map(str.strip, parts) if len(part) > 3
    )


@pytest.mark.parametrize("message", MESSAGES)
def test_message_is_one_of_the_package(message):
    assert known(message)


def test_page_has_messages():
    assert len(MESSAGES) > 20


def test_another_message_is_found_out():
    assert not known("no API key: ask your administrator")
