"""Requests in `as_completed`: submitted as there is room, then waited for."""

from __future__ import annotations

import asyncio
import gc

import pytest
import tenacity
from fakes import (
    FakeTransport,
    assert_nothing_runs,
    client_over,
    now,
    says,
    settle,
    stalled,
    status,
)

from xai_tasks import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    ClientClosedError,
    ImageRequest,
    InvalidTaskIdError,
    PermissionDeniedError,
    PollPolicy,
    RetryPolicy,
    SubmissionUncertainError,
    TaskFailedError,
    VideoRequest,
    WaitTimeoutError,
)

pytestmark = pytest.mark.fake_clock


@pytest.fixture
def transport():
    return FakeTransport()


@pytest.fixture
async def client(transport):
    client = client_over(
        transport,
        retry=RetryPolicy(wait=tenacity.wait_fixed(1)),
        poll=PollPolicy(wait=tenacity.wait_fixed(1)),
    )
    async with client:
        yield client
    await assert_nothing_runs()


def fault(code, retry_after=None):
    return lambda request: status(code, retry_after)("")


def unreachable(request):
    return APIConnectionError("ConnectionRefusedError", task_id="")


def cats(transport, number, *steps, **fields):
    names = [f"cat-{n}" for n in range(number)]
    for name in names:
        transport.add(name, *steps, **fields)
    return [VideoRequest(name) for name in names]


async def collect(stream):
    return [outcome async for outcome in stream]


async def test_request_becomes_an_outcome(client, transport):
    transport.add("a", ("processing", 3))
    transport.add("cat", ("processing", 2), result={"videoUrl": "u"})
    cat = VideoRequest("cat")

    first, second = await collect(client.as_completed(["a", cat]))

    assert (first.task_id, first.index, first.request) == ("cat", 1, cat)
    assert (first.ok, first.task.result) == (True, {"videoUrl": "u"})
    assert (second.task_id, second.index, second.request) == ("a", 0, None)


async def test_failed_task_has_its_request(client, transport):
    transport.add("cat", end="failed")

    [outcome] = await collect(client.as_completed([ImageRequest("cat")]))

    assert isinstance(outcome.error, TaskFailedError)
    assert outcome.request == ImageRequest("cat")


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (fault(400), BadRequestError),
        (fault(403), PermissionDeniedError),
        (fault(502), SubmissionUncertainError),
    ],
)
async def test_request_that_is_not_accepted_is_an_outcome(client, transport, reason, error):
    transport.fault("POST", reason)

    [outcome] = await collect(client.as_completed([VideoRequest("cat")]))

    assert (outcome.task_id, outcome.index, outcome.task) == ("", 0, None)
    assert isinstance(outcome.error, error)
    assert outcome.request == VideoRequest("cat")


async def test_request_that_cannot_be_sent_is_an_outcome(client, transport):
    transport.fault("POST", *[unreachable] * 4)

    [outcome] = await collect(client.as_completed([VideoRequest("cat")]))

    assert isinstance(outcome.error, APIConnectionError)
    assert len(transport.submissions) == 4


async def test_refusals_for_the_rate_do_not_count(client, transport):
    transport.add("cat")
    transport.fault("POST", *[fault(429)] * 20)

    [outcome] = await collect(client.as_completed([VideoRequest("cat")]))

    assert outcome.ok
    assert len(transport.submissions) == 21


async def test_faults_count_apart_from_refusals(client, transport):
    transport.fault("POST", unreachable, fault(429), *[unreachable] * 4)

    [outcome] = await collect(client.as_completed([VideoRequest("cat")]))

    assert isinstance(outcome.error, APIConnectionError)
    assert len(transport.submissions) == 6


async def test_long_pause_is_kept_in_full(client, transport):
    transport.add("cat")
    transport.fault("POST", fault(429, 900))
    began = now()

    [outcome] = await collect(client.as_completed([VideoRequest("cat")]))

    assert outcome.ok
    assert now() - began >= 900


async def test_timeout_counts_from_acceptance(client, transport):
    transport.add("cat", ("processing", 50))
    transport.fault("POST", fault(429, 40))

    [outcome] = await collect(client.as_completed([VideoRequest("cat")], timeout=20))

    assert outcome.ok  # it was 40 s old when it was accepted, and its task ended 10 s later


async def test_wait_that_times_out_has_the_id(client, transport):
    transport.add("cat", ("processing", 50))

    [outcome] = await collect(client.as_completed([VideoRequest("cat")], timeout=20))

    assert outcome.task_id == "cat"
    assert isinstance(outcome.error, WaitTimeoutError)


async def test_max_pending_bounds_tasks_alive(client, transport):
    requests = cats(transport, 10, ("processing", 10))
    stream = client.as_completed(requests, max_pending=3)

    for taken in range(1, 11):
        await anext(stream)
        assert len(transport.submissions) <= taken + 2
    assert stream.succeeded == 10


async def test_source_is_pulled_as_submissions_allow(client, transport):
    pulled = []

    def source():
        for n in range(1000):
            pulled.append(n)
            yield VideoRequest(f"cat-{n}")

    transport.fault("POST", *[lambda request: stalled("")] * 1000)
    async with client.as_completed(source()) as stream:
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(10)
        assert len(pulled) == 64
        waiting.cancel()


async def test_refused_key_is_raised_out_of_the_stream(client, transport):
    transport.fault("POST", *[fault(401)] * 5)

    with pytest.raises(AuthenticationError):
        await collect(client.as_completed(cats(transport, 5)))


async def test_source_that_raises_loses_no_request(client, transport):
    def source():
        yield from cats(transport, 3, ("processing", 5))
        raise RuntimeError("no more cats")

    outcomes = []
    with pytest.raises(RuntimeError, match="no more cats"):
        async for outcome in client.as_completed(source()):
            outcomes.append(outcome)
    assert sorted(outcome.task_id for outcome in outcomes) == ["cat-0", "cat-1", "cat-2"]
    for outcome in outcomes:
        assert "was submitted, but the stream ended before it: no more cats" in str(outcome.error)
    assert [sent.answer for sent in transport.submissions] == ["cat-0", "cat-1", "cat-2"]


async def test_leaving_early_stops_everything(client, transport, caplog):
    requests = cats(transport, 200, ("processing", 5))
    transport.fault("POST", *[lambda request: request.prompt] * 100)

    async for _ in client.as_completed(requests):
        break
    gc.collect()
    await settle()

    await assert_nothing_runs(client)


async def test_aclose_waits_for_submissions_to_stop(client, transport):
    transport.fault("POST", lambda request: stalled(""))
    stream = client.as_completed([VideoRequest("cat")])
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(1)

    await stream.aclose()

    assert [sent.answer for sent in transport.submissions] == ["aborted"]
    assert transport.submitting == 0
    with pytest.raises(StopAsyncIteration):
        await waiting


async def test_aclose_waits_for_a_slow_cancellation(client, transport):
    ended = []

    async def submit(request, *, on_send):
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(2)
            ended.append(request.prompt)

    transport.submit = submit
    stream = client.as_completed([VideoRequest("cat")])
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(1)

    await stream.aclose()

    assert ended == ["cat"]
    with pytest.raises(StopAsyncIteration):
        await waiting


async def test_close_of_the_client_ends_requests(transport):
    client = client_over(transport)
    transport.add("cat", ("processing", 100))
    transport.fault("POST", lambda request: request.prompt, lambda request: stalled(""))
    stream = client.as_completed([VideoRequest("cat"), VideoRequest("dog")])
    waiting = asyncio.ensure_future(collect(stream))
    await asyncio.sleep(5)

    await client.close()

    outcomes = await waiting
    assert [type(outcome.error) for outcome in outcomes] == [ClientClosedError] * 2
    assert {outcome.request.prompt for outcome in outcomes} == {"cat", "dog"}


async def test_client_closed_after_acceptance(transport):
    client = client_over(transport)

    def accept(request):
        client._parts.poller.closed = True
        return request.prompt

    transport.fault("POST", accept)
    stream = client.as_completed([VideoRequest("cat")])

    [outcome] = await collect(stream)

    assert isinstance(outcome.error, ClientClosedError)
    assert outcome.task_id == "cat"
    await client.close()


async def test_error_that_is_not_ours_is_raised(transport):
    def broken(state):
        raise RuntimeError("broken strategy")

    transport.fault("POST", unreachable)
    async with client_over(transport, retry=RetryPolicy(wait=broken)) as client:
        with pytest.raises(RuntimeError, match="broken strategy"):
            await collect(client.as_completed([VideoRequest("cat")]))


async def test_key_function_that_cancels_ends_the_stream(transport):
    def cancels():
        raise asyncio.CancelledError

    async with client_over(transport, api_key=cancels) as client:
        with pytest.raises(asyncio.CancelledError):
            await collect(client.as_completed([VideoRequest("cat")]))


async def test_equal_requests_are_each_submitted(client, transport):
    transport.add("cat", ("processing", 5))

    outcomes = await collect(client.as_completed([VideoRequest("cat")] * 3))

    assert len(transport.submissions) == 3
    assert [outcome.ok for outcome in outcomes] == [True] * 3


async def test_other_items_are_invalid_ids(client, transport):
    [outcome] = await collect(client.as_completed([{"prompt": "cat"}]))

    assert isinstance(outcome.error, InvalidTaskIdError)


async def test_wait_all_takes_ids_only(client, transport):
    with pytest.raises(InvalidTaskIdError):
        await client.wait_all([VideoRequest("cat")])


class TestEndOfTheStreamWhileRequestsAreUnderWay:
    @staticmethod
    async def source(prompts, seconds=0.05):
        for prompt in prompts:
            yield ImageRequest(prompt)
            await asyncio.sleep(seconds if prompt == prompts[0] else 0)

    async def read(self, client, prompts, error=AuthenticationError):
        outcomes = []
        with pytest.raises(error):
            async for outcome in client.as_completed(self.source(prompts)):
                outcomes.append(outcome)
        return {outcome.request.prompt: outcome for outcome in outcomes}

    async def test_ids_of_accepted_requests_are_not_lost(self, client, transport):
        transport.fault("POST", fault(401))

        outcomes = await self.read(client, ["bad", "a", "b", "c"])

        assert set(outcomes) == {"a", "b", "c"}
        for prompt, outcome in outcomes.items():
            assert outcome.task_id == prompt
            assert not outcome.ok
            assert f"task {prompt!r} was submitted" in str(outcome.error)
        await assert_nothing_runs(client)

    async def test_ids_of_tasks_that_are_waited_for_are_not_lost(self, client, transport):
        cats(transport, 3, ("processing", 1000))
        transport.fault("id", says("processing"), says("processing"), status(401))

        outcomes = []
        with pytest.raises(AuthenticationError):
            async for outcome in client.as_completed(
                [*(VideoRequest(f"cat-{n}") for n in range(3)), "id"]
            ):
                outcomes.append(outcome)

        assert sorted(outcome.task_id for outcome in outcomes) == ["cat-0", "cat-1", "cat-2"]
        for outcome in outcomes:
            assert f"task {outcome.task_id!r} was submitted" in str(outcome.error)
        await assert_nothing_runs(client)

    async def test_uncertain_ones_are_outcomes_too(self, client, transport):
        transport.fault("POST", fault(401), fault(500))

        outcomes = await self.read(client, ["bad", "a", "b"])

        assert isinstance(outcomes["a"].error, SubmissionUncertainError)
        assert outcomes["b"].task_id == "b"

    async def test_refused_ones_are_not_sent_again(self, client, transport):
        transport.fault("POST", fault(401), fault(429, 30))

        outcomes = await self.read(client, ["bad", "a", "b"])

        assert outcomes["a"].task_id == ""
        assert "was not accepted" in str(outcomes["a"].error)
        assert len(transport.submissions) == 3
        assert now() < 1005

    async def test_what_was_not_sent_is_not_sent(self, transport):
        async with client_over(transport, rate_limit=1) as client:
            transport.latency = 2
            transport.fault("POST", fault(401))

            outcomes = await self.read(client, ["bad", *"abcdefgh"])

            assert len(transport.submissions) <= 4
            assert len(outcomes) == len(transport.submissions) - 1
            await assert_nothing_runs(client)

    async def test_left_while_it_drains_it_leaves_nothing(self, client, transport):
        transport.fault("POST", fault(401), stalled)
        stream = client.as_completed(self.source(["bad", "a"]))
        reader = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(1)
        assert not reader.done()

        await stream.aclose()

        with pytest.raises((StopAsyncIteration, AuthenticationError)):
            await reader
        await assert_nothing_runs(client)
