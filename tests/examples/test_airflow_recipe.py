"""docs/how-to/airflow.md, in a real Airflow: its operator, its trigger and its DAG."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import xai_tasks
from xai_tasks.testing import Fault, TaskServer

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
AIRFLOW = ROOT / "tests" / "realserver" / "airflow" / ".venv" / "bin"
KEY = "sk-of-airflow-0123456789"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (AIRFLOW / "airflow").exists(),
        reason="needs Airflow: tests/realserver/install.sh airflow, where pip can install it",
    ),
]


@pytest.fixture
def server():
    with TaskServer.in_thread(api_key=KEY) as server:
        yield server


@pytest.fixture
def airflow(tmp_path, server):
    """Return a function that runs a command in Airflow's environment, and returns its output."""
    dags = tmp_path / "dags"
    dags.mkdir()
    for name in ("airflow_tasks.py", "airflow_dag.py"):
        shutil.copy(EXAMPLES / name, dags)
    env = {
        "PATH": f"{AIRFLOW}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PYTHONPATH": os.pathsep.join([str(Path(xai_tasks.__file__).parents[1]), str(dags)]),
        "MOUNTSEA_API_KEY": KEY,
        "MOUNTSEA_BASE_URL": server.url,
    }

    def run(*command):
        done = subprocess.run(
            [AIRFLOW / command[0], *command[1:]],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_dag_submits_each_prompt_once_and_waits_for_all(airflow, server, tmp_path):
    server.accept([("processing", 1.0)], result={"videoUrl": "https://example.com/v.mp4"})

    airflow("airflow", "db", "migrate")
    airflow("airflow", "dags", "reserialize")
    printed = airflow("airflow", "dags", "test", "videos")

    assert f"Returned value was: {['https://example.com/v.mp4'] * 2}" in printed
    assert "running trigger in line" in printed  # the wait was deferred
    prompts = [body["prompt"] for body in server.submissions]
    assert sorted(prompts) == ["a cat eats a fish", "a fish eats a cat"]
    assert KEY not in printed
    assert KEY.encode() not in (tmp_path / "airflow.db").read_bytes()


RESTART = """
import asyncio, importlib, json, time
from airflow_tasks import TasksTrigger

async def main():
    trigger = TasksTrigger(["a", "b", "unknown"], time.time() + 60)
    first = asyncio.create_task(anext(trigger.run()))
    await asyncio.sleep(1)
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()

    path, arguments = json.loads(json.dumps(trigger.serialize()))
    module, _, name = path.rpartition(".")
    again = getattr(importlib.import_module(module), name)(**arguments)
    assert again.serialize() == trigger.serialize()
    event = await anext(again.run())
    print("EVENT", json.dumps(event.payload))

asyncio.run(main())
"""


def test_restarted_trigger_waits_again_without_submitting(airflow, server):
    for task_id in ("a", "b"):
        server.add(task_id, result={"videoUrl": f"https://x/{task_id}.mp4"})
        running = json.dumps({"taskId": task_id, "status": "processing"}).encode()
        server.fault(task_id, Fault.body(running))  # what the first trigger sees

    printed = airflow("python", "-c", RESTART)

    outcomes = json.loads(printed.partition("EVENT ")[2].splitlines()[0])
    assert [outcome["ok"] for outcome in outcomes] == [True, True, False]
    assert outcomes[1]["task"]["result"] == {"videoUrl": "https://x/b.mp4"}
    assert outcomes[2]["error"]["type"] == "NotFoundError"
    assert server.submissions == []


OPERATOR = """
from airflow_tasks import WaitForTasks

good = {"ok": True, "error": None}
bad = {"ok": False, "error": {"type": "TaskFailedError", "message": "task 'b' failed: no"}}
assert WaitForTasks(task_id="wait", task_ids=[]).execute({}) == []
assert WaitForTasks(task_id="wait", task_ids=["a"]).resume({}, [good]) == [good]
assert WaitForTasks(task_id="wait", task_ids=["a"], check=False).resume({}, [bad]) == [bad]
try:
    WaitForTasks(task_id="wait", task_ids=["a", "b"]).resume({}, [good, bad])
except RuntimeError as error:
    print(error)
"""


def test_operator_fails_with_the_tasks_messages(airflow):
    printed = airflow("python", "-c", OPERATOR)

    assert "1 of 2 tasks did not complete: task 'b' failed: no" in printed
