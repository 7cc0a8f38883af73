"""Whatever a server answers and whatever an id holds: only documented exceptions come out of `get`.

A few seconds by default. `XAI_TASKS_FUZZ=fuzz-long python -m pytest
tests/test_fuzz.py` takes minutes.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_server import RawServer, response
from tenacity import stop_after_attempt

from xai_tasks import APIError, InvalidTaskIdError, RetryPolicy, TaskClient, TaskResult, TaskStatus

settings.register_profile(
    "fuzz",
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.register_profile("fuzz-long", settings.get_profile("fuzz"), max_examples=10_000)
pytestmark = pytest.mark.slow  # so are many examples

FUZZ = settings.get_profile(os.environ.get("XAI_TASKS_FUZZ", "fuzz"))

KEY = "sk-live-S3CRETS3CRET42"
PENDING = b'{"taskId": "a", "status": "pending"}'


@pytest.fixture
async def server():
    async with RawServer(response(200, PENDING)) as server:
        yield server


@pytest.fixture
async def client(server, request_class):
    # One attempt: each example stands for itself.
    retry = RetryPolicy(stop=stop_after_attempt(1), max_retry_after=0)
    async with TaskClient(
        KEY,
        base_url=server.url,
        retry=retry,
        rate_limit=1e6,
        request_timeout=10,
        max_response_bytes=2**16,
    ) as client:
        yield client
        end_pauses(client)
        server.default = response(200, PENDING)
        assert (await client.get("a")).status is TaskStatus.PENDING


def end_pauses(client):
    """End what an example before has asked for: each stands for itself."""
    client._parts.throttle._pacer.paused_until = 0.0


async def check(client, task_id="a"):
    """Get a task, or an error that is documented and fit to be shown, pickled and logged."""
    end_pauses(client)
    try:
        task = await client.get(task_id)
    except APIError as error:
        assert error.task_id == task_id
        assert (error.__cause__, error.__context__) == (None, None)
        assert str(error).isprintable()
        assert KEY not in str(error) + repr(error) + repr(vars(error))
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    else:
        assert isinstance(task, TaskResult)
        assert repr(task).isprintable()
        assert KEY not in repr(task)
        assert pickle.loads(pickle.dumps(task)) is not None


texts = st.text(st.characters(), max_size=20) | st.sampled_from(
    ["", KEY, "\x1b[31m", "\ud800", "\r\nX: y"]
)

statuses = st.sampled_from(
    [200] * 5
    + [
        201,
        204,
        206,
        301,
        302,
        304,
        400,
        401,
        402,
        403,
        404,
        408,
        418,
        422,
        429,
        500,
        502,
        503,
        599,
        999,
    ]
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.sampled_from(
        ["completed", "failed", "2025-01-02T12:00:00Z", "0001-01-01T00:00:00+14:00", 10**4000]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)

tasks = st.fixed_dictionaries(
    {},
    optional={
        "taskId": texts | values,
        "status": st.sampled_from([*TaskStatus]) | values,
        **dict.fromkeys(
            ("errorCode", "errorMessage", "createdAt", "finishedAt", "traceId", "result"), values
        ),
        **dict.fromkeys(("message", "error", "detail"), values),
    },
)


def encoded(value):
    return json.dumps(value).encode()


def damaged(data, position, damage):
    """Put something else in the place of one byte, or of none."""
    position %= len(data) + 1
    return data[:position] + damage + data[position + 1 :]


bodies = (
    tasks.map(encoded)
    | tasks.map(encoded).map(lambda body: b"\xef\xbb\xbf" + body)
    | values.map(encoded)
    | st.builds(damaged, tasks.map(encoded), st.integers(0), st.binary(max_size=3))
    | st.binary(max_size=100)
    | st.sampled_from(
        [b"[" * 50_000, b'{"a":' * 20_000, b"9" * 5000, b"<html>", b" " * 70_000, KEY.encode(), b""]
    )
)

codings = st.sampled_from(
    [
        (None, lambda body: body),
        ("gzip", gzip.compress),
        ("gzip", lambda body: gzip.compress(body)[:-4]),
        ("gzip", lambda body: gzip.compress(body) + b"more"),
        ("gzip", lambda body: body),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body)[2:-4]),
        ("br", lambda body: body),
        ("gzip, gzip", lambda body: gzip.compress(gzip.compress(body))),
        (KEY, lambda body: body),
    ]
)


@FUZZ
@given(statuses, bodies, codings)
async def test_any_body_gives_a_task_or_a_documented_error(server, client, status, body, coding):
    name, encode = coding
    server.default = response(
        status, encode(body), None if name is None else {"Content-Encoding": name}
    )

    await check(client)


@FUZZ
@given(tasks.map(lambda task: {"taskId": "a", "status": "failed", **task}))
async def test_any_task_gives_a_task_or_a_documented_error(server, client, task):
    server.default = response(200, encoded(task))

    await check(client)


header_names = st.sampled_from(
    ["Retry-After", "retry-after-ms", "Date", "Location", "Set-Cookie", "Content-Type",
     "Content-Encoding",
     "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "Trailer", "X"]
)  # fmt: skip

header_values = (
    st.sampled_from(
        ["0", "-1", "1e9", "nan", "inf", "9" * 400, "Thu, 02 Jan 2025 12:00:00 GMT",
         "Thu, 99 Jan 99999", "chunked", "gzip",
         "identity", "chunked, chunked", "close", "keep-alive", "upgrade", "websocket", "/", "//",
         "http://[", "javascript:1",
         f"https://example.com/?key={KEY}", KEY, f"{KEY}=1", "a=b; Max-Age=nan",
         "text/html; charset=\x00", "1, 2", "0x10"]
    ).map(str.encode)
    | st.binary(max_size=30)
    | st.just(b"x" * 9000)
)  # fmt: skip


@FUZZ
@given(statuses, st.lists(st.tuples(header_names, header_values), max_size=4), bodies)
async def test_any_headers_give_a_task_or_a_documented_error(server, client, status, headers, body):
    lines = [
        f"HTTP/1.1 {status} OK".encode(),
        *(name.encode() + b": " + value for name, value in headers),
    ]
    if not any(name in ("Content-Length", "Transfer-Encoding") for name, _ in headers):
        lines.append(b"Content-Length: %d" % len(body))
    server.default = b"\r\n".join([*lines, b"", b""]) + body

    await check(client)


@FUZZ
@given(
    st.binary(max_size=200)
    | st.builds(damaged, st.just(response(200, PENDING)), st.integers(0), st.binary(max_size=3))
    | st.builds(lambda data, end: data[:end], st.just(response(200, PENDING)), st.integers(0, 200))
    | st.builds(
        lambda line, rest: line + b"\r\n" + rest,
        st.from_regex(rb"\AHTTP/[0-9.]{1,4} [0-9a-z+-]{1,5}( [ -~]{0,9})?\Z"),
        st.sampled_from([b"\r\n", b"Content-Length: 0\r\n\r\n", b"\r\n" + PENDING]),
    )
)
async def test_any_bytes_on_the_wire_give_a_task_or_a_documented_error(server, client, data):
    server.default = data

    await check(client)


@FUZZ
@given(st.text(st.characters(), min_size=1, max_size=200))
async def test_any_id_gives_a_task_or_a_documented_error(client, task_id):
    try:
        task_id.encode()
    except UnicodeEncodeError:
        with pytest.raises(InvalidTaskIdError) as caught:
            await client.get(task_id)
        assert str(caught.value).isprintable()
    else:
        await check(client, task_id)


@FUZZ
@given(st.none() | st.integers() | st.binary() | st.lists(st.text()) | st.just(""))
async def test_what_is_no_id_is_refused_before_any_request(server, client, task_id):
    with pytest.raises(InvalidTaskIdError if task_id == "" else TypeError, match="task_id"):
        await client.get(task_id)

    assert server.requests == []
