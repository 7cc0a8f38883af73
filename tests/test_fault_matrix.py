"""Each fault of `fault_matrix.py`, met once and met for good, by each way to ask."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from fakes import now
from fault_matrix import (
    ATTEMPTS,
    INTERVAL,
    MAX_BYTES,
    MAX_RETRY_AFTER,
    POLL,
    REQUEST_TIMEOUT,
    ROWS,
    TIMEOUT,
)

from xai_tasks import TaskClient, TaskResult, WaitTimeoutError, XaiTasksError
from xai_tasks.testing import TaskServer

JITTER = 0.5 + 1 + 2
"""Seconds that the three sleeps between four attempts take at most."""
REQUEST = ATTEMPTS * REQUEST_TIMEOUT + JITTER
"""Seconds that a look takes at most, pauses aside."""
SLACK = 1.0

pytestmark = [pytest.mark.fake_clock, pytest.mark.usefixtures("request_class")]


async def get(client, timeout=None):
    return await client.get("a")


async def wait(client, timeout=None):
    return await client.wait("a", timeout=timeout)


async def as_completed(client, timeout=None):
    [outcome] = [outcome async for outcome in client.as_completed(["a"], timeout=timeout)]
    return outcome.unwrap()


VERBS = [get, wait, as_completed]

each_fault = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
each_lasting_fault = pytest.mark.parametrize(
    "row", [row for row in ROWS if row.error], ids=lambda row: row.what
)
each_verb = pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)


@pytest.fixture
async def server():
    async with TaskServer() as server:
        server.add("a", result={"videoUrl": "https://videos.invalid/a.mp4"})
        server.add("b", result={})
        yield server


@pytest.fixture
async def client(server):
    client = TaskClient(
        "test",
        base_url=server.url,
        poll=POLL,
        request_timeout=REQUEST_TIMEOUT,
        max_response_bytes=MAX_BYTES,
    )
    async with client:
        yield client
    assert client.stats.waiting == 0
    assert client.stats.in_flight == 0


async def outcome_of(verb, client, timeout=None):
    """Return what the verb returns or raises, and the seconds that it took."""
    began = now()
    try:
        answer = await verb(client, timeout)
    except XaiTasksError as error:
        answer = error
    return answer, now() - began


@each_verb
@each_fault
async def test_a_fault_met_once(row, verb, server, client):
    server.fault("a", *row.faults)

    answer, seconds = await outcome_of(verb, client)

    asked = server.count("a")
    if row.error is None:
        assert isinstance(answer, TaskResult)
        assert asked == (1 if verb is get else len(row.faults))
    elif row.retried if verb is get else row.outlived:
        assert answer.succeeded
        assert asked == 2
    else:
        assert type(answer) is row.error
        assert answer.task_id == "a"
        assert asked == 1
    assert seconds <= REQUEST_TIMEOUT + row.pause + max(JITTER, len(row.faults) * INTERVAL) + SLACK
    if row.pause <= MAX_RETRY_AFTER:
        assert (await client.get("b")).succeeded
    assert server.count("b") <= 2  # a connection that the fault left dead is aiohttp's to notice
    assert server.faults_fired == list(row.faults[:asked])


@each_lasting_fault
async def test_get_of_a_fault_that_lasts(row, server, client):
    server.disturb(1.0, *row.faults)

    error, seconds = await outcome_of(get, client)

    assert type(error) is row.error
    assert error.task_id == "a"
    assert server.count() == row.most_of_get
    assert seconds <= REQUEST + ATTEMPTS * row.pause + SLACK
    server.disturb(0.0)
    if row.pause <= MAX_RETRY_AFTER:
        assert (await client.get("b")).succeeded


@pytest.mark.parametrize("verb", [wait, as_completed], ids=lambda verb: verb.__name__)
@each_lasting_fault
async def test_a_wait_for_a_task_whose_fault_lasts(row, verb, server, client):
    server.disturb(1.0, *row.faults)

    error, seconds = await outcome_of(verb, client, TIMEOUT)

    if row.seconds == TIMEOUT:
        assert type(error) is WaitTimeoutError
        assert type(error.last_error) is row.error
        assert seconds == pytest.approx(TIMEOUT)
    else:
        assert type(error) is row.error
    assert error.task_id == "a"
    assert server.count() <= row.most_of_wait
    if row.outlived:
        late = REQUEST + INTERVAL + ATTEMPTS * row.pause
        assert row.seconds - SLACK <= seconds <= row.seconds + late + SLACK
    else:
        assert server.count() == 1
        assert seconds <= REQUEST
    server.disturb(0.0)
    if row.pause <= MAX_RETRY_AFTER:
        assert (await client.get("b")).succeeded
        assert (await client.wait("b")).succeeded


def test_the_tables_in_the_documentation_are_these_rows():
    script = runpy.run_path(
        str(Path(__file__).parent.parent / "docs" / "scripts" / "fault_table.py")
    )
    page = script["PAGE"].read_text(encoding="utf-8")

    assert script["with_tables"](page) == page, "run docs/scripts/fault_table.py"
