"""Pages show the same code and tables wherever they are read: on the
site, on a forge, in an editor.
"""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from pages import files

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts]
sys.path.insert(0, str(DOCS / "scripts"))

import include_examples  # noqa: E402 -- a script of the docs
import reference_tables  # noqa: E402


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", include_examples.pages(), ids=name_of)
def test_examples_are_current(page):
    text = page.read_text(encoding="utf-8")

    assert text == include_examples.with_examples(text), "python docs/scripts/include_examples.py"


def test_stale_example_is_found():
    stale = "<!-- a.py: made by docs/scripts/include_examples.py -->\nold\n<!-- end of a.py -->\n"

    assert include_examples.COPY.search(stale)


@pytest.mark.parametrize("page", reference_tables.PAGES, ids=name_of)
def test_tables_of_names_are_current(page):
    text = page.read_text(encoding="utf-8")

    assert text == reference_tables.with_tables(text), "python docs/scripts/reference_tables.py"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_needs_no_sphinx(page):
    """A forge shows none of these, or shows their options as part of the code."""
    text = page.read_text(encoding="utf-8")

    assert (
        re.findall(r"^(?:```|:::)\{(?:literalinclude|code-block|include)\}.*", text, re.MULTILINE)
        == []
    )


def test_files_of_page_are_found_by_name():
    page = (
        "**`a.py`**\n\n```python\nprint(1)\n```\n\n```python\nprint(2)\n```\n\n"
        "**`b.ini`**\n\n```ini\n[b]\n```\n"
    )

    assert files(page) == {"a.py": "print(1)\n", "b.ini": "[b]\n"}


def test_picture_of_demo_is_of_todays_demo():
    picture = (DOCS / "_static" / "demo.svg").read_text(encoding="utf-8")
    lines = re.sub(r"<tspan[^>]*>|</tspan>", "", picture)

    assert re.search(r">200 made-up tasks of \d.*on a test server", lines)
    assert len(re.findall(r">\s*\d+ of 200 ended, last demo-[\w-]+: \w+<", lines)) >= 5
    total = re.search(r">200 tasks in (\d+\.\d) s: 1\d\d completed, \d+ failed\.<", lines)
    assert float(total[1]) < 10  # as its help says
    assert re.search(r">3 of their videos are in \S+<", lines)


@pytest.mark.slow  # Sphinx is
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("retry-after: 503", ["retry", "after", "503"]),
        ("轮询", ["轮询"]),
        ("限速器API密钥", ["限速", "速器", "API", "密钥"]),
        ("等", ["等"]),
    ],
)
def test_search_splits_english_and_chinese(text, words):
    pytest.importorskip("sphinx")  # of the extra `docs`
    conf = runpy.run_path(str(DOCS / "conf.py"))

    assert conf["SearchBoth"]({}).split(text) == words


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "zh" / "README.md"], ids=name_of)
def test_figures_of_readme_are_those_of_the_page_they_link_to(page):
    figures = re.findall(r"\[([\d.]+) ?[^\]]*\]\(([^)#]+\.md)\)", page.read_text(encoding="utf-8"))

    assert len(figures) >= 4
    for figure, target in figures:
        text = (page.parent / target).read_text(encoding="utf-8")
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.]*\d)", text), (figure, target)
