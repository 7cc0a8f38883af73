from __future__ import annotations

import asyncio
import itertools
import logging
import math

import pytest
from fakes import FakeClockLoop, now, run, settle
from hypothesis import given
from hypothesis import strategies as st

from xai_tasks import ClientClosedError
from xai_tasks._http.hints import Quota
from xai_tasks._limits.outage import PollsStopped
from xai_tasks._limits.throttle import PauseTooLong, Throttle

pytestmark = pytest.mark.fake_clock


def make(max_concurrency=1000, rate_limit=math.inf):
    return Throttle(max_concurrency, rate_limit)


def queue_up(throttle, number, *, poll=True, left=None):
    """Start tasks that acquire and never release; they note in `left` when each request left."""
    left = [] if left is None else left

    async def acquire(n):
        await throttle.acquire(poll=poll)
        left.append((n, now()))

    return [asyncio.ensure_future(acquire(n)) for n in range(number)], left


async def give_up(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_max_concurrency_requests_may_be_in_flight():
    throttle = make(max_concurrency=3)
    tasks, left = queue_up(throttle, 5)

    await settle()
    assert [n for n, _ in left] == [0, 1, 2]
    assert throttle.in_flight == 3

    throttle.release(now())
    await settle()
    assert [n for n, _ in left] == [0, 1, 2, 3]
    assert throttle.in_flight == 3
    await give_up(tasks)


@pytest.mark.parametrize("rate", [0.5, 2.5, 45, 200, 1000])
async def test_a_given_rate_is_reached_and_requests_leave_evenly(rate):
    throttle = make(max_concurrency=100_000, rate_limit=rate)
    start = now()
    tasks, left = queue_up(throttle, max(20, int(5 * rate)))

    await asyncio.wait(tasks)

    times = [time for _, time in left]
    assert (now() - start) * rate == pytest.approx(len(times), abs=1 + 0.1 * rate)
    distances = [after - before for before, after in itertools.pairwise(times)]
    if rate < 100:
        assert min(distances) >= 0.899 / rate
    for first, last in zip(times, times[max(1, int(0.1 * rate)) :], strict=False):
        assert last > first


async def test_a_stalled_loop_is_made_up_for_by_a_tenth_of_a_second_and_not_all_at_once():
    throttle = make(rate_limit=40)
    await asyncio.sleep(3600)
    start = now()
    tasks, left = queue_up(throttle, 40)

    await asyncio.wait(tasks)

    assert now() - start == pytest.approx((40 - 4) / 40)
    times = [time for _, time in left]
    assert min(b - a for a, b in itertools.pairwise(times)) == pytest.approx(0.9 / 40)


async def test_looks_and_polls_take_turns_first_come_first_served():
    throttle = make(max_concurrency=1)
    await throttle.acquire(poll=True)
    order = []

    async def acquire(name, poll):
        await throttle.acquire(poll=poll)
        order.append(name)
        throttle.release(now())

    tasks = [asyncio.ensure_future(acquire(f"poll {n}", True)) for n in range(4)]
    tasks += [asyncio.ensure_future(acquire(f"look {n}", False)) for n in range(2)]
    await settle()
    throttle.release(now())
    await asyncio.wait(tasks)

    assert order == ["look 0", "poll 0", "look 1", "poll 1", "poll 2", "poll 3"]


class TestPause:
    @pytest.mark.parametrize("poll", [True, False])
    async def test_holds_back_polls_and_looks(self, poll):
        throttle = make()
        start = now()

        throttle.pause(now(), 5)
        await throttle.acquire(poll=poll)

        assert now() == pytest.approx(start + 5)

    async def test_of_several_the_one_that_ends_last_holds_and_they_do_not_add_up(self):
        throttle = make()
        start = now()

        for seconds in (5, 7, 7, 1):
            throttle.pause(now(), seconds)
        await throttle.acquire(poll=True)

        assert now() == pytest.approx(start + 7)

    async def test_is_logged_once(self, caplog):
        caplog.set_level(logging.INFO, "xai_tasks")
        throttle = make()

        for seconds in (5, 6, 7):
            throttle.pause(now(), seconds)
        await asyncio.sleep(10)
        throttle.pause(now(), 1.5)

        assert [record.message for record in caplog.records] == [
            "the server asks for a pause of 5 s",
            "the server asks for a pause of 1.5 s",
        ]
        assert [record.seconds for record in caplog.records] == [5, 1.5]

    async def test_that_begins_while_requests_wait_holds_them_too(self):
        throttle = make(max_concurrency=1)
        await throttle.acquire(poll=True)
        tasks, left = queue_up(throttle, 1)
        await settle()
        start = now()

        throttle.pause(now(), 5)
        throttle.release(now())
        await asyncio.wait(tasks)

        assert left == [(0, pytest.approx(start + 5))]

    async def test_costs_one_timer_for_a_thousand_requests(self):
        throttle = make()
        throttle.pause(now(), 60)
        loop = asyncio.get_running_loop()
        before = loop.timers

        tasks, _ = queue_up(throttle, 1000)
        await settle()

        assert loop.timers - before == 1
        await give_up(tasks)

    async def test_requests_resume_one_by_one_and_faster_the_more_are_answered(self):
        throttle = make(max_concurrency=50)
        throttle.pause(now(), 10)
        end = now() + 10
        sent, most = [], []

        async def request():
            await throttle.acquire(poll=True)
            sent.append(now())
            most.append(throttle.in_flight)
            await asyncio.sleep(0.02)
            throttle.answered(now())
            throttle.release(now())

        await asyncio.gather(*(request() for _ in range(500)))

        rounds = [round((time - end) / 0.02, 6) for time in sent]
        assert [rounds.count(n) for n in range(3)] == [1, 2, 4]
        assert max(most) == 50

    async def test_requests_resume_even_if_none_is_answered(self):
        throttle = make(max_concurrency=8)
        throttle.pause(now(), 10)
        end = now() + 10
        tasks, left = queue_up(throttle, 20)

        await asyncio.sleep(60)

        assert [time for _, time in left] == pytest.approx([end + 0.05 * n for n in range(8)])
        assert throttle.in_flight == 8
        await give_up(tasks)

    async def test_answers_to_requests_from_before_it_do_not_speed_the_start(self):
        throttle = make(max_concurrency=50)
        for _ in range(50):
            await throttle.acquire(poll=True)
        throttle.pause(now(), 10)
        end = now() + 10
        tasks, left = queue_up(throttle, 50)
        await asyncio.sleep(1)
        for _ in range(50):
            throttle.answered(now())
            throttle.release(now())

        await asyncio.sleep(60)

        assert sum(time < end + 0.04 for _, time in left) == 1
        await give_up(tasks)

    @given(start=st.floats(0, 1e7), limit=st.integers(1, 100))
    def test_never_lets_more_than_max_concurrency_go_whatever_the_clock_rounds_to(
        self, start, limit
    ):
        async def main():
            asyncio.get_running_loop()._clock.now = start
            throttle = make(max_concurrency=limit)
            throttle.pause(now(), 1.1)
            end = now() + 1.1
            tasks, left = queue_up(throttle, 2 * limit)
            await asyncio.sleep(20)
            assert [time for _, time in left] == pytest.approx(
                [end + 0.05 * n for n in range(limit)]
            )
            assert throttle.in_flight == limit
            await give_up(tasks)

        run(main())


class TestPauseTooLongForGet:
    async def test_fails_a_get_that_comes_in_it(self):
        throttle = Throttle(1000, math.inf, 60)
        throttle.pause(now(), 61)

        with pytest.raises(PauseTooLong):
            await throttle.acquire(poll=False)

    async def test_fails_a_get_that_waits_when_it_begins_and_no_poll(self):
        throttle = Throttle(1, math.inf, 60)
        await throttle.acquire(poll=True)
        gets, _ = queue_up(throttle, 2, poll=False)
        polls, left = queue_up(throttle, 1)
        await settle()
        start = now()

        throttle.pause(now(), 61)
        throttle.release(now())
        results = await asyncio.gather(*gets, return_exceptions=True)
        await asyncio.wait(polls)

        assert [type(result) for result in results] == [PauseTooLong] * 2
        assert left == [(0, start + 61)]

    async def test_a_shorter_one_is_waited_for(self):
        throttle = Throttle(1000, math.inf, 60)
        start = now()
        throttle.pause(now(), 60)

        await throttle.acquire(poll=False)

        assert now() == start + 60


class TestMaxInRotation:
    def test_is_what_a_given_rate_can_ask_for_ten_times(self):
        assert make(rate_limit=20).max_in_rotation(600) == 1200

    def test_is_at_least_one(self):
        assert make(rate_limit=0.01).max_in_rotation(1) == 1

    def test_is_unlimited_without_a_timeout_or_at_an_infinite_rate(self):
        assert make(rate_limit=20).max_in_rotation(math.inf) == math.inf
        assert make().max_in_rotation(600) == math.inf

    def test_grows_with_what_is_answered_while_no_rate_is_known(self):
        throttle = Throttle(10, None)
        assert throttle.max_in_rotation(600) == 5_000

        for n in range(600):
            throttle.answered(1.0, 1.0, f"id {n}")

        assert throttle.max_in_rotation(600) == 6_000

    async def test_follows_a_rate_that_was_learned(self):
        throttle = Throttle(10, None)
        await throttle.acquire(poll=True)

        throttle.rejected(now(), now(), 1.0)
        throttle.release(now())
        await asyncio.sleep(2)
        await throttle.acquire(poll=True)

        assert 1 <= throttle.max_in_rotation(600) < 600

    async def test_follows_a_rate_that_headers_say(self):
        throttle = Throttle(10, None)
        await throttle.acquire(poll=True)

        throttle.answered(now(), now(), "a", [Quota("", 99, 10.0)])

        assert throttle.max_in_rotation(600) == 600


async def test_a_503_that_may_be_a_limit_pauses_and_one_of_a_server_that_answers_nothing_does_not():
    throttle = Throttle(10, None)
    throttle.unavailable(now(), now(), 1.0)
    assert throttle.paused_until == 0

    throttle.answered(now(), now(), "a")
    throttle.unavailable(now(), now(), 1.0)

    assert throttle.paused_until == now() + 1


class TestOutage:
    async def test_polls_in_the_queue_are_stopped_and_gets_are_not(self):
        throttle = make(rate_limit=1)
        await throttle.acquire(poll=True)
        polls, _ = queue_up(throttle, 3)
        gets, left = queue_up(throttle, 1, poll=False)
        await settle()

        throttle.stop_polls()
        stopped = await asyncio.gather(*polls, return_exceptions=True)
        await asyncio.wait(gets)

        assert [type(error) for error in stopped] == [PollsStopped] * 3
        assert len(left) == 1

    async def test_a_poll_that_is_cancelled_as_it_is_stopped_leaves_nothing(self):
        throttle = make(rate_limit=1)
        await throttle.acquire(poll=True)
        polls, _ = queue_up(throttle, 2)
        await settle()

        polls[0].cancel()
        throttle.stop_polls()
        await asyncio.gather(*polls, return_exceptions=True)

        assert throttle.in_flight == 1

    async def test_after_one_requests_start_slowly(self):
        throttle = make()

        throttle.start_slowly(now())
        begin = now()
        tasks, left = queue_up(throttle, 100)
        await asyncio.sleep(10)

        assert [time for _, time in left] == pytest.approx([begin + 0.05 * n for n in range(100)])
        await give_up(tasks)


class TestStalled:
    async def test_is_stalled_when_every_request_is_in_flight_and_none_has_ended_for_a_second(self):
        throttle = make(max_concurrency=2)
        await throttle.acquire(poll=True)
        assert not throttle.is_stalled(now() + 5)

        await throttle.acquire(poll=True)
        assert throttle.is_stalled(now() + 5)

        throttle.release(now())
        await throttle.acquire(poll=True)
        assert not throttle.is_stalled(now() + 1)
        assert throttle.is_stalled(now() + 1.5)


class TestFoundRate:
    async def test_there_is_no_limit_before_the_first_429(self):
        throttle = Throttle(10_000, None)
        start = now()

        for _ in range(10_000):
            await throttle.acquire(poll=True)

        assert now() == start

    async def test_after_a_429_requests_are_paced(self):
        throttle = Throttle(1000, None)
        for _ in range(100):
            await throttle.acquire(poll=True)
            await asyncio.sleep(0.01)
            throttle.answered(now())
            throttle.release(now())
        sent = now()
        await throttle.acquire(poll=True)
        throttle.rejected(now(), sent, 1.0)
        throttle.release(now())
        resumed = now() + 1

        tasks, left = queue_up(throttle, 1000)
        await asyncio.sleep(1.5)

        assert min(time for _, time in left) >= resumed
        assert len(left) < 200
        await give_up(tasks)


class TestClose:
    async def test_everybody_in_a_queue_ends_with_client_closed_error(self):
        throttle = make()
        throttle.pause(now(), 60)
        polls, _ = queue_up(throttle, 2)
        looks, _ = queue_up(throttle, 2, poll=False)
        await settle()

        throttle.close()
        errors = await asyncio.gather(*polls, *looks, return_exceptions=True)

        assert [type(error) for error in errors] == [ClientClosedError] * 4
        assert throttle.in_flight == 0
        assert asyncio.get_running_loop().timers_left() == []

    async def test_no_request_may_leave_any_more(self):
        throttle = make()

        throttle.close()

        with pytest.raises(ClientClosedError):
            await throttle.acquire(poll=False)

    async def test_one_who_was_cancelled_in_the_same_breath_is_cancelled(self):
        throttle = make()
        throttle.pause(now(), 60)
        tasks, _ = queue_up(throttle, 2)
        await settle()

        tasks[0].cancel()
        throttle.close()
        tasks[1].cancel()
        await asyncio.wait(tasks)

        assert [task.cancelled() for task in tasks] == [True, True]


class TestCancel:
    async def test_one_who_waits_leaves_the_queue(self):
        throttle = make(max_concurrency=1)
        await throttle.acquire(poll=True)
        tasks, left = queue_up(throttle, 3)
        await settle()

        tasks[0].cancel()
        await settle()
        throttle.release(now())
        await settle()

        assert [n for n, _ in left] == [1]
        await give_up(tasks)

    async def test_one_who_is_cancelled_before_the_turn_comes_does_not_take_it(self):
        throttle = make(max_concurrency=1)
        await throttle.acquire(poll=True)
        tasks, left = queue_up(throttle, 2)
        await settle()

        tasks[0].cancel()
        throttle.release(now())
        await settle()

        assert [n for n, _ in left] == [1]
        assert throttle.in_flight == 1
        await give_up(tasks)

    async def test_one_who_has_just_got_the_turn_gives_back_slot_and_token(self):
        throttle = make(max_concurrency=1, rate_limit=2)
        await throttle.acquire(poll=True)
        tasks, left = queue_up(throttle, 2)
        await asyncio.sleep(1)
        start = now()

        throttle.release(now())  # grants the first
        tasks[0].cancel()
        await settle()

        assert left == [(1, start)]  # with the only token
        assert throttle.in_flight == 1
        await give_up(tasks)


MOMENTS = st.integers(0, 40).map(lambda tenths: tenths / 10)


@given(
    limit=st.integers(1, 4),
    rate=st.sampled_from([1.0, 3.0, math.inf]),
    requests=st.lists(
        st.fixed_dictionaries(
            {
                "begin": MOMENTS,
                "hold": MOMENTS,
                "cancel": st.none() | MOMENTS,
                "poll": st.booleans(),
                "answer": st.sampled_from(["answered", "none"]),
            }
        ),
        max_size=25,
    ),
    pauses=st.lists(st.tuples(MOMENTS, MOMENTS), max_size=3),
    outage=st.none() | MOMENTS,
)
def test_whatever_is_cancelled_slots_and_tokens_come_back_and_nobody_starves(
    limit, rate, requests, pauses, outage
):
    async def main():
        loop = asyncio.get_running_loop()
        throttle = Throttle(limit, rate)
        start = now()
        served, stopped, begun = set(), set(), []

        def pause(seconds):
            begun.append((now(), seconds))
            throttle.pause(now(), seconds)

        async def request(n, begin, hold, cancel, poll, answer):
            await asyncio.sleep(begin)
            try:
                await throttle.acquire(poll=poll)
            except PollsStopped:
                stopped.add(n)
                return
            try:
                assert throttle.in_flight <= limit
                assert not any(begin < now() < begin + seconds for begin, seconds in begun)
                served.add(n)
                await asyncio.sleep(hold)
                if answer == "answered":
                    throttle.answered(now())
            finally:
                throttle.release(now())

        tasks = [loop.create_task(request(n, **each)) for n, each in enumerate(requests)]
        for task, each in zip(tasks, requests, strict=True):
            if each["cancel"] is not None:
                loop.call_at(start + each["cancel"], task.cancel)
        for when, seconds in pauses:
            loop.call_at(start + when, pause, seconds)
        if outage is not None:
            loop.call_at(start + outage, throttle.stop_polls)
        results = await asyncio.gather(*tasks, return_exceptions=True)

        for n, (result, each) in enumerate(zip(results, requests, strict=True)):
            assert result is None or (
                each["cancel"] is not None and type(result) is asyncio.CancelledError
            )
            if each["cancel"] is None:
                assert (n in served) != (n in stopped)
        assert throttle.in_flight == 0
        await asyncio.sleep(10)
        # What was taken has come back: after a while as many may leave as ever, at the rate.
        throttle.answered(now())
        await asyncio.sleep(60)
        before = now()
        for _ in range(limit):
            await throttle.acquire(poll=True)
        assert now() - before == pytest.approx((limit - 1) / rate)

    run(main())


def test_the_fake_clock_is_what_these_tests_run_by():
    async def main():
        await asyncio.sleep(1e6)
        return isinstance(asyncio.get_running_loop(), FakeClockLoop)

    assert run(main())


async def test_a_429_of_one_id_alone_pauses_nobody_else():
    throttle = Throttle(64, None)
    for _ in range(3):
        start = max(now(), throttle.paused_until) + 1
        await asyncio.sleep(start - now())
        for n in range(10):
            throttle.answered(now(), now(), f"good {n}")
        await asyncio.sleep(1)
        throttle.rejected(now(), now(), 5.0, "bad")

    assert throttle.paused_until < now()
