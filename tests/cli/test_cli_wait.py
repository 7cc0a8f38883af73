"""wait: ids in, lines out, and the exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
from cli_program import eventually, run_here

from xai_tasks._cli._process import Interrupt
from xai_tasks.testing import Fault, constant


class TestInput:
    def test_ids_come_from_arguments_and_a_file(self, program, server, tmp_path):
        for task_id in "abcd":
            server.add(task_id)
        path = tmp_path / "ids"
        path.write_text('b\n# no\n\n{"taskId": "c"}\n{"task_id": "d"}')
        ended = program.run("wait", "a", "--input", path)
        assert (ended.code, ended.ids) == (0, ["a", "b", "c", "d"])

    def test_ids_come_from_stdin_as_they_are_written(self, program, server):
        server.add("a")
        server.add("b")
        process = program.start("wait", "-i", "-", stdin=subprocess.PIPE)
        for task_id in (b"a", b"b"):
            process.stdin.write(task_id + b"\n")
            process.stdin.flush()
            assert (
                json.loads(process.stdout.readline())["taskId"] == task_id.decode()
            )  # the pipe is still open
        process.stdin.close()
        assert process.wait(30) == 0

    def test_bad_lines_are_told_by_number_and_counted_and_the_rest_goes_on(self, program, server):
        server.add("a")
        ended = program.run("wait", "-i", "-", stdin_text='{"oops"\na\n{"id": "a"}\n')
        assert (ended.code, ended.ids) == (1, ["a"])
        assert "line 1 of the input is skipped" in ended.err
        assert "line 3 of the input is skipped" in ended.err
        assert ended.err.endswith("lines without an id: 2\n")

    def test_what_was_put_out_can_be_put_in(self, program, server):
        server.add("a", result={"n": 1})
        first = program.run("wait", "a")
        again = program.run("wait", "-i", "-", stdin_text=first.out)
        assert again.out == first.out

    def test_file_that_cannot_be_read_exits_2(self, program, server):
        server.add("a")
        ended = program.run("wait", "a", "-i", "/proc/self/mem")
        assert (ended.code, ended.ids) == (2, ["a"])
        assert "the input can't be read on" in ended.err

    def test_shards_make_up_the_whole(self, program, server):
        ids = list(server.add_many(60, duration=constant(0)))
        text = "\n".join(ids)
        shards = [
            program.run("wait", "-i", "-", "--shard", f"{k}/3", stdin_text=text) for k in (1, 2, 3)
        ]
        assert [shard.code for shard in shards] == [0, 0, 0]
        assert all(shard.ids for shard in shards)
        assert sorted(sum((shard.ids for shard in shards), [])) == sorted(ids)

    @pytest.mark.parametrize(
        "args",
        [
            [],
            ["a", "--shard", "0/3"],
            ["a", "--shard", "4/3"],
            ["a", "--shard", "a/b"],
            ["a", "--shard", "3"],
            ["a", "--timeout", "-1"],
            ["a", "--timeout", "soon"],
            ["a", "--interval", "nan"],
            ["a", "--rate", "0"],
            ["a", "--rate", "inf"],
            ["a", "--concurrency", "0"],
            ["a", "--resume"],
            ["-i", "/no/such/file"],
            ["a", "-o", "/no/such/folder/out"],
            ["a", "-o", "/dev/null", "--resume"],
            ["", "a"],
        ],
    )
    def test_wrong_usage_exits_2_before_any_request(self, server, monkeypatch, capfd, args):
        code, out, err = run_here(monkeypatch, capfd, server.url, ["wait", *args])
        assert (code, out) == (2, "")
        assert err
        assert server.count() == 0

    def test_input_is_not_also_the_output(self, program, tmp_path):
        path = tmp_path / "ids"
        path.write_text("a\n")
        ended = program.run("wait", "-i", path, "-o", path)
        assert (ended.code, path.read_text()) == (2, "a\n")


class TestOutput:
    def test_lines_come_in_the_order_tasks_end(self, program, server):
        server.add("slow", "processing")
        server.add("quick")
        process = program.start("wait", "slow", "quick", "--interval", "0.2")
        assert json.loads(process.stdout.readline())["taskId"] == "quick"
        server.advance("slow")
        assert json.loads(process.stdout.readline())["taskId"] == "slow"

    def test_summary_is_told_at_the_end_unless_quiet(self, program, server):
        server.add("a")
        server.add("b", failed=True)
        server.add("c", "processing")
        told = program.run("wait", "a", "b", "c", "x", "--timeout", "6").err
        assert told.startswith("xai-tasks: 4 tasks in ")
        assert ": 1 completed, 1 failed, 1 timed out, 1 not known to the server; " in told
        assert program.run("wait", "a", "--quiet").err == ""

    def test_file_is_appended_to_and_stdout_is_silent(self, program, server, tmp_path):
        server.add("a")
        path = tmp_path / "out"
        path.write_text("before")
        assert program.run("wait", "a", "-o", path).out == ""
        assert program.run("wait", "a", "-o", path).out == ""
        before, *lines = path.read_text().splitlines()
        assert before == "before"
        assert [json.loads(line)["taskId"] for line in lines] == ["a", "a"]

    def test_lines_are_out_at_once(self, program, server, tmp_path):
        server.add("a")
        server.add("b", "processing")
        path = tmp_path / "out"
        program.start("wait", "a", "b", "-o", path)
        eventually(lambda: path.exists() and path.read_bytes().endswith(b"}\n"))

    def test_closed_pipe_ends_it_quietly(self, program, server):
        ids = server.add_many(2000, duration=constant(0))
        process = program.start_with_ids(ids)
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 1
        assert process.stderr.read() == b""

    def test_full_disk_ends_it_with_2_and_a_message(self, program, server):
        server.add("a")
        ended = program.run("wait", "a", "-o", "/dev/full")
        assert ended.code == 2
        assert "No space left on device: '/dev/full'\n" in ended.err

    def test_reader_that_is_slow_costs_no_line(self, program, server):
        ids = server.add_many(1000, duration=constant(0))
        process = program.start_with_ids(ids)
        time.sleep(0.5)  # the pipe fills up
        out = process.stdout.read()
        assert sorted(json.loads(line)["taskId"] for line in out.splitlines()) == sorted(ids)
        assert process.wait(30) == 0

    def test_stderr_that_nobody_reads_does_not_end_the_job(self, program, server):
        server.add("a")
        read_end, write_end = os.pipe()
        os.close(read_end)
        ended = program.run("wait", "a", stderr=write_end)
        os.close(write_end)
        assert (ended.code, ended.ids) == (0, ["a"])


class TestExit:
    def test_0_when_all_completed(self, program, server):
        server.add("a")
        assert program.run("wait", "a").code == 0

    def test_1_when_some_did_not(self, program, server):
        server.add("a")
        server.add("b", [], failed=True)
        server.add("c", "processing")
        assert program.run("wait", "a", "b", "c", "--timeout", "0.3").code == 1

    def test_3_when_the_key_is_refused(self, program):
        ended = program.run("wait", "a", env={"MOUNTSEA_API_KEY": "no"})
        assert (ended.code, ended.out) == (3, "")
        assert "401" in ended.err

    def test_3_says_how_to_go_on_when_the_key_expires_half_way(self, program, server, tmp_path):
        server.add("a")
        server.add("b", "processing")
        path = tmp_path / "out"
        process = program.start("wait", "a", "b", "-o", path, "--interval", "0.1")
        eventually(lambda: path.exists() and path.read_bytes())
        server.api_key = "another"
        _, err = process.communicate(timeout=30)
        assert process.returncode == 3
        assert b"--resume" in err

    def test_3_when_the_api_gave_no_usable_answer(self, program, server):
        server.add("a")
        server.fault("a", Fault.status(402))
        ended = program.run("wait", "a")
        assert (ended.code, ended.lines[0]["error"]["type"]) == (3, "PaymentRequiredError")

    def test_3_when_the_api_is_gone_for_many_ids_on_end_and_the_rest_is_left(
        self, program, server, tmp_path
    ):
        ids = list(server.add_many(500, duration=constant(0)))
        path, source = tmp_path / "out", tmp_path / "ids"
        source.write_text("\n".join(ids))
        server.disturb(1.0, Fault.status(402))
        ended = program.run("wait", "-i", source, "-o", path, "--resume")
        assert ended.code == 3
        assert len(path.read_text().splitlines()) == 100
        assert "HTTP 402" in ended.err
        assert "--resume" in ended.err
        server.disturb(0.0)
        assert program.run("wait", "-i", source, "-o", path, "--resume").code == 0

    def test_4_when_some_timed_out_and_nothing_worse(self, program, server):
        server.add("a")
        server.add("b", "processing")
        ended = program.run("wait", "a", "b", "--timeout", "0.3")
        assert ended.code == 4
        assert ended.lines[1]["status"] == "processing"
        assert ended.lines[1]["error"]["type"] == "WaitTimeoutError"

    def test_timeout_none_is_no_limit(self, program, server):
        server.add("a", "processing")
        process = program.start("wait", "a", "--timeout", "none", "--interval", "0.2")
        eventually(lambda: server.count("a") >= 2)
        server.advance("a")
        assert process.wait(30) == 0


class TestOptions:
    def test_rate_and_concurrency_hold(self, program, server):
        ids = server.add_many(30, duration=constant(0))
        begun = time.monotonic()
        assert program.run("wait", *ids, "--rate", "20", "--concurrency", "2").code == 0
        assert time.monotonic() - begun >= 0.5  # 20 at once, 10 more at 20 a second

    def test_slow_rate_lets_no_id_run_out_of_time_unasked(self, program, server):
        ids = server.add_many(150, duration=constant(0))
        # Bursts of 50, then 50 a second: all at once, the last would have to wait for two seconds.
        assert program.run("wait", *ids, "--rate", "50", "--timeout", "1").code == 0

    def test_warnings_of_the_client_are_told(self, program, server):
        server.add("a")
        server.fault("a", Fault.body(b'{"taskId": "another", "status": "completed"}'))
        ended = program.run("wait", "a")
        assert any(
            "another" in line and line.startswith("xai-tasks: ") for line in ended.err.splitlines()
        )


class TestInterrupt:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_first_signal_writes_what_has_ended_and_says_how_to_go_on(
        self, program, server, tmp_path, number
    ):
        server.add("a")
        server.add("b", "processing")
        path = tmp_path / "out put"
        process = program.start("wait", "a", "b", "-o", path)
        eventually(lambda: path.exists() and path.read_bytes())
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert [json.loads(line)["taskId"] for line in path.read_text().splitlines()] == ["a"]
        assert f"go on with: xai-tasks wait a b -o '{path}' --resume\n" in err.decode()

    def test_without_an_output_file_it_says_that_there_is_one(self, program, server):
        server.add("a", "processing")
        process = program.start("wait", "a", "--quiet")
        eventually(lambda: server.count("a"))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert b"--output FILE" in err

    def test_no_further_id_is_pulled_and_a_silent_stdin_holds_nothing_up(self, program, server):
        server.add("a", "processing")
        process = program.start("wait", "-i", "-", stdin=subprocess.PIPE)
        process.stdin.write(b"a\n")
        process.stdin.flush()
        eventually(lambda: server.count("a"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 130
        process.stdin.close()

    def test_ended_tasks_that_wait_for_a_slow_reader_are_written_and_second_signal_exits_at_once(
        self, program, server
    ):
        ids = server.add_many(2000, duration=constant(0))
        process = program.start_with_ids(ids)
        eventually(lambda: server.count() == 2000)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None  # it has lines to write, and nobody reads
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert time.monotonic() - begun < 5

    @pytest.mark.parametrize(("seconds", "exits"), [(0.0, []), (0.05, []), (0.15, [130])])
    async def test_signal_that_comes_twice_at_once_is_one(self, monkeypatch, seconds, exits):
        # As GNU `timeout` sends it: to the process, and then to its group.
        exited, before = [], signal.getsignal(signal.SIGTERM)
        clock = iter([5.0, 5.0 + seconds])
        monkeypatch.setattr("xai_tasks._cli._process.os._exit", exited.append)
        monkeypatch.setattr(
            "xai_tasks._cli._process.time", SimpleNamespace(monotonic=clock.__next__)
        )

        with pytest.raises(asyncio.CancelledError), Interrupt() as interrupt:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(60)

        interrupt.swallow()
        for number, handler in interrupt._before.items():
            signal.signal(number, handler)
        assert exited == exits
        assert signal.getsignal(signal.SIGTERM) is before

    def test_everything_that_has_ended_is_written_at_an_interrupt(self, program, server):
        ids = server.add_many(2000, duration=constant(0))
        process = program.start_with_ids(ids)
        eventually(lambda: server.count() == 2000)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert len(out.splitlines()) == 2000
        assert b"interrupted" in err
