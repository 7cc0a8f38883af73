"""Lean requests, and the check that they work with the installed aiohttp."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import aiohttp
import pytest
from attrs import evolve
from multidict import CIMultiDict
from raw_server import response
from yarl import URL

from xai_tasks import APIConnectionError, ClientClosedError
from xai_tasks._http import lean
from xai_tasks._http.credentials import Credentials
from xai_tasks._http.transport import Transport

KEY = "sk-test-0123456789"
PENDING = b'{"taskId": "a", "status": "pending"}'


@pytest.fixture
def unchecked(monkeypatch):
    monkeypatch.setattr(lean, "_verdict", None)


async def test_lean_requests_work_with_the_installed_aiohttp(unchecked):
    assert await lean.works()


async def test_the_check_is_made_once(unchecked, monkeypatch):
    assert await lean.works()
    monkeypatch.setattr(lean, "_exchanges", None)

    assert await lean.works()


def raises(*args, **kwargs):
    raise TypeError("unexpected argument")


async def sends_nothing(self, query):
    await asyncio.Event().wait()


def other_bytes(self, query):
    return b"GET / HTTP/1.1\r\n\r\n"


@pytest.mark.fake_clock
@pytest.mark.parametrize(
    ("cls", "name", "function"),
    [
        (lean.Wire, "to", raises),
        (lean.Wire, "get", sends_nothing),
        (lean.Wire, "request", other_bytes),
        (lean.LeanResponse, "__init__", raises),
        (lean._Loopback, "_create_connection", raises),
    ],
)
async def test_misfit_falls_back_to_ordinary_requests(
    server, unchecked, monkeypatch, cls, name, function
):
    transport = Transport(
        Credentials(KEY),
        server.url,
        session=None,
        request_timeout=30,
        max_bytes=1000,
        user_agent=None,
    )
    with monkeypatch.context() as patch:
        patch.setattr(cls, name, function)
        assert (await transport.fetch("a")).task.task_id == "a"
        await transport.close()

    assert server.header("Authorization") == f"Bearer {KEY}"
    assert server.target() == "/xai/tasks?taskId=a"


async def test_calls_during_check_share_one_session(server, unchecked, make):
    lean._verdict = None
    transport = make()

    await asyncio.gather(*(transport.fetch("a") for _ in range(3)))
    session = transport._sessions._session
    await transport.fetch("a")

    assert transport._sessions._session is session


async def test_closing_during_the_check_makes_no_session(server, unchecked, make):
    lean._verdict = None
    transport = make()
    fetch = asyncio.create_task(transport.fetch("a"))
    await asyncio.sleep(0)

    await transport.close()

    with pytest.raises(ClientClosedError):
        await fetch
    assert transport._sessions._session is None


async def test_lean_and_ordinary_requests_are_the_same_bytes(server):
    heads = []
    for verdict in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lean, "_verdict", verdict)
            transport = Transport(
                Credentials(KEY),
                server.url + "/a%20b",
                session=None,
                request_timeout=30,
                max_bytes=1000,
                user_agent="shop",
            )
            await transport.fetch("任务 &?#")
            await transport.close()
        heads.append(server.requests[-1])

    assert heads[0] == heads[1]


@pytest.mark.parametrize("borrow", [False, True])
async def test_only_requests_of_the_own_session_are_lean(server, make, request_class, borrow):
    async with aiohttp.ClientSession() as borrowed:
        transport = make(session=borrowed if borrow else None)
        await transport.fetch("a")

        is_lean = transport._template.wire is not None
    assert is_lean is (not borrow and request_class == "lean")


async def test_requests_of_instrumented_sessions_are_ordinary(server, make, monkeypatch):
    """Instrumentation adds its trace config to each session that is made, as OpenTelemetry's."""
    seen = []
    make_session = aiohttp.ClientSession.__init__

    async def on_request_start(session, context, params):
        seen.append(params.url.path)
        params.headers["traceparent"] = "00-1-2-01"

    def instrumented(self, *args, **kwargs):
        config = aiohttp.TraceConfig()
        config.on_request_start.append(on_request_start)
        make_session(self, *args, **kwargs, trace_configs=[config])

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", instrumented)
    await make().fetch("a")

    assert seen == ["/xai/tasks"]
    assert server.header("traceparent") == "00-1-2-01"


async def test_requests_that_a_mock_replaces_reach_it(server, make, monkeypatch):
    """As those of aioresponses and vcrpy do, whether they begin before or after the client."""
    asked = []
    request = aiohttp.ClientSession._request

    def replacement(self, method, url, **options):
        asked.append(url.path)
        return request(self, method, url, **options)

    transport = make()
    await transport.fetch("a")
    with monkeypatch.context() as patch:
        patch.setattr(aiohttp.ClientSession, "_request", replacement)
        await transport.fetch("a")
    await transport.fetch("a")

    assert asked.count("/xai/tasks") == 1


async def test_a_connection_closed_while_idle_is_replaced(server, make):
    async def one_answer(reader, writer):
        writer.write(response(200, PENDING).replace(b"Connection: close\r\n", b""))

    server.default = one_answer
    transport = make()
    for _ in range(3):
        assert (await transport.fetch("a")).task.task_id == "a"
        await asyncio.sleep(0.01)

    assert len(server.requests) == 3


class Connection:
    """A connection from the pool that is not fit for a request."""

    def __init__(self, state):
        transport = SimpleNamespace(is_closing=lambda: state == "closing")
        self.protocol = SimpleNamespace(
            set_response_params=lambda **_: None,
            should_close=state == "holds an answer",
            transport=None if state == "closed" else transport,
        )
        self.closed = False

    def close(self):
        self.closed = True


@pytest.mark.parametrize("state", ["closed", "closing", "holds an answer"])
async def test_nothing_is_sent_on_unfit_connections(state):
    connections = []

    class Connector:
        closed = False

        async def connect(self, *args, **kwargs):
            connections.append(Connection(state))
            return connections[-1]

    async with aiohttp.ClientSession() as session:
        wire = lean.Wire.to(session, URL("http://host/"), {})
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await evolve(wire, connector=Connector()).get("taskId=a")

    assert [connection.closed for connection in connections] == [True, True]


async def test_nothing_is_sent_after_the_session_was_closed():
    async with aiohttp.ClientSession() as session:
        wire = lean.Wire.to(session, URL("http://host/"), {})

    with pytest.raises(aiohttp.ClientConnectionError, match="closed"):
        await wire.get("taskId=a")


async def test_informational_answers_are_passed_over(server, make):
    server.default = b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" + response(200, PENDING)

    assert (await make().fetch("a")).task.task_id == "a"


async def test_malformed_head_is_a_connection_error(server, make):
    server.default = b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"

    with pytest.raises(APIConnectionError, match="header"):
        await make().fetch("a")


async def test_a_wire_shows_no_key():
    headers = CIMultiDict({"Authorization": f"Bearer {KEY}"})
    async with aiohttp.ClientSession() as session:
        wire = lean.Wire.to(session, URL("http://host/"), headers)

    assert KEY.encode() in wire.request("taskId=a")
    assert KEY not in repr(wire)
