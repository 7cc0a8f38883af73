"""What is said: summaries, early warnings, errors in the words of the command line, and the log."""

from __future__ import annotations

import json
import re
import signal

import pytest
from cli_program import KEY, eventually, run_here

import xai_tasks
from xai_tasks import TaskFailedError, TaskResult, WaitTimeoutError
from xai_tasks._cli._options import seconds
from xai_tasks._cli._process import Exit
from xai_tasks._cli._tally import Tally, counts_in_words
from xai_tasks.testing import Fault

ARGUMENTS = re.compile(
    r"\b(api_key|base_url|allow_insecure_http|max_concurrency|rate_limit)\b|=True|float range"
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90", 90),
        ("90s", 90),
        ("10m", 600),
        ("2h", 7200),
        ("1.5h", 5400),
        (".5", 0.5),
        ("5 M", 300),
        ("0", 0),
    ],
)
def test_times_have_units(text, value):
    assert seconds(text) == value


class TestUsage:
    @pytest.mark.parametrize(
        ("args", "said"),
        [
            (["--timeout", "soon"], "'soon' is not a time such as 90, 90s, 10m or 2h"),
            (["--timeout", "9" * 400], "too long"),
            (["--interval", "0"], "'0' is not above 0"),
            (["--interval", "1d"], "'1d' is not a time"),
            (["--rate", "fast"], "'fast' is not a number above 0"),
            (["--rate", "-1"], "'-1' is not a number above 0"),
            (["--concurrency", "0"], "'0' is not a whole number of at least 1"),
            (["--concurrency", "many"], "'many' is not a whole number of at least 1"),
            (["--shard", "5/4"], "'5/4' is not K/N with 1 <= K <= N"),
            (["--base-url", "http://example.com"], "--base-url would send the key over plain http"),
            (["--base-url", "https://u:p@example.com"], "--base-url must not hold credentials"),
            (["--base-url", "example.com"], "--base-url must be like https://host"),
            (["--summary", "/no/such/folder/summary"], "No such file or directory"),
        ],
    )
    def test_messages_name_options(self, server, monkeypatch, capfd, args, said):
        code, out, err = run_here(monkeypatch, capfd, server.url, ["wait", "a", *args])
        assert (code, out, server.count()) == (2, "", 0)
        assert said in err
        assert not ARGUMENTS.search(err)

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            (["--port", "70000"], "'70000' is not a whole number from 0 to 65535"),
            (["--fail", "often"], "'often' is not a number from 0 to 1"),
            (["--fail", "1.1"], "'1.1' is not a number from 0 to 1"),
        ],
    )
    def test_serve_names_its_ranges(self, monkeypatch, capfd, args, said):
        code, _, err = run_here(monkeypatch, capfd, "", ["serve", *args])
        assert code == 2
        assert said in err

    def test_missing_key_names_variable_and_option(self, monkeypatch, capfd):
        monkeypatch.setenv("MOUNTSEA_API_KEY", "")
        monkeypatch.setattr("cli_program.KEY", "")
        code, _, err = run_here(monkeypatch, capfd, "", ["get", "a"])
        assert code == 2
        assert not ARGUMENTS.search(err)

    @pytest.mark.parametrize("content", [b"\xff\xfe\0", b"one\ntwo", b""])
    def test_key_file_that_holds_no_key_is_refused(
        self, server, monkeypatch, capfd, tmp_path, content
    ):
        path = tmp_path / "key"
        path.write_bytes(content)
        args = ["get", "a", "--api-key-file", str(path)]
        code, _, err = run_here(monkeypatch, capfd, server.url, args)
        assert (code, server.count()) == (2, 0)
        assert not ARGUMENTS.search(err)

    @pytest.mark.parametrize("content", [b"\xff\xfe\0", b"one\ntwo", None])
    def test_key_file_that_turns_to_rubbish_ends_the_job(self, program, server, tmp_path, content):
        server.add("a", "processing")
        path = tmp_path / "key"
        path.write_text(KEY)
        process = program.start("wait", "a", "--interval", "0.1", "--api-key-file", path)
        eventually(lambda: server.count("a") >= 2)
        path.unlink() if content is None else path.write_bytes(content)
        server.api_key = "the-next-key"
        _, err = process.communicate(timeout=30)
        assert process.returncode == 2
        assert b"Traceback" not in err
        assert not ARGUMENTS.search(err.decode())

    def test_what_the_client_refuses_is_a_usage_error(self, server, monkeypatch, capfd):
        def refuse(*args):
            raise ValueError("no such interval")

        monkeypatch.setattr("xai_tasks._cli._settings.wait_adaptive", refuse)
        code, _, err = run_here(monkeypatch, capfd, server.url, ["wait", "a"])
        assert code == 2
        assert "no such interval" in err


class TestSummary:
    def test_counts_the_whole_job_by_status(self, program, server, tmp_path):
        path, summary = tmp_path / "out", tmp_path / "summary"
        server.add("a")
        server.add("b", [], failed=True)
        server.add("c", [], cancelled=True)
        server.add("d", [], timeout=True)
        server.add("e", "processing")
        args = (
            "-o",
            path,
            "--resume",
            "--timeout",
            "0.5",
            "--summary",
            summary,
            "--interval",
            "0.1",
        )
        assert program.run("wait", "a", "b", "c", *args).code == 1

        ended = program.run("wait", *"abcde", *args)

        assert ended.err.splitlines()[-1].startswith(
            "xai-tasks: 5 tasks, 2 of them in this run, in "
        )
        assert (
            ": 1 completed, 1 failed, 1 cancelled, 1 timed out on the server, 1 timed out; "
            in ended.err
        )
        told = json.loads(summary.read_text())
        assert told["tasks"] == 5
        assert [
            told[status] for status in ("completed", "failed", "cancelled", "timeout", "unknown")
        ] == [
            1,
            1,
            1,
            1,
            0,
        ]
        assert (told["givenUp"], told["errors"]) == (1, {"WaitTimeoutError": 1})
        assert (told["skipped"], told["notEnded"], told["misreadLines"]) == (3, 0, 0)
        assert told["thisRun"]["tasks"] == 2
        assert told["thisRun"]["exitCode"] == 1

    def test_id_that_completes_at_last_is_given_up_no_more(self, program, server, tmp_path):
        server.add("a", "processing")
        args = ("wait", "a", "-o", tmp_path / "out", "--resume", "--timeout", "0.3")
        assert program.run(*args).code == 4
        server.advance("a")
        ended = program.run(*args)
        assert ended.code == 0
        assert ": 1 completed; " in ended.err

    def test_is_the_last_line_after_an_interrupt(self, program, server, tmp_path):
        server.add("a", "processing")
        summary = tmp_path / "summary"
        process = program.start("wait", "a", "--summary", summary)
        eventually(lambda: server.count("a"))
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=30)[1].decode()
        assert re.fullmatch(
            r"xai-tasks: 0 tasks in [\d.]+ s: 0 completed; 1 not ended; \d+ requests",
            err.splitlines()[-1],
        )
        assert json.loads(summary.read_text())["thisRun"]["exitCode"] == 130

    @pytest.mark.parametrize(
        ("args", "env", "code"),
        [
            (("x",), {"MOUNTSEA_API_KEY": "no"}, 3),
            (("x", "-o", "/dev/full"), {}, 2),
            (("x", "-q"), {}, 1),
        ],
    )
    def test_is_written_however_the_job_ends(self, program, server, tmp_path, args, env, code):
        summary = tmp_path / "summary"
        summary.write_text("x" * 5000)  # of an earlier job
        ended = program.run("wait", *args, "--summary", summary, env=env)
        assert ended.code == code
        assert "-q" in args or ended.err.splitlines()[-1].startswith("xai-tasks: 0 tasks in ")
        assert json.loads(summary.read_text())["thisRun"]["exitCode"] == code

    def test_that_cannot_be_written_does_not_change_the_exit_code(self, program, server):
        server.add("a")
        ended = program.run("wait", "a", "--summary", "/dev/full")
        assert ended.code == 0
        assert "the summary can't be written: No space left on device" in ended.err
        assert ended.err.splitlines()[-1].startswith("xai-tasks: 1 task in ")


class TestEarlyWarnings:
    def test_wrong_host_is_told_at_once(self, program):
        for command in ("wait", "watch"):  # `get` may have ended by then
            process = program.start(command, "a", "--base-url", "http://127.0.0.1:1")
            line = process.stderr.readline().decode()
            assert line.startswith(
                "xai-tasks: no answer from the server so far, still trying: task 'a': "
            )
            assert process.poll() is None  # it goes on trying
            process.terminate()
            assert process.wait(30) == 130

    def test_fault_after_an_answer_is_not_told(self, program, server):
        server.add("a", "processing")
        process = program.start("wait", "a", "--interval", "0.1")
        eventually(lambda: server.count("a") >= 2)
        server.fault("a", Fault.reset())
        eventually(lambda: not server.faults_left)
        server.advance("a")
        _, err = process.communicate(timeout=30)
        assert b"no answer" not in err


class TestVerbose:
    def run(self, program, server, *args):
        server.add("a", "processing")
        server.fault("a", Fault.status(500))
        process = program.start("wait", "a", "--interval", "0.2", *args)
        eventually(lambda: server.count("a") >= 3)
        server.advance("a")
        return process.communicate(timeout=30)[1].decode()

    def test_shows_polls_and_their_faults(self, program, server):
        said = self.run(program, server, "-v")
        assert "xai-tasks: polled task 'a': processing; next poll in " in said
        assert "HTTP 500" in said

    def test_twice_shows_the_time(self, program, server):
        assert re.search(
            r"xai-tasks: \d\d:\d\d:\d\d\.\d{3} xai_tasks: polled task",
            self.run(program, server, "-vv"),
        )

    def test_shows_retries_of_get(self, program, server):
        server.add("a")
        server.fault("a", Fault.status(500))
        assert "retrying in" in program.run("get", "a", "-v").err
        assert program.run("get", "a").err == ""

    def test_quiet_says_nothing_of_a_silent_server(self, program):
        ended = program.run("get", "a", "-q", "--base-url", "http://127.0.0.1:1")
        assert (ended.code, ended.err) == (3, "")

    def test_is_silent_otherwise(self, program, server):
        assert "polled" not in self.run(program, server)


class TestTally:
    def tally(self, *errors, answered=True):
        tally = Tally()
        if answered:
            tally.record("z", TaskResult("z", "completed"), None)
        for error in errors:
            tally.record("a", None, error)
        return tally

    def failed(self):
        return TaskFailedError(TaskResult("a", "failed"), task_id="a")

    def error(self, name):
        cls = getattr(xai_tasks, name)
        if issubclass(cls, xai_tasks.APIStatusError):
            return cls("no", task_id="a", status_code=500, body="")
        return cls("no", task_id="a")

    @pytest.mark.parametrize(
        ("names", "code"),
        [
            ([], Exit.COMPLETED),
            (["APIConnectionError"], Exit.UNUSABLE),
            (["ServerError", "APITimeoutError"], Exit.UNUSABLE),
            (["NotFoundError"], Exit.INCOMPLETE),
            (["NotFoundError", "ServerError"], Exit.INCOMPLETE),
            (["PaymentRequiredError"], Exit.INCOMPLETE),
        ],
    )
    def test_what_a_later_run_can_mend_ends_in_3(self, names, code):
        assert self.tally(*map(self.error, names)).code == code

    def test_failed_task_outweighs_what_can_be_mended(self):
        timed_out = WaitTimeoutError("a", 1.0)
        assert self.tally(timed_out).code == Exit.TIMED_OUT
        assert self.tally(timed_out, self.error("ServerError")).code == Exit.UNUSABLE
        assert self.tally(timed_out, self.failed()).code == Exit.INCOMPLETE

    def test_counts_are_put_into_words(self):
        counts = {"NotFoundError": 2, "BadRequestError": 1, "ServerError": 1, "completed": 1000}
        assert counts_in_words(counts) == (
            "1,000 completed, 3 not known to the server, 1 without a usable answer"
        )
