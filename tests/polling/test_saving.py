"""What completes outcomes on their way to a stream."""

from __future__ import annotations

import asyncio

from xai_tasks import Outcome, TaskResult, TaskStatus
from xai_tasks._polling.saving import Saving


def outcome(index):
    return Outcome("a", index, TaskResult("a", TaskStatus.COMPLETED, "https://example.com/x"))


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


async def test_failure_is_told_of_once_and_ends_the_others():
    failures = []

    async def save(outcome):
        await asyncio.sleep(0)
        raise OSError(outcome.index)

    def fail(error):
        failures.append(error.args)
        saving.cancel()

    saving = Saving(save, lambda outcome: None, fail)
    for index in range(20):
        saving.add(outcome(index))
    await saving.settled()

    assert failures == [(0,)]


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
