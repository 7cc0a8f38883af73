"""Loops other than asyncio's own, whatever loop the other tests run on."""

from __future__ import annotations

import asyncio

import pytest
from tenacity import wait_fixed

from xai_tasks import PollPolicy, TaskClient
from xai_tasks.testing import TaskServer, uniform


def test_timers_of_less_than_a_millisecond_work_on_uvloop():
    # uvloop calls these soon instead of later, and its handle for that is another than a timer's.
    uvloop = pytest.importorskip("uvloop")

    async def main():
        async with TaskServer() as server:
            ids = server.add_many(300, duration=uniform(0.0, 0.3))
            poll = PollPolicy(wait=wait_fixed(0.0003))
            client = TaskClient("test", base_url=server.url, rate_limit=5_000, poll=poll)
            async with asyncio.timeout(60), client:
                return await client.wait_all(ids)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert all(task.succeeded for task in runner.run(main()))
