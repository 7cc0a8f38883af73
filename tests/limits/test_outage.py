from __future__ import annotations

import asyncio
import logging
import pickle

import pytest
from fakes import malformed, now, refused, status

from xai_tasks import APIConnectionError, APITimeoutError, ServerError
from xai_tasks._limits.outage import Outage, is_no_answer

pytestmark = pytest.mark.fake_clock


def fail(outage, times, first=0):
    for n in range(first, first + times):
        outage.failed(refused(f"task-{n}"))


@pytest.fixture
def outage():
    return Outage()


@pytest.fixture
def changes(outage):
    changes = []
    outage.on_change = lambda: changes.append(outage.since)
    return changes


async def test_begins_when_the_tenth_id_has_failed(outage, changes):
    fail(outage, 9)
    assert outage.since is None

    fail(outage, 1, first=9)

    assert outage.since == now()
    assert changes == [now()]


async def test_one_id_that_fails_a_hundred_times_is_none(outage):
    for _ in range(100):
        outage.failed(refused("a"))

    assert outage.since is None


async def test_an_answer_in_between_starts_the_count_again(outage, changes):
    fail(outage, 9)
    outage.answered()
    fail(outage, 9, first=100)
    assert outage.since is None

    fail(outage, 1, first=200)

    assert changes == [now()]


async def test_ids_that_failed_while_the_server_was_there_do_not_count(outage):
    fail(outage, 9)
    outage.answered_well("good", now())

    for _ in range(5):
        fail(outage, 9)
    fail(outage, 9, first=100)
    assert outage.since is None

    fail(outage, 1, first=200)
    assert outage.since == now()


async def test_an_id_that_was_answered_well_since_counts_again(outage):
    fail(outage, 9)
    for n in range(9):
        outage.answered_well(f"task-{n}", now())

    fail(outage, 10)

    assert outage.since == now()


async def test_of_ids_that_failed_no_endless_number_is_remembered(outage):
    for n in range(20_000):
        outage.failed(refused(f"task-{n}"))
        outage.answered()

    assert len(outage._troubled) == 10_000
    assert "task-19999" in outage._troubled


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (refused, True),
        (status(500), True),
        (status(503), True),
        (status(408), False),
        (status(429), False),
        (status(403), False),
        (malformed, False),
    ],
)
def test_only_faults_and_5xx_leave_it_open_that_the_server_is_gone(fault, expected):
    assert is_no_answer(fault("a")) is expected


async def test_probes_are_due_after_half_a_second_and_double_up_to_fifteen(outage):
    fail(outage, 10)
    distances = []

    for _ in range(8):
        distances.append(outage.probe_at - now())
        await asyncio.sleep(outage.probe_at - now())
        outage.probe_ended(failed=True)

    assert distances == pytest.approx([0.5, 1, 2, 4, 8, 15, 15, 15])


async def test_a_probe_that_was_aborted_puts_the_next_no_further_off(outage):
    fail(outage, 10)
    await asyncio.sleep(3)

    for _ in range(5):
        outage.probe_ended(failed=False)

        assert outage.probe_at == now() + 0.5


async def test_failures_that_are_no_probes_do_not_put_the_next_probe_off(outage):
    fail(outage, 10)
    due = outage.probe_at
    await asyncio.sleep(0.3)

    fail(outage, 100)

    assert outage.probe_at == due


async def test_the_answer_that_ends_one_reports_it_once(outage, changes):
    fail(outage, 10)
    begin = now()

    outage.answered()
    outage.answered()

    assert outage.since is None
    assert changes == [begin, None]


async def test_a_second_one_begins_as_the_first_did(outage):
    fail(outage, 10)
    outage.probe_ended(failed=True)
    outage.answered()
    await asyncio.sleep(100)

    fail(outage, 10)

    assert outage.since == now()
    assert outage.probe_at == now() + 0.5


async def test_is_logged_when_it_begins_and_when_it_is_over(outage, caplog):
    fail(outage, 15)
    await asyncio.sleep(7)
    outage.answered()

    assert [(record.levelno, record.name, record.message) for record in caplog.records] == [
        (
            logging.WARNING,
            "xai_tasks",
            (
                "an outage has begun: polls stop but for one probe at a time; "
                "last error: task 'task-9': ConnectionRefusedError"
            ),
        ),
        (
            logging.WARNING,
            "xai_tasks",
            "the outage is over: the server answers again, 7 s after it began",
        ),
    ]


class TestErrorOfAWaitThatItEnds:
    @pytest.mark.parametrize(
        ("fault", "cls", "words"),
        [
            (refused, APIConnectionError, "and this task was not asked for"),
            (
                lambda task_id: APITimeoutError("no answer within 30 s", task_id=task_id),
                APITimeoutError,
                "and this task was not asked for",
            ),
            (status(503, message="closed for repair"), ServerError, "with anything but HTTP 503"),
        ],
    )
    async def test_tells_of_the_outage_and_nothing_of_other_ids(self, outage, fault, cls, words):
        for n in range(10):
            outage.failed(fault(f"secret-{n}"))
        await asyncio.sleep(60)

        error = outage.error_for("mine", None)

        assert type(error) is cls
        assert str(error).startswith("task 'mine': the server has answered no request for 60 s")
        assert words in str(error)
        assert "secret" not in str(error)
        assert "repair" not in str(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)

    async def test_keeps_what_the_id_met_itself(self, outage):
        fail(outage, 10)
        own = status(500, message="boom")("mine")
        await asyncio.sleep(60)

        error = outage.error_for("mine", own)

        assert (type(error), error.status_code, error.message) == (ServerError, 500, "boom")
        assert str(error) == (
            "task 'mine': HTTP 500: boom; the server has answered no request for 60 s"
        )
        assert "60 s" not in str(own)
