"""docs/examples/taskiq_app.py: waits that survive their process, on a Redis
and with workers of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pages import files
from redis.asyncio import Redis

from xai_tasks.testing import TaskServer

DOCS = Path(__file__).parents[2] / "docs"
KEY = "sk-of-the-workers-0123456789"

pytestmark = [
    pytest.mark.realserver,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server"),
]


@pytest.fixture
def redis_url(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = f"redis-server --bind 127.0.0.1 --port {port} --dir {tmp_path} --save".split()
    with subprocess.Popen(
        [*command, "", "--appendonly", "no"], stdout=subprocess.DEVNULL
    ) as process:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}"
        process.terminate()


@pytest.fixture
async def redis(redis_url):
    redis = Redis.from_url(redis_url)
    yield redis
    await redis.aclose()


@pytest.fixture
async def server():
    async with TaskServer(api_key=KEY) as server:
        yield server


@pytest.fixture
def environment(redis_url, server, monkeypatch):
    """Set what the recipe reads, for this process and those that it starts."""
    for name, value in {
        "REDIS_URL": redis_url,
        "MOUNTSEA_API_KEY": KEY,
        "MOUNTSEA_BASE_URL": server.url,
        "WAIT_SLICE": "1",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def recipe(environment, monkeypatch):
    """Return the recipe as a program that sends messages has it."""
    monkeypatch.syspath_prepend(DOCS / "examples")
    spec = importlib.util.spec_from_file_location("taskiq_app", DOCS / "examples" / "taskiq_app.py")
    recipe = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "taskiq_app", recipe)
    spec.loader.exec_module(recipe)
    await recipe.broker.startup()
    yield recipe
    await recipe.broker.shutdown()


@pytest.fixture
def start_worker(environment, tmp_path):
    """Return a function that starts a worker: a process that minds another,
    so they are killed as a group.
    """
    started = []

    def start():
        command = [sys.executable, "-m", "taskiq", "worker", "--workers", "1", "taskiq_app:broker"]
        log = (tmp_path / f"worker-{len(started)}.log").open("w")
        process = subprocess.Popen(
            command, cwd=DOCS / "examples", stdout=log, stderr=log, start_new_session=True
        )
        started.append((process, log))
        return process

    yield start
    for process, log in started:
        kill(process)
        log.close()


def kill(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


async def result_of(redis, task_id):
    async with asyncio.timeout(40):
        while (kept := await redis.hget("xai-tasks:results", task_id)) is None:
            await asyncio.sleep(0.1)
    return json.loads(kept)


async def test_a_wait_survives_the_kill_of_its_worker(recipe, redis, server, start_worker):
    server.add("quick", result={"n": 1})
    server.add("slow", [("processing", None)], result={"n": 2})
    await recipe.wait.kiq(["quick", "slow"], time.time() + 3600)
    first = start_worker()
    assert (await result_of(redis, "quick"))["task"]["result"] == {"n": 1}
    await server.wait_for_requests(1, "slow")

    kill(first)
    await asyncio.sleep(0.2)  # what was under way
    seen = server.count("slow")
    await asyncio.sleep(2)
    assert server.count("slow") == seen  # nobody waits

    start_worker()
    await server.wait_for_requests(seen + 1, "slow")
    server.advance("slow")

    assert (await result_of(redis, "slow"))["task"]["result"] == {"n": 2}
    assert server.count("quick") == 1  # it had its result: no request


async def test_a_wait_goes_on_from_slice_to_slice_and_gives_up_in_time(
    recipe, redis, server, start_worker
):
    server.add("slow", [("processing", 2.5)], result={"n": 2})
    server.add("endless", [("processing", None)])
    server.add("bad", failed=("no such model", 40001))
    await recipe.wait.kiq(["slow", "endless", "bad", "unknown"], time.time() + 4)

    start_worker()

    assert (await result_of(redis, "slow"))["error"] is None
    assert "no such model" in (await result_of(redis, "bad"))["error"]["message"]
    assert "404" in (await result_of(redis, "unknown"))["error"]["message"]
    timed_out = await result_of(redis, "endless")
    assert timed_out["task"] is None
    assert "endless" in timed_out["error"]["message"]


async def test_a_refused_key_loses_no_wait(recipe, redis, server, start_worker, monkeypatch):
    server.add("a", result={"n": 1})
    await recipe.wait.kiq(["a"], time.time() + 3600)
    monkeypatch.setenv("MOUNTSEA_API_KEY", "one that has expired")
    with_old_key = start_worker()
    await server.wait_for_requests(1)
    await asyncio.sleep(0.5)
    kill(with_old_key)

    monkeypatch.setenv("MOUNTSEA_API_KEY", KEY)
    start_worker()

    assert (await result_of(redis, "a"))["error"] is None


async def test_the_page_sends_and_reads_as_printed(
    environment, redis, server, start_worker, tmp_path
):
    (tmp_path / "send.py").write_text(files(_page())["send.py"])
    for number in range(3):
        server.add(f"task-{number}", result={"n": number})
    (tmp_path / "ids.txt").write_text("task-0\ntask-1\ntask-2\n")
    start_worker()

    path = {**os.environ, "PYTHONPATH": str(DOCS / "examples")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "send.py", cwd=tmp_path, env=path, stdout=subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)

    assert process.returncode == 0
    assert sorted(output.decode().splitlines()) == ["task-0 done", "task-1 done", "task-2 done"]


def _page():
    return (DOCS / "how-to" / "durable-waits.md").read_text()
