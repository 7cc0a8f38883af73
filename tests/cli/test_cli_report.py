"""report: what the lines of output files say."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from cli_program import run_here
from hypothesis import given
from hypothesis import strategies as st
from test_cli_terminal import SHOWN, terminal  # noqa: F401 -- a fixture

from xai_tasks._cli import _report
from xai_tasks._cli._report import Durations, Kind, Report, bucket_of

STARTED = "2026-01-01T12:00:00.000Z"


def task(task_id, status="completed", seconds=None, **fields):
    finished = None if seconds is None else f"2026-01-01T12:{seconds // 60:02}:{seconds % 60:02}Z"
    return {
        "taskId": task_id,
        "status": status,
        "errorMessage": None,
        "errorCode": None,
        "createdAt": STARTED,
        "finishedAt": finished,
        **fields,
    }


def given_up(task_id, name="WaitTimeoutError", message=""):
    return task(task_id, None, error={"type": name, "message": message})


@pytest.fixture
def write(tmp_path):
    def write(*records, name="out.jsonl"):
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
        return str(path)

    return write


@pytest.fixture
def report(monkeypatch, capfd):
    def report(*args):
        code, out, err = run_here(monkeypatch, capfd, "", ["report", *args])
        assert (code, err) == (0, "")
        return out

    return report


class TestSummary:
    def test_counts_tasks_by_how_they_ended(self, report, write):
        path = write(
            task("a"),
            task("b", "failed"),
            task("c", "cancelled"),
            task("d", "timeout"),
            given_up("e"),
            given_up("f", "NotFoundError"),
            {"request": {}, "state": "submitting"},
        )
        assert report(path).splitlines()[0] == (
            "6 tasks: 1 completed, 1 failed, 1 cancelled, 1 timed out on the server, 1 timed out, "
            "1 not known to the server; 1 other lines"
        )
        told = json.loads(report("--json", path))
        assert (
            told["tasks"],
            told["completed"],
            told["failed"],
            told["cancelled"],
            told["timeout"],
        ) == (
            6,
            1,
            1,
            1,
            1,
        )
        assert (told["givenUp"], told["errors"]) == (2, {"NotFoundError": 1, "WaitTimeoutError": 1})
        assert told["otherLines"] == 1

    def test_last_line_of_an_id_counts(self, report, write):
        first = write(given_up("a"), task("b", "failed"), name="1")
        second = write(task("a"), name="2")
        assert report(first, second).splitlines()[0] == "2 tasks: 1 completed, 1 failed"

    def test_failures_are_grouped_by_code_and_first_words(self, report, write):
        path = write(
            *(
                task(f"a{n}", "failed", errorCode=7, errorMessage=f"worker {n} died")
                for n in range(3)
            ),
            task("b", "failed", errorCode="policy", errorMessage="refused " * 20),
            given_up("c", "NotFoundError", "task 'c': HTTP 404: no task c"),
            given_up("d", "NotFoundError", "task 'd': HTTP 404: no task d"),
        )
        assert json.loads(report("--json", path))["failures"] == [
            {"type": "failed", "errorCode": 7, "message": "worker N died", "count": 3},
            {"type": "NotFoundError", "errorCode": None, "message": "HTTP N: no", "count": 2},
            {
                "type": "failed",
                "errorCode": "policy",
                "message": " ".join(["refused"] * 8) + " ...",
                "count": 1,
            },
        ]
        assert "          3  failed  7  worker N died" in report(path).splitlines()

    @pytest.mark.parametrize(
        ("message", "words"),
        [
            ("task 'a': HTTP 404: no task a", "HTTP N: no"),
            ("task a failed at last", "failed at last"),
            ("a cat was refused", "cat was refused"),
            ("task 'a' has not ended after 600 s", "has not ended after N s"),
        ],
    )
    def test_ids_and_numbers_make_no_kinds_of_their_own(self, message, words):
        found = Report()
        found.add(given_up("a", message=message))
        assert list(found.totals().failures) == [Kind("WaitTimeoutError", None, words)]

    def test_many_kinds_of_failures_are_summed_up(self, report, write):
        path = write(*(task(f"a{n}", "failed", errorMessage="x" * n) for n in range(30)))
        assert "10  of 10 other kinds, which --json shows" in report(path)

    def test_durations_have_percentiles_and_a_histogram(self, report, write):
        path = write(*(task(f"a{n}", seconds=n) for n in range(1, 101)), task("b", "failed", 3000))
        told = json.loads(report("--json", path))["durations"]
        assert told["count"] == 100
        assert told["median"] == pytest.approx(50, rel=0.011)
        assert told["p90"] == pytest.approx(90, rel=0.011)
        assert told["p99"] == pytest.approx(99, rel=0.011)
        assert sum(bar["count"] for bar in told["histogram"]) == 100
        assert "Durations of 100 completed tasks: median " in report(path)

    def test_counts_files_that_were_saved(self, report, write):
        path = write(task("a", files=["a.mp4"]), task("b", files=["b~1.png", "b~2.png"]), task("c"))
        assert report(path) == "3 tasks: 3 completed; 3 files saved\n"
        assert json.loads(report("--json", path))["files"] == 3

    def test_takes_lines_of_anything(self, report, tmp_path):
        path = tmp_path / "out"
        path.write_bytes(
            b'[]\n{"taskId": 7}\n\xff\n'
            b'{"taskId":"a","status":"completed","createdAt":5,"finishedAt":"x"}\n'
            b'{"taskId":"b","status":"failed","errorMessage":7,"errorCode":true}\n'
            b'{"taskId":"c","status":"completed","createdAt":"2026-01-02","finishedAt":"2026-01-01"}\n{"tas'
        )
        assert report(str(path)).splitlines()[0] == "3 tasks: 2 completed, 1 failed; 4 other lines"

    def test_file_without_lines_is_a_report_too(self, report, write):
        assert report(write()) == "0 tasks: 0 completed\n"
        assert json.loads(report("--json", write()))["durations"] == {"count": 0}

    def test_of_messages_that_are_all_different_few_are_kept(self, monkeypatch):
        monkeypatch.setattr(_report, "_MAX_KINDS", 3)
        found = Report()
        for letter in "abcdefgh":
            found.add(task(letter, "failed", errorMessage=letter * 3))
        failures = found.totals().failures
        assert failures.total() == 8
        assert failures[Kind("failed", None, "other messages")] == 5


class TestListings:
    def test_failed_are_all_that_did_not_complete(self, report, write):
        path = write(
            task("a"),
            given_up("b"),
            task("c, d", "failed"),
            task("e", "failed"),
            task("e"),
            {"taskId": "f", "state": "submitted"},
            given_up("b", "ServerError"),
        )
        assert report("--failed", path) == 'b\n"c, d"\n'
        assert report("--failed", write(task("a"))) == ""

    def test_unknown_are_those_that_the_server_does_not_know(self, report, write):
        path = write(task("a", "failed"), given_up("b", "NotFoundError"), given_up("c"))
        assert report("--unknown", path) == "b\n"

    def test_output_goes_through_wait_and_back(self, program, server, tmp_path):
        path, again = tmp_path / "out", tmp_path / "again"
        for task_id in ("a", "# b", "c,d"):
            server.add(task_id, "processing")
        assert program.run("wait", "a", "# b", "c,d", "-o", path, "--timeout", "0.3").code == 4
        for task_id in ("a", "# b", "c,d"):
            server.advance(task_id)
        failed = program.run("report", "--failed", path).out
        assert program.run("wait", "-i", "-", "-o", again, stdin_text=failed).code == 0
        assert program.run("report", again).out.startswith("3 tasks: 3 completed")

    @pytest.mark.parametrize("option", ["--failed", "--json"])
    def test_reads_pipes(self, program, write, option):
        content = Path(write(task("a", "failed"))).read_text()
        ended = program.run("report", option, "-", stdin_text=content)
        assert ended.code == 0
        assert "a" in ended.out


class TestProgram:
    @pytest.mark.parametrize("args", [[], ["/no/such/file"], ["/"]])
    def test_wrong_usage_exits_2(self, monkeypatch, capfd, args):
        assert run_here(monkeypatch, capfd, "", ["report", *args])[0] == 2

    def test_closed_pipe_ends_it_quietly(self, program, write):
        path = write(*(task(f"task-{n}", "failed") for n in range(50_000)))
        process = program.start("report", "--failed", path)
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 1
        assert process.stderr.read() == b""

    def test_terminal_shows_bars(self, terminal, program, write):  # noqa: F811
        path = write(*(task(f"a{n}", seconds=n) for n in range(1, 100)), task("b", "failed"))
        process = program.start("report", path, env=SHOWN, stdout=terminal.fd)
        assert process.wait(30) == 0
        assert "█" in terminal.text
        assert "Not completed" in terminal.text

    @pytest.mark.parametrize("record", [task("a", seconds=5), task("a", "failed")])
    def test_drawing_has_no_empty_parts(self, capsys, record):
        found = Report()
        found.add(record)
        _report._draw(found.totals())
        out = capsys.readouterr().out
        assert ("Not completed" in out) == (record["status"] == "failed")
        assert ("Durations" in out) == (record["status"] == "completed")

    def test_pipe_gets_plain_text(self, program, write):
        out = program.run("report", write(task("a", seconds=5)), env={"FORCE_COLOR": None}).out
        assert out.isascii()
        assert "\x1b" not in out

    def test_large_file_has_a_progress_bar_on_a_terminal(self, terminal, program, write):  # noqa: F811
        line = json.dumps(task("a", result="x" * 100_000))
        path = write()
        with Path(path).open("w") as file:
            file.writelines(f"{line}\n" for _ in range(300))
        process = program.start("report", path, env=SHOWN, stderr=terminal.fd)
        process.communicate(timeout=30)
        assert "Reading" in terminal.text


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=50), st.floats(0.01, 0.99))
def test_percentiles_are_exact_to_one_percent(values, share):
    durations = Durations()
    for value in values:
        durations.add(bucket_of(value), 1)
    rank = -int(-share * len(values) // 1) or 1
    assert durations.percentile(share) == pytest.approx(sorted(values)[rank - 1], rel=0.011)
    bars = durations.bars()
    assert sum(count for *_, count in bars) == len(values)
    assert len(bars) <= 25


def test_memory_does_not_hold_lines():
    found = Report()
    tracemalloc.start()
    for n in range(20_000):
        found.add(task(f"task-{n}", seconds=n % 1000, result="x" * 1000))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / 20_000 < 200
