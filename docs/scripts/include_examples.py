"""Copy the files of docs/examples/ into the pages that show them.

python docs/scripts/include_examples.py

A copy in the page, not a `literalinclude`: so the code is there too where the
page is read as plain Markdown.
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent
EXAMPLES = DOCS / "examples"
LANGUAGES = {".html": "html", ".py": "python"}
COPY = re.compile(
    r"(<!-- (\S+): made by docs/scripts/include_examples\.py -->\n).*?(<!-- end of \2 -->)",
    re.DOTALL,
)


def pages() -> list[Path]:
    """Return the pages that show examples."""
    found = [page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts]
    return [page for page in found if COPY.search(page.read_text(encoding="utf-8"))]


def with_examples(page: str) -> str:
    """Return the page with its examples brought up to date."""
    return COPY.sub(lambda match: f"{match[1]}\n{_block(EXAMPLES / match[2])}\n{match[3]}", page)


def _block(file: Path) -> str:
    text = file.read_text(encoding="utf-8").rstrip()
    return f"**`{file.name}`**\n\n```{LANGUAGES[file.suffix]}\n{text}\n```\n"


if __name__ == "__main__":
    for page in pages():
        page.write_text(with_examples(page.read_text(encoding="utf-8")), encoding="utf-8")
