"""What completes outcomes on their way to a stream."""

from __future__ import annotations

import asyncio

import pytest
import tenacity
from attrs import evolve
from fakes import (
    FakeTransport,
    assert_nothing_runs,
    client_over,
    now,
    says,
    status,
)

from xai_tasks import (
    AuthenticationError,
    DownloadError,
    Outcome,
    PollPolicy,
    TaskResult,
    TaskStatus,
)
from xai_tasks._polling.saving import Saving

URL = "https://example.com/x"


def outcome(index):
    return Outcome("a", index, TaskResult("a", TaskStatus.COMPLETED, URL))


async def test_outcomes_are_completed_eight_at_once_and_in_order():
    gates, delivered = {}, []

    async def save(outcome):
        gates[outcome.index] = asyncio.Event()
        await gates[outcome.index].wait()
        return outcome

    saving = Saving(save, lambda outcome: delivered.append(outcome.index), lambda error: None)
    for index in range(20):
        saving.add(outcome(index))
    for index in range(20):
        await asyncio.sleep(0)
        assert len(gates) == min(20, index + 8)
        gates[index].set()
        await asyncio.sleep(0)

    await saving.settled()
    assert delivered == list(range(20))


async def test_outcome_that_comes_as_the_last_worker_ends_is_completed():
    delivered = []

    async def save(outcome):
        return outcome

    def deliver(outcome):
        delivered.append(outcome.index)
        if outcome.index < 3:
            asyncio.get_running_loop().call_soon(saving.add, again(outcome.index + 1))

    again, saving = outcome, Saving(save, deliver, lambda error: None)
    saving.add(outcome(0))
    while len(delivered) < 4:
        await asyncio.sleep(0)


async def test_failure_is_told_of_once_and_loses_no_outcome():
    failures, delivered = [], []

    async def save(outcome):
        await asyncio.sleep(0)
        raise OSError(outcome.index)

    saving = Saving(save, delivered.append, lambda error: failures.append(error.args))
    for index in range(20):
        saving.add(outcome(index))
    assert not saving.is_empty
    await saving.settled()

    assert failures == [(0,)]
    assert saving.is_empty
    assert sorted(each.index for each in delivered) == list(range(20))
    for each in delivered:
        assert isinstance(each.error, DownloadError)
        assert str(each.error).endswith(f"{URL}: the stream ended before, with OSError")


async def test_failure_after_the_end_is_not_told_of():
    failures = []

    async def save(outcome):
        try:
            await asyncio.sleep(60)
        finally:
            raise OSError("full")

    saving = Saving(save, lambda outcome: None, failures.append)
    saving.add(outcome(0))
    await asyncio.sleep(0)
    saving.cancel()
    await saving.settled()

    assert failures == []


class Saver:
    """Stands in for the downloader: each file takes 10 s."""

    def __init__(self, error=None):
        self.error = error
        self.cancelled = 0

    async def complete(self, directory, outcome):
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return evolve(outcome, files=(directory / outcome.task_id,))

    async def close(self):
        pass


@pytest.mark.fake_clock
class TestEndOfTheStreamWhileFilesAreSaved:
    @pytest.fixture
    def transport(self):
        return FakeTransport()

    @pytest.fixture
    async def client(self, transport):
        client = client_over(transport, poll=PollPolicy(wait=tenacity.wait_fixed(1)))
        client._parts.downloader = Saver()
        async with client:
            yield client
        await assert_nothing_runs()

    async def read(self, stream, error):
        outcomes = []
        with pytest.raises(error):
            async for outcome in stream:
                outcomes.append(outcome)
        return outcomes

    def add_completed(self, transport, number):
        return [transport.add(f"task-{n}", result=URL) for n in range(number)]

    async def test_refused_key_loses_no_task_that_has_ended(self, client, transport, tmp_path):
        ids = self.add_completed(transport, 20)
        transport.fault("refused", says("processing"), status(401))

        stream = client.as_completed([*ids, "refused"], download_to=tmp_path)
        outcomes = await self.read(stream, AuthenticationError)

        assert sorted(outcome.task_id for outcome in outcomes) == sorted(ids)
        assert all(outcome.ok and outcome.files for outcome in outcomes)

    async def test_source_that_raises_loses_no_task_that_has_ended(
        self, client, transport, tmp_path
    ):
        ids = self.add_completed(transport, 20)
        transport.add("endless", ("processing", 10000))

        def source():
            yield from [*ids, "endless"]
            raise LookupError

        outcomes = await self.read(client.as_completed(source(), download_to=tmp_path), LookupError)

        assert sorted(outcome.task_id for outcome in outcomes) == sorted(ids)
        assert all(outcome.ok and outcome.files for outcome in outcomes)

    @pytest.mark.parametrize(
        "error",
        [OSError(28, "full"), LookupError(), asyncio.CancelledError(), BaseException()],
        ids=repr,
    )
    async def test_failure_loses_no_task_that_has_ended(self, client, transport, tmp_path, error):
        client._parts.downloader.error = error
        ids = self.add_completed(transport, 20)
        transport.add("endless", ("processing", 10000))

        stream = client.as_completed([*ids, "endless"], download_to=tmp_path)
        outcomes = await self.read(stream, type(error))

        assert sorted(outcome.task_id for outcome in outcomes) == sorted(ids)
        for outcome in outcomes:
            assert outcome.task.succeeded
            assert isinstance(outcome.error, DownloadError)
            assert type(error).__name__ in str(outcome.error)
        assert client.stats.waiting == 0
        assert now() < 1020  # the second batch is not tried

    async def test_left_while_it_waits_for_files_it_leaves_nothing(
        self, client, transport, tmp_path
    ):
        ids = self.add_completed(transport, 20)
        transport.fault("refused", says("processing"), status(401))
        stream = client.as_completed([*ids, "refused"], download_to=tmp_path)
        reader = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(5)
        assert not reader.done()

        await stream.aclose()

        assert client._parts.downloader.cancelled == 8
        with pytest.raises((StopAsyncIteration, AuthenticationError)):
            await reader
        await assert_nothing_runs(client)
