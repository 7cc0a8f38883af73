"""Figures in the pages are those of files that a run wrote. `test_benchmarks.py` has the tables of
`performance.md`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RESULTS = ROOT / "tests" / "benchmarks" / "results"
PRINTED = {
    DOCS / "adaptive-polling.md": RESULTS / "adaptive_polling.txt",
    DOCS / "rate-discovery.md": DOCS / "plots" / "rate_discovery.txt",
}
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)


@pytest.mark.parametrize(("page", "output"), PRINTED.items(), ids=lambda path: path.stem)
def test_tables_are_those_that_the_run_printed(page, output):
    text = page.read_text(encoding="utf-8").replace("×", "x")
    tables = TABLE.findall(output.read_text(encoding="utf-8"))

    assert len(tables) >= 2
    assert [table for table in tables if table not in text] == [], f"copy them from {output.name}"


def test_targets_of_rate_discovery_are_those_of_the_run():
    page = (DOCS / "rate-discovery.md").read_text(encoding="utf-8")
    rows = json.loads((DOCS / "plots" / "limit_targets.json").read_text(encoding="utf-8"))["rows"]
    table = page.partition("<!-- targets:")[2].partition("<!-- end of targets -->")[0]
    shown = re.findall(r"^\| ([^|]+) \| ([\d.]+) \(.*?\) \| ([\d.]+) \(", table, re.MULTILINE)

    assert shown == [
        (row["name"], f"{100 * row['used']:.1f}", f"{100 * row['refused']:.2f}") for row in rows
    ], "python docs/plots/limit_targets.py"


@pytest.mark.parametrize("folder", ["how-to", "zh"])
def test_kills_of_runs_are_those_that_were_counted(folder):
    page = (DOCS / folder / "prompts-to-videos.md").read_text(encoding="utf-8")
    counted = json.loads((RESULTS / "kill_run.txt").read_text(encoding="utf-8"))
    paragraph = next(line for line in page.split("\n\n") if "kill_run.py" in line)
    numbers = {int(number) for number in re.findall(r"(?<![\d`-])\d+", paragraph)} - {9}

    assert numbers == {counted["requests"], counted["kills"], counted["uncertain"]}
    assert counted["POSTs per request at most, before the retry"] == 1
    assert counted["not completed after the retry"] == 0
