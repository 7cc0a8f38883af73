from __future__ import annotations

import asyncio
import json
import random
from unittest import mock

import pytest
import tenacity
from fakes import body, now, refused, response, status
from hypothesis import given
from hypothesis import strategies as st

from xai_tasks import PollPolicy, TaskStatus, wait_adaptive
from xai_tasks._polling.entries import NEVER, Entry, PolicyGroup, PollState, Subscriber
from xai_tasks._polling.packed import BulkSubscriber

pytestmark = pytest.mark.fake_clock


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


class Waiter(Subscriber):
    def on_end(self, task_id, task, error):
        pass


def make(task_id="a", **policy):
    return Entry(task_id, PolicyGroup(PollPolicy(**policy)), 1000.0)


class TestSubscriber:
    def test_gives_up_when_its_time_has_run_out(self):
        waiter = Waiter(1000.0, 60)

        assert (waiter.timeout, waiter.deadline) == (60, 1060.0)

    def test_without_a_timeout_never_gives_up(self):
        assert Waiter(1000.0, None).deadline == NEVER

    def test_need_not_listen_to_single_polls(self):
        assert Waiter(1000.0, None).on_poll(None) is None


class TestSubscribers:
    def test_there_are_none_at_first_and_nothing_to_wait_for(self):
        entry = make()

        assert entry.all() == []
        assert entry.subscribers is None

    @pytest.mark.parametrize("number", [1, 2, 5])
    def test_come_and_go_in_any_number(self, number):
        entry = make()
        waiters = [Waiter(1000.0, 10 + n) for n in range(number)]

        for waiter in waiters:
            entry.add(waiter)
        assert entry.all() == waiters

        for gone, waiter in enumerate(waiters, 1):
            entry.remove(waiter)
            entry.remove(waiter)
            assert entry.all() == waiters[gone:]
        assert entry.subscribers is None

    def test_one_alone_costs_no_dict(self):
        entry = make()

        entry.add(waiter := Waiter(1000.0, 10))

        assert entry.subscribers is waiter

    def test_a_stranger_who_leaves_takes_nobody_along(self):
        entry = make()
        entry.add(waiter := Waiter(1000.0, 10))

        entry.remove(Waiter(1000.0, 10))

        assert entry.all() == [waiter]

    def test_a_list_of_them_is_the_callers_own(self):
        entry = make()
        for _ in range(2):
            entry.add(Waiter(1000.0, None))

        entry.all().clear()

        assert len(entry.all()) == 2


class TestEntry:
    def test_the_last_answer_is_decoded_when_it_is_asked_for(self):
        entry = make()
        assert entry.last is None

        entry.keep(body("a", "processing"))

        assert entry.last.status is TaskStatus.PROCESSING

    @given(task_id=TEXT.filter(bool), more=TEXT, ascii_only=st.booleans())
    def test_the_last_answer_is_the_one_that_came(self, task_id, more, ascii_only):
        raw = {"taskId": task_id, "status": "pending", "more": [more, task_id + more]}
        entry = make(task_id)

        entry.keep(json.dumps(raw, ensure_ascii=ascii_only).encode())

        assert entry.last.raw == raw

    def test_an_answer_is_kept_without_its_id(self):
        long = "a" * 100
        entry = make(long)

        entry.keep(body(long, "processing"))

        assert len(entry.kept) < 100
        assert entry.last.task_id == long

    async def test_records_the_last_error_and_since_when_requests_fail(self):
        entry = make()
        first, second = refused("a"), refused("a")
        start = now()

        entry.on_error(first)
        assert (entry.error, entry.failures.since) == (first, start)
        await asyncio.sleep(10)
        entry.on_error(second)
        assert (entry.error, entry.failures.since) == (second, start)
        entry.on_answer()
        assert (entry.error, entry.failures.since) == (second, None)
        entry.on_error(first)

        assert (entry.error, entry.failures.since) == (first, start + 10)

    @pytest.mark.parametrize("fault", [status(429), status(404)])
    async def test_a_429_and_a_404_do_not_count_as_failing(self, fault):
        entry = make()
        error = fault("a")

        entry.on_error(error)

        assert (entry.error, entry.failures.since) == (error, None)

    async def test_records_since_when_it_is_answered_404(self):
        entry = make()
        start = now()

        entry.on_error(status(404)("a"))
        await asyncio.sleep(10)
        entry.on_error(refused("a"))
        entry.on_error(status(404)("a"))

        assert entry.failures.not_found_since == start
        entry.on_answer()
        assert entry.failures.not_found_since is None

    def test_a_good_answer_with_no_failure_before_it_records_nothing(self):
        entry = make()

        entry.on_answer()

        assert entry.failures is None


class TestPollState:
    def test_tells_a_strategy_what_tenacity_would(self):
        entry = make()
        entry.polls = 3
        answer = response("a", "pending", server_time=1.7e9)

        state = PollState(entry, 1007.5, answer, 5.0)

        assert state.attempt_number == 3
        assert state.seconds_since_start == 7.5
        assert state.idle_for == 7.5
        assert state.upcoming_sleep == 5.0
        assert state.args == ("a",)
        assert not state.outcome.failed
        assert state.outcome.attempt_number == 3
        assert state.outcome.result() is answer.task
        assert state.server_time == 1.7e9
        assert state.retry_object is entry.group.tenacity

    def test_of_a_failed_poll_holds_its_error(self):
        error = refused("a")

        state = PollState(make(), 1001.0, error, 0.0)

        assert state.outcome.failed
        assert state.outcome.exception() is error
        assert state.outcome is state.outcome
        assert state.found is None
        assert state.server_time is None

    @pytest.mark.parametrize(
        ("answer", "seconds"),
        [(response("a", "pending"), 1), (refused("a"), 2)],
        ids=["good", "failed"],
    )
    def test_serves_strategies_that_ask_for_the_outcome(self, answer, seconds):
        entry = make()
        entry.polls = 1

        def strategy(state):  # what tenacity.wait_exception does, from 9.1.3 on
            return 2 if state.outcome.exception() else 1

        assert strategy(PollState(entry, 1001.0, answer, 0.0)) == seconds


class TestPolicyGroup:
    def test_finds_the_strategies_that_learn_inside_sums_and_chains(self):
        one, two, three = (wait_adaptive() for _ in range(3))
        chain = tenacity.wait_chain(tenacity.wait_fixed(1), two + tenacity.wait_random(0, 1), three)

        assert PolicyGroup(PollPolicy(wait=one)).learners == [one]
        assert PolicyGroup(PollPolicy(wait=tenacity.wait_fixed(1) + chain)).learners == [two, three]
        assert PolicyGroup(PollPolicy(wait=tenacity.wait_fixed(1))).learners == []

    @pytest.mark.parametrize("answer", [response("a", "pending"), refused("a")])
    def test_asks_the_default_strategy_what_tenacity_would(self, answer):
        entry = make()
        entry.polls = 3
        group = PolicyGroup(PollPolicy(wait=wait_adaptive()))
        state = PollState(entry, 1007.5, answer, 5.0)

        random.seed(1)
        seconds = group.next_wait(entry, answer, 1007.5, 5.0)

        random.seed(1)
        assert seconds == wait_adaptive()(state)

    def test_calls_a_subclass_of_the_default_strategy(self):
        class Twice(wait_adaptive):
            def __call__(self, retry_state):
                return 2 * retry_state.upcoming_sleep

        group = PolicyGroup(PollPolicy(wait=Twice()))

        assert group.next_wait(make(), response("a", "pending"), 1007.5, 5.0) == 10.0


class TestFind:
    """An id may stand in a stream a hundred thousand times: each is found without a search."""

    @pytest.mark.parametrize("count", [1, 3])
    def test_one_id_of_a_stream_among_others(self, count):
        entry, owner = make(), mock.Mock(timeout=60.0)
        subscribers = [BulkSubscriber(entry, owner, index, 0.0) for index in range(count)]
        for subscriber in subscribers:
            entry.add(subscriber)

        assert [entry.find((owner, index)) for index in range(count)] == subscribers
        assert entry.find((owner, count)) is None
        assert entry.find((mock.Mock(), 0)) is None

        for subscriber in subscribers:
            entry.remove(subscriber)
        assert entry.find((owner, 0)) is None

    def test_a_single_wait_by_itself(self):
        entry, waiter = make(), Waiter(1000.0, 60)
        entry.add(waiter)

        assert entry.find(waiter) is waiter
