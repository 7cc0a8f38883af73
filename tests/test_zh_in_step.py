"""The Chinese pages are in step with the English: the same headings' levels, code blocks
and links, in the same order.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAIRS = {
    ROOT / "README.md": ROOT / "docs/zh/README.md",
    ROOT / "docs/tutorial.md": ROOT / "docs/zh/tutorial.md",
    ROOT / "docs/how-to/overnight-jobs.md": ROOT / "docs/zh/overnight-jobs.md",
    ROOT / "docs/how-to/prompts-to-videos.md": ROOT / "docs/zh/prompts-to-videos.md",
    ROOT / "docs/how-to/save-the-results.md": ROOT / "docs/zh/save-the-results.md",
    ROOT / "docs/how-to/fastapi.md": ROOT / "docs/zh/fastapi.md",
    ROOT / "docs/errors.md": ROOT / "docs/zh/errors.md",
    ROOT / "docs/command-line.md": ROOT / "docs/zh/command-line.md",
}

BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) ", re.MULTILINE)
LINK = re.compile(r"\]\(([^)]+)\)")


def skeleton(text):
    """Return the order of headings, by level, and of code blocks, as they stand."""
    found = [(match.start(), match[0]) for match in BLOCK.finditer(text)]
    prose = BLOCK.sub(lambda match: " " * len(match[0]), text)
    found += [(match.start(), match[1]) for match in HEADING.finditer(prose)]
    found += [(match.start(), "item") for match in re.finditer(r"^- ", prose, re.MULTILINE)]
    return [what for _, what in sorted(found)]


def links(page):
    """Return the files that a page links to, but for its own translation."""
    own = {*PAIRS, *PAIRS.values(), ROOT / "docs/index.md", ROOT / "docs/zh/contents.md"}
    found = LINK.findall(BLOCK.sub("", page.read_text("utf-8")))
    files = {target.partition("#")[0] for target in found} - {""}  # "": within the page
    targets = {(page.parent / file).resolve() for file in files}
    return sorted(str(target.relative_to(ROOT)) for target in targets - own)


@pytest.mark.parametrize(("english", "chinese"), PAIRS.items(), ids=lambda page: page.stem)
def test_headings_items_and_code_blocks_are_the_same(english, chinese):
    assert skeleton(chinese.read_text("utf-8")) == skeleton(english.read_text("utf-8")), (
        f"{english.name} has changed: bring docs/zh/{chinese.name} into step"
    )


@pytest.mark.parametrize(("english", "chinese"), PAIRS.items(), ids=lambda page: page.stem)
def test_links_lead_to_the_same_files(english, chinese):
    assert links(chinese) == links(english)


@pytest.mark.parametrize(("english", "chinese"), PAIRS.items(), ids=lambda page: page.stem)
def test_names_in_code_are_on_both_pages(english, chinese):
    """A sentence that was added names something, as a rule."""
    names, translated = (
        set(re.findall(r"`([!-;=-_a-~]*\w[!-;=-_a-~]*)`", BLOCK.sub("", page.read_text("utf-8"))))
        for page in (english, chinese)
    )

    assert names - translated == set()


@pytest.mark.parametrize("chinese", PAIRS.values(), ids=lambda page: page.stem)
def test_each_heading_but_a_name_is_in_chinese(chinese):
    headings = re.findall(
        r"^#+ (.+)$", BLOCK.sub("", chinese.read_text("utf-8")), flags=re.MULTILINE
    )

    assert [
        text
        for text in headings
        if not re.fullmatch(r"xai_tasks|xai-tasks( \w+)?|\w+Error", text)
        and not re.search(r"[\u4e00-\u9fff]", text)
    ] == []


@pytest.mark.parametrize("chinese", PAIRS.values(), ids=lambda page: page.stem)
def test_paragraphs_have_no_line_breaks(chinese):
    """A break between two characters is shown as a space."""
    prose = BLOCK.sub("", chinese.read_text("utf-8"))

    assert (
        re.findall(r"^[^|\n].*[\u3000-\uffef]\n(?!- |\d+\. |[|<#])\S.*", prose, re.MULTILINE) == []
    )


def test_a_block_that_was_changed_is_found():
    english = "# A\n\n```sh\nls\n```\n\n- b\n"

    assert skeleton("# 甲\n\n```sh\nls\n```\n\n- 乙\n") == skeleton(english)
    assert skeleton("# 甲\n\n```sh\nls -l\n```\n\n- 乙\n") != skeleton(english)
    assert skeleton("## 甲\n\n```sh\nls\n```\n\n- 乙\n") != skeleton(english)


def test_contents_list_each_page_once_and_mark_those_in_english():
    docs = ROOT / "docs"
    contents = (docs / "zh/contents.md").read_text("utf-8")
    entries = re.findall(r"^- \[[^\]]+\]\(([^)]+)\)(.*)$", contents, re.MULTILINE)
    listed = [(docs / "zh" / target).resolve().relative_to(docs) for target, _ in entries]
    pages = {
        page.relative_to(docs)
        for page in docs.rglob("*.md")
        if "_build" not in page.parts and page.name not in {"index.md", "contents.md"}
    }
    translated = {page.relative_to(docs) for page in PAIRS if page.is_relative_to(docs)}

    assert sorted(listed) == sorted(pages - translated)
    assert [
        target for target, rest in entries if ("英文" in rest) != target.startswith("../")
    ] == []
