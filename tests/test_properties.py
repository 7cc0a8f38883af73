"""Random mixes of ends, faults, cancels and early exits, by a fake clock:
nothing is lost, nothing is left.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from fakes import (
    FakeTransport,
    assert_nothing_runs,
    client_over,
    malformed,
    refused,
    run,
    says,
    stalled,
    status,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity import wait_fixed

from xai_tasks import (
    APIError,
    ClientClosedError,
    NotFoundError,
    PollPolicy,
    RetryPolicy,
    TaskError,
    TaskResult,
    WaitTimeoutError,
)

FAULTS = {
    "500": status(500),
    "503": status(503),
    "503, retry later": status(503, retry_after=2),
    "429": status(429),
    "429, retry later": status(429, retry_after=3),
    "404": status(404),
    "refused": refused,
    "malformed": malformed,
    "stalled": stalled,
    "backwards": says("pending"),
}

tasks = st.fixed_dictionaries(
    {
        "seconds": st.floats(0, 30),
        "end": st.sampled_from(["completed", "completed", "failed", "timeout"]),
        "faults": st.lists(st.sampled_from(sorted(FAULTS)), max_size=4),
    }
)
worlds = st.fixed_dictionaries(
    {
        "tasks": st.lists(tasks, min_size=1, max_size=12),
        "latency": st.sampled_from([0.0, 0.01, 0.5]),
        "max_concurrency": st.integers(1, 4),
        "rate_limit": st.sampled_from([None, 5.0]),
        "max_outage": st.sampled_from([0.0, 5.0, None]),
        "timeout": st.sampled_from([0.0, 3.0, 200.0]),
        "budget": st.sampled_from([0, 500]),
    }
)


pytestmark = pytest.mark.slow

# An example runs a loop of its own and collects garbage.
mixes = settings(max_examples=40)


def build(world):
    transport = FakeTransport(latency=world["latency"])
    client = client_over(
        transport,
        max_concurrency=world["max_concurrency"],
        rate_limit=world["rate_limit"],
        retry=RetryPolicy(budget=world["budget"]),
        poll=PollPolicy(
            wait=wait_fixed(1), timeout=world["timeout"], max_outage=world["max_outage"]
        ),
    )
    ids = []
    for number, task in enumerate(world["tasks"]):
        task_id = f"task-{number}"
        transport.add(task_id, ("processing", task["seconds"]), end=task["end"])
        transport.fault(task_id, *(FAULTS[name] for name in task["faults"]))
        ids.append(task_id)
    return transport, client, ids


def assert_sensible(outcome, world):
    task = world["tasks"][outcome.index % len(world["tasks"])]
    assert outcome.task_id == f"task-{outcome.index % len(world['tasks'])}"
    if outcome.ok:
        assert task["end"] == "completed"
        assert outcome.task.task_id == outcome.task_id
    elif isinstance(outcome.error, TaskError):
        assert outcome.task.status.value == task["end"] != "completed"
    elif isinstance(outcome.error, NotFoundError):
        assert "404" in task["faults"]
    elif isinstance(outcome.error, WaitTimeoutError):
        assert outcome.error.timeout == world["timeout"]
    else:
        assert isinstance(outcome.error, APIError)
        assert world["max_outage"] is not None
    assert outcome.error is None or f"'{outcome.task_id}'" in str(outcome.error)


@mixes
@given(worlds, st.integers(1, 3), st.integers(1, 20))
def test_each_id_pulled_comes_out_exactly_once(world, times, max_pending):
    async def scenario():
        transport, client, ids = build(world)
        async with client:
            stream = client.as_completed(ids * times, max_pending=max_pending)
            outcomes = [outcome async for outcome in stream]

            assert Counter(outcome.index for outcome in outcomes) == Counter(
                range(len(ids) * times)
            )
            assert (stream.pulled, stream.pending) == (len(outcomes), 0)
            assert stream.succeeded == sum(outcome.ok for outcome in outcomes)
            for outcome in outcomes:
                assert_sensible(outcome, world)
            assert transport.most_in_flight <= world["max_concurrency"]
            await assert_nothing_runs(client)

    run(scenario())


@mixes
@given(
    worlds,
    st.integers(0, 12),
    st.sampled_from(["break", "raise", "aclose", "cancel", "drop", "close"]),
)
def test_leaving_early_leaves_nothing_and_what_was_taken_was_taken_once(world, taken, how):
    async def read(stream, outcomes):
        async for outcome in stream:
            outcomes.append(outcome)
            if len(outcomes) >= taken and how == "break":
                break
            if len(outcomes) >= taken and how == "raise":
                raise ZeroDivisionError

    async def scenario():
        _, client, ids = build(world)
        outcomes = []
        async with client:
            stream = client.as_completed(ids)
            reader = asyncio.create_task(read(stream, outcomes))
            await asyncio.wait([reader], timeout=taken)
            if how == "cancel":
                reader.cancel()
            elif how == "aclose":
                await stream.aclose()
            elif how == "close":
                await client.close()
            if how == "drop":
                reader.cancel()
                await asyncio.wait([reader])
            del stream
            (answer,) = await asyncio.gather(reader, return_exceptions=True)
            # Of a client closed while ids are still to be pulled, the stream says so at its end.
            ends = (ClientClosedError,) if how == "close" else ()
            assert answer is None or isinstance(
                answer, (ZeroDivisionError, asyncio.CancelledError, *ends)
            )
            del reader, answer
            assert max(Counter(outcome.index for outcome in outcomes).values(), default=1) == 1
            await assert_nothing_runs(client)

    run(scenario())


@mixes
@given(
    worlds, st.lists(st.tuples(st.integers(0, 11), st.floats(0, 20), st.booleans()), max_size=20)
)
def test_waits_that_are_cancelled_take_nothing_from_the_others(world, waits):
    async def scenario():
        transport, client, ids = build(world)
        async with client:
            running = [
                (
                    asyncio.create_task(client.wait(ids[which % len(ids)], check=False)),
                    after,
                    cancelled,
                )
                for which, after, cancelled in waits
            ]
            for wait, after, cancelled in running:
                if cancelled:
                    asyncio.get_running_loop().call_later(after, wait.cancel)
            results = await asyncio.gather(
                *(wait for wait, _, _ in running), return_exceptions=True
            )

            for result, (_, _, cancelled) in zip(results, running, strict=True):
                if isinstance(result, asyncio.CancelledError):
                    assert cancelled
                else:
                    assert isinstance(result, TaskResult | APIError | WaitTimeoutError)
            assert transport.most_in_flight <= world["max_concurrency"]
            await assert_nothing_runs(client)

    run(scenario())
