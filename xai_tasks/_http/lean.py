"""Request and response classes for the client's own session that do only what it needs.

aiohttp builds each request from parts that are the same every time, and each response for uses that
this library has not: together a third of what a request costs. `request_class` and `response_class`
are documented arguments of `aiohttp.ClientSession`; which methods such classes must have is not.
So `works` compares both with aiohttp's own classes on first use, without a network, and where they
differ, ordinary requests are sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Self, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError
from attrs import field, frozen
from multidict import CIMultiDict
from yarl import URL

logger = logging.getLogger("xai_tasks")


class LeanRequest(aiohttp.ClientRequest):
    """A request whose bytes are ready: its `params` are what is written to the connection."""

    headers = CIMultiDict()
    version = aiohttp.HttpVersion11
    proxy = proxy_auth = proxy_headers = server_hostname = None
    chunked = compress = length = None

    def __init__(
        self,
        method: str,
        url: URL,
        *,
        params: Any,
        loop: asyncio.AbstractEventLoop,
        timer: Any,
        session: aiohttp.ClientSession,
        ssl: Any,
        traces: list[Any],
        **unused: Any,
    ) -> None:
        self.method = method
        self.url = url
        self.loop = loop
        self._bytes = params
        self._timer = timer
        self._session = session
        self._ssl = ssl
        self._traces = traces

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        """Write the request, unless the connection is closed or holds an answer already."""
        protocol = conn.protocol
        transport = protocol.transport
        # An answer that nobody has asked for would be taken for this request's.
        if transport is None or transport.is_closing() or protocol.should_close:
            raise aiohttp.ServerDisconnectedError  # the session then takes another connection
        transport.write(self._bytes)
        return LeanResponse(
            self.method, self.url, timer=self._timer, traces=self._traces, loop=self.loop
        )


class LeanResponse(aiohttp.ClientResponse):
    """A response with a status, headers and a body, and nothing else."""

    used_connection: ResponseHandler | None = None
    """The connection that the answer came from, which may have gone back into the pool since."""

    def __init__(
        self,
        method: str,
        url: URL,
        *,
        timer: Any,
        traces: list[Any],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.method = method
        self._url = self._real_url = url
        self._timer = timer
        self._traces = traces
        self._loop = loop
        self._cache = {}

    async def start(self, connection: Any) -> Self:
        """Wait for the head of the answer."""
        self._closed = False
        self._connection = connection
        self.used_connection = protocol = connection.protocol
        while True:
            try:
                message, payload = await protocol.read()
            except HttpProcessingError as error:
                raise aiohttp.ClientPayloadError(error.message) from None
            if not 100 <= message.code <= 199 or message.code == 101:
                break
        payload.on_eof(self._response_eof)
        self.version = message.version
        self.status = message.code
        self.reason = message.reason
        self._headers = message.headers
        self.content = payload
        return self


class OrdinaryResponse(aiohttp.ClientResponse):
    """aiohttp's own response, which also remembers its connection."""

    used_connection: ResponseHandler | None = None
    """The connection that the answer came from; None if this aiohttp does not say."""

    async def start(self, connection: Any) -> Self:
        """Wait for the head of the answer."""
        self.used_connection = connection.protocol
        await super().start(connection)
        return self


@frozen
class Wire:
    """What is the same in each GET to one place with one key. Its `repr` shows no key."""

    url: URL
    """Where to: the URL of the connection, without a query."""
    _begin: str = field(repr=False)
    _end: bytes = field(repr=False)

    @classmethod
    def to(cls, url: URL, headers: Mapping[str, str]) -> Self:
        """Prepare requests to `url`, which has no query, with `headers`."""
        lines = (f"{name}: {value}\r\n" for name, value in headers.items())
        end = f" HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n{''.join(lines)}\r\n"
        return cls(url, f"GET {url.raw_path}?", end.encode("ascii"))

    def request(self, query: str) -> bytes:
        """Return the bytes of a GET with `query`, which is encoded already."""
        return self._begin.encode("ascii") + query.encode("ascii") + self._end


# The check.

_verdict: bool | None = None
"""Whether the lean classes work with the aiohttp that is installed: a fact about the process."""

_ANSWER = (
    b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Check: yes\r\n\r\ntrue"
)


async def works() -> bool:
    """Return whether lean requests are the bytes, and their answers read, as with aiohttp's own.

    Checked once a process: two requests each over one connection that leads nowhere.
    """
    global _verdict  # noqa: PLW0603 -- a fact about the process, see above
    if _verdict is None:
        try:
            async with asyncio.timeout(5):  # in case they fit so badly that no answer comes
                _verdict = await _exchanges(lean=True) == await _exchanges(lean=False)
        except Exception:  # noqa: BLE001 -- whatever it is, ordinary requests do without it
            _verdict = False
        if not _verdict:
            logger.debug(
                "aiohttp %s: using its own request classes",
                aiohttp.__version__,
                extra={"aiohttp": aiohttp.__version__},
            )
    return _verdict


async def _exchanges(*, lean: bool) -> list[object]:
    """Make two requests over a connection that answers by itself; return all that can be seen."""
    url = URL("http://xai-tasks.invalid:8080/xai/tasks")
    headers = {
        "Accept": "application/json",
        "Accept-Encoding": "gzip, deflate",
        "Authorization": "Bearer check",
        "User-Agent": "check",
    }
    connector = _Loopback(limit=0)
    seen: list[object] = []
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        request_class=LeanRequest if lean else aiohttp.ClientRequest,
        response_class=LeanResponse if lean else OrdinaryResponse,
    ) as session:
        for query in ("taskId=a%20b", "taskId=c"):
            if lean:
                written = Wire.to(url, headers).request(query)
                response = await session.get(url, params=cast("Any", written))
            else:
                target = URL(f"{url}?{query}", encoded=True)
                response = await session.get(target, headers=headers)
            body = await response.content.read()
            connection = cast("LeanResponse", response).used_connection
            seen += [response.status, list(response.headers.items()), body]
            seen += [response.content.is_eof(), connection is connector.protocol]
    return [*seen, connector.opened, connector.written]


class _Loopback(aiohttp.BaseConnector):
    """A connector whose connections answer each request by themselves."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.opened = 0
        self.written: list[bytes] = []
        self.protocol: ResponseHandler | None = None

    async def _create_connection(self, *args: Any, **kwargs: Any) -> ResponseHandler:
        self.opened += 1
        self.protocol = protocol = ResponseHandler(self._loop)
        protocol.connection_made(_LoopbackTransport(self, protocol))
        return protocol


class _LoopbackTransport(asyncio.Transport):
    def __init__(self, connector: _Loopback, protocol: ResponseHandler) -> None:
        super().__init__()
        self._connector = connector
        self._protocol = protocol
        self._closing = False

    def write(self, data: Any) -> None:
        self._connector.written.append(bytes(data))
        asyncio.get_running_loop().call_soon(self._protocol.data_received, _ANSWER)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True
        self._protocol.connection_lost(None)

    abort = close

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
