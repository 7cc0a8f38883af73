"""Fake time as a user writes it: looptime's clock, and a server and a client in its loop."""

from __future__ import annotations

import asyncio
import time

import pytest

from xai_tasks import TaskClient, TaskFailedError, WaitTimeoutError
from xai_tasks.testing import Fault, TaskServer

looptime = pytest.importorskip("looptime")


async def app(url):
    """Run what stands for the user's code."""
    async with TaskClient("test", base_url=url) as client:
        return await client.wait("a", timeout=900)


def run(scenario):
    """Run it on a clock that jumps from timer to timer; return its result and its fake seconds."""

    async def timed():
        began = asyncio.get_running_loop().time()
        return await scenario(), asyncio.get_running_loop().time() - began

    with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
        return runner.run(timed())


def test_ten_minute_task_is_fast():
    async def scenario():
        async with TaskServer() as server:
            server.add("a", [("pending", 60), ("processing", 540)], result={"videoUrl": "u"})
            return await app(server.url)

    before = time.monotonic()
    task, elapsed = run(scenario)

    assert task.result == {"videoUrl": "u"}
    assert task.elapsed.total_seconds() == pytest.approx(600, abs=0.01)
    assert 600 <= elapsed <= 631  # at most the longest time between two polls later
    assert time.monotonic() - before < 10


def test_wait_survives_faults_fast():
    async def scenario():
        async with TaskServer() as server:
            server.add("a", [("processing", 300)], failed=("bad prompt", 40001))
            server.fault("a", Fault.status(503), Fault.stall(), Fault.reset(), Fault.drip(0.01))
            with pytest.raises(TaskFailedError, match="bad prompt"):
                await app(server.url)
            return server.faults_left

    faults_left, elapsed = run(scenario)

    assert faults_left == []
    assert elapsed >= 300


def test_endless_task_times_out():
    async def scenario():
        async with TaskServer() as server:
            server.add("a", "processing")
            with pytest.raises(WaitTimeoutError):
                await app(server.url)

    _, elapsed = run(scenario)

    assert elapsed == pytest.approx(900, abs=1)
