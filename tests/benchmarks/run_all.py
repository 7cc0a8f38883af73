"""Runs the benchmarks whose figures `docs/performance.md` shows, and writes
its tables from what they give.

Each round's figures go to `tests/benchmarks/results/`, a file per benchmark; the page's
tables are made from those files and stand between `<!-- table: NAME -->` and `<!-- end -->`.
The rest of the page is left alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

BENCHMARKS = (
    "request_cost",
    "bulk_throughput",
    "waiting_cost",
    "latency",
    "slices",
    "downloads",
    "poll_scale",
    "startup",
    "cli_cost",
    "web_load",
    "dask_cluster",
    "choices",
)

_HERE = Path(__file__).parent
_RESULTS = _HERE / "results"
_PAGE = _HERE.parents[1] / "docs" / "performance.md"


def render(result: dict[str, Any]) -> str:
    """Return what the page shows of one benchmark's results: where and how
    they were got, the table, notes.
    """
    before, after = (load[0] for load in result["load"])
    how = f"`{result['command']}`, {result['date']}, {result['seconds'] / 60:.0f} min"
    machine = (
        f"{result['cores']} cores ({result['processor']}); "
        f"load before and after: {before:.2f}, {after:.2f}"
    )
    libraries = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n\n".join(
        [f"{how}, on {machine}. {libraries}.", harness.table(result["rows"]), *result["notes"]]
    )


def rewrite(page: str, name: str, content: str) -> str:
    """Return `page` with `content` between the markers of `name`, which must be there once.

    Raises:
        LookupError: they are not.

    """
    start, end = f"<!-- table: {name} -->", "<!-- end -->"
    if page.count(start) != 1:
        raise LookupError(f"{start!r} must be on the page once")
    head, _, rest = page.partition(start)
    old, found, tail = rest.partition(end)
    if not found or "<!-- table:" in old:
        raise LookupError(f"{start!r} has no {end!r}")
    return f"{head}{start}\n\n{content}\n\n{end}{tail}"


def measure(name: str, arguments: list[str], results: Path) -> bool:
    """Run one benchmark and keep its results; False if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        file = (
            Path(folder) / f"{name}.json"
        )  # so that a run that breaks off leaves the last results alone
        command = [sys.executable, str(_HERE / f"{name}.py"), *arguments, "--json", str(file)]
        if subprocess.run(command, check=False).returncode:
            return False
        results.mkdir(exist_ok=True)
        (results / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    return True


def summarize(results: list[dict[str, Any]]) -> str:
    """Return the rows of all benchmarks that have a target, as a table."""
    lines = ["| benchmark | what | median | target | |", "| --- | --- | ---: | ---: | --- |"]
    for result in results:
        for row in result["rows"]:
            if row["reached"] is not None:
                median = f"{harness.figure(row['median'])} {row['unit']}"
                bound, verdict = harness.target(row)
                lines.append(
                    f"| `{result['benchmark']}` | {row['what']} | {median} | {bound} | {verdict} |"
                )
    return "\n".join(lines)


def write_tables(names: list[str], results: Path, page: Path) -> None:
    """Write the results of `names` into the page, and all targets."""
    text = page.read_text(encoding="utf-8")
    kept = {}
    for name in BENCHMARKS:
        file = results / f"{name}.json"
        if file.is_file():
            kept[name] = json.loads(file.read_text(encoding="utf-8"))
    for name in names:
        text = rewrite(text, name, render(kept[name]))
    text = rewrite(text, "targets", summarize(list(kept.values())))
    page.write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the work, to see it run; writes nothing"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds per figure (default: 5)")
    parser.add_argument(
        "--only", default="", metavar="WORD", help="only the benchmarks with WORD in their name"
    )
    parser.add_argument(
        "--no-write", action="store_true", help="only print: keep no results, leave the page alone"
    )
    parser.add_argument(
        "--no-run",
        action="store_true",
        help="write the tables from the kept results",
    )
    options = parser.parse_args()
    names = [name for name in BENCHMARKS if options.only in name]
    if not names:
        parser.error(f"--only {options.only}: no such benchmark among {', '.join(BENCHMARKS)}")
    arguments = ["--rounds", str(options.rounds)] + ["--quick"] * options.quick
    failed = []
    with tempfile.TemporaryDirectory() as dropped:
        keep = not (options.quick or options.no_write)
        results = _RESULTS if keep else Path(dropped)
        for name in names:
            if not options.no_run:
                print(f"\n# {name}, {time.strftime('%H:%M:%S')}\n", flush=True)
                if not measure(name, arguments, results):
                    failed.append(name)
                    continue
            if keep:
                write_tables(
                    [name], results, _PAGE
                )  # at once, so that what was measured is not lost with the next
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
