"""Fake time as a user writes it: a clock of looptime's, a server and a client in its loop, real sockets between them."""

from __future__ import annotations

import asyncio
import time

import pytest

from xai_tasks import TaskClient, TaskFailedError, WaitTimeoutError
from xai_tasks.testing import Fault, TaskServer

looptime = pytest.importorskip("looptime")


async def app(url):
    """Stand for the user's code."""
    async with TaskClient("test", base_url=url) as client:
        return await client.wait("a", timeout=900)


def run(scenario):
    """Run it by a clock that jumps from timer to timer; what it gave, and the seconds it thinks it took."""

    async def timed():
        began = asyncio.get_running_loop().time()
        return await scenario(), asyncio.get_running_loop().time() - began

    with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
        return runner.run(timed())


def test_waiting_through_a_ten_minute_task_takes_no_minutes():
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


def test_faults_outages_and_failures_are_lived_through_as_fast():
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


def test_a_task_that_never_ends_runs_into_the_timeout():
    async def scenario():
        async with TaskServer() as server:
            server.add("a", "processing")
            with pytest.raises(WaitTimeoutError):
                await app(server.url)

    _, elapsed = run(scenario)

    assert elapsed == pytest.approx(900, abs=1)
