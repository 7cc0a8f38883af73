"""Rules of HTTP and of the key that hold in each way to ask for a task."""

from __future__ import annotations

import asyncio
import contextvars
import ssl
import time

import aiohttp
import pytest
import trustme
from tenacity import stop_after_attempt, wait_fixed, wait_none

from xai_tasks import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    ClientClosedError,
    PollPolicy,
    RetryPolicy,
    TaskClient,
    VideoRequest,
)
from xai_tasks.testing import Fault, TaskServer

POLL = PollPolicy(wait=wait_fixed(0.01), timeout=30)
ONCE = RetryPolicy(stop=stop_after_attempt(1), wait=wait_none())


async def get(client):
    return await client.get("a")


async def wait(client):
    return await client.wait("a")


async def wait_all(client):
    [task] = await client.wait_all(["a"])
    return task


async def as_completed(client):
    [outcome] = [outcome async for outcome in client.as_completed(["a"])]
    return outcome.unwrap()


async def watch(client):
    return [task async for task in client.watch("a")][-1]


async def watch_all(client):
    [*_, update] = [update async for update in client.watch_all(["a"])]
    if update.error is not None:
        raise update.error
    return update.task


VERBS = [get, wait, wait_all, as_completed, watch, watch_all]
each_verb = pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
each_wait = pytest.mark.parametrize("verb", VERBS[1:], ids=lambda verb: verb.__name__)


@pytest.fixture
async def server():
    async with TaskServer() as server:
        server.add("a", result={})
        yield server


# Answers.

FOREIGN = [
    Fault.status(403, {"Content-Type": "text/html"}, b"<title>403 Forbidden</title>"),
    Fault.status(404, {"Content-Type": "text/plain"}, b"404 page not found\n"),
]


@each_wait
@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("retry", [ONCE, None])
async def test_foreign_error_pages_end_no_wait(server, verb, before, retry):
    server.reset()
    server.add("a", [("processing", 0.05)], result={})
    processing = Fault.body(b'{"taskId": "a", "status": "processing"}')
    server.fault("a", *[processing] * before, *FOREIGN * 2)

    async with TaskClient("test", base_url=server.url, poll=POLL, retry=retry) as client:
        assert (await verb(client)).succeeded

    assert server.faults_left == []


@each_verb
async def test_too_large_answer_is_requested_once(server, verb):
    server.fault("a", Fault.body(b" " * 2000), Fault.body(b" " * 2000))

    async with TaskClient(
        "test", base_url=server.url, poll=POLL, max_response_bytes=1000
    ) as client:
        with pytest.raises(APIResponseValidationError, match="larger than 1000 bytes"):
            await verb(client)

    assert server.count("a") == 1


@each_verb
async def test_untrusted_certificate_ends_at_once(verb):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with TaskServer(ssl_context=context) as server:
        async with TaskClient("test", base_url=server.url, poll=POLL) as client:
            with pytest.raises(APIConnectionError, match="SSL_CERT_FILE"):
                await verb(client)

            assert client.stats.requests == 1


async def test_untrusted_certificate_ends_many_ids_at_once():
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    ids = [f"task-{n}" for n in range(50)]
    async with (
        TaskServer(ssl_context=context) as server,
        TaskClient("test", base_url=server.url, poll=POLL) as client,
    ):
        outcomes = [outcome async for outcome in client.as_completed(ids)]

    # An outage would have ended them by their timeout, or one by one.
    assert {type(outcome.error) for outcome in outcomes} == {APIConnectionError}
    assert client.stats.requests == 50


async def test_no_request_waits_for_a_connection_of_a_pool_of_four(server):
    """What waits there would count against the request timeout."""
    server.latency = 0.01
    ids = [server.add(f"task-{n}") for n in range(100)]
    in_flight = set()

    async def get(client, task_id):
        task = await client.get(task_id)
        in_flight.add(client.stats.in_flight)
        return task.task_id

    connector = aiohttp.TCPConnector(limit=4)
    async with aiohttp.ClientSession(connector=connector) as session:
        async with TaskClient("test", base_url=server.url, session=session) as client:
            answered = await asyncio.gather(*(get(client, task_id) for task_id in ids))

    assert answered == ids
    assert max(in_flight) <= 4


# Key functions.

tenant = contextvars.ContextVar("tenant")


@each_verb
async def test_key_function_reads_contextvars_of_construction(server, verb):
    tenant.set("test")
    async with TaskClient(tenant.get, base_url=server.url, poll=POLL) as client:
        tenant.set("other")

        assert (await verb(client)).succeeded


@each_verb
@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError, TimeoutError, OSError])
@pytest.mark.parametrize("when", ["at first", "after a 401"])
async def test_error_of_key_function_ends_the_call(server, verb, error, when):
    calls = 0

    def source():
        nonlocal calls
        calls += 1
        if when == "after a 401" and calls == 1:
            return "expired"
        raise error("the vault is shut")

    async with TaskClient(source, base_url=server.url, poll=POLL) as client:
        with pytest.raises(error) as caught:
            await verb(client)

        assert client.stats.waiting == 0
    assert type(caught.value) is error
    assert calls == (1 if when == "at first" else 2)
    assert asyncio.current_task().cancelling() == 0


@each_verb
async def test_close_ends_calls_that_wait_for_a_key(server, verb):
    asked = asyncio.Event()

    async def source():
        asked.set()
        await asyncio.Event().wait()

    client = TaskClient(source, base_url=server.url, poll=POLL)
    call = asyncio.create_task(verb(client))
    await asked.wait()
    began = time.monotonic()

    await client.close()

    with pytest.raises(ClientClosedError):
        await call
    assert time.monotonic() - began < 10
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_gets_share_a_failing_key_function(server):
    calls = 0

    async def source():
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.01)
        raise LookupError("the vault is shut")

    async with TaskClient(source, base_url=server.url) as client:
        gets = (client.get(f"task-{n}") for n in range(500))
        results = await asyncio.gather(*gets, return_exceptions=True)

    assert {type(result) for result in results} == {LookupError}
    assert calls == 1


@each_verb
async def test_wait_of_one_id_is_not_ended_by_anothers_error(server, verb):
    server.fault("b", *[Fault.status(400)] * 5)
    async with TaskClient("test", base_url=server.url, poll=POLL) as client:
        other = asyncio.create_task(client.wait("b"))

        assert (await verb(client)).succeeded
        with pytest.raises(APIError, match="task 'b'"):
            await other


# What user code raises.


class Odd(BaseException):
    """What is no `Exception`, as `pytest.fail` raises it."""


async def submit(client):
    return await client.submit(VideoRequest("a cat"))


async def requests_as_completed(client):
    return [outcome async for outcome in client.as_completed([VideoRequest("a cat")])]


raised = pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LookupError, LookupError),
        (asyncio.CancelledError, asyncio.CancelledError),
        (Odd, Odd),
        (StopAsyncIteration, (StopAsyncIteration, RuntimeError)),
    ],
)


@raised
@pytest.mark.parametrize(
    "verb", [*VERBS, submit, requests_as_completed], ids=lambda verb: verb.__name__
)
async def test_whatever_a_key_function_raises_ends_the_call(server, verb, error, expected):
    async def key():
        raise error

    async with asyncio.timeout(10), TaskClient(key, base_url=server.url, poll=POLL) as client:
        with pytest.raises(expected):
            await verb(client)

        assert client.stats.waiting == client.stats.in_flight == 0


@each_wait
async def test_generator_exit_of_a_key_function_ends_the_wait(server, verb):
    def key():
        raise GeneratorExit

    async with asyncio.timeout(10), TaskClient(key, base_url=server.url, poll=POLL) as client:
        with pytest.raises(GeneratorExit):
            await verb(client)


@raised
@each_wait
async def test_whatever_a_strategy_raises_ends_the_wait(server, verb, error, expected):
    def strategy(state):
        raise error

    server.add("a", "processing")
    poll = PollPolicy(wait=strategy)
    async with asyncio.timeout(10), TaskClient("test", base_url=server.url, poll=poll) as client:
        with pytest.raises(expected):
            await verb(client)

        assert client.stats.waiting == client.stats.in_flight == 0


@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError, Odd, GeneratorExit])
@pytest.mark.parametrize("verb", ["as_completed", "watch_all"])
async def test_whatever_a_source_raises_ends_the_stream(server, verb, error):
    def source():
        yield "a"
        raise error

    async with asyncio.timeout(10), TaskClient("test", base_url=server.url, poll=POLL) as client:
        with pytest.raises(error):
            [item async for item in getattr(client, verb)(source())]
