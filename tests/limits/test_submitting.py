"""When a submission is made again, and when it is not; by the clock, without a socket."""

from __future__ import annotations

import asyncio
import itertools
import logging

import pytest
import tenacity
from fakes import (
    FakeTransport,
    assert_nothing_runs,
    client_over,
    later,
    now,
    settle,
    stalled,
    status,
)

from xai_tasks import (
    APIConnectionError,
    APIResponseValidationError,
    AuthenticationError,
    BadRequestError,
    ClientClosedError,
    ConfigurationError,
    ImageRequest,
    NotFoundError,
    PermissionDeniedError,
    PollPolicy,
    RateLimitError,
    RetryPolicy,
    SubmissionUncertainError,
    TaskClient,
    TaskFailedError,
    VideoRequest,
    WaitTimeoutError,
)
from xai_tasks._limits.submitting import _Submission

pytestmark = pytest.mark.fake_clock

CAT = VideoRequest("cat")


@pytest.fixture
def transport():
    return FakeTransport()


def make(transport, **options):
    policy = {
        name: options.pop(name)
        for name in ("stop", "wait", "max_retry_after", "budget")
        if name in options
    }
    policy.setdefault("wait", tenacity.wait_fixed(1))
    options.setdefault("poll", PollPolicy(wait=tenacity.wait_fixed(1)))
    return client_over(transport, retry=RetryPolicy(**policy), **options)


@pytest.fixture
async def client(transport):
    async with make(transport) as client:
        yield client
    await assert_nothing_runs()


def fault(code, retry_after=None):
    """Make a fault: an answer to a submission with an HTTP status other than 2xx."""
    return lambda request: status(code, retry_after)("")


def unreachable(request):
    return APIConnectionError("ConnectionRefusedError", task_id="")


def uncertain(request):
    return SubmissionUncertainError(request, APIConnectionError("reset", task_id=""))


def times(transport):
    return [sent.time - transport.submissions[0].time for sent in transport.submissions]


class TestSubmit:
    async def test_returns_the_id(self, client, transport):
        assert await client.submit(CAT) == "cat"
        assert client.stats.requests == 1

    @pytest.mark.parametrize("request_", ["a cat", None, {"prompt": "a cat"}, VideoRequest])
    async def test_refuses_other_types(self, client, transport, request_):
        for call in (client.submit, client.run):
            with pytest.raises(TypeError, match="an ImageRequest or a VideoRequest"):
                await call(request_)
        assert transport.submissions == []

    async def test_retries_what_was_not_sent(self, client, transport):
        transport.fault("POST", unreachable, unreachable)

        assert await client.submit(CAT) == "cat"
        assert times(transport) == pytest.approx([0, 1, 2])
        assert client.stats.retries == 2

    async def test_gives_up_as_the_policy_says(self, client, transport):
        transport.fault("POST", *[unreachable] * 9)

        with pytest.raises(APIConnectionError):
            await client.submit(CAT)
        assert len(transport.submissions) == 4

    async def test_strategies_see_their_state(self, transport):
        states = []

        def wait(state):
            states.append((state.attempt_number, type(state.outcome.exception())))
            return 2.0 * state.attempt_number

        transport.fault("POST", unreachable, unreachable, fault(429))
        async with make(transport, wait=wait, stop=tenacity.stop_before_delay(9)) as client:
            with pytest.raises(RateLimitError):
                await client.submit(CAT)

        assert states == [(1, APIConnectionError), (2, APIConnectionError), (3, RateLimitError)]
        assert times(transport) == pytest.approx([0, 2, 6])

    async def test_waits_as_long_as_the_server_asks(self, client, transport):
        transport.fault("POST", fault(429, 7))

        assert await client.submit(CAT) == "cat"
        assert times(transport) == pytest.approx([0, 7.1])
        assert client.stats.rate_limited == 1

    async def test_fails_now_if_the_server_asks_for_too_long(self, transport):
        transport.fault("POST", fault(429, 61))
        async with make(transport) as client:
            with pytest.raises(RateLimitError):
                await client.submit(CAT)
        assert len(transport.submissions) == 1

    async def test_status_in_submit_retry_statuses_is_retried(self, transport):
        transport.fault("POST", fault(503), fault(429))
        async with make(transport, submit_retry_statuses={429, 503}) as client:
            assert await client.submit(CAT) == "cat"

    async def test_429_can_be_left_out(self, transport):
        transport.fault("POST", fault(429))
        async with make(transport, submit_retry_statuses=()) as client:
            with pytest.raises(RateLimitError):
                await client.submit(CAT)

    @pytest.mark.parametrize("code", [408, 500, 502, 503, 504])
    async def test_unclear_status_is_uncertain(self, client, transport, code):
        transport.fault("POST", fault(code))

        with pytest.raises(SubmissionUncertainError) as caught:
            await client.submit(CAT)
        assert caught.value.request == CAT
        assert caught.value.cause.status_code == code
        assert len(transport.submissions) == 1

    async def test_uncertain_is_never_retried(self, client, transport):
        transport.fault("POST", uncertain)

        with pytest.raises(SubmissionUncertainError):
            await client.submit(CAT)
        assert len(transport.submissions) == 1

    @pytest.mark.parametrize(
        ("code", "error"),
        [(400, BadRequestError), (403, PermissionDeniedError), (404, NotFoundError)],
    )
    async def test_refusal_is_raised_at_once(self, client, transport, code, error):
        transport.fault("POST", fault(code))

        with pytest.raises(error):
            await client.submit(CAT)
        assert len(transport.submissions) == 1

    async def test_retries_share_the_budget(self, transport):
        transport.fault("POST", *[unreachable] * 9)
        async with make(transport, budget=9) as client:
            with pytest.raises(APIConnectionError):
                await client.submit(CAT)
        assert len(transport.submissions) == 2

    async def test_wait_strategy_must_be_finite(self, transport):
        transport.fault("POST", unreachable)
        async with make(transport, wait=lambda state: float("nan")) as client:
            with pytest.raises(ValueError, match="gave nan seconds"):
                await client.submit(CAT)


class TestOnSend:
    async def test_is_called_before_each_attempt(self, client, transport):
        transport.fault("POST", unreachable, fault(429))
        calls = []

        await client.submit(CAT, on_send=lambda: calls.append(len(transport.submissions)))

        assert calls == [2, 3]

    async def test_error_is_raised(self, client, transport):
        def full():
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            await client.submit(CAT, on_send=full)
        assert client.stats.requests == 1


class TestKey:
    async def test_401_renews_the_key_once(self, transport):
        keys = iter(["key-1", "key-2", "key-3"])
        transport.fault("POST", fault(401))
        async with make(transport, api_key=lambda: next(keys)) as client:
            assert await client.submit(CAT) == "cat"
        assert next(keys) == "key-3"

    async def test_second_401_is_raised(self, transport):
        transport.fault("POST", fault(401), fault(401))
        async with make(transport, api_key=lambda: "a-key") as client:
            with pytest.raises(AuthenticationError):
                await client.submit(CAT)
        assert len(transport.submissions) == 2

    async def test_401_of_a_fixed_key_is_raised(self, client, transport):
        transport.fault("POST", fault(401))

        with pytest.raises(AuthenticationError):
            await client.submit(CAT)
        assert len(transport.submissions) == 1

    async def test_bad_key_is_raised_before_any_request(self, transport):
        async with make(transport, api_key=lambda: "") as client:
            with pytest.raises(ConfigurationError):
                await client.submit(CAT)
        assert transport.submissions == []


class TestThrottle:
    async def test_call_in_a_long_pause_fails_now(self, client, transport):
        transport.fault("POST", fault(429, 61))
        with pytest.raises(RateLimitError):
            await client.submit(CAT)
        began = now()

        with pytest.raises(RateLimitError) as caught:
            await client.submit(CAT)

        assert now() == began
        assert caught.value.retry_after == 61
        assert len(transport.submissions) == 1

    async def test_queued_call_fails_when_a_long_pause_begins(self, transport):
        transport.fault("POST", fault(429, 61))
        async with make(transport, max_concurrency=1) as client:
            results = await asyncio.gather(
                client.submit(CAT), client.submit(CAT), return_exceptions=True
            )
        assert [type(error) for error in results] == [RateLimitError] * 2

    async def test_refusals_in_bulk_back_off(self, transport):
        transport.add("cat")
        transport.fault("POST", *[fault(429)] * 5)
        growing = tenacity.wait_incrementing(10, 10)
        async with make(transport, wait=growing) as client:
            async for outcome in client.as_completed([CAT]):
                assert outcome.ok
        gaps = [after - before for before, after in itertools.pairwise(times(transport))]
        assert gaps == pytest.approx([10, 20, 30, 40, 50], abs=5)

    async def test_pause_of_submissions_does_not_stop_polls(self, client, transport):
        transport.add("a", ("processing", 3))
        transport.fault("POST", fault(429, 30))
        began = now()
        submitting = asyncio.ensure_future(client.submit(CAT))
        await client.wait("a")

        assert now() - began < 5
        assert await submitting == "cat"
        assert now() - began == pytest.approx(30.2)

    async def test_pause_of_polls_does_not_stop_submissions(self, client, transport):
        transport.fault("a", status(429, 30))
        waiting = asyncio.ensure_future(client.get("a"))
        await asyncio.sleep(1)
        began = now()

        assert await client.submit(CAT) == "cat"
        assert now() - began < 1
        waiting.cancel()

    async def test_pause_holds_for_all_submissions(self, client, transport):
        transport.fault("POST", fault(429, 10))
        await asyncio.gather(client.submit(CAT), later(1, lambda: None))
        assert times(transport) == pytest.approx([0, 10.1])

    async def test_rate_limit_holds_for_submissions(self, transport):
        async with make(transport, rate_limit=1) as client:
            await asyncio.gather(*(client.submit(CAT) for _ in range(4)))
        gaps = times(transport)
        assert gaps[-1] >= 3 - 0.2

    async def test_concurrency_holds_for_submissions(self, transport):
        async with make(transport, max_concurrency=2) as client:
            await asyncio.gather(*(client.submit(CAT) for _ in range(9)))
        assert transport.most_submitting == 2

    async def test_answer_ends_an_outage(self, client, transport):
        transport.weather = lambda task_id: status(502)
        waits = [asyncio.ensure_future(client.wait(f"id-{n}")) for n in range(30)]
        await asyncio.sleep(5)
        assert client._parts.poller._outage.since is not None

        await client.submit(CAT)

        assert client._parts.poller._outage.since is None
        for wait in waits:
            wait.cancel()

    async def test_failed_submissions_are_no_outage(self, client, transport):
        transport.fault("POST", *[unreachable, uncertain] * 30)
        for _ in range(30):
            with pytest.raises((APIConnectionError, SubmissionUncertainError)):
                await client.submit(CAT)

        assert client._parts.poller._outage.since is None


class TestEnds:
    async def test_cancelled_before_it_is_sent(self, client, transport):
        transport.fault("POST", fault(429, 30))
        submitting = asyncio.ensure_future(client.submit(CAT))
        await asyncio.sleep(5)

        submitting.cancel()

        with pytest.raises(asyncio.CancelledError):
            await submitting
        assert len(transport.submissions) == 1
        await assert_nothing_runs(client)

    async def test_cancelled_sleep_gives_its_tokens_back(self, transport):
        transport.fault("POST", unreachable)
        async with make(transport, budget=5) as client:
            submitting = asyncio.ensure_future(client.submit(CAT))
            await asyncio.sleep(0.5)
            submitting.cancel()
            await settle()
            assert client._parts.fetcher.budget.allows_retry

    async def test_close_ends_a_sleep(self, transport):
        client = make(transport)
        transport.fault("POST", unreachable)
        submitting = asyncio.ensure_future(client.submit(CAT))
        await asyncio.sleep(0.5)

        await client.close()

        with pytest.raises(ClientClosedError):
            await submitting
        with pytest.raises(ClientClosedError):
            await client.submit(CAT)

    async def test_close_before_a_sleep(self, transport):
        def closing(request):
            client._parts._submission_throttle.close()
            return unreachable(request)

        transport.fault("POST", closing)
        async with make(transport) as client:
            with pytest.raises(ClientClosedError):
                await client.submit(CAT)


class TestRun:
    async def test_returns_the_ended_task(self, client, transport):
        transport.add("cat", ("processing", 5), result={"videoUrl": "u"})

        assert (await client.run(CAT)).result == {"videoUrl": "u"}

    async def test_raises_for_a_failed_task(self, client, transport):
        transport.add("cat", end="failed")

        with pytest.raises(TaskFailedError):
            await client.run(CAT)
        assert (await client.run(CAT, check=False)).status == "failed"

    async def test_timeout_counts_from_the_call(self, client, transport):
        transport.add("cat", ("processing", 100))
        transport.fault("POST", fault(429, 7))
        began = now()

        with pytest.raises(WaitTimeoutError) as caught:
            await client.run(CAT, timeout=10)

        assert now() - began == pytest.approx(10)
        assert (caught.value.task_id, caught.value.timeout) == ("cat", 10)

    async def test_timeout_before_the_request_was_sent(self, client, transport):
        transport.fault("POST", fault(429, 30))

        with pytest.raises(WaitTimeoutError, match="was not sent within 10 s") as caught:
            await client.run(CAT, timeout=10)

        assert caught.value.task_id == ""
        assert isinstance(caught.value.last_error, RateLimitError)
        assert len(transport.submissions) == 1

    async def test_timeout_in_the_queue(self, transport):
        async with make(transport, max_concurrency=1) as client:
            transport.fault("POST", lambda request: stalled(""))
            first = asyncio.ensure_future(client.submit(CAT))
            await settle()
            with pytest.raises(WaitTimeoutError, match="was not sent within 3 s"):
                await client.run(ImageRequest("dog"), timeout=3)
            first.cancel()
        assert len(transport.submissions) == 1

    async def test_timeout_never_cuts_a_request_that_was_sent(self, transport):
        transport.latency = 8
        async with make(transport) as client:
            transport.add("cat", ("processing", 100))
            with pytest.raises(WaitTimeoutError) as caught:
                await client.run(CAT, timeout=5)
        assert caught.value.task_id == "cat"
        assert [sent.answer for sent in transport.submissions] == ["cat"]

    async def test_request_is_not_written_while_the_timeout_expires(self):
        limit = asyncio.timeout(0.1)
        work = _Submission(CAT, bulk=False, on_send=None, deadline=0.1, limit=limit)
        with pytest.raises(TimeoutError):
            async with limit:
                try:
                    await asyncio.sleep(1)
                finally:
                    with pytest.raises(TimeoutError):
                        work.before_send()

    async def test_none_is_no_timeout(self, client, transport):
        transport.add("cat", ("processing", 10_000))

        assert (await client.run(CAT, timeout=None)).succeeded

    async def test_bad_arguments_are_refused_before_any_request(self, client, transport):
        with pytest.raises(ValueError, match="timeout"):
            await client.run(CAT, timeout=-1)
        assert transport.submissions == []

    async def test_cancelled_wait_logs_the_id(self, client, transport, caplog):
        caplog.set_level(logging.WARNING, "xai_tasks")
        transport.add("cat", ("processing", 100))
        running = asyncio.ensure_future(client.run(CAT))
        await asyncio.sleep(5)

        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "'cat', which was submitted" in caplog.text


@pytest.mark.parametrize(
    ("statuses", "error"),
    [(429, TypeError), ("429", TypeError), ([True], TypeError), ([200], ValueError)],
)
def test_bad_submit_retry_statuses_are_refused(statuses, error):
    with pytest.raises(error, match="submit_retry_statuses"):
        TaskClient("a-key", submit_retry_statuses=statuses)


async def test_unreadable_answer_is_a_sign_of_life(transport):
    def unreadable(request):
        cause = APIResponseValidationError("HTTP 200", task_id="", status_code=200, body="")
        return SubmissionUncertainError(request, cause)

    transport.weather = lambda task_id: status(502)
    transport.fault("POST", unreadable)
    async with make(transport) as client:
        waits = [asyncio.ensure_future(client.wait(f"id-{n}")) for n in range(30)]
        await asyncio.sleep(5)
        with pytest.raises(SubmissionUncertainError):
            await client.submit(CAT)
        assert client._parts.poller._outage.since is None
        for wait in waits:
            wait.cancel()


async def test_each_who_meets_a_long_pause_gets_an_error_of_its_own(transport):
    transport.fault("POST", fault(429, 500))
    async with make(transport) as client:
        errors = []
        for _ in range(3):
            with pytest.raises(RateLimitError) as caught:
                await client.submit(CAT)
            errors.append(caught.value)

    assert len(set(map(id, errors))) == 3
    assert len(caught.traceback) < 20
