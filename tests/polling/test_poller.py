from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import math
from datetime import timedelta

import pytest
import tenacity
from fakes import (
    FakeTransport,
    assert_nothing_runs,
    client_over,
    now,
    refused,
    says,
    settle,
    stalled,
    status,
)
from tenacity import wait_fixed

from xai_tasks import (
    APIConnectionError,
    ClientStats,
    NotFoundError,
    PollPolicy,
    RateLimitError,
    RetryPolicy,
    ServerError,
    TaskFailedError,
    WaitTimeoutError,
    wait_adaptive,
)
from xai_tasks._polling.entries import Subscriber

pytestmark = pytest.mark.fake_clock

NO_RETRIES = RetryPolicy(stop=tenacity.stop_after_attempt(1))


class Told(Subscriber):
    """Waits by hand."""

    def __init__(self, timeout=None):
        super().__init__(now(), timeout)
        self.heard = []

    def on_end(self, task_id, task, error):
        self.heard.append(error or task.status)


@pytest.fixture
def transport():
    return FakeTransport()


@pytest.fixture
async def client(transport):
    """A client that asks each second, without retries: each failed request is a failed poll."""
    async with client_over(transport, retry=NO_RETRIES, poll=every(1)) as client:
        yield client


def every(seconds, **options):
    return PollPolicy(wait=wait_fixed(seconds), **options)


@pytest.fixture
async def waits():
    """Start a wait for each of some ids; what still waits at the end of the test is cancelled."""
    started = []

    def start(client, ids, **options):
        tasks = [asyncio.ensure_future(client.wait(task_id, **options)) for task_id in ids]
        started.extend(tasks)
        return tasks

    yield start
    for task in started:
        task.cancel()
    await asyncio.gather(*started, return_exceptions=True)


async def errors(tasks):
    return await asyncio.gather(*tasks, return_exceptions=True)


def queued(client):
    """Return how many items the poller's schedules hold, stale times among them."""
    rotation = client._parts.poller._rotation
    schedules = rotation._first, rotation._later, client._parts.poller._deadlines._schedule
    return sum(len(each) + len(each._heap) - len(each._buckets) for each in schedules)


class TestSingleFlight:
    async def test_one_who_joins_a_resting_id_asks_nothing_and_hears_of_the_next_poll(
        self, client, transport, waits
    ):
        transport.add("a", ("processing", 2.5))
        first = waits(client, ["a"])
        await asyncio.sleep(0.5)

        (second,) = waits(client, ["a"])
        await settle()
        assert transport.count() == 1

        assert (await second).succeeded
        assert transport.count() == 4
        await errors(first)

    async def test_one_who_joins_a_request_in_flight_takes_its_answer(
        self, client, transport, waits
    ):
        transport.latency = 10
        transport.add("a")
        first = waits(client, ["a"])
        await asyncio.sleep(9.9)
        joined = now()

        assert (await client.wait("a")).succeeded

        assert now() == pytest.approx(joined + 0.1)
        assert transport.count() == 1
        await errors(first)

    async def test_after_the_end_the_id_is_asked_for_again(self, client, transport):
        transport.add("a")

        await client.wait("a")
        await client.wait("a")

        assert transport.count() == 2

    async def test_an_id_that_everybody_left_and_somebody_asks_for_anew_starts_anew(
        self, client, transport, waits
    ):
        transport.fault("a", stalled)
        transport.add("a")
        first = waits(client, ["a"])
        await asyncio.sleep(1)

        first[0].cancel()
        await asyncio.wait(first)
        task = await client.wait("a")

        assert task.succeeded
        assert transport.aborted() == ["a"]
        assert transport.count() == 2

    async def test_each_waiter_gets_an_error_of_its_own(self, client, transport, waits):
        transport.add("a", end="failed")
        tasks = waits(client, ["a"] * 3)

        found = await errors(tasks)

        assert [type(error) for error in found] == [TaskFailedError] * 3
        assert len(set(map(id, found))) == 3

    async def test_each_waiter_gets_an_api_error_of_its_own(self, client, transport, waits):
        found = await errors(waits(client, ["nobody"] * 3))

        assert [str(error) for error in found] == ["task 'nobody': HTTP 404"] * 3
        assert [type(error) for error in found] == [NotFoundError] * 3
        assert len(set(map(id, found))) == 3

    async def test_a_poll_runs_in_none_of_its_waiters_contexts(self, client, transport):
        request_id = contextvars.ContextVar("request_id", default="nobody's")
        seen = []

        async def fetch(task_id, fetch=transport.fetch):
            seen.append(request_id.get())
            return await fetch(task_id)

        transport.fetch = fetch
        transport.add("a")
        request_id.set("the first one's")

        await client.wait("a")

        assert seen == ["nobody's"]


class TestDeadlines:
    @pytest.mark.parametrize(
        "where", ["resting", "in flight", "between attempts", "in the line", "in a pause"]
    )
    async def test_end_a_wait_in_time_wherever_its_id_is(self, transport, where, waits):
        policy = RetryPolicy(wait=wait_fixed(50)) if where == "between attempts" else NO_RETRIES
        async with client_over(
            transport, retry=policy, poll=every(100), max_concurrency=1
        ) as client:
            transport.default = "processing"
            if where == "in the line":
                transport.fault("other", stalled)
                others = waits(client, ["other"], timeout=1000)
                await settle()
            elif where == "in a pause":
                transport.fault("a", status(429, retry_after=55))
            elif where == "in flight":
                transport.fault("a", stalled)
            elif where == "between attempts":
                transport.fault("a", status(500))
            start = now()

            with pytest.raises(WaitTimeoutError) as caught:
                await client.wait("a", timeout=20)

            assert now() == pytest.approx(start + 20)
            assert caught.value.task_id == "a"
            assert (caught.value.last is not None) == (where == "resting")
            if where == "in the line":
                assert client.stats.waiting == 1
                others[0].cancel()
            await assert_nothing_runs(client)

    async def test_of_several_waiters_each_has_its_own(self, client, transport):
        transport.default = "processing"
        start = now()

        async def wait(timeout):
            with pytest.raises(WaitTimeoutError, match=f"after {timeout} s"):
                await client.wait("a", timeout=timeout)
            return now() - start

        seconds = [7, 3.25, 11, 0.05]
        assert await asyncio.gather(*map(wait, seconds)) == pytest.approx(seconds)
        await assert_nothing_runs(client)

    async def test_of_several_in_flight_each_has_its_own(self, client, transport):
        transport.weather = lambda task_id: stalled
        start = now()

        async def wait(task_id, timeout):
            with pytest.raises(WaitTimeoutError):
                await client.wait(task_id, timeout=timeout)
            return now() - start

        ended = await asyncio.gather(wait("a", 7), wait("a", 3), wait("b", 5), wait("b", 4))
        assert ended == pytest.approx([7, 3, 5, 4])
        assert sorted(transport.aborted()) == ["a", "b"]

    async def test_of_zero_is_over_before_any_request(self, client, transport):
        with pytest.raises(WaitTimeoutError, match="after 0 s"):
            await client.wait("a", timeout=0)

        assert transport.count() == 0

    async def test_those_who_join_with_less_and_less_time_cause_no_extra_poll(
        self, client, transport, waits
    ):
        transport.add("a", ("processing", 95))
        patient = waits(client, ["a"], poll=(policy := every(10)))
        await asyncio.sleep(1)

        for timeout in (8, 7, 6, 5):
            with pytest.raises(WaitTimeoutError):
                await client.wait("a", timeout=timeout / 4, poll=policy)
        await errors(patient)

        distances = [b - a for a, b in itertools.pairwise(transport.times("a"))]
        assert distances == pytest.approx([10.1] * len(distances))
        assert queued(client) == 0

    async def test_a_wait_outlives_a_pause_that_is_shorter(self, client, transport):
        transport.add("a")
        transport.fault("a", status(429, retry_after=55))

        assert (await client.wait("a", timeout=60)).succeeded

    async def test_in_a_pause_the_error_tells_of_the_429(self, client, transport):
        transport.fault("a", status(429, retry_after=55))

        with pytest.raises(WaitTimeoutError, match="last error: task 'a': HTTP 429") as caught:
            await client.wait("a", timeout=20)

        assert isinstance(caught.value.last_error, RateLimitError)


class TestFaults:
    async def test_a_wait_that_meets_a_refusal_after_good_answers_ends_at_once(
        self, client, transport
    ):
        transport.fault("a", says("pending"), says("pending"), status(403))

        with pytest.raises(Exception, match="403"):
            await client.wait("a")

        assert transport.count() == 3

    async def test_polls_may_fail_for_max_outage_on_end(self, client, transport, waits):
        transport.add("a", ("processing", 1000))
        start = now()
        transport.weather = lambda task_id: (
            status(500) if now() >= start + 20 and task_id == "a" else None
        )
        transport.default = "processing"
        waits(client, [f"task-{n}" for n in range(5)], timeout=None)

        with pytest.raises(ServerError):
            await client.wait("a", poll=every(1, max_outage=30), timeout=None)

        assert now() - start == pytest.approx(50, abs=2.5)

    async def test_one_good_answer_in_between_begins_max_outage_anew(
        self, client, transport, waits
    ):
        transport.add("a", ("processing", 190))
        transport.default = "processing"
        waits(client, [f"task-{n}" for n in range(5)], timeout=None)
        start = now()
        transport.weather = lambda task_id: (
            status(500) if task_id == "a" and (now() - start) % 20 > 3 else None
        )

        assert (await client.wait("a", poll=every(1, max_outage=25), timeout=None)).succeeded

    async def test_with_max_outage_zero_the_first_failed_poll_ends_the_wait(self, transport):
        async with client_over(transport, retry=RetryPolicy(wait=wait_fixed(1))) as client:
            transport.fault("a", *[status(500)] * 4)

            with pytest.raises(ServerError):
                await client.wait("a", poll=every(1, max_outage=0))

            assert transport.count() == 4  # a poll is a request with its retries

    async def test_with_max_outage_zero_a_retry_that_succeeds_is_no_failed_poll(self, transport):
        async with client_over(transport, retry=RetryPolicy(wait=wait_fixed(1))) as client:
            transport.add("a")
            transport.fault("a", *[status(500)] * 3)

            assert (await client.wait("a", poll=every(1, max_outage=0))).succeeded

    async def test_with_max_outage_none_there_is_no_limit(self, client, transport):
        transport.add("a")
        start = now()
        transport.weather = lambda task_id: refused if now() < start + 4 * 3600 else None

        assert (await client.wait("a", poll=every(1, max_outage=None), timeout=None)).succeeded

        assert now() < start + 4 * 3600 + 20


class TestOutage:
    async def test_polls_stop_but_for_one_probe_at_a_time(self, client, transport, waits):
        transport.weather = lambda task_id: refused
        waits(client, [f"task-{n}" for n in range(200)])
        await asyncio.sleep(100)
        start = transport.times()[0]

        began = start + 0.1
        probes = [sent for sent in transport.requests if sent.time > began]
        distances = [0.5, 1, 2, 4, 8] + [15] * 5
        expected = [sum(distances[: n + 1]) + 0.1 * n for n in range(len(distances))]
        assert [sent.time - began for sent in probes] == pytest.approx(expected[: len(probes)])
        assert len(probes) >= 9
        assert len({sent.task_id for sent in probes}) == len(probes)

    async def test_get_is_not_held_back_and_its_answer_ends_it(self, client, transport, waits):
        down = True
        transport.weather = lambda task_id: refused if down else None
        ids = transport.add_many(50, 0)
        tasks = waits(client, ids)
        await asyncio.sleep(33)
        before = now()
        down = False

        await client.get("task-0")

        assert now() == pytest.approx(before + 0.1)
        await errors(tasks)
        assert now() < before + 10  # and not at the next probe

    async def test_ends_each_wait_after_max_outage_with_an_error_of_its_own(
        self, client, transport, waits
    ):
        transport.weather = lambda task_id: refused
        ids = [f"task-{n}" for n in range(500)]
        start = now()

        found = await errors(waits(client, ids, poll=every(1, max_outage=60)))

        assert [type(error) for error in found] == [APIConnectionError] * 500
        assert [error.task_id for error in found] == ids
        assert now() - start == pytest.approx(60.1)
        asked = {sent.task_id for sent in transport.requests}
        assert len(asked) < 100  # the others were never polled
        about = "the server has answered no request for 60 s"
        for error in found:
            if error.task_id in asked:
                assert str(error) == f"task {error.task_id!r}: ConnectionRefusedError; {about}"
            else:
                end = f"{about}, and this task was not asked for"
                assert str(error) == f"task {error.task_id!r}: {end}"
        await assert_nothing_runs(client)

    async def test_each_policy_has_its_own_max_outage(self, client, transport):
        transport.weather = lambda task_id: refused
        start = now()

        async def wait(task_id, max_outage):
            with pytest.raises(APIConnectionError):
                await client.wait(task_id, poll=every(1, max_outage=max_outage), timeout=None)
            return now() - start

        limits = [40, 20, 90.0] + [100] * 10
        ends = await asyncio.gather(*(wait(f"task-{n}", s) for n, s in enumerate(limits)))
        assert ends == pytest.approx([limit + 0.1 for limit in limits])

    async def test_with_max_outage_zero_every_wait_ends_as_it_begins(
        self, client, transport, waits
    ):
        transport.weather = lambda task_id: refused
        start = now()

        found = await errors(
            waits(client, [f"task-{n}" for n in range(500)], poll=every(1, max_outage=0))
        )

        assert [type(error) for error in found] == [APIConnectionError] * 500
        assert now() - start == pytest.approx(0.1)

    async def test_one_who_comes_during_it_is_held_to_the_same(self, client, transport, waits):
        transport.weather = lambda task_id: refused
        waits(client, [f"task-{n}" for n in range(20)], timeout=None)
        await asyncio.sleep(31)
        start = transport.times()[0] + 0.1

        with pytest.raises(APIConnectionError, match="late"):
            await client.wait("late", poll=every(1, max_outage=32), timeout=None)
        assert now() - start == pytest.approx(32)

        with pytest.raises(APIConnectionError, match="later"):
            await client.wait("later", poll=every(1, max_outage=5), timeout=None)
        assert (
            32 < now() - start < 32 + 15.2
        )  # with the next probe that fails: it might have been answered

    async def test_the_error_is_the_outages_and_not_one_from_long_before(
        self, client, transport, waits
    ):
        transport.fault("a", status(500), says("pending"))
        wait = tenacity.wait_chain(wait_fixed(1), wait_fixed(1000))
        task = waits(client, ["a"], poll=PollPolicy(wait=wait, max_outage=60), timeout=None)
        await asyncio.sleep(500)
        transport.weather = lambda task_id: refused
        waits(client, [f"task-{n}" for n in range(20)], timeout=None)

        (error,) = await errors(task)

        assert isinstance(error, APIConnectionError)
        assert error.task_id == "a"

    async def test_is_logged_as_it_begins_and_as_it_is_over(self, client, transport, caplog, waits):
        start = now()
        transport.weather = lambda task_id: refused if now() < start + 60 else None
        ids = transport.add_many(50, 0)

        await errors(waits(client, ids))

        assert [(record.levelno, record.message[:19]) for record in caplog.records] == [
            (logging.WARNING, "an outage has begun"),
            (logging.WARNING, "the outage is over:"),
        ]

    async def test_once_it_is_over_everybody_is_polled_again(self, client, transport, waits):
        start = now()
        transport.weather = lambda task_id: refused if now() < start + 60 else None
        ids = transport.add_many(200, 0)

        assert all(task.succeeded for task in await asyncio.gather(*waits(client, ids)))

        assert now() < start + 60 + 15 + 10
        assert transport.most_in_flight <= 64

    async def test_leaves_no_timer_once_the_client_is_closed(self, client, transport, waits):
        transport.weather = lambda task_id: refused
        tasks = waits(client, [f"task-{n}" for n in range(20)])
        await asyncio.sleep(5)

        await client.close()

        await errors(tasks)
        assert asyncio.get_running_loop().timers_left() == []

    async def test_that_begins_in_the_same_breath_as_the_close_sweeps_nothing(
        self, client, transport, waits
    ):
        transport.weather = lambda task_id: refused
        tasks = waits(client, [f"task-{n}" for n in range(20)])
        await asyncio.sleep(0.0999999)
        while client._parts.poller._outage.since is None:
            await asyncio.sleep(1e-9)

        await client.close()

        assert len(await errors(tasks)) == 20
        await assert_nothing_runs(client)


class TestWaitStrategies:
    @pytest.mark.parametrize(
        ("wait", "seconds"),
        [
            (tenacity.wait_fixed(3), [3, 3, 3]),
            (tenacity.wait_fixed(timedelta(minutes=1)), [60, 60, 60]),
            (tenacity.wait_incrementing(1, 2), [1, 3, 5]),
            (tenacity.wait_exponential(multiplier=1, max=3), [1, 2, 3]),
            (tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(7)), [1, 7, 7]),
            (tenacity.wait_exponential() + tenacity.wait_fixed(10), [11, 12, 14]),
            (lambda state: state.seconds_since_start * 10, [1, 12, 133]),
            (lambda state: 2 if state.outcome.result().status == "pending" else 5, [2, 5, 5]),
            (lambda state: -3, [0, 0, 0]),
        ],
    )
    async def test_any_of_tenacitys_says_when_the_next_poll_is(
        self, client, transport, wait, seconds
    ):
        transport.fault("a", says("pending"), says("processing"), says("processing"))
        transport.add("a")

        await client.wait("a", poll=PollPolicy(wait=wait))

        distances = [b - a - 0.1 for a, b in itertools.pairwise(transport.times())]
        assert distances == pytest.approx(seconds)

    async def test_is_told_of_failed_polls_too(self, client, transport):
        transport.fault("a", status(500), says("pending"))
        transport.add("a")
        seen = []

        def wait(state):
            seen.append((state.attempt_number, state.outcome.failed, state.args))
            return 1

        await client.wait("a", poll=PollPolicy(wait=wait))

        assert seen == [(1, True, ("a",)), (2, False, ("a",))]

    async def test_one_that_raises_ends_the_wait_with_its_error(self, client, transport):
        def wait(state):
            raise LookupError("a bug in the strategy")

        transport.default = "pending"

        with pytest.raises(LookupError, match="a bug in the strategy"):
            await client.wait("a", poll=PollPolicy(wait=wait))

        await assert_nothing_runs(client)

    @pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf])
    async def test_one_that_gives_no_finite_number_ends_the_wait(self, client, transport, seconds):
        transport.default = "pending"

        with pytest.raises(
            ValueError, match=f"the wait strategy of the poll policy gave {seconds} seconds"
        ):
            await client.wait("a", poll=PollPolicy(wait=lambda state: seconds))

        await assert_nothing_runs(client)

    async def test_one_that_gives_no_number_ends_the_wait(self, client, transport):
        transport.default = "pending"

        with pytest.raises(TypeError):
            await client.wait("a", poll=PollPolicy(wait=lambda state: None))

        await assert_nothing_runs(client)

    async def test_one_that_fails_concerns_the_waits_under_its_policy_alone(
        self, client, transport, waits
    ):
        transport.add("a", ("processing", 5))
        good = waits(client, ["a"])

        with pytest.raises(TypeError):
            await client.wait("a", poll=PollPolicy(wait=lambda state: None))

        assert (await good[0]).succeeded

    async def test_those_that_learn_are_told_of_each_ended_task_also_inside_sums_and_chains(
        self, client, transport
    ):
        told = []

        class Learner(wait_adaptive):
            def observe(self, task, *, waited, gap):
                told.append((task.task_id, pytest.approx(waited), pytest.approx(gap)))

            def __call__(self, retry_state):
                return 2

        for wait in (
            Learner(),
            Learner() + tenacity.wait_fixed(0),
            tenacity.wait_chain(tenacity.wait_fixed(2), Learner()),
        ):
            transport.add("ended", end="failed")
            transport.add("runs", ("processing", 3))
            transport.add("late", ("processing", 100))
            await client.wait("ended", poll=PollPolicy(wait=wait), check=False)
            await client.wait("runs", poll=PollPolicy(wait=wait))
            with pytest.raises(WaitTimeoutError):
                await client.wait("late", poll=PollPolicy(wait=wait), timeout=5)

        # Answers came after 0.1, 2.2 and 4.3 s; of a task that had ended at its
        # first look nothing is known.
        assert told == [("ended", 0, 0), ("runs", 4.3, 2.1)] * 3


class TestRetryAfterOnAGoodAnswer:
    async def test_puts_the_next_poll_off(self, client, transport):
        transport.fault("a", says("pending", retry_after=30))
        transport.add("a")
        start = now()

        await client.wait("a")

        assert transport.times() == pytest.approx([start, start + 30.1])

    async def test_shorter_than_the_policys_wait_changes_nothing(self, client, transport):
        transport.fault("a", says("pending", retry_after=0.2))
        transport.add("a")
        start = now()

        await client.wait("a")

        assert transport.times() == pytest.approx([start, start + 1.1])

    async def test_is_capped_at_max_retry_after(self, transport):
        async with client_over(
            transport, retry=RetryPolicy(max_retry_after=10), poll=every(1)
        ) as client:
            transport.fault("a", says("pending", retry_after=3600))
            transport.add("a")
            start = now()

            await client.wait("a")

            assert transport.times() == pytest.approx([start, start + 10.1])

    async def test_pauses_nobody_else(self, client, transport, waits):
        transport.fault("a", says("pending", retry_after=30))
        transport.add("b")
        task = waits(client, ["a"])
        await asyncio.sleep(0.2)
        start = now()

        await client.wait("b")

        assert now() == pytest.approx(start + 0.1)
        task[0].cancel()


class TestFairness:
    async def test_a_new_id_gets_its_first_look_before_old_ones_get_their_next(
        self, transport, waits
    ):
        async with client_over(
            transport, rate_limit=10, poll=every(0.001), max_concurrency=4
        ) as client:
            transport.default = "processing"
            waits(client, [f"old-{n}" for n in range(100)], timeout=None)
            await asyncio.sleep(100)
            before = transport.count()
            waits(client, [f"new-{n}" for n in range(100)], timeout=None)
            await asyncio.sleep(30)

            since = [sent.task_id for sent in transport.requests[before:]]
            first_looks = [since.index(f"new-{n}") for n in range(100)]
            # All of them within two rounds: those who stood in the line before, and themselves.
            assert max(first_looks) <= 100 + 100 + 4

    async def test_ids_that_wait_long_are_polled_equally_often(self, transport, waits):
        async with client_over(
            transport, rate_limit=20, poll=every(0.5), max_concurrency=4
        ) as client:
            transport.default = "processing"
            ids = [f"task-{n}" for n in range(50)]
            waits(client, ids, timeout=None)
            await asyncio.sleep(100)

            counts = [transport.count(task_id) for task_id in ids]
            assert max(counts) - min(counts) <= 1
            assert sum(counts) >= 20 * 95

    async def test_an_id_that_keeps_failing_does_not_starve_the_others(self, transport, waits):
        async with client_over(transport, poll=every(1), max_concurrency=2) as client:
            transport.default = "processing"
            transport.weather = lambda task_id: status(500) if task_id.startswith("bad") else None
            waits(client, ["bad-1", "bad-2"], timeout=None)
            waits(client, [f"good-{n}" for n in range(10)], timeout=None)
            await asyncio.sleep(120)

            counts = [transport.count(f"good-{n}") for n in range(10)]
            assert min(counts) > 20

    async def test_get_is_not_held_up_by_a_long_line_of_polls(self, transport, waits):
        async with client_over(
            transport, rate_limit=10, poll=every(0.001), max_concurrency=4
        ) as client:
            transport.default = "processing"
            waits(client, [f"task-{n}" for n in range(1000)], timeout=None)
            await asyncio.sleep(20)
            start = now()

            await client.get("a")

            assert now() < start + 0.5


async def test_in_flight_is_never_above_max_concurrency(transport, waits):
    async with client_over(transport, max_concurrency=7, poll=every(1)) as client:
        ids = transport.add_many(300, 3)

        await asyncio.gather(*waits(client, ids), *(client.get(task_id) for task_id in ids))

        assert transport.most_in_flight == 7
        assert len(client._parts.poller._workers.tasks) <= 7


async def test_rate_limit_holds_over_polls_and_looks_together(transport, waits):
    async with client_over(transport, rate_limit=5, poll=every(0.1)) as client:
        transport.default = "processing"
        tasks = waits(client, [f"task-{n}" for n in range(100)], timeout=None)
        tasks += [asyncio.ensure_future(client.get("a")) for _ in range(50)]
        await asyncio.sleep(30)

        times = transport.times()
        assert len(times) == pytest.approx(1 + 5 * 30, abs=2)
        assert min(b - a for a, b in itertools.pairwise(times)) >= 0.899 / 5


async def test_a_429_pauses_every_wait_once_and_polling_resumes_slowly(client, transport, waits):
    transport.default = "processing"
    waits(client, [f"task-{n}" for n in range(30)], timeout=None)
    await asyncio.sleep(5)
    transport.fault(None, *[status(429, retry_after=20)] * 10)
    await asyncio.sleep(1.2)
    begin = transport.times()[-1]
    before = transport.count()

    await asyncio.sleep(19)
    assert transport.count() == before
    assert client.stats.rate_limited == 10
    await asyncio.sleep(2)

    resumed = transport.times()[before:]
    assert resumed[0] == pytest.approx(begin + 0.1 + 20, abs=0.2)
    assert sum(time < resumed[0] + 0.04 for time in resumed) == 1


class TestLeaving:
    async def test_waits_given_up_before_their_worker_began_leave_it_nothing_to_do(self, transport):
        async with client_over(transport, max_concurrency=1) as client:
            poller, told = client._parts.poller, Told()
            await settle()
            entries = [poller.subscribe(task_id, every(1), told) for task_id in ("a", "b")]
            for entry in entries:
                poller.leave(entry, told)
            await settle()

            assert (poller.waiting, queued(client), transport.requests, told.heard) == (
                0,
                0,
                [],
                [],
            )

    async def test_streams_of_thousands_can_be_left_at_the_same_moment(self, client, transport):
        transport.default = "processing"
        streams = [client.as_completed([f"{name}-{n}" for n in range(2500)]) for name in "ab"]
        firsts = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await asyncio.sleep(30)
        assert client.stats.waiting == 5000

        await asyncio.gather(*(stream.aclose() for stream in streams))

        assert await asyncio.gather(*firsts, return_exceptions=True)
        await assert_nothing_runs(client)

    async def test_thousands_that_are_due_at_once_are_polled_at_once(self, transport, waits):
        transport.default = "processing"
        async with client_over(transport, poll=every(1), max_concurrency=5000) as client:
            begun = now()
            waits(client, [f"task-{n}" for n in range(2500)])
            await asyncio.sleep(1.5)

            assert transport.times() == [begun] * 2500 + [pytest.approx(begun + 1.1)] * 2500

    async def test_a_storm_of_waits_given_up_does_not_stay_in_heap_or_line(self, transport):
        async with client_over(transport, max_concurrency=16) as client:
            transport.default = "processing"
            poller, policy = client._parts.poller, every(300)
            poller.subscribe("kept", policy, kept := Told())

            for _ in range(10):
                subscribed = [
                    (poller.subscribe(f"task-{n}", policy, told := Told()), told)
                    for n in range(10_000)
                ]
                await asyncio.sleep(1)
                assert client.stats.waiting == 10_001
                for entry, told in subscribed:
                    poller.leave(entry, told)
                await settle()
                assert client.stats.waiting == 1
                assert queued(client) < 2_500

            transport.add("kept")
            await asyncio.sleep(300)
            assert kept.heard == ["completed"]
            assert queued(client) < 2_500

    async def test_a_storm_of_cancelled_waits_that_were_polled_does_not_stay_in_the_heap(
        self, transport, waits
    ):
        async with client_over(transport, poll=every(300), max_concurrency=1000) as client:
            transport.default = "processing"
            tasks = waits(client, [f"task-{n}" for n in range(5_000)], timeout=None)
            await asyncio.sleep(10)
            assert queued(client) == 5_000

            for task in tasks[:4_999]:
                task.cancel()
            await asyncio.wait(tasks[:4_999])

            assert queued(client) < 2_500
            transport.add("task-4999")
            assert (await tasks[4_999]).succeeded
            assert queued(client) == 0

    async def test_leftovers_in_front_of_the_line_hold_nobody_up(self, transport, waits):
        async with client_over(transport, max_concurrency=1, poll=every(1)) as client:
            transport.fault("first", stalled)
            ids = transport.add_many(50, 0)
            first = waits(client, ["first"])
            tasks = waits(client, ids)
            await asyncio.sleep(1)
            for task in [*tasks[:20], first[0]]:
                task.cancel()
            start = now()

            assert all(task.succeeded for task in await asyncio.gather(*tasks[20:]))

            assert now() == pytest.approx(start + 30 * 0.1)

    async def test_leftovers_alone_in_the_line_do_not_keep_what_is_due(self, transport, waits):
        async with client_over(transport, max_concurrency=1, poll=every(1)) as client:
            transport.add("due", ("processing", 0.5))
            due = waits(client, ["due"])
            await asyncio.sleep(0.5)
            transport.fault("stalled", stalled)
            first = waits(client, ["stalled"])
            tasks = waits(client, [f"task-{n}" for n in range(20)])
            await asyncio.sleep(0.2)
            for task in [*tasks, *first]:
                task.cancel()

            assert (await asyncio.wait_for(due[0], 5)).succeeded

    async def test_a_request_in_flight_is_aborted_and_its_slot_goes_to_the_next(
        self, transport, waits
    ):
        async with client_over(transport, max_concurrency=1) as client:
            transport.fault("stalled", stalled)
            transport.add("a")
            first, second = waits(client, ["stalled", "a"])
            await asyncio.sleep(5)

            first.cancel()

            assert (await second).succeeded
            assert transport.aborted() == ["stalled"]
            assert now() == pytest.approx(1005.1)

    async def test_before_the_worker_has_begun_makes_no_request(self, client, transport):
        client._bind()
        waiter = Told()
        entry = client._parts.poller.subscribe("a", every(1), waiter)

        client._parts.poller.leave(entry, waiter)
        client._parts.poller.leave(entry, waiter)

        await assert_nothing_runs(client)
        assert transport.count() == 0
        assert waiter.heard == []

    async def test_sets_no_timer_and_leaves_none(self, client, transport, waits):
        transport.default = "processing"
        tasks = waits(client, [f"task-{n}" for n in range(100)])
        await asyncio.sleep(5.5)

        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

        assert asyncio.get_running_loop().timers_left() == []


class TestForeignCancellation:
    async def test_of_a_worker_does_not_lose_its_id(self, client, transport, waits):
        ids = transport.add_many(20, 3)
        transport.latency = 0.5
        tasks = waits(client, ids)

        for _ in range(5):
            await asyncio.sleep(0.2)
            for worker in list(client._parts.poller._workers.tasks):
                worker.cancel()

        assert all(task.succeeded for task in await asyncio.gather(*tasks))
        await assert_nothing_runs(client)

    async def test_of_a_worker_before_its_first_step_does_not_lose_its_id(
        self, client, transport, waits
    ):
        transport.add("a")
        tasks = waits(client, ["a"])
        await asyncio.sleep(0)
        for worker in list(client._parts.poller._workers.tasks):
            worker.cancel()

        assert (await tasks[0]).succeeded

    async def test_of_a_worker_in_the_throttles_queue_does_not_lose_its_id(self, transport, waits):
        async with client_over(transport, rate_limit=1, poll=every(1)) as client:
            ids = transport.add_many(5, 0)
            tasks = waits(client, ids)
            await asyncio.sleep(0.5)
            for worker in list(client._parts.poller._workers.tasks):
                worker.cancel()

            assert all(task.succeeded for task in await asyncio.gather(*tasks))
            assert client.stats.in_flight == 0

    @pytest.mark.parametrize("first", ["the wait", "the worker"])
    async def test_of_a_worker_whose_id_everybody_left_is_its_end(self, transport, first, waits):
        async with client_over(transport, max_concurrency=1) as client:
            transport.fault("a", stalled)
            transport.add("b")
            task, other = waits(client, ["a", "b"])
            await asyncio.sleep(1)
            (worker,) = client._parts.poller._workers.tasks

            cancelled = [task, worker] if first == "the wait" else [worker, task]
            for each in cancelled:
                each.cancel()
            await asyncio.wait(cancelled)

            assert worker.cancelled()
            assert (await other).succeeded
            await assert_nothing_runs(client)


async def test_one_timer_serves_all_ids(client, transport, waits):
    transport.default = "processing"
    waits(client, [f"task-{n}" for n in range(1000)], poll=every(100))
    await asyncio.sleep(50)

    assert client.stats == ClientStats(requests=1000, polls=1000, waiting=1000)
    assert len(asyncio.get_running_loop().timers_left()) == 1


async def test_closing_waits_until_requests_have_been_aborted(client, transport, waits):
    transport.weather = lambda task_id: stalled
    tasks = waits(client, [f"task-{n}" for n in range(10)])
    await asyncio.sleep(1)

    await client.close()

    assert transport.in_flight == 0
    assert len(transport.aborted()) == 10
    await errors(tasks)


async def test_later_waits_are_refused_by_a_closed_poller(client):
    await client.close()

    with pytest.raises(Exception, match="closed"):
        client._parts.poller.subscribe("a", every(1), None)
