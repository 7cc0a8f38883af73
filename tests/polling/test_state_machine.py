"""Waits, streams, cancels, faults, key functions, strategies that raise, outages, stops and `close`
in any order, by a fake clock.

    XAI_TASKS_STEPS=50000 python -m pytest tests/polling/test_state_machine.py

runs that many steps instead of the few of the suite.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections import Counter

import pytest
from fakes import (
    FakeClockLoop,
    FakeTransport,
    client_over,
    malformed,
    now,
    refused,
    says,
    settle,
    stalled,
    status,
)
from tenacity import stop_after_attempt, wait_fixed

from xai_tasks import (
    APIError,
    ClientClosedError,
    PollPolicy,
    RetryPolicy,
    TaskError,
    TaskResult,
    WaitTimeoutError,
)
from xai_tasks._polling.packed import BulkSubscriber

pytestmark = pytest.mark.slow  # so are many steps

STEPS = int(os.environ.get("XAI_TASKS_STEPS", "4000"))
STEPS_A_WORLD = 250

FAULTS = [
    status(500),
    status(503),
    status(503, retry_after=2),
    status(429),
    status(429, retry_after=3),
    status(404),
    status(403),
    refused,
    malformed,
    stalled,
    says("pending"),
]


class Bug(Exception):
    """What the user's code raises."""


class World:
    """One client, what is asked of it, and what came of that."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.transport = FakeTransport(self.random.choice([0.0, 0.05, 0.5]))
        self.key_raises = None
        self.strategy_raises = None
        self.policies = [
            PollPolicy(wait=wait_fixed(1), timeout=30, max_outage=20),
            PollPolicy(wait=self.strategy, timeout=10),
        ]
        self.client = client_over(
            self.transport,
            api_key=self.key,
            retry=RetryPolicy(stop=stop_after_attempt(2), wait=wait_fixed(0.3)),
            poll=self.policies[0],
            max_concurrency=self.random.choice([1, 3, 20]),
            rate_limit=self.random.choice([None, None, 5]),
        )
        self.waits = []
        self.readers = []
        self.serial = 0

    def key(self):
        if self.key_raises is not None:
            raise self.key_raises
        return "made-up-key"

    def strategy(self, state):
        if self.strategy_raises is not None:
            raise self.strategy_raises
        return 0.7

    def task_id(self):
        if self.serial and self.random.random() < 0.3:
            return f"task-{self.random.randrange(self.serial)}"
        self.serial += 1
        task_id = f"task-{self.serial - 1}"
        end = self.random.choice(["completed", "completed", "failed"])
        self.transport.add(task_id, ("processing", self.random.choice([0, 2, 8, 1000])), end=end)
        return task_id

    # What may happen.

    def begin_wait(self):
        policy = self.random.choice(self.policies)
        timeout = self.random.choice([0, 0.5, 5, 20])
        wait = self.client.wait(self.task_id(), timeout=timeout, poll=policy)
        self.waits.append((asyncio.ensure_future(wait), now() + timeout))

    def begin_stream(self):
        ids = [self.task_id() for _ in range(self.random.randrange(1, 12))]
        policy = self.random.choice(self.policies)
        timeout = self.random.choice([0, 3, 15])
        stream = self.client.as_completed(ids, poll=policy, timeout=timeout)
        found = []

        async def read():
            async for outcome in stream:
                found.append(outcome)

        self.readers.append((asyncio.ensure_future(read()), stream, ids, found, now() + timeout))

    def cancel_wait(self):
        if self.waits:
            self.random.choice(self.waits)[0].cancel()

    def leave_stream(self):
        if self.readers:
            self.random.choice(self.readers)[0].cancel()

    def cancel_worker(self):
        workers = list(self.client._parts.poller._workers.tasks)
        if workers:
            self.random.choice(workers).cancel()

    def queue_fault(self):
        for _ in range(self.random.randrange(1, 4)):
            self.transport.fault(None, self.random.choice(FAULTS))

    def outage(self):
        until = now() + self.random.choice([1, 5, 25])
        self.transport.weather = lambda task_id: refused if now() < until else None

    def key_fails(self):
        self.key_raises = self.random.choice([None, Bug(), asyncio.CancelledError()])
        self.client._parts.fetcher._credentials.key = None if self.key_raises else "made-up-key"

    def strategy_fails(self):
        self.strategy_raises = self.random.choice([None, None, Bug(), asyncio.CancelledError()])

    def stop(self):
        asyncio.get_running_loop()._clock.now += self.random.choice([2, 30])

    # What must hold.

    def check(self):
        poller = self.client._parts.poller
        rotation, workers = poller._rotation, poller._workers
        in_flight = set(workers._in_flight)
        entries = [entry for group in rotation.groups for entry in group.entries.values()]
        scheduled = len(rotation._first) + len(rotation._later)
        packed = sum(1 for shard in rotation._packed._shards for row in shard.values() if row)

        assert rotation.waiting == len(entries) + packed
        for entry in entries:
            assert (entry.due is None) == (entry in in_flight), "scheduled or in flight"
            assert entry.subscribers is not None
            for subscriber in entry.all():
                assert subscriber.entry is entry
                if isinstance(subscriber, BulkSubscriber):
                    assert subscriber.owner.ids.task_id(subscriber.index) == entry.task_id
                else:
                    assert subscriber.due is not None, "a wait that never times out"
        assert scheduled == packed + sum(entry.due is not None for entry in entries)
        if poller.waiting and not poller.closed:
            assert poller._alarm._handle is not None or workers.tasks, "nobody will go on"
        assert len(workers.tasks) <= workers._limit

    def check_ends(self):
        for wait, _ in self.waits:
            if wait.done() and not wait.cancelled():
                ends = APIError, TaskError, WaitTimeoutError, ClientClosedError, Bug
                assert wait.exception() is None or isinstance(wait.exception(), ends)
                assert wait.exception() or isinstance(wait.result(), TaskResult)
        for _, stream, ids, found, _ in self.readers:
            indexes = Counter(outcome.index for outcome in found)
            assert max(indexes.values(), default=1) == 1, "an outcome came twice"
            assert all(outcome.task_id == ids[outcome.index] for outcome in found)
            assert stream.succeeded + stream.failed == len(found)

    async def run(self):
        steps = [
            *[self.begin_wait] * 6,
            *[self.begin_stream] * 3,
            *[self.queue_fault] * 3,
            self.cancel_wait,
            self.leave_stream,
            self.cancel_worker,
            self.outage,
            self.key_fails,
            self.strategy_fails,
            self.stop,
        ]
        for _ in range(STEPS_A_WORLD):
            self.random.choice(steps)()
            await asyncio.sleep(self.random.choice([0, 0, 0.1, 0.4, 2]))
            self.check()
            self.check_ends()
        self.key_raises = self.strategy_raises = None
        self.client._parts.fetcher._credentials.key = "made-up-key"
        self.transport.weather = lambda task_id: None
        self.transport._faults.clear()
        if self.random.random() < 0.5:
            await self.in_the_end_each_has_ended()
        await self.client.close()
        tasks = [wait for wait, _ in self.waits] + [reader for reader, *_ in self.readers]
        await asyncio.gather(*tasks, return_exceptions=True)
        self.check_ends()
        for reader, _, ids, found, _ in self.readers:
            if not reader.cancelled() and reader.exception() is None:
                assert len(found) == len(ids), "an outcome is missing"
        await self.nothing_is_left()

    async def in_the_end_each_has_ended(self):
        """Wait as long as the longest timeout and whatever may hold it up."""
        await asyncio.sleep(20 + 120)
        for wait, _ in self.waits:
            assert wait.done(), "a wait is past its deadline"
        for reader, *_ in self.readers:
            assert reader.done(), "a stream is past its deadlines"

    async def nothing_is_left(self):
        self.waits.clear()
        self.readers.clear()
        gc.collect()
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert self.client.stats.waiting == self.client.stats.in_flight == 0
        rotation = self.client._parts.poller._rotation
        assert rotation.groups == []
        assert not any(rotation._packed._shards)
        assert asyncio.get_running_loop().timers_left() == []


@pytest.mark.parametrize("seed", range(max(1, STEPS // STEPS_A_WORLD)))
def test_whatever_happens(seed):
    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        runner.run(World(seed).run())
