"""get, watch, serve, demo, and what every command shares."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
from cli_program import KEY, Program, eventually, run_here

from xai_tasks import __version__
from xai_tasks.__main__ import main
from xai_tasks._cli._app import cli
from xai_tasks.testing import Fault

FIELDS = [
    "taskId",
    "status",
    "result",
    "errorMessage",
    "errorCode",
    "createdAt",
    "finishedAt",
    "traceId",
]


class TestGet:
    def test_tells_the_servers_answer_in_the_order_asked(self, program, server):
        server.add("b", [], result={"videoUrl": "https://example.com/编.mp4"})
        server.add("a", [], result=[1.5, None])
        ended = program.run("get", "b", "a")
        assert (ended.code, ended.err) == (0, "")
        assert [line["taskId"] for line in ended.lines] == ["b", "a"]
        assert [list(line) for line in ended.lines] == [FIELDS, FIELDS]
        assert ended.lines[0]["result"] == {"videoUrl": "https://example.com/编.mp4"}
        assert ended.out.isascii()

    def test_fields_that_nobody_knows_are_passed_on_and_error_is_the_sdks_own(
        self, program, server
    ):
        body = {
            "taskId": "another",
            "status": "completed",
            "progress": 100,
            "error": "not the SDK's",
        }
        server.fault("a", Fault.body(json.dumps(body).encode()))
        server.add("a")
        (line,) = program.run("get", "a").lines
        assert line == {
            **dict.fromkeys(FIELDS),
            "taskId": "a",
            "status": "completed",
            "progress": 100,
        }

    def test_task_that_has_not_ended_is_no_failure(self, program, server):
        server.add("a", "processing")
        ended = program.run("get", "a")
        assert (ended.code, ended.lines[0]["status"]) == (0, "processing")

    def test_task_that_ended_otherwise_exits_1(self, program, server):
        server.add("a", [], failed=("bad prompt", 40001))
        ended = program.run("get", "a")
        assert ended.code == 1
        assert ended.lines[0]["errorMessage"] == "bad prompt"
        assert "error" not in ended.lines[0]

    def test_id_that_the_server_does_not_know_exits_1_and_spoils_no_other(self, program, server):
        server.add("a")
        ended = program.run("get", "x", "a")
        assert ended.code == 1
        assert ended.lines[0]["error"]["type"] == "NotFoundError"
        assert ended.lines[1]["status"] == "completed"

    def test_answer_that_cannot_be_written_as_json_is_an_error_of_its_own(self, program, server):
        for task_id, result in (("far", b"1e999"), ("deep", b"[" * 900 + b"]" * 900)):
            server.add(task_id)
            server.fault(
                task_id,
                Fault.body(
                    b'{"taskId": "%b", "status": "completed", "result": %b}'
                    % (task_id.encode(), result)
                ),
            )
        far, deep = program.run("get", "far", "deep").lines
        assert far["error"]["type"] == "APIResponseValidationError"
        assert far["status"] is None
        assert deep["taskId"] == "deep"

    def test_refused_key_exits_3_and_is_not_shown(self, program):
        ended = program.run("get", "a", "b", env={"MOUNTSEA_API_KEY": "a-wrong-secret"})
        assert (ended.code, ended.out) == (3, "")
        assert ended.err.startswith("xai-tasks: task 'a': HTTP 401")
        assert "a-wrong-secret" not in ended.err

    def test_unreachable_api_exits_3(self, program):
        ended = program.run("get", "a", "--base-url", "http://127.0.0.1:1")
        assert ended.code == 3
        assert ended.lines[0]["error"]["type"] == "APIConnectionError"

    @pytest.mark.parametrize(
        "args",
        [
            ["get"],
            ["get", ""],
            ["get", "a", "--no-such-option"],
            ["no-such-command"],
            ["get", "a", "--base-url", "ftp://example.com"],
            ["get", "a", "--base-url", "http://example.com"],
            ["get", "a", "--api-key-file", "/no/such/file"],
            ["get", "a", "--api-key-file", "/dev/null"],
        ],
    )
    def test_wrong_usage_exits_2_with_a_message(self, server, monkeypatch, capfd, args):
        code, out, err = run_here(monkeypatch, capfd, server.url, [*args])
        assert (code, out) == (2, "")
        assert err
        assert server.count() == 0

    def test_no_key_exits_2(self, program):
        ended = program.run("get", "a", env={"MOUNTSEA_API_KEY": None})
        assert ended.code == 2
        assert "MOUNTSEA_API_KEY" in ended.err

    def test_signal_exits_130(self, program, server):
        server.add("a")
        server.fault("a", Fault.stall())
        process = program.start("get", "a", "b")
        eventually(lambda: server.count() >= 2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (130, b"")


class TestKeyFile:
    def test_key_is_read_from_a_file(self, program, server, tmp_path):
        server.add("a")
        path = tmp_path / "key"
        path.write_text(f"{KEY}\n")
        assert (
            program.run("get", "a", "--api-key-file", path, env={"MOUNTSEA_API_KEY": None}).code
            == 0
        )

    def test_key_is_read_from_a_pipe_once(self, program, server):
        server.add("a")
        read_end, write_end = os.pipe()
        os.write(write_end, KEY.encode())
        os.close(write_end)
        ended = program.run(
            "get", "a", "--api-key-file", f"/dev/fd/{read_end}", pass_fds=[read_end]
        )
        os.close(read_end)
        assert ended.code == 0

    def test_file_is_read_again_when_the_key_is_refused(self, program, server, tmp_path):
        server.add("a", [("processing", None)])
        path = tmp_path / "key"
        path.write_text(KEY)
        process = program.start("wait", "a", "--interval", "0.1", "--api-key-file", path)
        eventually(lambda: server.count("a") >= 2)
        path.write_text("the-next-key")
        server.api_key = "the-next-key"
        server.advance("a")
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert json.loads(out)["status"] == "completed"

    def test_file_that_went_bad_ends_the_job_with_2(self, program, server, tmp_path):
        server.add("a", [("processing", None)])
        path = tmp_path / "key"
        path.write_text(KEY)
        process = program.start("wait", "a", "--interval", "0.1", "--api-key-file", path)
        eventually(lambda: server.count("a") >= 2)
        path.write_text("")
        server.api_key = "the-next-key"
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (2, b"")
        assert b"Traceback" not in err


class TestWatch:
    def test_tells_each_change_as_it_comes(self, program, server):
        server.add("a", ["pending", "processing"], result=7)
        process = program.start("watch", "a", "--interval", "0.1")
        seen = []
        for _ in range(3):
            seen.append(json.loads(process.stdout.readline()))
            if len(seen) < 3:
                server.advance("a")
        assert [line["status"] for line in seen] == ["pending", "processing", "completed"]
        assert process.wait(30) == 0

    def test_failed_task_exits_1(self, program, server):
        server.add("a", [], cancelled=True)
        assert program.run("watch", "a").code == 1

    def test_time_that_runs_out_exits_4_and_shows_the_last_look(self, program, server):
        server.add("a", "processing")
        ended = program.run("watch", "a", "--timeout", "0.3")
        assert ended.code == 4
        assert [line["status"] for line in ended.lines] == ["processing", "processing"]
        assert ended.lines[1]["error"]["type"] == "WaitTimeoutError"

    def test_refused_key_exits_3(self, program):
        assert program.run("watch", "a", env={"MOUNTSEA_API_KEY": "no"}).code == 3


class TestServe:
    def test_serves_until_a_signal_comes(self, program):
        process = program.start(
            "serve", "--tasks", "2", "--duration", "constant:0", "--rate", "5", "--fail", "0"
        )
        first = json.loads(process.stdout.readline())
        ids = [json.loads(process.stdout.readline())["taskId"] for _ in range(2)]
        request = urllib.request.Request(
            f"{first['url']}/xai/tasks?taskId={ids[1]}",
            headers={"Authorization": f"Bearer {first['apiKey']}"},
        )
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["status"] == "completed"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr.read() == b"xai-tasks: answered 1 requests\n"

    def test_needs_no_arguments(self, program):
        process = program.start("serve")
        lines = [json.loads(process.stdout.readline()) for _ in range(101)]
        assert all("taskId" in line for line in lines[1:])
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0

    @pytest.mark.parametrize(
        "args",
        [
            ["--duration", "soon"],
            ["--duration", "constant:-1"],
            ["--fail", "2"],
            ["--rate", "0"],
            ["--port", "70000"],
        ],
    )
    def test_wrong_usage_exits_2(self, monkeypatch, capfd, args):
        code, out, _ = run_here(monkeypatch, capfd, "", ["serve", *args])
        assert (code, out) == (2, "")

    def test_port_in_use_exits_2(self, program, server):
        ended = program.run("serve", "--port", server.url.rpartition(":")[2])
        assert ended.code == 2
        assert "Traceback" not in ended.err


@pytest.fixture(scope="module", autouse=True)
def demo(tmp_path_factory):
    """The demo takes ten seconds; it runs beside the other tests."""
    program = Program("http://unused.invalid")
    env = {"MOUNTSEA_API_KEY": None, "MOUNTSEA_BASE_URL": None}
    env["TMPDIR"] = str(tmp_path_factory.mktemp("demo"))
    yield program.start("demo", env=env)
    program.close()


class TestEveryCommand:
    def test_version(self, program):
        assert program.run("--version").out == f"xai-tasks, version {__version__}\n"

    @pytest.mark.parametrize("command", [[], ["get"], ["watch"], ["wait"], ["serve"], ["demo"]])
    def test_help_begins_with_usage(self, program, command):
        ended = program.run(*command, "--help")
        assert ended.code == 0
        assert ended.out.startswith("Usage: xai-tasks")

    def test_help_names_no_option_for_the_key_itself(self, program):
        # An argument would stand in every `ps`.
        assert "--api-key " not in program.run("wait", "--help").out

    @pytest.mark.parametrize("missing", ["click", "rich"])
    def test_without_the_extra_one_line_says_what_to_install(self, program, missing):
        code = (
            f"import sys; sys.modules[{missing!r}] = None; "
            "from xai_tasks.__main__ import main; sys.exit(main())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=program.env, capture_output=True, text=True
        )
        assert done.returncode == 2
        assert (
            done.stderr
            == "xai-tasks: the command line needs click and rich: pip install 'xai-tasks[cli]'\n"
        )

    @pytest.mark.parametrize(
        "setting",
        ["argv[1:] = ['--help']", "argv[1:] = ['wait', '--help']", "argv[1:] = ['--version']"],
    )
    def test_help_imports_little(self, program, setting):
        code = (
            f"import sys; sys.{setting}; from xai_tasks.__main__ import main; main(); "
            "assert not {'rich', 'aiohttp', 'attrs', 'tenacity', 'asyncio'} & set(sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=program.env, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_closed_descriptors_are_not_written_to(self, program, server):
        server.add("a")
        command = f"{sys.executable} -m xai_tasks wait a >&- 2>&- <&-"
        done = subprocess.run(["bash", "-c", command], env=program.env, timeout=30)
        assert done.returncode == 0

    def test_closed_descriptors_are_filled_before_anything_else_takes_their_place(
        self, monkeypatch
    ):
        def closed(fd):
            raise OSError(errno.EBADF, "Bad file descriptor")

        opened = []
        monkeypatch.setattr(sys, "argv", ["xai-tasks", "--version"])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fstat", closed)
            patch.setattr(os, "open", lambda *args: opened.append(args))
            assert main() == 0
        assert opened == [(os.devnull, os.O_RDWR)] * 3

    def test_sigint_before_it_has_begun_exits_130(self, monkeypatch, capfd):
        before = signal.getsignal(signal.SIGINT)
        monkeypatch.setattr("os._exit", sys.exit)
        monkeypatch.setattr(
            "xai_tasks._cli._settings.make_client",
            lambda **settings: signal.raise_signal(signal.SIGINT),
        )
        with pytest.raises(SystemExit, match="130"):
            run_here(monkeypatch, capfd, "", ["get", "a"])
        assert capfd.readouterr() == ("", "xai-tasks: interrupted\n")
        assert signal.getsignal(signal.SIGINT) is before

    def test_sigint_that_is_ignored_stays_so(self, monkeypatch, capfd):
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            assert run_here(monkeypatch, capfd, "", ["--version"])[0] == 0
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGINT, before)

    def test_program_runs_in_another_thread(self, monkeypatch):
        monkeypatch.setattr("sys.argv", ["xai-tasks", "--version"])
        codes = []
        thread = threading.Thread(target=lambda: codes.append(main()))
        thread.start()
        thread.join()
        assert codes == [0]

    def test_interrupt_before_it_has_begun_exits_130(self, monkeypatch, capfd):
        def interrupted(**settings):
            raise KeyboardInterrupt

        monkeypatch.setattr("xai_tasks._cli._settings.make_client", interrupted)
        assert run_here(monkeypatch, capfd, "", ["get", "a"]) == (
            130,
            "",
            "\nxai-tasks: interrupted\n",
        )

    def test_error_of_the_program_itself_is_not_hidden(self, monkeypatch, capfd):
        def broken(**settings):
            raise ZeroDivisionError

        monkeypatch.setattr("xai_tasks._cli._settings.make_client", broken)
        with pytest.raises(ZeroDivisionError):
            run_here(monkeypatch, capfd, "", ["get", "a"])

    def test_help_into_a_closed_pipe_ends_quietly(self, program):
        read_end, write_end = os.pipe()
        os.close(read_end)
        ended = program.run("--help", stdout=write_end)
        os.close(write_end)
        assert (ended.code, ended.err) == (1, "")


def test_demo_needs_neither_key_nor_network(demo):
    out, err = demo.communicate(timeout=60)
    assert (demo.returncode, err) == (0, b"")
    assert out.startswith(b"200 made-up tasks of 2 to 3.5 s")
    summary = re.search(
        rb"^200 tasks in ([\d.]+) s: 1\d\d completed, \d+ failed\.\n"
        rb"\d+ requests; ends were noticed after ([\d.]+) s at first, ([\d.]+) s once the "
        rb"client had learned\.$",
        out,
        re.MULTILINE,
    )
    seconds, first, later = map(float, summary.groups())
    assert later < first  # on a slow machine too
    assert seconds < 30
    folder = Path(re.search(rb"^3 of their videos are in (.*)$", out, re.MULTILINE)[1].decode())
    assert len([path for path in folder.iterdir() if b"ftyp" in path.read_bytes()[:12]]) == 3


def test_demo_shows_something_before_it_begins(monkeypatch, capsys):
    def stop(command):
        assert "200 made-up tasks" in capsys.readouterr().out
        return 7

    monkeypatch.setattr("sys.argv", ["xai-tasks", "demo"])
    monkeypatch.setattr("xai_tasks._cli._process.run_command", stop)
    assert main() == 7


def test_docs_name_only_options_that_there_are():
    page = Path(__file__).parents[2] / "docs" / "how-to" / "overnight-jobs.md"
    named = set(re.findall(r"--[a-z][a-z-]+", page.read_text()))
    known = {
        option
        for command in cli.commands.values()
        for parameter in command.params
        for option in parameter.opts
    }
    assert named - known == set()
    assert {"--resume", "--shard", "--api-key-file"} <= named
