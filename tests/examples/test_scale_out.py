"""The programs of docs/how-to/scale-out.md, as printed, against a server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import files

from xai_tasks.testing import TaskServer

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "scale-out.md").read_text()
KEY = "made-up-key"


def program(name):
    return files(PAGE)[name]


@pytest.fixture
async def run(tmp_path):
    """Return a function that runs a command beside ids.txt, whose ids a server
    knows, and gives its output.
    """
    (tmp_path / "ids.txt").write_text("".join(f"task-{number}\n" for number in range(50)))
    async with TaskServer(KEY) as server:
        for number in range(50):
            server.add(f"task-{number}", result={"n": number})
        environment = {**os.environ, "MOUNTSEA_API_KEY": KEY, "MOUNTSEA_BASE_URL": server.url}
        # So that `xai-tasks` is this one, wherever pytest was started from.
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

        async def run(*command):
            process = await asyncio.create_subprocess_exec(
                *command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE
            )
            output, _ = await asyncio.wait_for(process.communicate(), 60)
            assert process.returncode == 0
            return output.decode()

        yield run


async def test_the_cluster_program_prints_each_id_once(run, tmp_path):
    (tmp_path / "cluster.py").write_text(program("cluster.py"))

    output = await run(sys.executable, "cluster.py")

    assert sorted(output.splitlines()) == sorted(f"task-{number} done" for number in range(50))


async def test_shards_hold_each_id_once(run, tmp_path):
    lines = [line for line in program("shards.sh").splitlines() if not line.startswith("export")]

    await run("sh", "-e", "-c", "\n".join(lines))

    out = (tmp_path / "out.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["taskId"] for line in out) == sorted(
        f"task-{number}" for number in range(50)
    )
    assert min(len((tmp_path / f"{shard}.jsonl").read_text()) for shard in (1, 2)) > 0
