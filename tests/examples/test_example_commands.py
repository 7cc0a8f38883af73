"""Each example, copied to an empty folder, runs by the command at its head and ends on SIGTERM."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from aiohttp import web
from example_apps import EXAMPLES, KEY, NAMES

from xai_tasks.testing import TaskServer


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def ask(port, path, process, timeout=30.0):
    """Return the body of an answer; a server that is not up yet is asked again."""
    until = time.monotonic() + timeout
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.read().decode()
        except OSError:
            assert process.poll() is None, "it ended"
            assert time.monotonic() < until, "it does not answer"
            time.sleep(0.05)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_in_an_empty_folder_runs_by_the_command_it_states(tmp_path, name):
    example = EXAMPLES / f"{name}_app.py"
    head = example.read_text().split('"""')[1]
    files, command = re.search(r"^Beside (.*?): +(.+)$", head, re.MULTILINE).groups()
    assert files == "this file and live_page.html"
    for file in (example, EXAMPLES / "live_page.html"):
        shutil.copy(file, tmp_path)
    port, log = free_port(), tmp_path / "log"

    with TaskServer.in_thread(api_key=KEY) as server, log.open("w") as out:
        server.add("a", result={"videoUrl": "https://example.com/a.mp4"})
        env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "MOUNTSEA_API_KEY": KEY,
            "MOUNTSEA_BASE_URL": server.url,
            "PORT": port,
            "UVICORN_PORT": port,
        }
        process = subprocess.Popen(
            shlex.split(command), cwd=tmp_path, env=env, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            got = json.loads(ask(port, "/tasks/a", process))
            waited = json.loads(ask(port, "/tasks/a/wait", process))
            events = ask(port, "/events?id=a", process)
            page = ask(port, "/", process)
            process.send_signal(signal.SIGTERM)
            ended = process.wait(20)
        finally:
            process.kill()
            process.wait()

    assert got == waited
    assert got["result"] == {"videoUrl": "https://example.com/a.mp4"}
    assert "event: update" in events
    assert page == (EXAMPLES / "live_page.html").read_text()
    assert ended in (0, -signal.SIGTERM)
    assert "Traceback" not in log.read_text()
    assert KEY not in log.read_text()


def test_the_demo_shows_tasks_without_a_key(tmp_path):
    for name in ("live_page_demo.py", "aiohttp_app.py", "live_page.html"):
        shutil.copy(EXAMPLES / name, tmp_path)
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("MOUNTSEA_")}
    process = subprocess.Popen(
        [sys.executable, "live_page_demo.py"],
        cwd=tmp_path,
        env=env | {"PORT": port, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url, _, query = process.stdout.readline().removeprefix("Open ").strip().partition("/#")
        assert url == f"http://127.0.0.1:{port}"
        assert len(query.split("&")) == 20
        assert "the prompt was refused" in ask(port, "/tasks/refused", process)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_aiohttp_example_has_handlers_cancelled_whose_clients_have_gone(monkeypatch):
    options = {}
    monkeypatch.setattr(web, "run_app", lambda app, **kwargs: options.update(kwargs))
    monkeypatch.setenv("PORT", "8181")

    runpy.run_path(str(EXAMPLES / "aiohttp_app.py"), run_name="__main__")

    assert options == {"host": "127.0.0.1", "port": 8181, "handler_cancellation": True}
