from __future__ import annotations

import asyncio
import errno
import gzip
import json
import ssl
import time
import tracemalloc
import warnings
import zlib
from datetime import UTC, datetime
from urllib.parse import unquote_to_bytes

import aiohttp
import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_server import RawServer, reset, response, silence

from xai_tasks import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ClientClosedError,
    ConfigurationError,
    InvalidTaskIdError,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    TaskClient,
    TaskStatus,
    __version__,
)
from xai_tasks._errors import is_transient, printable
from xai_tasks._http.base_url import check_base_url
from xai_tasks._http.credentials import Credentials
from xai_tasks._http.sessions import Sessions
from xai_tasks._http.transport import Transport

KEY = "sk-test-0123456789"
PENDING = b'{"taskId": "a", "status": "pending"}'

NOON = datetime(2025, 1, 2, 12, tzinfo=UTC)


pytestmark = pytest.mark.usefixtures("request_class")


async def failure(transport, cls, task_id="a"):
    with pytest.raises(cls) as caught:
        await transport.fetch(task_id)
    assert type(caught.value) is cls
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value


# What is sent.


async def test_request_is_one_get_with_key_and_agent(server, transport):
    await transport.fetch("a")

    assert server.requests[0].startswith(b"GET /xai/tasks?taskId=a HTTP/1.1\r\n")
    assert server.header("Authorization") == f"Bearer {KEY}"
    assert server.header("Accept") == "application/json"
    assert server.header("Accept-Encoding") == "gzip, deflate"
    assert server.header("User-Agent").startswith(
        f"xai-tasks/{__version__} aiohttp/{aiohttp.__version__} Python/"
    )
    assert server.header("Content-Length") is None


async def test_user_agent_precedes_own(server, make):
    await make(user_agent="shop/1.0").fetch("a")

    assert server.header("User-Agent").startswith(f"shop/1.0 xai-tasks/{__version__} ")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(
        [
            "&",
            "#",
            "+",
            "%",
            "/",
            "?",
            "a b",
            "任务",
            "%2F",
            "&taskId=b",
            "../..",
            "\x00",
            "\r\n",
            "🎬",
            ".",
        ]
    )
    | st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
)
async def test_any_id_is_sent_as_one_parameter(server, transport, task_id):
    await transport.fetch(task_id)

    path, _, query = server.target().partition("?")
    name, _, value = query.partition("=")
    assert (path, name) == ("/xai/tasks", "taskId")
    assert not set(value) & set("&#+/?= ")
    assert unquote_to_bytes(value).decode() == task_id


@pytest.mark.parametrize("task_id", ["\ud800", "a\udfff"])
async def test_unencodable_id_is_refused_before_any_request(server, transport, task_id):
    error = await failure(transport, InvalidTaskIdError, task_id)

    assert "lone surrogate" in str(error)
    assert str(error).isprintable()
    assert server.requests == []


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("", "/xai/tasks"),
        ("/", "/xai/tasks"),
        ("/gateway", "/gateway/xai/tasks"),
        ("/gateway/v1/", "/gateway/v1/xai/tasks"),
        ("/a%2Fb/c%20d", "/a%2Fb/c%20d/xai/tasks"),
        ("/ü", "/%C3%BC/xai/tasks"),
    ],
)
async def test_base_url_path_is_kept(server, make, given, path):
    await make(check_base_url(server.url + given, allow_insecure_http=False)).fetch("a")

    assert server.target() == f"{path}?taskId=a"


async def test_renewed_key_is_sent(server, make):
    keys = iter(["sk-first-key", "sk-second-key"])
    credentials = Credentials(lambda: next(keys))
    transport = make(credentials=credentials)
    sent = []

    for version in (0, 1):
        await credentials.renew(version)
        await transport.fetch("a")
        sent.append(server.header("Authorization"))

    assert sent == ["Bearer sk-first-key", "Bearer sk-second-key"]


# Good answers.


async def test_answer_has_body_and_times(server, transport):
    server.default = response(
        200, PENDING, {"Date": "Thu, 02 Jan 2025 12:00:00 GMT", "Retry-After": "7"}
    )

    look = await transport.fetch("a")

    assert (look.task.task_id, look.task.status) == ("a", TaskStatus.PENDING)
    assert (look.body, look.server_time, look.retry_after) == (PENDING, NOON.timestamp(), 7.0)


async def test_answer_without_times_has_none(transport):
    look = await transport.fetch("a")

    assert (look.server_time, look.retry_after) == (None, None)


async def test_each_answer_has_its_own_date(server, transport):
    dates = [
        "Thu, 02 Jan 2025 12:00:00 GMT",
        "Thu, 02 Jan 2025 12:00:00 GMT",
        "soon",
        "Thu, 02 Jan 2025 12:00:01 GMT",
    ]
    server.answers.extend(response(200, PENDING, {"Date": date}) for date in dates)

    times = [(await transport.fetch("a")).server_time for _ in dates]

    assert times == [NOON.timestamp(), NOON.timestamp(), None, NOON.timestamp() + 1]


@pytest.mark.parametrize("status", [200, 201, 202, 203, 206, 299])
async def test_any_2xx_with_a_task_is_accepted(server, transport, status):
    server.default = response(status, PENDING)

    assert (await transport.fetch("a")).task.task_id == "a"


@pytest.mark.parametrize(
    "content_type",
    ["", "text/html", "application/octet-stream", "application/json; charset=gbk", "???"],
)
async def test_content_type_does_not_matter(server, transport, content_type):
    body = '{"taskId": "任务", "status": "pending"}'.encode()
    server.default = response(200, body, content_type=content_type)

    assert (await transport.fetch("a")).task.task_id == "任务"


async def test_byte_order_mark_is_accepted(server, transport):
    server.default = response(200, b"\xef\xbb\xbf" + PENDING)

    assert (await transport.fetch("a")).task.task_id == "a"


@pytest.mark.parametrize(
    ("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_compressed_answer_is_decompressed(server, transport, coding, compress):
    server.default = response(200, compress(PENDING), {"Content-Encoding": coding})

    assert (await transport.fetch("a")).body == PENDING


async def test_chunked_answer_is_joined(server, transport):
    body = json.dumps({"taskId": "a", "status": "completed", "result": "x" * 300_000}).encode()
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    chunks = (body[i : i + 1000] for i in range(0, len(body), 1000))
    server.default = (
        head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    )

    assert (await transport.fetch("a")).body == body


async def test_connection_is_reused(server, transport):
    ports = []

    async def keep_alive(reader, writer):
        ports.append(writer.get_extra_info("peername"))
        answer = response(200, PENDING).replace(b"Connection: close\r\n", b"")
        writer.write(answer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await reader.read()

    server.default = keep_alive
    await transport.fetch("a")
    await transport.fetch("a")

    assert len(ports) == 1


# Malformed answers.


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (response(204), "HTTP 204, but the answer can't be read: its body is empty"),
        (response(200, b""), "its body is empty"),
        (response(200, b"\n \n"), "its body is empty"),
        (response(200, b"<html>maintenance</html>", content_type="text/html"), "Expecting value"),
        (response(200, b"[]"), "an object was expected, not list"),
        (response(200, b'{"code": 0, "data": {}}'), "'taskId' is missing or not a string"),
        (response(200, PENDING[:-1]), "Expecting"),
        (response(200, b'{"taskId": "a", "status": "pending", "result": NaN}'), "NaN is not JSON"),
        (
            response(200, b'{"taskId": "a", "status": "pending", "result": %s}' % (b"9" * 5000)),
            "4300",
        ),
        (response(200, b"[" * 100_000), "nested too deeply"),
        (response(200, b'{"taskId": "\xff"}'), "invalid start byte"),
    ],
)
async def test_validation_error_shows_beginning_of_body(server, transport, answer, problem):
    server.default = answer

    error = await failure(transport, APIResponseValidationError)

    assert problem in str(error)
    assert error.status_code == int(answer.split()[1])
    assert error.task_id == "a"
    assert error.body == printable(answer.partition(b"\r\n\r\n")[2].decode("utf-8", "replace"))
    assert repr(error.body) in str(error)


# The cap on bodies.


@pytest.mark.parametrize("excess", [0, 1])
async def test_body_size_is_capped(server, make, excess):
    transport = make(max_bytes=len(PENDING) - excess)

    if excess:
        error = await failure(transport, APIResponseValidationError)
        assert f"the answer is larger than {len(PENDING) - 1} bytes" in str(error)
        assert not is_transient(error)
    else:
        assert (await transport.fetch("a")).body == PENDING


def gzip_bomb(mebibytes):
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(squeeze.compress(b" " * 2**20) for _ in range(mebibytes)) + squeeze.flush()


@pytest.mark.parametrize(("status", "cls"), [(200, APIResponseValidationError), (503, ServerError)])
async def test_gzip_bomb_is_stopped_while_reading(server, transport, status, cls):
    server.default = response(status, gzip_bomb(200), {"Content-Encoding": "gzip"})
    tracemalloc.start()
    try:
        await failure(transport, cls)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 20 * 2**20


async def test_gzip_bombs_leave_the_loop_to_others(server, make):
    server.default = response(200, gzip_bomb(32), {"Content-Encoding": "gzip"})
    transport = make(max_bytes=16 * 2**20)
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counter = asyncio.create_task(count_turns())
    fetches = (transport.fetch("a") for _ in range(8))
    errors = await asyncio.gather(*fetches, return_exceptions=True)
    counter.cancel()

    assert {type(error) for error in errors} == {APIResponseValidationError}
    # 16 MiB are 86 chunks or so, of which one is read in each turn.
    assert turns > 8 * 64


async def test_the_request_timeout_holds_for_gzip_bombs(server, make):
    server.default = response(200, gzip_bomb(200), {"Content-Encoding": "gzip"})
    transport = make(max_bytes=2**30, request_timeout=0.1)
    fetches = (transport.fetch("a") for _ in range(8))
    errors = await asyncio.gather(*fetches, return_exceptions=True)

    assert APITimeoutError in {type(error) for error in errors}


@pytest.mark.parametrize("sizes", [[1, 2**17], [2**17], [1] * 40, [2**16, 2**16]])
async def test_too_large_body_shows_its_beginning(server, make, sizes):
    text = b"".join(b"%x" % (n % 16) for n in range(sum(sizes)))

    async def in_pieces(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        begin = 0
        for size in sizes:
            writer.write(text[begin : begin + size])
            await writer.drain()
            await asyncio.sleep(0.002)
            begin += size

    server.default = in_pieces
    error = await failure(make(max_bytes=30), APIResponseValidationError)

    assert error.body == text[:30].decode()


@pytest.mark.parametrize(("status", "cls"), [(200, APIResponseValidationError), (500, ServerError)])
async def test_endless_body_is_cut_and_connection_closed(server, transport, status, cls):
    gone = asyncio.Event()

    async def endless(reader, writer):
        writer.write(f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\n\r\n".encode())
        try:
            while True:
                writer.write(b" " * 2**16)
                await writer.drain()
        finally:
            gone.set()

    server.default = endless
    await failure(transport, cls)

    await asyncio.wait_for(gone.wait(), 10)


# HTTP errors.


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"message": "no"}', "no"),
        (b'{"error": "no"}', "no"),
        (b'{"errorMessage": "no"}', "no"),
        (b'{"detail": "no"}', "no"),
        (b'{"msg": "no"}', "no"),
        (b'{"title": "Unauthorized", "status": 401}', "Unauthorized"),
        (b'{"title": "Bad", "detail": "no"}', "no"),
        (b'{"error": {"message": "no", "code": 7}}', "no"),
        (b'{"error": true, "message": "no"}', "no"),
        (b'{"message": ["no", "nor that"]}', "no; nor that"),
        (b'{"detail": [{"loc": ["query"], "msg": "no"}, {"msg": "nor that"}]}', "no; nor that"),
        (b'{"detail": [7, "no"]}', "no"),
        (b'{"message": "  ", "detail": " no "}', "no"),
        (b'"no"', "no"),
        (b'["no"]', "no"),
        (b"\xef\xbb\xbf" + b'{"message": "no"}', "no"),
        ('{"message": "余额不足"}'.encode(), "余额不足"),
        (b'{"message": "no\\u001b[31m\\nno"}', r"no\x1b[31m\nno"),
        (b'{"message": "%s"}' % (b"x" * 600), "x" * 500 + "…"),
        (b'{"error": {"error": {"error": {"error": {"error": "too deep"}}}}}', None),
        (b'[[[[["too deep"]]]]]', None),
        (b"[]", None),
        (b"7", None),
        (b"null", None),
        (b"", None),
        (b"<html><h1>502</h1></html>", "502"),
        (b'{"message": "\xff"}', '{"message": "\ufffd"}'),
        (b"[" * 60_000, "[" * 120 + "…"),
    ],
)  # fmt: skip
async def test_server_message_is_found_in_any_shape(server, transport, body, message):
    server.default = response(400, body)

    error = await failure(transport, BadRequestError)

    assert error.message == message
    assert str(error) == (
        "task 'a': HTTP 400" if message is None else f"task 'a': HTTP 400: {message}"
    )
    assert error.body == printable(body.decode("utf-8", "replace"))


@pytest.mark.parametrize(
    ("body", "trace_id"),
    [
        (b'{"traceId": "t1"}', "t1"),
        (b'{"trace_id": "t1"}', "t1"),
        (b'{"traceId": "t\\n1"}', r"t\n1"),
        (b'{"traceId": 7}', None),
        (b'{"traceId": null}', None),
        (b'["traceId"]', None),
    ],
)
async def test_trace_id_is_found_and_named(server, transport, body, trace_id):
    server.default = response(500, body)

    error = await failure(transport, ServerError)

    assert error.trace_id == trace_id
    assert ("(trace id" in str(error)) is (trace_id is not None)


async def test_status_error_tells_all_it_knows(server, transport):
    server.default = response(
        429, b'{"message": "slow down", "traceId": "t1"}', {"Retry-After": "1.5"}
    )

    error = await failure(transport, RateLimitError)

    assert str(error) == "task 'a': HTTP 429: slow down (trace id t1) (retry after 1.5 s)"
    assert (error.status_code, error.retry_after, error.task_id) == (429, 1.5, "a")


@pytest.mark.parametrize(
    ("status", "cls", "hint"),
    [
        (401, AuthenticationError, "the API key was refused"),
        (402, PaymentRequiredError, "balance"),
        (403, PermissionDeniedError, "may not see this task"),
        (404, NotFoundError, "check the id, and that the key belongs to the account that made it"),
    ],
)
async def test_refusal_says_what_to_check(server, transport, status, cls, hint):
    server.default = response(status)

    assert hint in str(await failure(transport, cls))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_told_and_not_followed(server, make, status):
    async with RawServer(response(200, PENDING)) as elsewhere:
        server.default = response(status, b"", {"Location": f"{elsewhere.url}/\x1b"})

        error = await failure(make(), APIStatusError)

        assert elsewhere.requests == []
    assert len(server.requests) == 1
    assert error.status_code == status
    assert rf"a redirect to {elsewhere.url}/\x1b, which is never followed; check base_url" in str(
        error
    )


@pytest.mark.parametrize("status", [300, 304])
async def test_3xx_without_location_is_a_status_error(server, transport, status):
    server.default = response(status)

    assert str(await failure(transport, APIStatusError)) == f"task 'a': HTTP {status}"


async def test_switching_protocols_is_a_status_error(server, transport):
    server.default = b"HTTP/1.1 101 Yes\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"

    assert (await failure(transport, APIStatusError)).status_code == 101


# Faults of the connection.


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(reset, id="reset"),
        pytest.param(b"", id="closed"),
        pytest.param(b"\x16\x03\x01 garbage \xff\r\n\r\n", id="garbage"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", id="closed inside the headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
                     id="closed inside the body"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
                     id="chunks without end"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello",
                     id="broken chunking"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", id="negative length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
                     id="oversized header"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
                     id="too many headers"),
        pytest.param(response(200, b"no gzip", {"Content-Encoding": "gzip"}), id="no gzip"),
    ],
)  # fmt: skip
async def test_wire_fault_is_a_connection_error(server, transport, answer):
    server.default = answer

    error = await failure(transport, APIConnectionError)

    assert error.task_id == "a"
    assert str(error).isprintable()
    server.default = response(200, PENDING)
    assert (await transport.fetch("a")).task.task_id == "a"


async def test_refused_connection_names_the_host(server, transport):
    await server.__aexit__()

    error = await failure(transport, APIConnectionError)

    assert "ClientConnectorError: Cannot connect to host 127.0.0.1" in str(error)


async def test_unresolvable_name_is_a_connection_error(make):
    error = await failure(make("https://nowhere.invalid"), APIConnectionError)

    assert "nowhere.invalid" in str(error)


def _raises(error):
    async def middleware(request, handler):
        raise error

    return middleware


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "Connection timed out"),
        (TimeoutError(), "TimeoutError"),
        (ssl.SSLError(1, "bad record"), "bad record"),
        (ValueError("odd"), "ValueError: odd"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd"), "UnicodeDecodeError"),
        (RuntimeError(), "RuntimeError"),
        (aiohttp.InvalidURL("http://x"), "InvalidURL: http://x"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_any_library_error_is_a_connection_error(make, fault, text):
    async with aiohttp.ClientSession(middlewares=[_raises(fault)]) as session:
        error = await failure(make(session=session), APIConnectionError)

    assert text in str(error)
    assert "no whole answer within" not in str(error)


async def test_untrusted_certificate_ends_at_once_with_a_hint():
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with RawServer(response(200, PENDING), tls=context) as server:
        transport = Transport(
            Credentials(KEY),
            server.url,
            session=None,
            request_timeout=30,
            max_bytes=1000,
            user_agent=None,
        )
        error = await failure(transport, APIConnectionError)
        await transport.close()

    assert "CERTIFICATE_VERIFY_FAILED" in str(error)
    assert "SSL_CERT_FILE" in str(error)
    assert not is_transient(error)
    assert server.requests == []


async def test_trusted_certificate_is_accepted(make):
    authority = trustme.CA()
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    async with (
        RawServer(response(200, PENDING), tls=theirs) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=ours)) as session,
    ):
        look = await make(server.url, session=session).fetch("a")

    assert look.task.task_id == "a"


# Time.


@pytest.mark.parametrize("where", ["before the answer", "inside the headers", "inside the body"])
async def test_stalled_answer_times_out(server, make, where):
    whole = response(200, PENDING)
    sent = {"before the answer": 0, "inside the headers": 20, "inside the body": len(whole) - 3}[
        where
    ]

    async def stall(reader, writer):
        writer.write(whole[:sent])
        await reader.read()

    server.default = stall
    transport = make(request_timeout=0.1)
    error = await failure(transport, APITimeoutError)

    assert "task 'a': no whole answer within 0.1 s" in str(error)
    server.default = whole
    assert (await transport.fetch("a")).task.task_id == "a"


async def test_dripping_answer_times_out(server, make):
    async def drip(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    server.default = drip
    begun = time.monotonic()
    await failure(make(request_timeout=0.2), APITimeoutError)

    assert time.monotonic() - begun < 10


async def test_connecting_counts_toward_timeout(server, make):
    class NeverResolves(aiohttp.abc.AbstractResolver):
        async def resolve(self, *args, **kwargs):
            await asyncio.Event().wait()

        async def close(self):
            pass

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=NeverResolves())
    ) as session:
        await failure(
            make("https://example.invalid", session=session, request_timeout=0.1), APITimeoutError
        )


async def test_cancellation_closes_the_connection(server, transport):
    gone = asyncio.Event()

    async def stall(reader, writer):
        await reader.read()
        gone.set()

    server.default = stall
    fetch = asyncio.create_task(transport.fetch("a"))
    await server.arrived.wait()
    fetch.cancel("enough")

    with pytest.raises(asyncio.CancelledError) as caught:
        await fetch
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    await asyncio.wait_for(gone.wait(), 10)


async def test_callers_own_timeout_is_kept(server, transport):
    server.default = silence

    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.05):
            await transport.fetch("a")

    assert type(caught.value) is TimeoutError


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_interrupt_propagates(interrupt):
    async def main():
        async with aiohttp.ClientSession(middlewares=[_raises(interrupt())]) as session:
            transport = Transport(
                Credentials(KEY),
                "http://127.0.0.1:9",
                session=session,
                request_timeout=30,
                max_bytes=1000,
                user_agent=None,
            )
            await transport.fetch("a")

    with pytest.raises(interrupt):
        asyncio.run(main())


# Closing.


async def test_closed_transport_sends_nothing(server, transport):
    await transport.fetch("a")
    await transport.close()
    await transport.close()

    assert "closed" in str(await failure(transport, ClientClosedError))
    assert len(server.requests) == 1


async def test_unused_transport_closes(transport):
    await transport.close()

    assert transport.closed


async def test_close_ends_a_request_in_flight(server, transport):
    server.default = silence
    fetch = asyncio.create_task(transport.fetch("a\n"))
    await server.arrived.wait()

    await transport.close()

    with pytest.raises(
        ClientClosedError, match=r"the client was closed while it asked for task 'a\\\\n'"
    ):
        await fetch


# A borrowed session.


async def test_borrowed_session_is_never_closed(server, make):
    async with aiohttp.ClientSession() as session:
        transport = make(session=session)
        await transport.fetch("a")
        await transport.close()

        assert not session.closed
        async with session.get(server.url) as answer:
            assert answer.status == 200


async def test_closed_borrowed_session_is_told_apart(make):
    async with aiohttp.ClientSession() as session:
        transport = make(session=session)

    assert "the borrowed session is closed" in str(await failure(transport, ClientClosedError))


async def test_borrowed_session_closed_in_flight(server, make):
    server.default = silence
    session = aiohttp.ClientSession()
    transport = make(session=session)
    fetch = asyncio.create_task(transport.fetch("a"))
    await server.arrived.wait()

    await session.close()

    with pytest.raises(APIConnectionError):
        await fetch
    await failure(transport, ClientClosedError)


async def get(client):
    await client.get("a")


async def wait(client):
    await client.wait("a")


async def wait_all(client):
    await client.wait_all(["a"])


async def as_completed(client):
    async for _ in client.as_completed(["a"]):
        pass


async def watch(client):
    async for _ in client.watch("a"):
        pass


@pytest.mark.parametrize("verb", [get, wait, wait_all, as_completed, watch])
def test_borrowed_session_of_another_loop_is_refused(verb):
    async def make_session():
        return aiohttp.ClientSession()

    async def use(session):
        await verb(TaskClient(KEY, session=session))

    with asyncio.Runner() as runner:
        session = runner.run(make_session())
        with asyncio.Runner() as other, pytest.raises(RuntimeError, match="another event loop"):
            other.run(use(session))
        runner.run(session.close())


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 64),
        ({"limit": 0}, 64),
        ({"limit": 64}, 64),
        ({"limit": 4}, 4),
        ({"limit_per_host": 4}, 4),
        ({"limit": 8, "limit_per_host": 3}, 3),
        ({"limit": 2, "limit_per_host": 3}, 2),
    ],
)
async def test_a_small_pool_lowers_the_concurrency(make, caplog, limits, expected):
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(**limits)) as session:
        assert make(session=session).limit_concurrency(64) == expected

    assert ("the session opens at most" in caplog.text) is (expected < 64)


async def test_a_closed_session_or_none_lowers_nothing(make):
    session = aiohttp.ClientSession()
    await session.close()

    assert make(session=session).limit_concurrency(64) == 64
    assert make().limit_concurrency(64) == 64


def basic_auth():
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # not in the oldest aiohttp that is supported
        return aiohttp.BasicAuth("them", "pw")


async def refuse_all(response):
    raise AssertionError("called")


@pytest.mark.parametrize(
    "defaults",
    [
        {"raise_for_status": True},
        {"raise_for_status": refuse_all},
        {"base_url": "http://127.0.0.1:9/elsewhere/"},
        {
            "headers": {
                "authorization": "Basic Zm9vOmJhcg==",
                "ACCEPT": "text/html",
                "user-agent": "theirs",
            }
        },
        {"auth": basic_auth()},
        {"auth": basic_auth(), "base_url": "{server}/"},
        {"timeout": aiohttp.ClientTimeout(total=1e-3)},
        {"timeout": aiohttp.ClientTimeout(sock_connect=1e-3, sock_read=1e-3, connect=1e-3)},
        {"auto_decompress": False},
        {"read_bufsize": 1},
        {"skip_auto_headers": ["User-Agent", "Accept", "Authorization"]},
        {"cookies": {"theirs": "kept"}},
        {"version": aiohttp.HttpVersion10},
        {"requote_redirect_url": False},
    ],
    ids=lambda defaults: ",".join(defaults),
)
@pytest.mark.filterwarnings("ignore:The 'auth' parameter is deprecated:DeprecationWarning")
async def test_borrowed_defaults_break_no_request(server, make, defaults):
    async def late(reader, writer):
        await asyncio.sleep(0.02)
        writer.write(response(200, gzip.compress(PENDING), {"Content-Encoding": "gzip"}))

    server.default = late
    if "base_url" in defaults:
        defaults = {**defaults, "base_url": defaults["base_url"].format(server=server.url)}
    async with aiohttp.ClientSession(**defaults) as session:
        transport = make(session=session)
        look = await transport.fetch("a b&c")
        server.default = response(404)
        with pytest.raises(APIStatusError, match="HTTP 404"):
            await transport.fetch("a b&c")

    assert look.body == PENDING
    for request in (0, 1):
        assert server.header("Authorization", request) == f"Bearer {KEY}"
        assert server.header("Accept", request) == "application/json"
        assert server.header("Accept-Encoding", request) == "gzip, deflate"
        assert server.header("User-Agent", request).startswith("xai-tasks/")
        assert server.target(request) == "/xai/tasks?taskId=a%20b%26c"


async def test_borrowed_trust_env_session_sends_our_key(server, make, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login them password pw\ndefault login them password pw\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with aiohttp.ClientSession(trust_env=True) as session:
        await make(session=session).fetch("a")

    assert server.header("Authorization") == f"Bearer {KEY}"


@pytest.mark.filterwarnings("ignore:The 'auth' parameter is deprecated:DeprecationWarning")
async def test_borrowed_middlewares_run(server, make):
    seen = []

    async def tag(request, handler):
        seen.append(request.headers.get("Authorization"))
        request.headers["X-Tag"] = "theirs"
        return await handler(request)

    async with aiohttp.ClientSession(middlewares=[tag], auth=basic_auth()) as session:
        await make(session=session).fetch("a")

    assert server.header("X-Tag") == "theirs"
    assert server.header("Authorization") == f"Bearer {KEY}"
    assert seen == ["Basic dGhlbTpwdw=="]


# The transport's own session.


async def test_own_session_keeps_no_cookies(server, transport):
    server.answers.append(response(200, PENDING, {"Set-Cookie": "session=1; Path=/"}))

    await transport.fetch("a")
    await transport.fetch("a")

    assert [server.header("Cookie", request) for request in (0, 1)] == [None, None]


async def test_own_session_ignores_netrc_and_proxies(server, transport, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("default login them password pw\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in (
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    await transport.fetch("a")

    assert server.header("Authorization") == f"Bearer {KEY}"


async def test_own_session_has_no_connection_limit(server, transport):
    async def hold(reader, writer):
        await everybody.wait()
        writer.write(response(200, PENDING))

    everybody = asyncio.Barrier(150)
    server.default = hold

    await asyncio.gather(*(transport.fetch("a") for _ in range(150)))

    assert len(server.requests) == 150


# Arguments.


@pytest.mark.parametrize("session", ["session", object(), aiohttp.ClientSession])
async def test_wrong_session_is_a_type_error(make, session):
    with pytest.raises(TypeError, match=r"^session must be an aiohttp\.ClientSession, not "):
        make(session=session)


@pytest.mark.parametrize(
    ("user_agent", "error"),
    [
        (7, TypeError),
        (b"shop", TypeError),
        ("shop\r\nX-Evil: 1", ValueError),
        ("shop\x00", ValueError),
        ("лавка", ValueError),
    ],
)
async def test_invalid_user_agent_is_refused(make, user_agent, error):
    with pytest.raises(error, match="^user_agent must be "):
        make(user_agent=user_agent)


@pytest.mark.parametrize(
    ("given", "base_url"),
    [
        ("https://api.mountsea.ai", "https://api.mountsea.ai"),
        ("https://api.mountsea.ai/", "https://api.mountsea.ai"),
        ("HTTPS://API.mountsea.AI/Path//", "https://api.mountsea.ai/Path"),
        ("https://host:8443/prefix", "https://host:8443/prefix"),
        ("https://host:443", "https://host"),
        ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://LOCALHOST", "http://localhost"),
        ("http://127.0.0.1:8080/x", "http://127.0.0.1:8080/x"),
        ("http://127.1.2.3", "http://127.1.2.3"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_base_url_loses_trailing_slash(given, base_url):
    assert check_base_url(given, allow_insecure_http=False) == base_url


@pytest.mark.parametrize(
    "base_url",
    ["", " ", "host", "host:8080", "//host", "/path", "https://", "https:///path", "https:host", "ftp://host",
     "file:///etc/passwd", "ws://host", "https://host:99999", "https://host:port", "http://[::1",
     "https://ho st",
     "https://host ", " https://host", "https://host\n", "https://host/\x00", "https://host/\x1b[31m",
     "https://ho\\st", "https://host/\u2028"],
)  # fmt: skip
def test_malformed_base_url_is_refused(base_url):
    with pytest.raises(
        ConfigurationError, match="^base_url must be like https://host or https://host/prefix$"
    ):
        check_base_url(base_url, allow_insecure_http=True)


@pytest.mark.parametrize(
    "base_url",
    ["https://user@host", "https://user:pw@host", "https://:pw@host", "http://127.0.0.1@host"],
)
def test_credentials_in_base_url_are_refused(base_url):
    with pytest.raises(
        ConfigurationError, match="^base_url must not hold credentials: pass the key as api_key$"
    ):
        check_base_url(base_url, allow_insecure_http=True)


@pytest.mark.parametrize(
    "base_url",
    [
        "https://host?",
        "https://host/?",
        "https://host?a=b",
        "https://host#",
        "https://host/#x",
        "https://host?/",
    ],
)
def test_query_or_fragment_in_base_url_is_refused(base_url):
    with pytest.raises(ConfigurationError, match="^base_url must not have a query or a fragment$"):
        check_base_url(base_url, allow_insecure_http=True)


@pytest.mark.parametrize(
    "host",
    ["api.mountsea.ai", "10.0.0.1", "0.0.0.0", "128.0.0.1", "127.0.0.1.example",
     "localhost.example", "[::2]",
     "2130706433"],
)  # fmt: skip
def test_plain_http_must_be_allowed(host):
    with pytest.raises(
        ConfigurationError,
        match="^base_url would send the key over plain http to .*allow_insecure_http=True$",
    ):
        check_base_url(f"http://{host}", allow_insecure_http=False)
    assert check_base_url(f"http://{host}", allow_insecure_http=True).startswith("http://")


@pytest.mark.parametrize("base_url", [None, 7, b"https://host"])
def test_base_url_of_wrong_type_is_a_type_error(base_url):
    with pytest.raises(TypeError, match="^base_url must be a string, not "):
        check_base_url(base_url, allow_insecure_http=True)


# Retry-After.


async def test_retry_after_date_counts_from_answer_date(server, transport):
    server.default = response(
        503,
        b"",
        {"Date": "Thu, 02 Jan 2025 12:00:00 GMT", "Retry-After": "Thu, 02 Jan 2025 12:00:07 GMT"},
    )

    assert (await failure(transport, ServerError)).retry_after == 7.0


# What an echo of the key leaves behind; the whole list is in test_security.


async def test_old_key_is_redacted_from_its_answer(server, make):
    keys = iter(["sk-the-old-key", "sk-the-new-key"])
    credentials = Credentials(lambda: next(keys))
    await credentials.renew(0)
    transport = make(credentials=credentials)
    renewed = asyncio.Event()

    async def echo_late(reader, writer):
        await renewed.wait()
        writer.write(response(401, b'{"message": "sk-the-old-key is no key"}'))

    server.answers.append(echo_late)
    old = asyncio.create_task(transport.fetch("a"))
    await server.arrived.wait()
    await credentials.renew(1)
    await transport.fetch("a")
    renewed.set()

    with pytest.raises(AuthenticationError) as caught:
        await old
    assert caught.value.message == "[key] is no key"


async def test_closed_sessions_make_no_other():
    sessions = Sessions(None, lean=False)
    session = await sessions.open()
    await sessions.close()

    with pytest.raises(ClientClosedError):
        sessions.for_one_request(session)
