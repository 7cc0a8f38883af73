"""Write the tables of faults in docs/reliability.md from the rows that
tests/test_fault_matrix.py tests.

python docs/scripts/fault_table.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

DOCS = Path(__file__).parent.parent
PAGE = DOCS / "reliability.md"
sys.path.insert(0, str(DOCS.parent / "tests"))

from fault_matrix import ANSWERS, CONNECTION, STATUSES, Row  # noqa: E402 -- a file of the tests

TABLES = {"statuses": STATUSES, "connection": CONNECTION, "answers": ANSWERS}
HEAD = ("what happens", "the error", "`get`", "requests", "a wait", "requests until it ends")


def table(rows: Iterable[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [HEAD, ["---"] * len(HEAD), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    if row.error is None:
        return row.what, "none", "accepts", str(row.most_of_get), "accepts", str(row.most_of_wait)
    return (
        row.what,
        f"`{row.error.__name__}`",
        "retries" if row.retried else "raises",
        str(row.most_of_get),
        "goes on" if row.outlived else "ends",
        str(row.most_of_wait),
    )


def with_tables(page: str) -> str:
    """Return the page with its tables brought up to date, each between its two comments."""
    for name, rows in TABLES.items():
        begin, end = (
            f"<!-- {name}: made by docs/scripts/fault_table.py -->",
            f"<!-- end of {name} -->",
        )
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        replacement = f"{begin}\n\n{table(rows)}\n\n{end}"
        page, found = re.subn(pattern, lambda _, text=replacement: text, page, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"{PAGE.name} must hold {begin} and {end} once")
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
