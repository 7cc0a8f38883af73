"""Links of README and docs lead somewhere: to a page, a heading, a file or a test
that is there. Without network.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page
    for page in (
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "tests").rglob("*.md"),
    )
    if not {".venv", "_build", "node_modules"} & set(page.parts)
)

FENCE = re.compile(r"^(```+|~~~+).*?^\1 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`[^`\n]+`")
FILE = re.compile(r"`((?:\.ci|docs|tests|xai_tasks)/[\w./-]*\w)(?:::(\w+))?`")
TEST = re.compile(r"`(test_\w+\.py)::(\w+)`")


def prose(page):
    """Return a page without what stands in code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page):
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+?) *$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page):
    """Return the links of a page that lead nowhere."""
    for target in LINK.findall(CODE.sub("", prose(page))):
        url = urlsplit(target)
        if url.scheme:
            if url.scheme != "https" or not url.netloc:
                yield target
            continue
        file = (page.parent / url.path).resolve() if url.path else page
        if not file.exists() or not file.is_relative_to(ROOT):
            yield target
        elif url.fragment and (file.suffix != ".md" or url.fragment not in anchors(file)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_what_is_there(page):
    assert list(broken(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_tests_that_are_named_are_there(page):
    text = prose(page)
    missing = [name for name, _ in FILE.findall(text) if not (ROOT / name).exists()]
    for name, test in (
        *TEST.findall(text),
        *((name, test) for name, test in FILE.findall(text) if test),
    ):
        found = [*(ROOT / "tests").rglob(Path(name).name)]
        if not any(f"def {test}(" in file.read_text(encoding="utf-8") for file in found):
            missing.append(f"{name}::{test}")

    assert missing == []


def test_broken_links_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# A `b`, c\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n\n[a](other.md) [b](other.md#a-b-c) [c](#here) [d](https://example.com/)\n\n"
        "```\n[in code](nowhere.md)\n```\n\n`[in code](nowhere.md)`\n\n"
        "[e](nowhere.md) [f](other.md#d) [g](#there) "
        "[h](http://example.com/) ![i](nowhere.svg) [j](../x)\n"
    )

    assert list(broken(page)) == [
        "nowhere.md", "other.md#d", "#there", "http://example.com/", "nowhere.svg", "../x",
    ]  # fmt: skip
