"""A job that is killed and goes on."""

from __future__ import annotations

import json
import random
import time

from cli_program import UNTRACED, eventually

from xai_tasks.testing import Fault, constant


def ended_ids(path):
    return [json.loads(line)["taskId"] for line in path.read_text().splitlines()]


def test_ids_that_have_ended_are_not_asked_for_again(program, server, tmp_path):
    path = tmp_path / "out"
    server.add("a")
    server.add("b", [], failed=True)
    server.add("c")
    assert program.run("wait", "a", "b", "-o", path, "--resume").code == 1
    ended = program.run("wait", "a", "b", "c", "-o", path, "--resume")
    assert ended.code == 1  # as the whole job in one run
    assert "2 skipped" in ended.err
    assert [server.count(task_id) for task_id in "abc"] == [1, 1, 1]
    assert ended_ids(path) == ["a", "b", "c"]


def test_ids_that_the_sdk_gave_up_are_waited_for_again(program, server, tmp_path):
    path = tmp_path / "out"
    server.add("a", "processing")
    server.add("b")
    server.fault("b", Fault.status(402))
    assert program.run("wait", "a", "b", "-o", path, "--timeout", "0.3").code == 1
    server.advance("a")
    assert program.run("wait", "a", "b", "-o", path, "--resume").code == 0
    assert sorted(ended_ids(path)[2:]) == ["a", "b"]


def test_id_that_comes_twice_is_waited_for_once(program, server, tmp_path):
    server.add("a")
    ended = program.run("wait", "a", "a", "-o", tmp_path / "out", "--resume")
    assert ended.code == 0
    assert ended_ids(tmp_path / "out") == ["a"]


def test_job_survives_kills_without_losing_or_repeating_a_line(program, server, tmp_path):
    draw = random.Random(7)
    # Every tenth line is so long that a kill may well cut it.
    ids = [
        server.add(f"task-{number}", [], result="x" * (300_000 if number % 10 == 0 else 100))
        for number in range(1000)
    ]
    server.latency = 0.005
    source, path = tmp_path / "ids", tmp_path / "out"
    source.write_text("\n".join(ids))
    args = ("wait", "-i", source, "-o", path, "--resume", "--concurrency", "2")
    path.touch()
    whole = b""

    for number in range(20):
        size = path.stat().st_size
        process = program.start(*args, env=UNTRACED)
        if number % 5:
            eventually(lambda size=size: path.stat().st_size > size)
            time.sleep(draw.uniform(0, 0.03))
        else:
            time.sleep(draw.uniform(0, 0.6))  # while it starts, or repairs
        process.kill()
        process.communicate()

        written = path.read_bytes()
        lines = written[: written.rfind(b"\n") + 1]
        assert lines.startswith(whole)  # every line that was complete is still there
        whole = lines

    assert len(whole.splitlines()) < len(ids)  # or the last kills would have met no job
    assert program.run(*args).code == 0
    assert sorted(ended_ids(path)) == sorted(ids)


def test_many_ids_at_a_time_are_resumed(program, server, tmp_path):
    ids = list(server.add_many(600, duration=constant(0)))
    path = tmp_path / "out"
    text = "\n".join(ids)
    assert (
        program.run("wait", "-i", "-", "-o", path, "--resume", stdin_text="\n".join(ids[::2])).code
        == 0
    )
    assert program.run("wait", "-i", "-", "-o", path, "--resume", stdin_text=text).code == 0
    assert sorted(ended_ids(path)) == sorted(ids)
    assert server.count() == 600
