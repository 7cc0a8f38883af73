"""The benchmarks run, and what they measured is all that they write into the page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "tests" / "benchmarks"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux", reason="the benchmarks read /proc and pin processes"
    ),
]

PAGE = """# A page

<!-- table: one -->

old figures

<!-- end -->

Prose between them.

<!-- table: another -->
<!-- end -->

<!-- table: targets -->
<!-- end -->

The last line.
"""


@pytest.fixture
def run_all(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import run_all  # noqa: PLC0415 -- from beside the scripts, not installed

    return run_all


@pytest.fixture
def result():
    rows = [
        {
            "what": "a request",
            "unit": "us CPU",
            "low": 70.0,
            "median": 75.5,
            "high": 80.0,
            "rounds": 5,
        },
        {
            "what": "a ratio",
            "unit": "x",
            "low": 1.1,
            "median": 1.2,
            "high": 1.3,
            "rounds": 5,
            "at_most": 1.15,
        },
    ]
    bounds = {"at_most": None, "at_least": None, "reached": None}
    rows = [{**bounds, **row} for row in rows]
    rows[1]["reached"] = False
    return {
        "benchmark": "one",
        "command": "python tests/benchmarks/one.py --rounds 5",
        "date": "2026-01-31",
        "versions": {"Python": "3.11.7", "aiohttp": "3.14.5"},
        "cores": 2,
        "processor": "A processor",
        "load": [[0.25, 0, 0], [1.5, 0, 0]],
        "seconds": 121,
        "rows": rows,
        "notes": ["A row is missing."],
    }


@pytest.mark.parametrize("part", ["get", "bulk", "httpx"])
def test_request_cost_runs_and_gives_figures_of_each_round(part, tmp_path):
    file = tmp_path / "result.json"
    command = [sys.executable, str(BENCHMARKS / "request_cost.py"), "--quick", "--rounds", "1"]

    run = subprocess.run(
        [*command, "--only", part, "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    result = json.loads(file.read_text())
    assert (
        result["command"]
        == f"python tests/benchmarks/request_cost.py --rounds 1 --quick --only {part}"
    )
    assert all(len(row["values"]) == 1 and row["values"][0] > 0 for row in result["rows"])
    for row in result["rows"]:
        assert f"| {row['what']} | " in run.stdout


def test_each_script_finds_what_it_imports():
    for script in sorted(BENCHMARKS.glob("*.py")):
        command = [sys.executable, "-c", f"import {script.stem}"]
        run = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr


def test_each_benchmark_of_the_page_is_there_and_has_its_table(run_all):
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in run_all.BENCHMARKS:
        assert (BENCHMARKS / f"{name}.py").is_file()
        assert run_all.rewrite(page, name, "figures") != page
    assert (
        page.count("<!-- table: ") == len(run_all.BENCHMARKS) + 1
    )  # and what all of them have reached


def test_tables_of_the_page_are_those_of_the_results_that_are_kept(run_all, tmp_path):
    page = tmp_path / "performance.md"
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    page.write_text(text, encoding="utf-8")

    kept = [file.stem for file in sorted((BENCHMARKS / "results").glob("*.json"))]
    run_all.write_tables(kept, BENCHMARKS / "results", page)

    assert kept
    assert page.read_text(encoding="utf-8") == text


def test_the_writer_changes_only_what_stands_between_its_markers(
    run_all, result, tmp_path, monkeypatch
):
    monkeypatch.setattr(run_all, "BENCHMARKS", ("one",))
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    (tmp_path / "one.json").write_text(json.dumps(result), encoding="utf-8")

    run_all.write_tables(["one"], tmp_path, page)

    expected = run_all.rewrite(PAGE, "one", run_all.render(result))
    assert page.read_text(encoding="utf-8") == run_all.rewrite(
        expected,
        "targets",
        "| benchmark | what | median | target | |\n| --- | --- | ---: | ---: | --- |\n"
        "| `one` | a ratio | 1.2 x | <= 1.15 | **missed** |",
    )


def test_rewriting_changes_only_what_stands_between_the_markers(run_all):
    head, _, rest = PAGE.partition("<!-- table: one -->")
    tail = rest.partition("<!-- end -->")[2]

    text = run_all.rewrite(PAGE, "one", "figures")

    assert text == f"{head}<!-- table: one -->\n\nfigures\n\n<!-- end -->{tail}"


def test_written_again_it_stays_as_it_is(run_all):
    once = run_all.rewrite(PAGE, "another", "figures")

    assert once != PAGE
    assert run_all.rewrite(once, "another", "figures") == once


def test_a_table_tells_command_machine_versions_spread_reach_and_notes(run_all, result):
    how, *lines = run_all.render(result).split("\n")

    assert how == (
        "`python tests/benchmarks/one.py --rounds 5`, 2026-01-31, 2 min, on 2 cores (A processor); "
        "load before and after: 0.25, 1.50. Python 3.11.7, aiohttp 3.14.5."
    )
    assert lines == [
        "",
        "| what | median | quartiles | rounds | target | |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
        "| a request | 75.5 us CPU | 70 to 80 | 5 |  |  |",
        "| a ratio | 1.2 x | 1.1 to 1.3 | 5 | <= 1.15 | **missed** |",
        "",
        "A row is missing.",
    ]


@pytest.mark.parametrize(
    "page",
    [
        "<!-- table: another -->\n<!-- end -->",
        "<!-- table: one -->\nno end",
        "<!-- table: one -->\n<!-- table: another -->\n<!-- end -->",
        "<!-- table: one -->\n<!-- end -->\n<!-- table: one -->\n<!-- end -->",
    ],
    ids=["missing", "no end", "the next one's end", "twice"],
)
def test_a_page_without_clear_markers_is_left_alone(run_all, page):
    with pytest.raises(LookupError, match="table: one"):
        run_all.rewrite(page, "one", "figures")


def test_a_benchmark_that_fails_leaves_the_last_results(run_all, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(run_all, "_HERE", tmp_path)
    (tmp_path / "one.py").write_text("raise SystemExit('no server')")
    results = tmp_path / "results"
    results.mkdir()
    (results / "one.json").write_text("{}")

    assert not run_all.measure("one", [], results)

    assert (results / "one.json").read_text() == "{}"
    assert "no server" in capfd.readouterr().err


@pytest.fixture
def in_a_folder(run_all, result, tmp_path, monkeypatch):
    """Make `run_all` know of one benchmark alone, which is done at once,
    and of a page in `tmp_path`.
    """
    (tmp_path / "one.py").write_text(
        "import sys\nfrom pathlib import Path\n"
        f"Path(sys.argv[sys.argv.index('--json') + 1]).write_text({json.dumps(result)!r})\n"
    )
    (tmp_path / "page.md").write_text(PAGE, encoding="utf-8")
    monkeypatch.setattr(run_all, "BENCHMARKS", ("one",))
    monkeypatch.setattr(run_all, "_HERE", tmp_path)
    monkeypatch.setattr(run_all, "_RESULTS", tmp_path / "results")
    monkeypatch.setattr(run_all, "_PAGE", tmp_path / "page.md")
    return tmp_path


def test_one_command_measures_keeps_the_results_and_writes_the_page(
    run_all, result, in_a_folder, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["run_all.py"])

    assert run_all.main() == 0

    assert json.loads((in_a_folder / "results" / "one.json").read_text()) == result
    assert run_all.render(result) in (in_a_folder / "page.md").read_text()


@pytest.mark.parametrize("option", ["--quick", "--no-write"])
def test_a_run_to_look_at_keeps_and_writes_nothing(run_all, in_a_folder, monkeypatch, option):
    monkeypatch.setattr(sys, "argv", ["run_all.py", option])

    assert run_all.main() == 0

    assert (in_a_folder / "page.md").read_text() == PAGE
    assert not (in_a_folder / "results").exists()


def test_tables_are_written_anew_without_a_run(run_all, result, in_a_folder, monkeypatch):
    (in_a_folder / "one.py").write_text("raise SystemExit('was run')")
    (in_a_folder / "results").mkdir()
    (in_a_folder / "results" / "one.json").write_text(json.dumps(result))
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--no-run"])

    assert run_all.main() == 0

    assert run_all.render(result) in (in_a_folder / "page.md").read_text()
