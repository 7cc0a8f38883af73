"""Outputs and inputs that are pipes: FIFOs, closed readers, full disks, and
what is kept at an interrupt.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time

import pytest
from cli_program import UNTRACED, eventually

from xai_tasks.testing import constant


def shell(program, command, **options):
    """Run a line of bash in which $X is the program."""
    env = program.env | {"X": f"{shlex.quote(sys.executable)} -m xai_tasks"}
    return subprocess.run(
        ["bash", "-c", command], env=env, capture_output=True, text=True, timeout=60, **options
    )


class TestPipesOut:
    @pytest.mark.parametrize(
        "command",
        [
            "$X wait -i ids -o /dev/stdout | head -1",
            "$X wait -i ids -o - | head -1",
            "$X wait -i ids | head -1",
            "$X wait -i ids -o >(head -1 >&2) 2>&1",
        ],
    )
    def test_closed_reader_ends_it_quietly(self, program, server, tmp_path, command):
        ids = server.add_many(3000, duration=constant(0))
        (tmp_path / "ids").write_text("\n".join(ids))
        begun = time.monotonic()
        done = shell(program, command, cwd=tmp_path)
        assert time.monotonic() - begun < 30
        assert len((done.stdout + done.stderr).splitlines()) == 1
        assert not (tmp_path / "-").exists()

    def test_fifo_waits_for_its_reader_and_loses_no_line(self, program, server, tmp_path):
        ids = list(server.add_many(50, duration=constant(0)))
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        process = program.start("wait", *ids, "-o", fifo)
        time.sleep(1.0)
        assert (process.poll(), server.count()) == (None, 0)
        lines = fifo.read_text().splitlines()
        assert sorted(json.loads(line)["taskId"] for line in lines) == sorted(ids)
        assert process.wait(30) == 0

    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)]
    )
    def test_fifo_that_nobody_reads_can_be_given_up(self, program, tmp_path, number, code):
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        process = program.start("wait", "a", "-o", fifo)
        time.sleep(1.5)
        process.send_signal(number)
        assert process.wait(10) == code

    def test_reader_that_leaves_a_fifo_ends_it(self, program, server, tmp_path):
        ids = [server.add(f"task-{number}", "processing") for number in range(3)]
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        process = program.start("wait", *ids, "-o", fifo, "--interval", "0.2")
        reader = os.open(fifo, os.O_RDONLY)
        server.advance(ids[0])
        assert os.read(reader, 65536)
        os.close(reader)
        server.advance(ids[1])
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (1, b"")

    def test_output_may_be_a_socket(self, program, server):
        server.add("a")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = program.start("wait", "a", "-o", "/dev/stdout", stdout=theirs)
            assert process.wait(30) == 0
            assert json.loads(ours.recv(65536))["taskId"] == "a"


class TestFullDisk:
    """A limit on the size of a file stands for a full disk: the write fails
    half-way in the same manner.
    """

    def run(self, program, args, size):
        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        process = program.start(*args, env=UNTRACED, preexec_fn=limit)
        _, err = process.communicate(timeout=60)
        return process.returncode, err.decode()

    def test_says_what_is_saved_and_how_to_go_on(self, program, server, tmp_path):
        ids = list(server.add_many(200, duration=constant(0)))
        source, path = tmp_path / "ids", tmp_path / "out"
        source.write_text("\n".join(ids))
        args = ("wait", "-i", source, "-o", path)

        code, err = self.run(program, args, 10_000)

        saved = path.read_bytes()
        assert code == 2
        assert 9_000 < len(saved) <= 10_000
        assert saved.endswith(b"}\n")  # the line that was cut off is removed
        count = len(saved.splitlines())
        assert f"go on with: xai-tasks wait -i {source} -o {path} --resume" in err
        assert f"File too large: '{path}'\n" in err
        assert f"{count} completed" in err.splitlines()[-1]

        assert program.run(*args, "--resume").code == 0
        assert sorted(
            json.loads(line)["taskId"] for line in path.read_text().splitlines()
        ) == sorted(ids)

    def test_ids_from_a_pipe_that_cannot_be_kept_are_counted(self, program, server, tmp_path):
        ids = list(server.add_many(100, duration=constant(0)))
        (tmp_path / "ids").write_text("\n".join(ids))
        path = tmp_path / "out"
        command = (
            f"unset ${{!COVERAGE*}}; trap '' XFSZ; ulimit -f 1; cat ids | $X wait -i - -o {path}"
        )
        err = shell(program, command, cwd=tmp_path).stderr
        saved = len(path.read_text().splitlines())
        assert f"{100 - saved} ids that were read from a pipe have not ended" in err


class TestPending:
    def interrupted(self, program, server, tmp_path, *args):
        """Wait for ids from a pipe that stays open, one of which has ended, and interrupt it."""
        server.add("a")
        for task_id in ("b", "c, d"):
            server.add(task_id, "processing")
        process = program.start("wait", "-i", "-", *args, stdin=subprocess.PIPE)
        process.stdin.write(b'a\nb\n"c, d"\n')
        process.stdin.flush()
        eventually(lambda: server.count("a") and server.count("b") and server.count("c, d"))
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        err = process.stderr.read().decode()
        assert process.wait(30) == 130
        return err

    def test_ids_that_were_read_are_kept_and_resumed(self, program, server, tmp_path):
        path, pending = tmp_path / "out", tmp_path / "out.pending"
        err = self.interrupted(program, server, tmp_path, "-o", path)
        assert f"2 ids that were read from a pipe have not ended; they are in {pending}" in err
        assert pending.read_text() == 'b\n"c, d"\n'
        server.advance("b")
        server.advance("c, d")

        ended = program.run("wait", "-o", path, "--resume")

        assert ended.code == 0
        assert "3 tasks, 2 of them in this run, in " in ended.err
        assert [json.loads(line)["taskId"] for line in path.read_text().splitlines()] == [
            "a",
            "b",
            "c, d",
        ]
        assert not pending.exists()

    def test_second_interrupt_keeps_what_is_left(self, program, server, tmp_path):
        path, pending = tmp_path / "out", tmp_path / "out.pending"
        self.interrupted(program, server, tmp_path, "-o", path)
        server.advance("b")
        process = program.start("wait", "-o", path, "--resume", "--interval", "0.2")
        eventually(lambda: len(path.read_text().splitlines()) == 2)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert pending.read_text() == '"c, d"\n'

    def test_kept_ids_are_not_lost_where_nothing_is_resumed(self, program, server, tmp_path):
        path, pending = tmp_path / "out", tmp_path / "out.pending"
        pending.write_text("x\n")
        self.interrupted(program, server, tmp_path, "-o", path)
        assert pending.read_text() == 'x\nb\n"c, d"\n'

    def test_that_cannot_be_kept_are_counted(self, program, server, tmp_path):
        (tmp_path / "out.pending.part").mkdir()
        err = self.interrupted(program, server, tmp_path, "-o", tmp_path / "out")
        assert "2 ids that were read from a pipe have not ended, and can't be kept: " in err

    def test_without_an_output_their_number_is_told(self, program, server, tmp_path):
        err = self.interrupted(program, server, tmp_path)
        assert "2 ids that were read from a pipe have not ended\n" in err

    def test_ids_of_a_file_are_not_kept(self, program, server, tmp_path):
        server.add("a", "processing")
        (tmp_path / "ids").write_text("a\n")
        process = program.start("wait", "-i", tmp_path / "ids", "-o", tmp_path / "out")
        eventually(lambda: server.count("a"))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert b"pipe" not in err
        assert not (tmp_path / "out.pending").exists()

    def test_ids_that_are_buffered_are_kept_too(self, program, server, tmp_path):
        # Many more than are in rotation: these wait in the buffer of what was read.
        ids = [server.add(f"task-{number}", "processing") for number in range(1000)]
        path = tmp_path / "out"
        args = ("wait", "-i", "-", "-o", path, "--rate", "20", "--timeout", "50")
        process = program.start(*args, stdin=subprocess.PIPE)
        process.stdin.write("\n".join([*ids, ""]).encode())
        process.stdin.flush()
        eventually(lambda: server.count() >= 5)
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(30) == 130
        assert (tmp_path / "out.pending").read_text().split() == ids

    def test_refused_key_keeps_them_too(self, program, server, tmp_path):
        process = program.start(
            "wait",
            "-i",
            "-",
            "-o",
            tmp_path / "out",
            stdin=subprocess.PIPE,
            env={"MOUNTSEA_API_KEY": "no"},
        )
        process.stdin.write(b"a\nb\n")
        process.stdin.flush()
        process.stderr.read()
        assert process.wait(30) == 3
        assert (tmp_path / "out.pending").read_text() == "a\nb\n"


class TestSignals:
    def test_interrupt_that_the_parent_ignores_stays_ignored(self, program, server, tmp_path):
        server.add("a", "processing")
        command = "trap '' INT; $X wait a --interval 0.2 & X=$!; echo $X; wait $X; echo $?"
        env = program.env | {"X": f"{shlex.quote(sys.executable)} -m xai_tasks"}
        process = subprocess.Popen(
            ["bash", "-c", command], env=env, stdout=subprocess.PIPE, text=True
        )
        pid = int(process.stdout.readline())
        eventually(lambda: server.count("a"))
        os.kill(pid, signal.SIGINT)
        before = server.count("a")
        eventually(lambda: server.count("a") > before + 1)
        server.advance("a")
        assert process.communicate(timeout=30)[0].splitlines()[-1] == "0"

    def test_hangup_is_an_interrupt_unless_it_is_ignored(self, program, server, tmp_path):
        server.add("a", "processing")
        process = program.start("wait", "a", "-o", tmp_path / "out")
        eventually(lambda: server.count("a"))
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 130

    def test_process_that_was_stopped_asks_once_more(self, program, server):
        server.add("a", "processing")
        process = program.start("wait", "a", "--timeout", "2", "--interval", "0.2")
        eventually(lambda: server.count("a") >= 2)
        process.send_signal(signal.SIGSTOP)
        server.advance("a")
        time.sleep(2.5)
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate(timeout=30)
        assert (process.returncode, json.loads(out)["status"]) == (0, "completed")
