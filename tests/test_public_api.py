"""What is public changes only on purpose: with the snapshot, and with a word in the changelog."""

from __future__ import annotations

import re
from pathlib import Path

import public_api
import pytest

import xai_tasks

CHANGELOG = Path(__file__).parent.parent / "docs" / "changelog.md"


def unreleased(changelog):
    """Return the text of the section that is still to be released; "" where there is none."""
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    return next(
        (section for section in sections if section.partition("\n")[0].endswith("(unreleased)")), ""
    )


def unmentioned(now, released, section):
    """Return the names that were added, changed or taken away, and that the
    changelog's section does not tell of.

    A class that is new is told of by its own name; its members go with it.
    """
    changed = [name for name in {**released, **now} if now.get(name) != released.get(name)]
    # Words in code, so that "get" in a sentence does not count.
    told = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", section))))
    whole = {name for name in changed if (name in now) != (name in released)}
    return [
        name
        for name in changed
        if parent(name) not in whole and name.rpartition(".")[2] not in told
    ]


def parent(name):
    return name.rpartition(".")[0]


def test_the_snapshot_is_the_interface():
    assert public_api.SNAPSHOT.read_text(encoding="utf-8") == public_api.text(
        public_api.interface()
    ), (
        "The public interface has changed. If that is meant: python tests/public_api.py, "
        "and say so under the changelog's unreleased version."
    )


def test_the_changelog_tells_of_every_change_since_the_last_release():
    now, released = public_api.read(public_api.SNAPSHOT), public_api.read(public_api.RELEASED)

    assert unmentioned(now, released, unreleased(CHANGELOG.read_text(encoding="utf-8"))) == [], (
        f"Name these in {CHANGELOG.name}, in backticks, under the unreleased version."
    )


def test_the_changelogs_first_version_is_the_packages():
    heading = re.search(r"^## (\S+)", CHANGELOG.read_text(encoding="utf-8"), flags=re.MULTILINE)

    assert heading is not None
    assert heading[1] == xai_tasks.__version__


OLD = {"m.C": "class()", "m.C.go": "def(self)", "m.f": "def()"}


@pytest.mark.parametrize(
    ("now", "section", "missing"),
    [
        (OLD, "", []),
        (OLD | {"m.C.go": "def(self, fast)"}, "go is faster", ["m.C.go"]),
        (OLD | {"m.C.go": "def(self, fast)"}, "`C.go(fast=True)`", []),
        (OLD | {"m.D": "class()", "m.D.stop": "def(self)"}, "", ["m.D"]),
        (OLD | {"m.D": "class()", "m.D.stop": "def(self)"}, "`D`, which stops", []),
        ({"m.f": "def()"}, "`f`", ["m.C"]),
    ],
)
def test_a_changed_name_must_be_told_of_in_code(now, section, missing):
    assert unmentioned(now, OLD, section) == missing


def test_the_unreleased_section_ends_where_the_next_begins():
    assert (
        unreleased("# C\n\n## 2 (unreleased)\n\nnew\n\n## 1\n\nold\n")
        == "2 (unreleased)\n\nnew\n\n"
    )
    assert unreleased("# C\n\n## 1\n\nold\n") == ""
