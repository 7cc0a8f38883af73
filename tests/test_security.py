"""What docs/security.md promises, each promise by a test that it names."""

from __future__ import annotations

import ast
import asyncio
import copy
import html
import inspect
import json
import logging
import pickle
import re
import ssl
import traceback
import warnings
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest
import trustme
from raw_server import RawServer, reset, response, silence
from rich.pretty import pretty_repr
from tenacity import stop_after_attempt, wait_none

import xai_tasks
from xai_tasks import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ConfigurationError,
    PollPolicy,
    RetryPolicy,
    ServerError,
    TaskClient,
    TaskError,
    TaskStatus,
    VideoRequest,
    WaitTimeoutError,
    XaiTasksError,
)

# The key is a global, and the frames of this file are left out where locals are
# looked at: a test may know it.
KEY = "sk-live/S3CRETS3CRET+x=42"
TRACES = (
    "3CRET",
    "".join(f"\\u{ord(char):04x}" for char in KEY),
    "".join(f"\\u{ord(char):04X}" for char in KEY),
    quote(KEY, ""),
)
"""What gives the key away: its core, and the forms that an echo may have put it into."""

PENDING = b'{"taskId": "a", "status": "pending"}'

ECHOES = {
    "as it is": KEY,
    "JSON": KEY.replace("/", r"\/"),
    "JSON, all escaped": "".join(f"\\u{ord(char):04x}" for char in KEY),
    "JSON, in capitals": "".join(f"\\u{ord(char):04X}" for char in KEY),
    "JSON, mixed": KEY.replace("+", r"\u002B").replace("S", r"\u0053").replace("/", r"\/"),
    "URL": quote(KEY, safe=""),
    "HTML": html.escape(KEY).replace("+", "&#43;"),
}


def everything(error, seen=None):
    """Return all text that anybody could get to see of an error and of those it leads to."""
    seen = set() if seen is None else seen
    if not isinstance(error, BaseException) or id(error) in seen:
        return ""
    seen.add(id(error))
    texts = [str(error), repr(error), "".join(traceback.format_exception_only(error))]
    texts += [repr(vars(error)), pretty_repr(vars(error)), repr(error.args)]
    frames = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename != __file__
    ]
    texts += traceback.StackSummary.extract(iter(frames), capture_locals=True).format()
    for frame, _ in frames:
        # Frames of the HTTP library hold the request's headers: none may be reachable.
        assert f"{Path(aiohttp.__file__).parent}" not in frame.f_code.co_filename
        texts += [pretty_repr(value) for value in frame.f_locals.values()]
    with suppress(Exception):
        texts.append(repr(pickle.dumps(error)))
    for other in (error.__cause__, error.__context__, *vars(error).values(), *error.args):
        texts.append(everything(other, seen))
    return "\n".join(texts)


def gives_away(text):
    return [trace for trace in TRACES if trace in text]


class Recorder(logging.Handler):
    """Keeps all that any formatter could make of every record."""

    def __init__(self):
        super().__init__(level=1)
        self.texts = []
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())
        self.texts += [record.getMessage(), repr(vars(record))]
        if record.exc_info:
            self.texts.append(everything(record.exc_info[1]))


@pytest.fixture
def log():
    """Listen to every logger at every level."""
    recorder = Recorder()
    root = logging.getLogger()
    loggers = [root, *map(logging.getLogger, ("xai_tasks", "aiohttp", "asyncio"))]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(1)
    root.addHandler(recorder)
    yield recorder
    root.removeHandler(recorder)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
async def nothing_told(log):
    """Make the loop log all it can, and find the key in no log record and no warning."""
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    loop.set_debug(False)
    assert log.messages
    assert gives_away("\n".join([*log.texts, *(str(warning.message) for warning in caught)])) == []


@asynccontextmanager
async def serving(answer, *, tls=None, **options):
    """Return a client of a server that answers so; the key is known to this frame alone."""
    defaults = {
        "retry": RetryPolicy(stop=stop_after_attempt(2), wait=wait_none()),
        "request_timeout": 30.0,
        "rate_limit": 1000.0,  # without one, a 429 has the client feel its way back by seconds
    }
    async with (
        RawServer(answer, tls=tls) as server,
        TaskClient(KEY, base_url=server.url, **{**defaults, **options}) as client,
    ):
        yield server, client


def untrusted():
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


async def get(client):
    await client.get("a")


async def wait(client):
    await client.wait("a", poll=PollPolicy(max_outage=0))


async def wait_all(client):
    await client.wait_all(["a"], poll=PollPolicy(max_outage=0))


async def as_completed(client):
    async with client.as_completed(["a"], poll=PollPolicy(max_outage=0)) as stream:
        async for outcome in stream:
            outcome.unwrap()


async def watch(client):
    async with client.watch("a", poll=PollPolicy(max_outage=0)) as changes:
        async for _ in changes:
            pass


VERBS = [get, wait, wait_all, as_completed, watch]


def echo_everywhere(status, echo):
    return response(
        status,
        json.dumps({"message": "no", "traceId": "t", "taskId": "a"})
        .replace('"no"', f'"{echo}"')
        .encode(),
        {
            "Location": f"/login?key={echo}",
            "Set-Cookie": f"{echo}=1",
            "Retry-After": echo,
            "retry-after-ms": echo,
            "Date": echo,
            "WWW-Authenticate": f"Bearer {echo}",
        },
    )


FAULTS = {
    "reset": reset,
    "closed": b"",
    "garbage with the key": b"sorry, " + KEY.encode() + b"\r\n\r\n",
    "reset in the headers": b"HTTP/1.1 200 OK\r\nX-Key: " + KEY.encode(),
    "header without a colon": b"HTTP/1.1 200 OK\r\n" + KEY.encode() + b"\r\n\r\n",
    "cut off in the body": b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + KEY.encode(),
    "key for a chunk's size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n"
    % KEY.encode(),
    "oversized header": b"HTTP/1.1 200 OK\r\nX: " + KEY.encode() * 1000 + b"\r\n\r\n",
    "no gzip": response(200, KEY.encode(), {"Content-Encoding": "gzip"}),
    "empty": response(200, b""),
    "no JSON": response(200, b"your key: " + KEY.encode()),
    "no schema": response(200, b'{"key": "%s"}' % KEY.encode()),
    "no UTF-8": response(200, b"\xff" + KEY.encode()),
    "oversize": response(200, KEY.encode() * 100_000),
    "oversized error": response(500, KEY.encode() * 100_000),
    **{
        f"{status}, key echoed as {name}": echo_everywhere(status, echo)
        for status in (302, 400, 401, 404, 429, 500)
        for name, echo in ECHOES.items()
    },
    **{f"HTML error page, key echoed as {name}": response(502, f"<p>{echo}".encode()) for name,
    echo in ECHOES.items()},
}  # fmt: skip


# The key is seen nowhere.


@pytest.mark.parametrize("fault", FAULTS)
async def test_no_request_fault_shows_key(nothing_told, fault):
    async with serving(FAULTS[fault]) as (_, client):
        with pytest.raises(APIError) as caught:
            await client.get("a")

    assert gives_away(everything(caught.value)) == []


@pytest.mark.parametrize("fault", FAULTS)
async def test_no_fault_of_a_submission_shows_the_key(nothing_told, fault):
    async with serving(FAULTS[fault]) as (_, client):
        with pytest.raises(APIError) as caught:
            await client.submit(VideoRequest("a cat"))

    assert gives_away(everything(caught.value)) == []


async def test_cancelled_submission_hides_key(nothing_told):
    async with serving(silence) as (server, client):
        submitting = asyncio.ensure_future(client.submit(VideoRequest("a cat")))
        await server.arrived.wait()
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await submitting

    assert gives_away(everything(caught.value)) == []


async def test_a_redirect_of_a_submission_is_not_followed(nothing_told):
    async with RawServer(response(200, b'{"taskId": "a"}')) as other:
        answer = response(307, b"", {"Location": f"{other.url}/xai/videos"})
        async with serving(answer) as (server, client):
            with pytest.raises(APIError):
                await client.submit(VideoRequest("a cat"))

    assert (len(server.requests), other.requests) == (1, [])


@pytest.mark.parametrize("verb", VERBS[1:], ids=lambda verb: verb.__name__)
@pytest.mark.parametrize(
    "fault", ["reset", "no JSON", "401, key echoed as JSON", "500, key echoed as URL"]
)
async def test_no_wait_error_shows_key(nothing_told, verb, fault):
    async with serving(FAULTS[fault]) as (_, client):
        with pytest.raises(APIError) as caught:
            await verb(client)

    assert gives_away(everything(caught.value)) == []


async def test_refused_connection_hides_key(nothing_told):
    async with serving(b"") as (server, client):
        await server.__aexit__()
        with pytest.raises(APIConnectionError) as caught:
            await client.get("a")

    assert "Cannot connect" in str(caught.value)
    assert gives_away(everything(caught.value)) == []


async def test_failed_tls_handshake_hides_key(nothing_told):
    async with serving(response(200, PENDING), tls=untrusted()) as (server, client):
        with pytest.raises(APIConnectionError, match="CERTIFICATE_VERIFY_FAILED") as caught:
            await client.get("a")

        assert server.requests == []
    assert gives_away(everything(caught.value)) == []


async def test_request_timeout_hides_key(nothing_told):
    async with serving(silence, request_timeout=0.05) as (_, client):
        with pytest.raises(APITimeoutError) as caught:
            await client.get("a")

    assert gives_away(everything(caught.value)) == []


async def test_wait_timeout_hides_key(nothing_told):
    async with serving(FAULTS["500, key echoed as as it is"]) as (_, client):
        with pytest.raises(WaitTimeoutError) as caught:
            await client.wait("a", timeout=0.2)

    assert caught.value.last_error is not None
    assert gives_away(everything(caught.value)) == []


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
async def test_cancelled_call_hides_key(nothing_told, verb):
    async with serving(silence) as (server, client):
        call = asyncio.create_task(verb(client))
        await server.arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await call

    assert gives_away(everything(caught.value)) == []


async def strike_while_handling(request, interrupt):
    """Be interrupted where the HTTP library is busy with an error of its
    own, which then is the context.
    """
    try:
        raise LookupError(request.headers["Authorization"])
    except LookupError:
        await interrupt()


async def test_call_cancelled_in_error_handling_hides_key(nothing_told):
    async def strike(request, handler):
        arrived.set()
        await strike_while_handling(request, asyncio.Event().wait)

    arrived = asyncio.Event()
    async with (
        aiohttp.ClientSession(middlewares=[strike]) as session,
        serving(b"", session=session) as (_, client),
    ):
        call = asyncio.create_task(client.get("a"))
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await call

    assert caught.value.__context__ is None
    assert gives_away(everything(caught.value)) == []


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_interrupt_hides_key(log, interrupt):
    async def interrupted():
        raise interrupt

    async def strike(request, handler):
        await strike_while_handling(request, interrupted)

    async def main():
        async with (
            aiohttp.ClientSession(middlewares=[strike]) as session,
            serving(b"", session=session) as (_, client),
        ):
            await client.get("a")

    with pytest.raises(interrupt) as caught:
        asyncio.run(main())

    assert gives_away(everything(caught.value)) == []
    assert gives_away("\n".join(log.texts)) == []


async def test_close_in_flight_hides_key(nothing_told):
    async with serving(silence) as (server, client):
        call = asyncio.create_task(client.get("a"))
        await server.arrived.wait()
        await client.close()
        with pytest.raises(XaiTasksError) as caught:
            await call

    assert gives_away(everything(caught.value)) == []


async def test_refusal_after_renewal_hides_both_keys(nothing_told):
    keys = iter([f"{KEY}1", f"{KEY}2"])
    async with RawServer() as server:
        server.answers.extend(
            response(401, f'{{"message": "{KEY}{n} is no key"}}'.encode()) for n in (1, 2)
        )
        async with TaskClient(lambda: next(keys), base_url=server.url) as client:
            with pytest.raises(AuthenticationError, match=r"\[key\] is no key") as caught:
                await client.get("a")

    assert gives_away(everything(caught.value)) == []


class VaultError(Exception):
    """An error of the user's own."""


def failing():
    """Return the key once, and then fail."""
    yield KEY
    raise VaultError("the vault is shut")


async def test_failing_key_function_hides_earlier_key(nothing_told):
    keys = failing()
    async with (
        RawServer(response(401)) as server,
        TaskClient(lambda: next(keys), base_url=server.url) as client,
    ):
        with pytest.raises(VaultError) as caught:
            await client.get("a")

    assert gives_away(everything(caught.value)) == []


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("damage", ["\n", "\r\nX-Evil: 1", "\x00", "ключ"])
async def test_malformed_key_from_function_is_hidden(nothing_told, damage, asynchronous):
    async def source():
        return KEY + damage

    async with TaskClient(source if asynchronous else lambda: KEY + damage) as client:
        with pytest.raises(ConfigurationError) as caught:
            await client.get("a")
        logging.getLogger("xai_tasks").debug("so that there is a record to look at")

    assert gives_away(everything(caught.value)) == []


@pytest.mark.parametrize("source", ["argument", "environment"])
@pytest.mark.parametrize(
    ("damage", "options"),
    [
        ("\n", {}),
        ("ключ", {}),
        ("", {"base_url": "ftp://host"}),
        ("", {"base_url": "http://example.com"}),
        ("", {"base_url": 7}),
        ("", {"max_concurrency": 0}),
        ("", {"request_timeout": -1}),
        ("", {"rate_limit": "fast"}),
        ("", {"retry": 3}),
        ("", {"poll": 5}),
        ("", {"session": "session"}),
        ("", {"user_agent": "a\nb"}),
    ],
    ids=str,
)
def test_constructor_errors_hide_key(monkeypatch, source, damage, options):
    monkeypatch.setenv("MOUNTSEA_API_KEY", KEY + damage if source == "environment" else "unused")
    with pytest.raises((ValueError, TypeError)) as caught:
        TaskClient(KEY + damage if source == "argument" else None, **options)

    assert gives_away(everything(caught.value)) == []


@pytest.mark.parametrize(
    "api_key",
    [lambda: KEY.encode(), lambda: [KEY], lambda: {"key": KEY}],
    ids=["bytes", "list", "dict"],
)
def test_key_of_wrong_type_is_hidden(api_key):
    with pytest.raises(TypeError, match="^api_key must be a string or a function, not ") as caught:
        TaskClient(api_key())

    assert gives_away(everything(caught.value)) == []


@pytest.mark.parametrize("name", ["as it is", *(name for name in ECHOES if "JSON" in name)])
async def test_task_that_echoes_key_hides_it(nothing_told, name):
    fields = ("taskId", "status", "errorMessage", "errorCode", "traceId", "finishedAt", "result")
    body = "{" + ", ".join(f'"{field}": "{ECHOES[name]}"' for field in fields) + "}"
    async with serving(response(200, body.encode())) as (_, client):
        with pytest.raises(TaskError) as caught:
            await client.wait("a")

    assert caught.value.task.status is TaskStatus.UNKNOWN
    assert gives_away(everything(caught.value) + repr(caught.value.task)) == []


async def test_no_repr_shows_key():
    keys = failing()
    async with (
        serving(response(200, PENDING)) as (server, fixed),
        TaskClient(lambda: next(keys), base_url=server.url) as renewed,
    ):
        for client in (fixed, renewed):
            await client.get("a")
            waiting = asyncio.create_task(client.wait("a"))
            stream = client.as_completed(["a"])
            changes = client.watch("a")
            await anext(changes)
            parts = list(parts_of(client)) + list(parts_of(stream)) + list(parts_of(changes))

            assert {
                "Credentials",
                "Redactor",
                "Transport",
                "RetryingFetcher",
                "Poller",
                "Throttle",
                "Entry",
            } <= {type(part).__name__ for part in parts}
            for part in parts:
                assert gives_away(f"{part!r} {part!s} {pretty_repr(part)}") == [], type(part)

            waiting.cancel()
            await stream.aclose()
            await changes.aclose()


def parts_of(whole, seen=None):
    """Return all of the library's own objects that can be reached from one."""
    seen = set() if seen is None else seen
    if id(whole) in seen:
        return
    seen.add(id(whole))
    if isinstance(whole, (list, tuple, set, frozenset)):
        inner = list(whole)
    elif isinstance(whole, dict):
        inner = list(whole.values()) + list(whole)
    elif type(whole).__module__.startswith("xai_tasks"):
        yield whole
        names = [name for cls in type(whole).__mro__ for name in getattr(cls, "__slots__", ())]
        inner = [getattr(whole, name, None) for name in (*names, *getattr(whole, "__dict__", ()))]
    else:
        return
    for part in inner:
        yield from parts_of(part, seen)


# Nobody but the API gets it.


@pytest.mark.parametrize(
    "base_url",
    [
        "http://api.mountsea.ai",
        "http://10.0.0.1",
        "http://127.0.0.1.example.com",
        "http://localhost.example.com",
    ],
)
@pytest.mark.parametrize("source", ["argument", "environment"])
def test_key_goes_over_https_only(monkeypatch, source, base_url):
    monkeypatch.setenv("MOUNTSEA_BASE_URL", base_url)
    given = base_url if source == "argument" else None

    with pytest.raises(ConfigurationError, match="over plain http"):
        TaskClient(KEY, base_url=given)
    TaskClient(KEY, base_url=given, allow_insecure_http=True)
    TaskClient(KEY, base_url="http://127.0.0.1:8080")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("verb", [get, wait, as_completed], ids=lambda verb: verb.__name__)
async def test_no_redirect_is_followed(status, verb):
    async with (
        RawServer(response(200, PENDING)) as elsewhere,
        serving(response(status, b"", {"Location": f"{elsewhere.url}/xai/tasks?taskId=a"})) as (
            server,
            client,
        ),
    ):
        with pytest.raises(APIStatusError, match="which is never followed") as caught:
            await verb(client)

        assert (len(server.requests), len(elsewhere.requests)) == (1, 0)
    assert caught.value.status_code == status


async def test_redirect_to_same_server_is_not_followed():
    async with serving(response(302, b"", {"Location": "/xai/tasks?taskId=a"})) as (server, client):
        with pytest.raises(APIStatusError):
            await client.get("a")

        assert len(server.requests) == 1


async def test_own_session_reads_no_netrc_and_no_proxy(tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login them password pw\ndefault login them password pw\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with RawServer(response(200, PENDING)) as proxy:
        for name in (
            "HTTP_PROXY",
            "http_proxy",
            "HTTPS_PROXY",
            "https_proxy",
            "ALL_PROXY",
            "all_proxy",
        ):
            monkeypatch.setenv(name, proxy.url)
        async with serving(response(200, PENDING)) as (server, client):
            await client.get("a")

            assert server.header("Authorization") == f"Bearer {KEY}"
        assert proxy.requests == []


async def test_own_session_sends_no_cookies():
    async with serving(response(200, PENDING, {"Set-Cookie": "session=1; Path=/"})) as (
        server,
        client,
    ):
        await client.get("a")
        await client.get("a")

        assert server.header("Cookie") is None


def sources():
    for path in sorted(Path(xai_tasks.__file__).parent.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_tls_verification_cannot_be_turned_off():
    switches = {
        "ssl",
        "verify",
        "verify_ssl",
        "check_hostname",
        "verify_mode",
        "fingerprint",
        "ssl_context",
    }
    client_side = [(path, tree) for path, tree in sources() if "testing" not in path.parts]
    used = [
        f"{path.name}:{node.lineno}"
        for path, tree in client_side
        for node in ast.walk(tree)
        if (isinstance(node, ast.keyword) and node.arg in switches)
        or (isinstance(node, ast.Attribute) and node.attr in switches)
        or (
            isinstance(node, (ast.Import, ast.ImportFrom))
            and any(alias.name == "ssl" for alias in node.names)
        )
    ]

    assert "transport.py" in {path.name for path, _ in client_side}
    assert used == []
    assert not switches & set(inspect.signature(TaskClient).parameters)


async def test_wrong_name_certificate_is_refused():
    authority = trustme.CA()
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("elsewhere.example").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=ours)) as session,
        serving(response(200, PENDING), tls=theirs, session=session) as (server, client),
    ):
        with pytest.raises(APIConnectionError, match="not valid for"):
            await client.get("a")

        assert server.requests == []


@pytest.mark.parametrize(
    "copier", [pickle.dumps, copy.copy, copy.deepcopy], ids=lambda copier: copier.__name__
)
async def test_client_refuses_pickle_and_copy(copier):
    async with serving(response(200, PENDING)) as (_, client):
        with pytest.raises(TypeError, match="a TaskClient can't be pickled: it holds a key"):
            copier(client)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
async def test_streams_refuse_pickle(protocol):
    async with serving(response(200, PENDING)) as (_, client):
        for it in (client, client.as_completed(["a"]), client.watch("a")):
            with pytest.raises(TypeError, match="pickle"):
                pickle.dumps(it, protocol)


# What comes from the server is data.

HOSTILE = 'x\x1b]0;owned\x07\r\n2025-01-01 ERROR root: forged\u2028\u202e\x00"'


async def test_control_characters_are_escaped_in_errors():
    body = {"message": HOSTILE, "traceId": HOSTILE}
    async with serving(response(400, json.dumps(body).encode(), {"Location": "/\x1b[31m"})) as (
        _,
        client,
    ):
        with pytest.raises(APIStatusError) as caught:
            await client.get("a")

    error = caught.value
    for text in (str(error), error.message, error.trace_id, error.body):
        assert text.isprintable()
    assert r"\x1b]0;owned\x07\r\n2025" in str(error)


async def test_control_characters_of_tasks_are_escaped(log):
    body = {
        "taskId": HOSTILE,
        "status": HOSTILE,
        "finishedAt": "now",
        "errorMessage": HOSTILE,
        "traceId": HOSTILE,
    }
    async with serving(response(200, json.dumps(body).encode())) as (_, client):
        with pytest.raises(TaskError) as caught:
            await client.wait("a")

    told = [message for message in log.messages if "forged" in message]
    assert len(told) == 2
    for text in (str(caught.value), repr(caught.value), repr(caught.value.task), *told):
        assert "forged" in text
        assert text.isprintable()


async def test_control_characters_in_malformed_bodies_are_escaped():
    async with serving(response(200, HOSTILE.encode())) as (_, client):
        with pytest.raises(APIResponseValidationError) as caught:
            await client.get("a")

    assert str(caught.value).isprintable()
    assert caught.value.body.isprintable()


async def test_control_characters_in_requested_ids_are_escaped(log):
    async with serving(response(503)) as (_, client):
        with pytest.raises(ServerError) as caught:
            await client.get(HOSTILE)

    told = [message for message in log.messages if "forged" in message]
    assert told
    assert all(text.isprintable() for text in (str(caught.value), *told))


async def test_a_body_is_capped_after_decompression():
    async with serving(response(200, b" " * 1001 + PENDING), max_response_bytes=1000) as (
        _,
        client,
    ):
        with pytest.raises(
            APIResponseValidationError, match="the answer is larger than 1000 bytes"
        ):
            await client.get("a")


async def test_a_result_is_never_fetched():
    async with RawServer(response(200, b"payload")) as elsewhere:
        result = {
            "videoUrl": elsewhere.url,
            "imageUrls": [f"{elsewhere.url}/1"],
            "$ref": elsewhere.url,
        }
        body = json.dumps({"taskId": "a", "status": "completed", "result": result}).encode()
        async with serving(response(200, body)) as (server, client):
            task = await client.wait("a")

            assert (len(server.requests), len(elsewhere.requests)) == (1, 0)
    assert task.result == result


async def test_a_result_is_never_evaluated():
    result = [
        "__import__('os').abort()",
        {"__reduce__": "os.abort", "py/object": "os.abort", "__proto__": {}},
        "{0.__class__}",
    ]
    body = json.dumps({"taskId": "a", "status": "completed", "result": result}).encode()
    async with serving(response(200, body)) as (_, client):
        task = await client.wait("a")

    assert task.result == result


def test_nothing_evaluates_or_unpickles():
    risky = {
        "eval",
        "exec",
        "compile",
        "__import__",
        "loads",
        "load",
        "unpickle",
        "system",
        "popen",
    }
    used = [
        f"{path.name}:{node.lineno} {ast.unparse(node.func)}"
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2] in risky
        and path.name != "dask.py"  # what its own workers send, over a cluster that pickles anyway
    ]

    assert [
        use for use in used if not use.endswith((" re.compile", " json.loads", " orjson.loads"))
    ] == []


# The page keeps to what is tested.


def test_security_page_names_existing_tests():
    root = Path(__file__).parent
    page = (root.parent / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)\.py::(?:\w+::)?(test_\w+)`", page)
    there = {
        (path.stem, name)
        for path in root.rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }

    assert len(named) > 20
    assert set(named) - there == set()
    assert {name for module, name in there if module == "test_security"} - {
        name for _, name in named
    } == {"test_security_page_names_existing_tests"}
