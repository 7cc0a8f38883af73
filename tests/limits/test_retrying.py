from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import math
import weakref
from datetime import timedelta

import pytest
import tenacity
from attrs import define
from fakes import (
    FakeTransport,
    assert_nothing_runs,
    later,
    malformed,
    now,
    refused,
    response,
    says,
    settle,
    stalled,
    status,
)

from xai_tasks import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ClientClosedError,
    ConfigurationError,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    RateLimitError,
    RetryPolicy,
    ServerError,
)
from xai_tasks._http.credentials import Credentials
from xai_tasks._http.hints import Quota
from xai_tasks._limits.outage import Outage
from xai_tasks._limits.retrying import Counters, RetryingFetcher
from xai_tasks._limits.throttle import Throttle

pytestmark = pytest.mark.fake_clock


@define
class Parts:
    transport: FakeTransport
    throttle: Throttle
    outage: Outage
    counters: Counters
    retrying: RetryingFetcher

    async def fetch(self, task_id="a", **kwargs):
        return await self.retrying.fetch(task_id, **kwargs)


def make(*faults, key="test-key", latency=0.0, rate_limit=math.inf, max_concurrency=1000, **policy):
    """Put the parts together over a server whose first answers are
    `faults` and whose others are good.
    """
    transport = FakeTransport(latency)
    transport.default = "pending"
    transport.fault(None, *faults)
    throttle = Throttle(max_concurrency, rate_limit, policy.get("max_retry_after", 60))
    outage, counters = Outage(), Counters()
    policy.setdefault("wait", tenacity.wait_fixed(1))
    retrying = RetryingFetcher(
        transport, throttle, outage, Credentials(key), RetryPolicy(**policy), counters
    )
    return Parts(transport, throttle, outage, counters, retrying)


class Poll:
    """What a poll's requests report to."""

    def __init__(self):
        self.errors = []
        self.sent = 0

    def on_send(self, now):
        self.sent += 1

    def on_error(self, error):
        self.errors.append(error)


def waits(parts):
    """Return the seconds from each request to the next."""
    return [
        pytest.approx(after - before)
        for before, after in itertools.pairwise(parts.transport.times())
    ]


async def test_a_good_answer_takes_one_request():
    parts = make()

    answer = await parts.fetch()

    assert answer.task == response("a", "pending").task
    assert parts.counters == Counters(requests=1)


class TestWhatIsRetried:
    @pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
    async def test_statuses(self, code):
        parts = make(status(code))

        await parts.fetch()

        assert parts.transport.count() == 2

    @pytest.mark.parametrize(
        "fault", [refused, malformed, lambda task_id: APITimeoutError("slow", task_id=task_id)]
    )
    async def test_connection_faults_timeouts_and_malformed_answers(self, fault):
        parts = make(fault, statuses=())

        await parts.fetch()

        assert parts.transport.count() == 2

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            (400, BadRequestError),
            (401, AuthenticationError),
            (402, PaymentRequiredError),
            (403, PermissionDeniedError),
            (404, NotFoundError),
            (409, APIStatusError),
            (422, BadRequestError),
            (302, APIStatusError),
            (501, ServerError),
        ],
    )
    async def test_no_other_statuses(self, code, error):
        parts = make(status(code))

        with pytest.raises(error) as caught:
            await parts.fetch()

        assert caught.value.status_code == code
        assert parts.transport.count() == 1
        assert parts.throttle.in_flight == 0

    async def test_just_the_statuses_that_the_policy_names(self):
        parts = make(status(409), status(503), statuses={409})

        with pytest.raises(ServerError):
            await parts.fetch()

        assert parts.transport.count() == 2

    async def test_what_is_no_fault_of_the_api_ends_the_look(self):
        def broken(task_id):
            return LookupError("a bug")

        parts = make(broken)

        with pytest.raises(LookupError):
            await parts.fetch()

        assert parts.throttle.in_flight == 0


class TestWait:
    def test_by_default_is_full_jitter_from_half_a_second_doubling_to_eight(self):
        policy = RetryPolicy()
        state = tenacity.RetryCallState(None, None, (), {})

        for number, bound in enumerate([0.5, 1, 2, 4, 8, 8, 8], 1):
            state.attempt_number = number
            drawn = [policy.wait(state) for _ in range(500)]
            assert 0 <= min(drawn) < 0.1 * bound
            assert 0.9 * bound < max(drawn) <= bound

    @pytest.mark.parametrize(
        ("wait", "seconds"),
        [
            (tenacity.wait_fixed(3), [3, 3, 3]),
            (tenacity.wait_fixed(timedelta(seconds=3)), [3, 3, 3]),
            (tenacity.wait_none(), [0, 0, 0]),
            (tenacity.wait_incrementing(1, 2), [1, 3, 5]),
            (tenacity.wait_exponential(multiplier=1), [1, 2, 4]),
            (tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(7)), [1, 7, 7]),
            (tenacity.wait_exponential() + tenacity.wait_fixed(10), [11, 12, 14]),
            (lambda state: state.outcome.exception().status_code / 100, [5, 5.02, 5.03]),
            (lambda state: state.attempt_number * 10, [10, 20, 30]),
            (lambda state: -1, [0, 0, 0]),
        ],
    )
    async def test_takes_any_strategy_of_tenacitys(self, wait, seconds):
        parts = make(status(500), status(502), status(503), wait=wait)

        await parts.fetch()

        assert waits(parts) == seconds

    async def test_a_strategy_sees_how_long_it_has_gone_on(self):
        seen = []

        def wait(state):
            seen.append(
                (state.attempt_number, state.seconds_since_start, state.idle_for, state.args)
            )
            return 2

        parts = make(refused, refused, refused, latency=0.5, wait=wait)

        await parts.fetch()

        assert seen == [(1, 0.5, 0, ("a",)), (2, 3.0, 2, ("a",)), (3, 5.5, 4, ("a",))]

    async def test_a_strategy_that_raises_ends_the_look_with_its_error(self):
        def wait(state):
            raise LookupError("a bug in the strategy")

        parts = make(refused, wait=wait)

        with pytest.raises(LookupError, match="a bug in the strategy"):
            await parts.fetch()

        assert parts.throttle.in_flight == 0

    @pytest.mark.parametrize("seconds", [math.nan, math.inf])
    @pytest.mark.parametrize("code", [429, 500])
    async def test_a_strategy_that_gives_no_finite_number_ends_the_look_and_spoils_no_other(
        self, seconds, code
    ):
        parts = make(status(code), wait=lambda state: seconds, rate_limit=10)

        with pytest.raises(
            ValueError, match=f"wait strategy of the retry policy gave {seconds} seconds"
        ):
            await parts.fetch()

        assert parts.throttle.in_flight == 0
        for _ in range(20):
            await parts.fetch()


class TestStop:
    async def test_by_default_is_after_four_attempts(self):
        parts = make(*[status(500)] * 10)

        with pytest.raises(ServerError):
            await parts.fetch()

        assert parts.transport.count() == 4
        assert parts.counters == Counters(requests=4, retries=3)

    @pytest.mark.parametrize(
        ("stop", "count"),
        [
            (tenacity.stop_after_attempt(1), 1),
            (tenacity.stop_after_attempt(7), 7),
            (tenacity.stop_after_delay(5), 6),
            (tenacity.stop_before_delay(5), 5),
            (tenacity.stop_after_attempt(3) | tenacity.stop_after_delay(100), 3),
            (tenacity.stop_all(tenacity.stop_after_attempt(3), tenacity.stop_after_delay(8)), 9),
            (lambda state: state.attempt_number == 2, 2),
        ],
    )
    async def test_takes_any_strategy_of_tenacitys(self, stop, count):
        parts = make(*[status(500)] * 20, stop=stop)

        with pytest.raises(ServerError):
            await parts.fetch()

        assert parts.transport.count() == count

    async def test_never_is_possible(self):
        parts = make(*[status(500)] * 90, stop=tenacity.stop_never)

        await parts.fetch()

        assert parts.transport.count() == 91

    async def test_a_strategy_that_raises_ends_the_look_with_its_error(self):
        def stop(state):
            raise LookupError("a bug in the strategy")

        parts = make(refused, stop=stop)

        with pytest.raises(LookupError, match="a bug in the strategy"):
            await parts.fetch()

    async def test_looks_at_the_same_time_count_their_own_attempts(self):
        parts = make(latency=0.3)
        for task_id in "abc":
            parts.transport.fault(task_id, *[status(500)] * 10)

        errors = await asyncio.gather(
            *(later(n / 10, parts.fetch, task_id) for n, task_id in enumerate("abc")),
            return_exceptions=True,
        )
        errors = await asyncio.gather(*errors, return_exceptions=True)

        assert [type(error) for error in errors] == [ServerError] * 3
        assert [parts.transport.count(task_id) for task_id in "abc"] == [4, 4, 4]

    async def test_the_error_raised_is_the_last_attempts(self):
        parts = make(refused, malformed, status(500), status(502))

        with pytest.raises(APIStatusError) as caught:
            await parts.fetch()

        assert caught.value.status_code == 502
        assert caught.value.task_id == "a"
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None

    async def test_the_error_raised_is_freed_without_the_garbage_collector(self):
        parts = make(*[refused] * 4)
        gc.collect()
        gc.disable()
        try:
            try:
                await parts.fetch()
            except APIConnectionError as error:
                gone = weakref.ref(error)
            parts.transport.requests.clear()
            assert gone() is None
        finally:
            gc.enable()


class TestRetryAfter:
    @pytest.mark.parametrize("code", [429, 503, 500, 408])
    async def test_beats_wait(self, code):
        parts = make(status(code, retry_after=17))

        await parts.fetch()

        assert waits(parts) == [17]

    @pytest.mark.parametrize("code", [429, 503, 500])
    async def test_longer_than_max_retry_after_fails_now(self, code):
        parts = make(status(code, retry_after=61))
        start = now()

        with pytest.raises(APIStatusError) as caught:
            await parts.fetch()

        assert caught.value.retry_after == 61
        assert now() == start
        assert parts.transport.count() == 1

    async def test_of_just_max_retry_after_is_waited_for(self):
        parts = make(status(429, retry_after=5), max_retry_after=5)

        await parts.fetch()

        assert waits(parts) == [5]


class TestPause:
    @pytest.mark.parametrize("fault", [status(429, retry_after=20), status(503, retry_after=20)])
    async def test_a_429_or_a_503_with_retry_after_pauses_the_whole_client(self, fault):
        parts = make()
        parts.transport.fault("a", fault)
        start = now()

        await asyncio.gather(parts.fetch("a"), later(1, lambda: None))
        await asyncio.gather(parts.fetch("b"), parts.fetch("c", poll=Poll()))

        assert parts.transport.times("b") == [pytest.approx(start + 20)]
        assert parts.transport.times("a")[1] == pytest.approx(start + 20)

    @pytest.mark.parametrize(
        "fault", [status(503), status(500, retry_after=20), status(408, retry_after=20), refused]
    )
    async def test_other_faults_concern_one_look_alone(self, fault):
        parts = make()
        parts.transport.fault("a", fault)
        start = now()

        first = asyncio.ensure_future(parts.fetch("a"))
        await settle()
        await parts.fetch("b")
        await first

        assert parts.transport.times("b") == [start]

    async def test_others_are_held_while_the_first_sleeps(self):
        parts = make(status(429, retry_after=20))
        start = now()

        first = asyncio.ensure_future(parts.fetch("a"))
        await settle()
        await asyncio.gather(parts.fetch("b"), parts.fetch("c", poll=Poll()), first)

        assert min(parts.transport.times()[1:]) == pytest.approx(start + 20)

    async def test_many_429s_make_one_pause(self):
        parts = make(latency=0.1)
        parts.transport.fault(None, *[status(429, retry_after=5)] * 50)
        start = now()

        await asyncio.gather(*(parts.fetch(f"task-{n}") for n in range(50)))

        times = parts.transport.times()
        assert times[:50] == [start] * 50
        assert start + 5.1 == pytest.approx(times[50])
        assert parts.counters.rate_limited == 50

    async def test_a_429_without_retry_after_pauses_for_what_wait_says(self):
        parts = make(status(429), wait=tenacity.wait_fixed(7))
        start = now()

        first = asyncio.ensure_future(parts.fetch("a"))
        await settle()
        await parts.fetch("b")
        await first

        assert parts.transport.times("b") == [pytest.approx(start + 7)]

    @pytest.mark.parametrize("code", [429, 503])
    @pytest.mark.parametrize(("asked", "kept"), [(1800, 1800), (90_000, 3600)])
    async def test_is_kept_in_full_by_polls_up_to_an_hour(self, code, asked, kept):
        parts = make(status(code, retry_after=asked), max_retry_after=30)
        start = now()

        with pytest.raises(APIStatusError):
            await parts.fetch("a", poll=Poll())
        await parts.fetch("b", poll=Poll())

        assert parts.transport.times("b") == [pytest.approx(start + kept)]

    async def test_longer_than_max_retry_after_fails_each_get_now(self):
        parts = make(
            status(429, retry_after=31),
            max_retry_after=30,
            max_concurrency=1,
            latency=1.0,
            stop=tenacity.stop_after_attempt(1),
        )
        start = now()

        first = asyncio.ensure_future(parts.fetch("a"))
        waiting = asyncio.ensure_future(parts.fetch("b"))
        results = await asyncio.gather(first, waiting, return_exceptions=True)
        with pytest.raises(RateLimitError, match="'c'"):
            await parts.fetch("c")

        assert [type(result) for result in results] == [RateLimitError] * 2
        assert [result.task_id for result in results] == ["a", "b"]
        assert now() == start + 1
        assert parts.transport.count() == 1

    async def test_that_becomes_too_long_between_attempts_fails_with_the_last_error(self):
        parts = make(status(500), max_retry_after=30, wait=tenacity.wait_fixed(5))
        fetch = asyncio.ensure_future(parts.fetch("a"))
        await asyncio.sleep(1)

        parts.throttle.pause(now(), 1000)

        with pytest.raises(ServerError):
            await fetch


class TestUnavailable:
    """A 503 without `Retry-After`."""

    async def test_between_good_answers_pauses_all(self):
        parts = make(
            rate_limit=None, wait=tenacity.wait_fixed(3), stop=tenacity.stop_after_attempt(1)
        )
        await parts.fetch("a")
        parts.transport.fault(None, status(503))

        with pytest.raises(ServerError):
            await parts.fetch("b")

        assert parts.throttle.paused_until == now() + 3


class TestQuotas:
    async def test_of_good_answers_and_of_errors_are_heeded(self):
        parts = make()
        answer = response("a", "pending")
        answer.quotas = (Quota("", 1, 10.0),)
        error = status(404)("b")
        error._quotas = (Quota("", 0, 7.0),)
        parts.transport.fault(None, lambda _: answer, lambda _: error)
        start = now()

        await parts.fetch("a")
        with pytest.raises(NotFoundError):
            await parts.fetch("b")
        await parts.fetch("c")

        assert parts.transport.times("c") == [pytest.approx(start + 7)]


class TestBudget:
    async def test_a_retry_takes_five_tokens_and_without_them_there_is_none(self):
        parts = make(*[status(500)] * 1000, budget=14)

        with pytest.raises(ServerError):
            await parts.fetch()
        with pytest.raises(ServerError):
            await parts.fetch()

        assert parts.counters == Counters(requests=4, retries=2)

    async def test_each_success_gives_one_back(self):
        parts = make(budget=5)
        parts.transport.fault("a", *[refused] * 100)

        with pytest.raises(APIConnectionError):
            await parts.fetch("a")
        assert parts.counters.retries == 1
        for _ in range(4):
            await parts.fetch("b")
        with pytest.raises(APIConnectionError):
            await parts.fetch("a")
        assert parts.counters.retries == 1
        await parts.fetch("b")
        with pytest.raises(APIConnectionError):
            await parts.fetch("a")
        assert parts.counters.retries == 2

    async def test_never_holds_more_than_it_began_with(self):
        parts = make(budget=5)
        for _ in range(100):
            await parts.fetch("b")
        parts.transport.fault("a", *[refused] * 4)

        with pytest.raises(APIConnectionError):
            await parts.fetch("a")

        assert parts.counters.retries == 1

    async def test_those_who_sleep_at_the_same_time_do_not_spend_the_same_tokens(self):
        parts = make(*[status(500)] * 1000, budget=50)

        await asyncio.gather(
            *(parts.fetch(f"task-{n}") for n in range(100)), return_exceptions=True
        )

        assert parts.counters.retries == 10

    async def test_a_retry_given_up_in_its_sleep_costs_nothing(self):
        parts = make(*[status(500)] * 1000, budget=50, wait=tenacity.wait_fixed(100))
        looks = [asyncio.ensure_future(parts.fetch(f"task-{n}")) for n in range(10)]
        await asyncio.sleep(1)

        for each in looks:
            each.cancel()
        await asyncio.wait(looks)
        await asyncio.gather(
            *(parts.fetch(f"task-{n}") for n in range(100)), return_exceptions=True
        )

        assert parts.counters.retries == 10

    async def test_of_zero_means_no_retries(self):
        parts = make(status(500), budget=0)

        with pytest.raises(ServerError):
            await parts.fetch()

        assert parts.counters == Counters(requests=1)

    async def test_by_default_is_enough_for_a_hundred_retries(self):
        parts = make(*[status(500)] * 1000)

        await asyncio.gather(
            *(parts.fetch(f"task-{n}") for n in range(200)), return_exceptions=True
        )

        assert parts.counters.retries == 100


class Key:
    """A source of keys that counts its calls; `good` is the number of the
    first key that the server takes.
    """

    def __init__(self, transport=None, good=1, seconds=0.0):
        self.calls = 0
        self.good = good
        self.seconds = seconds
        self.transport = transport

    async def __call__(self):
        await asyncio.sleep(self.seconds)
        self.calls += 1
        return f"key-{self.calls}"

    def weather(self, task_id):
        return status(401) if self.calls < self.good else None


class TestKeys:
    async def test_a_function_is_called_when_the_key_is_first_needed_and_its_answer_kept(self):
        key = Key()
        parts = make(key=key)
        assert key.calls == 0

        await asyncio.gather(*(parts.fetch(f"task-{n}") for n in range(10)))
        await parts.fetch()

        assert key.calls == 1

    async def test_a_401_has_it_called_again_and_the_request_repeated_once(self):
        key = Key(good=2)
        parts = make(key=key)
        parts.transport.weather = key.weather

        await parts.fetch()

        assert key.calls == 2
        assert parts.counters == Counters(requests=2, retries=1)

    async def test_a_second_401_ends_the_look(self):
        key = Key(good=9)
        parts = make(key=key)
        parts.transport.weather = key.weather

        with pytest.raises(AuthenticationError):
            await parts.fetch()

        assert key.calls == 2
        assert parts.transport.count() == 2

    async def test_401s_at_the_same_time_share_one_call(self):
        key = Key(good=2, seconds=3)
        parts = make(key=key, latency=0.1)
        parts.transport.weather = key.weather

        await asyncio.gather(*(parts.fetch(f"task-{n}") for n in range(50)))

        assert key.calls == 2
        assert parts.transport.count() == 100

    async def test_a_key_that_is_a_string_is_refused_once(self):
        parts = make(status(401))

        with pytest.raises(AuthenticationError):
            await parts.fetch()

        assert parts.transport.count() == 1

    async def test_a_401_after_passing_faults_still_has_the_key_renewed(self):
        key = Key()
        parts = make(status(503), status(401), status(503), key=key)

        await parts.fetch()

        assert key.calls == 2
        assert parts.transport.count() == 4

    async def test_what_the_function_raises_ends_the_look(self):
        def key():
            raise LookupError("no key today")

        parts = make(key=key)

        with pytest.raises(LookupError, match="no key today"):
            await parts.fetch()

        assert parts.transport.count() == 0

    @pytest.mark.parametrize("junk", ["", "line\nbreak", None, "schlüssel"])
    async def test_a_key_that_cannot_be_one_is_a_configuration_error(self, junk):
        parts = make(key=lambda: junk)

        with pytest.raises(ConfigurationError, match="the key that the function api_key gave"):
            await parts.fetch()

    async def test_no_slot_is_held_while_the_function_works(self):
        key = Key(good=2, seconds=100)
        parts = make(key=key, max_concurrency=1)
        parts.transport.fault("a", status(401))
        await parts.fetch("b")
        start = now()

        first = asyncio.ensure_future(parts.fetch("a"))
        await asyncio.sleep(1)
        await parts.fetch("b")
        assert now() == start + 1
        await first


def fail_ids(parts, number):
    return asyncio.gather(
        *(parts.fetch(f"task-{n}") for n in range(number)), return_exceptions=True
    )


class TestOutage:
    async def test_begins_when_ten_ids_have_failed_in_a_row(self):
        parts = make(*[refused] * 10, stop=tenacity.stop_after_attempt(1))

        for n in range(10):
            assert parts.outage.since is None
            with pytest.raises(APIConnectionError):
                await parts.fetch(f"task-{n}")

        assert parts.outage.since == now()

    async def test_one_id_that_always_fails_is_none(self):
        parts = make(*[status(500)] * 100, stop=tenacity.stop_after_attempt(100))

        with pytest.raises(ServerError):
            await parts.fetch()

        assert parts.outage.since is None

    @pytest.mark.parametrize(
        "answer", [says("pending"), status(404), status(401), status(302), status(429), malformed]
    )
    async def test_an_answer_in_between_starts_the_count_again(self, answer):
        parts = make(*[refused] * 9, answer, *[refused] * 9, stop=tenacity.stop_after_attempt(1))

        await fail_ids(parts, 19)

        assert parts.outage.since is None

    @pytest.mark.parametrize("answer", [says("pending"), status(404), status(429), malformed])
    async def test_ends_with_any_answer(self, answer):
        parts = make(*[refused] * 10, answer, stop=tenacity.stop_after_attempt(1))
        await fail_ids(parts, 10)
        assert parts.outage.since is not None

        await asyncio.gather(parts.fetch(poll=Poll()), return_exceptions=True)

        assert parts.outage.since is None

    async def test_a_poll_is_not_retried_in_it(self):
        parts = make(*[refused] * 20, stop=tenacity.stop_after_attempt(9))
        polls = [Poll() for _ in range(10)]

        errors = await asyncio.gather(
            *(parts.fetch(f"task-{n}", poll=poll) for n, poll in enumerate(polls)),
            return_exceptions=True,
        )

        assert [type(error) for error in errors] == [APIConnectionError] * 10
        assert sum(poll.sent for poll in polls) < 20
        assert parts.outage.since is not None

    async def test_a_poll_whose_retry_is_held_back_when_it_begins_fails(self):
        parts = make(refused, stalled, max_concurrency=1, stop=tenacity.stop_after_attempt(9))
        poll = Poll()
        task = asyncio.ensure_future(parts.fetch("a", poll=poll))
        await asyncio.sleep(0.5)
        other = asyncio.ensure_future(parts.fetch("b"))
        await asyncio.sleep(1)  # "b" has the only place, the retry of "a" waits for it

        parts.outage.since = now()
        parts.throttle.stop_polls()

        with pytest.raises(APIConnectionError):
            await task
        assert poll.sent == 1
        other.cancel()
        await asyncio.wait([other])

    async def test_a_get_is_retried_in_it_as_ever(self):
        parts = make(*[refused] * 13, stop=tenacity.stop_after_attempt(14))
        start = now()
        parts.outage.since = start

        await parts.fetch()

        assert [time - start for time in parts.transport.times()] == pytest.approx(range(14))


async def test_on_error_is_told_of_each_failed_attempt():
    parts = make(refused, status(500), malformed)
    poll = Poll()

    await parts.fetch(poll=poll)

    assert poll.sent == 4
    assert [type(error) for error in poll.errors] == [
        APIConnectionError,
        ServerError,
        APIResponseValidationError,
    ]


async def test_cancelled_in_flight_it_leaves_nothing():
    parts = make(stalled)
    task = asyncio.ensure_future(parts.fetch())
    await asyncio.sleep(1)

    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    assert parts.throttle.in_flight == 0
    await assert_nothing_runs()


async def test_cancelled_between_attempts_it_leaves_nothing():
    parts = make(refused, wait=tenacity.wait_fixed(60))
    task = asyncio.ensure_future(parts.fetch())
    await asyncio.sleep(1)

    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    await assert_nothing_runs()
    assert asyncio.get_running_loop().timers_left() == []


class TestClose:
    async def test_ends_the_sleep_between_attempts_with_client_closed_error(self):
        parts = make(*[refused] * 9, wait=tenacity.wait_fixed(60))
        start = now()
        looks = [asyncio.ensure_future(parts.fetch(f"task-{n}")) for n in range(3)]
        await asyncio.sleep(1)

        parts.throttle.close()
        parts.retrying.close()
        parts.retrying.close()
        errors = await asyncio.gather(*looks, return_exceptions=True)

        assert [type(error) for error in errors] == [ClientClosedError] * 3
        assert now() == start + 1

    async def test_has_nobody_begin_to_sleep(self):
        parts = make(refused, latency=5, wait=tenacity.wait_fixed(60))
        start = now()
        task = asyncio.ensure_future(parts.fetch())
        await asyncio.sleep(1)

        parts.throttle.close()
        parts.retrying.close()

        with pytest.raises(ClientClosedError):
            await task
        assert now() == start + 5


class TestLog:
    async def test_each_retry_is_told_at_level_info(self, caplog):
        caplog.set_level(logging.INFO, "xai_tasks")
        parts = make(refused, status(500, retry_after=2.5))

        await parts.fetch()

        assert [(record.levelname, record.message) for record in caplog.records] == [
            ("INFO", "retrying in 1 s: task 'a': ConnectionRefusedError"),
            ("INFO", "retrying in 2.5 s: task 'a': HTTP 500"),
        ]
        assert [(r.task_id, r.attempt, r.seconds) for r in caplog.records] == [
            ("a", 1, 1),
            ("a", 2, 2.5),
        ]

    async def test_an_answer_for_another_id_is_warned_of_once(self, caplog):
        def other(task_id):
            return response("b\n", "pending")

        parts = make(other, other)

        assert (await parts.fetch()).task.task_id == "b\n"
        await parts.fetch()

        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert r"asked for task 'a', the server told of 'b\\n'" in record.message
        assert record.task_id == "a"

    async def test_each_unknown_status_is_warned_of_once(self, caplog):
        parts = make(*[says(word) for word in ("queued", "queued", "running", "queued")])

        for _ in range(4):
            await parts.fetch()

        assert [record.status for record in caplog.records] == ["queued", "running"]
        assert "'a' has the status 'queued'" in caplog.messages[0]

    async def test_a_server_that_makes_statuses_up_cannot_fill_the_log(self, caplog):
        parts = make(*[says(f"word-{n}") for n in range(50)])

        for _ in range(50):
            await parts.fetch()

        assert len(caplog.records) == 20
