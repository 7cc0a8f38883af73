"""Submissions on the wire: what each fault makes of them, and that none is sent twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl

import aiohttp
import pytest
import trustme
from raw_server import RawServer, reset, response, silence
from tenacity import stop_after_attempt, wait_none

from xai_tasks import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ImageRequest,
    NotFoundError,
    RetryPolicy,
    ServerError,
    SubmissionUncertainError,
    TaskClient,
    VideoRequest,
)
from xai_tasks.testing import Fault, TaskServer

CAT = VideoRequest("a cat", duration=10)
QUICK = RetryPolicy(wait=wait_none(), stop=stop_after_attempt(3))


@pytest.fixture
async def server():
    async with TaskServer() as server:
        yield server


@pytest.fixture(params=["own session", "borrowed session"])
async def make(request):
    """Make clients, over their own session and over a borrowed one."""
    clients, sessions = [], []

    def make(url, **options):
        if request.param == "borrowed session":
            sessions.append(aiohttp.ClientSession())
            options["session"] = sessions[-1]
        clients.append(TaskClient("test", base_url=url, retry=QUICK, **options))
        return clients[-1]

    yield make
    for each in (*clients, *sessions):
        await each.close()


async def test_body_and_headers(make):
    async with RawServer(response(200, b'{"taskId": "a"}')) as server:
        bodies = []

        async def answer(reader, writer):
            length = int(server.header("Content-Length"))
            bodies.append(json.loads(await reader.readexactly(length)))
            writer.write(response(200, b'{"taskId": "a"}'))

        server.answers.extend([answer, answer])
        client = make(f"{server.url}/gateway/")

        assert await client.submit(CAT) == "a"
        assert server.requests[0].startswith(b"POST /gateway/xai/videos HTTP/1.1\r\n")
        assert server.header("Content-Type") == "application/json"
        assert server.header("Authorization") == "Bearer test"
        assert server.header("Accept") == "application/json"
        await client.submit(ImageRequest("a dog"))
        assert server.target() == "/gateway/xai/images"

    assert bodies == [CAT.to_json(), ImageRequest("a dog").to_json()]


UNCERTAIN = [
    (Fault.reset(at="accept"), APIConnectionError),
    (Fault.reset(at="headers"), APIConnectionError),
    (Fault.reset(at="body"), APIConnectionError),
    (Fault.truncate(), APIConnectionError),
    (Fault.bad_chunking(), APIConnectionError),
    (Fault.garbage(), APIConnectionError),
    (Fault.oversized_headers(), APIConnectionError),
    (Fault.stall(), APITimeoutError),
    (Fault.drip(0.1), APITimeoutError),
    (Fault.endless(), APIResponseValidationError),
    (Fault.gzip_bomb(10**6), APIResponseValidationError),
    (Fault.status(408), APIStatusError),
    (Fault.status(500), ServerError),
    (Fault.status(502, body=b"<html>"), ServerError),
    (Fault.status(503, {"Retry-After": "0"}), ServerError),
    (Fault.status(504), ServerError),
    (Fault.status(204), APIResponseValidationError),
    (Fault.body(b""), APIResponseValidationError),
    (Fault.body(b"<html>", "text/html"), APIResponseValidationError),
    (Fault.body(b"[]"), APIResponseValidationError),
    (Fault.body(b"{}"), APIResponseValidationError),
    (Fault.body(b'{"taskId": ""}'), APIResponseValidationError),
    (Fault.body(b'{"taskId": 7}'), APIResponseValidationError),
    (Fault.body(b'{"taskId": null}'), APIResponseValidationError),
]


@pytest.mark.parametrize(("fault", "cause"), UNCERTAIN, ids=lambda value: repr(value)[:40])
async def test_unclear_answer_is_uncertain_and_not_repeated(server, make, fault, cause):
    client = make(server.url, request_timeout=0.5, max_response_bytes=10_000)
    server.fault("POST", fault)

    with pytest.raises(SubmissionUncertainError) as caught:
        await client.submit(CAT)

    assert isinstance(caught.value.cause, cause)
    assert caught.value.request == CAT
    assert server.submissions == [CAT.to_json()]
    assert server.count() == 1
    assert server.faults_left == []


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.status(400, body=b'{"message": ["prompt is too long"]}'), BadRequestError),
        (Fault.status(422), BadRequestError),
        (Fault.status(401), AuthenticationError),
        (Fault.status(404, body=b"404 page not found"), NotFoundError),
        (Fault.redirect("/elsewhere", 307), APIStatusError),
        (Fault.status(409), APIStatusError),
    ],
    ids=repr,
)
async def test_refusal_has_its_usual_class(server, make, fault, error):
    client = make(server.url)
    server.fault("POST", fault)

    with pytest.raises(error) as caught:
        await client.submit(CAT)

    assert str(caught.value).startswith("submission: HTTP ")
    assert server.count() == 1


async def test_server_words_reach_the_user(server, make):
    client = make(server.url)

    server.fault("POST", Fault.status(422, body=b'{"message": ["prompt is too long"]}'))

    with pytest.raises(BadRequestError, match="prompt is too long"):
        await client.submit(CAT)


@pytest.mark.parametrize(
    "fault",
    [
        Fault.status(201, body=b'{"taskId": "a", "more": 1}'),
        Fault.close_after(),
        Fault.drip(0),
        Fault.stall(0),
    ],
    ids=repr,
)
async def test_readable_answer_is_an_id(server, make, fault):
    client = make(server.url)
    server.fault("POST", fault)

    assert await client.submit(CAT)
    assert server.count() == 1


async def test_what_answers_say_is_left_is_heeded(server, make):
    client = make(server.url)
    headers = {"RateLimit": "limit=10, remaining=0, reset=1"}
    server.fault("POST", Fault.status(200, headers, b'{"taskId": "a"}'))
    loop = asyncio.get_running_loop()
    began = loop.time()

    await client.submit(CAT)
    await client.submit(CAT)

    assert loop.time() - began >= 0.9


async def test_429_is_made_again(server, make):
    client = make(server.url)
    server.fault("POST", *[Fault.status(429, {"Retry-After": "0"})] * 2)

    assert await client.submit(CAT)
    assert server.count() == 3


@pytest.mark.parametrize("end", ["reset", "close"])
async def test_refusal_whose_body_is_cut_off_is_still_clear(make, end):
    async def cut(reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        if end == "reset":
            await reset(reader, writer)

    async with RawServer(cut) as server:
        with pytest.raises(BadRequestError):
            await make(server.url).submit(CAT)
        assert len(server.requests) == 1


async def test_refused_connection_is_made_again(make):
    async with RawServer() as server:
        url = server.url

    client = make(url)
    with pytest.raises(APIConnectionError):
        await client.submit(CAT)
    assert client.stats.requests == 3


async def test_failed_tls_handshake_is_made_again(make):
    async def hang_up(reader, writer):
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        client = make(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(APIConnectionError):
            await client.submit(CAT)
    assert client.stats.requests == 3


async def test_handshake_that_stalls_is_made_again(make):
    async with RawServer(silence) as server:
        client = make(server.url.replace("http", "https"), request_timeout=0.05)
        with pytest.raises(APITimeoutError):
            await client.submit(CAT)
    assert client.stats.requests == 3


async def test_no_free_connection_in_time_is_made_again(server):
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        server.latency = 0.5
        client = TaskClient(
            "test", base_url=server.url, session=session, retry=QUICK, request_timeout=0.1
        )
        other = asyncio.ensure_future(session.get(server.url))
        await server.wait_for_requests(1)
        with pytest.raises(APITimeoutError):
            await client.submit(CAT)
        (await other).release()
        await client.close()

    assert server.submissions == []
    assert client.stats.requests == 3


async def test_proxy_that_breaks_connect_is_no_submission(monkeypatch):
    async with RawServer(reset) as proxy, aiohttp.ClientSession(proxy=proxy.url) as session:
        async with TaskClient(
            "test", base_url="https://api.invalid", session=session, retry=QUICK
        ) as client:
            with pytest.raises(APIConnectionError):
                await client.submit(CAT)
            assert client.stats.requests == 3
    assert proxy.requests[0].startswith(b"CONNECT api.invalid:443")


async def test_submission_over_tls(make):
    authority = trustme.CA()
    inside, outside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(inside)
    authority.configure_trust(outside)
    async with TaskServer(ssl_context=inside) as server:
        connector = aiohttp.TCPConnector(ssl=outside)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            TaskClient("test", base_url=server.url, session=session, retry=QUICK) as client,
        ):
            server.fault("POST", Fault.reset())
            with pytest.raises(SubmissionUncertainError):
                await client.submit(CAT)
            assert await client.submit(CAT)
        assert server.count() == 2


@pytest.fixture
async def retrying(server):
    """A client over a session whose middleware retries, as a user may have written it."""

    async def retry(request, handler):
        for _ in range(3):
            try:
                response = await handler(request)
            except aiohttp.ClientError as problem:
                error = problem
            else:
                if response.ok:
                    return response
                response.release()
                error = ConnectionError(f"HTTP {response.status}")
        raise error

    async with (
        aiohttp.ClientSession(middlewares=(retry,)) as session,
        TaskClient("test", base_url=server.url, session=session, retry=QUICK) as client,
    ):
        yield client


@pytest.mark.parametrize(
    "fault",
    [Fault.reset(at="accept"), Fault.reset(), Fault.status(500), Fault.status(429)],
    ids=repr,
)
async def test_retrying_middleware_sends_nothing_twice(server, retrying, fault):
    server.fault("POST", fault)

    with pytest.raises(SubmissionUncertainError, match="a middleware of the borrowed") as caught:
        await retrying.submit(CAT)

    assert isinstance(caught.value.cause, APIConnectionError)
    assert server.count() == len(server.submissions) == 1


async def test_retrying_middleware_may_repeat_what_was_not_sent(server, retrying, monkeypatch):
    refusals = [OSError("refused"), OSError("refused")]
    connect = aiohttp.TCPConnector.connect

    async def refuse(*args, **options):
        if refusals:
            raise aiohttp.ClientOSError(*refusals.pop().args)
        return await connect(*args, **options)

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", refuse)

    assert await retrying.submit(CAT)
    assert server.count() == 1


async def test_answer_that_a_middleware_keeps_counts(server):
    async def twice(request, handler):
        first = await handler(request)
        with contextlib.suppress(aiohttp.ClientError):
            return await handler(request)
        return first

    async with (
        aiohttp.ClientSession(middlewares=(twice,)) as session,
        TaskClient("test", base_url=server.url, session=session, retry=QUICK) as client,
    ):
        assert await client.submit(CAT)

    assert server.count() == 1


async def test_each_submission_has_its_own_connection():
    ports = []
    async with TaskServer() as server, TaskClient("test", base_url=server.url) as client:
        handle = server._listener._handle

        async def noted(request):
            ports.append((request.method, request.transport.get_extra_info("peername")[1]))
            return await handle(request)

        await server.aclose()
        server._listener._handle = noted
        await server.start()
        task_id = await client.submit(CAT)
        await client.submit(CAT)
        await client.get(task_id)
        await client.get(task_id)

    posts = [port for method, port in ports if method == "POST"]
    gets = [port for method, port in ports if method == "GET"]
    assert len({*posts}) == 2
    assert len({*gets}) == 1
    assert not {*posts} & {*gets}


@pytest.mark.parametrize("fault", [Fault.stall(), Fault.drip(0.5)], ids=repr)
async def test_cancelled_after_it_was_sent_is_logged(server, make, caplog, fault):
    client = make(server.url)
    server.fault("POST", fault)
    submitting = asyncio.ensure_future(client.submit(CAT))
    await server.wait_for_requests(1)

    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting

    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "VideoRequest(prompt='a cat'" in warnings[0].getMessage()
    assert "may have been accepted" in warnings[0].getMessage()


async def test_cancelled_while_it_connects_is_not_logged(make, caplog):
    async with RawServer(silence) as server:
        client = make(server.url.replace("http", "https"))
        submitting = asyncio.ensure_future(client.submit(CAT))
        await asyncio.sleep(0.05)
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting

    assert caplog.records == []


async def test_close_after_it_was_sent_is_uncertain(server):
    client = TaskClient("test", base_url=server.url)
    server.fault("POST", Fault.stall())
    submitting = asyncio.ensure_future(client.submit(CAT))
    await server.wait_for_requests(1)

    await client.close()

    with pytest.raises(SubmissionUncertainError, match="the client was closed"):
        await submitting


async def test_nothing_is_sent_if_on_send_raises(server, make):
    def full():
        raise OSError("disk full")

    client = make(server.url)
    with pytest.raises(OSError, match="^disk full$"):
        await client.submit(CAT, on_send=full)

    assert server.submissions == []
    assert await client.submit(CAT, on_send=lambda: None)


async def test_run_times_out_while_it_connects(make):
    async with RawServer(silence) as server:
        client = make(server.url.replace("http", "https"))
        with pytest.raises(TimeoutError, match="was not sent within"):
            await client.run(CAT, timeout=0.1)


async def test_run_awaits_the_answer_to_what_was_sent(server, make):
    client = make(server.url)
    server.accept(result={"videoUrl": "u"})
    server.latency = 0.3

    with pytest.raises(TimeoutError, match="'submitted-1'"):
        await client.run(CAT, timeout=0.1)
