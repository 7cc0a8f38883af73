"""The page for maintainers says how things are."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGE = DOCS / "contributing.md"
sys.path.insert(0, str(DOCS / "scripts"))

import import_diagram  # noqa: E402 -- it lies among the docs


def test_the_diagram_shows_the_imports_as_they_are():
    assert import_diagram.PICTURE.read_text(encoding="utf-8") == import_diagram.picture(), (
        "The imports have changed: python docs/scripts/import_diagram.py"
    )


def test_imports_that_only_type_checkers_see_are_not_drawn():
    graph = import_diagram.imports(import_diagram.modules())

    assert "_errors" in graph["_models"]
    assert graph["_errors"] == set()  # it names TaskResult, for type checkers


def test_an_import_that_others_imply_is_not_drawn():
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set()}

    assert import_diagram.reduced(graph) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_every_arrow_points_down():
    layout = import_diagram.Layout(
        import_diagram.reduced(import_diagram.imports(import_diagram.modules()))
    )
    row = {name: number for number, names in enumerate(layout.rows) for name in names}

    assert layout.arrows
    assert all(row[a] + 1 == row[b] for arrow in layout.arrows for a, b in zip(arrow, arrow[1:]))


def test_each_step_of_the_gate_is_told_of():
    steps = re.search(r"^STEPS=\((.*)\)", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)
    table = (
        PAGE.read_text(encoding="utf-8")
        .partition("## Each check alone")[2]
        .partition("One test module")[0]
    )

    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == ["quick", *steps[1].split()]


@pytest.mark.parametrize(
    "script", sorted(set(re.findall(r"`python (\S+\.py)`", PAGE.read_text(encoding="utf-8"))))
)
def test_each_script_that_is_told_of_is_there(script):
    assert (ROOT / script).is_file()


def test_each_module_that_is_told_of_is_there():
    table = PAGE.read_text(encoding="utf-8").partition("| to change")[2].partition("## Set up")[0]
    modules = re.findall(r"`([\w/]+(?:\.py|/))`", table)

    assert len(modules) > 10
    assert [name for name in modules if not [*(ROOT / "xai_tasks").rglob(name)]] == []
