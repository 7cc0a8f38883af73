"""Requests over the connections of aiohttp's pool, without its session.

aiohttp's session builds each request from parts that are the same every time, and each response for
uses that this library has not: together half of what a request costs. A lean request is bytes that
are ready. It goes over a connection that `BaseConnector.connect` returns, and aiohttp's parser
reads the answer. How one talks to a connection is not documented. So `works` compares two requests
with ordinary ones on first use, without a network, and where they differ, ordinary requests are
sent.
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
from yarl import URL

logger = logging.getLogger("xai_tasks")

BUFFER = 2**16
"""aiohttp's buffer: it decompresses three times as many bytes in one go, for less than 1 ms."""

NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
"""aiohttp's own timeouts overrun and miss a drip; `RequestTimeout` does neither."""


class LeanResponse:
    """The head of an answer, and the body as it comes."""

    __slots__ = ("_connection", "content", "headers", "status", "used_connection")

    def __init__(self, connection: Any, message: Any, content: aiohttp.StreamReader) -> None:
        """Return `connection` to the pool once `content` has come to its end."""
        self._connection = connection
        self.used_connection: ResponseHandler = connection.protocol
        """Where the answer came from; it may have gone back into the pool since."""
        self.status: int = message.code
        self.headers: Mapping[str, str] = message.headers
        self.content = content
        content.on_eof(connection.release)

    def close(self) -> None:
        """Close the connection, unless it is in the pool again."""
        self._connection.close()


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

    _connector: aiohttp.BaseConnector
    _place: aiohttp.ClientRequest
    """A request that is never sent: it names the place to connect to."""
    _begin: bytes = field(repr=False)
    _end: bytes = field(repr=False)

    @classmethod
    def to(cls, session: aiohttp.ClientSession, url: URL, headers: Mapping[str, str]) -> Self:
        """Prepare requests to `url`, which has no query, over connections of `session`'s pool."""
        lines = (f"{name}: {value}\r\n" for name, value in headers.items())
        end = f" HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n{''.join(lines)}\r\n"
        connector = cast("aiohttp.BaseConnector", session.connector)
        place = aiohttp.ClientRequest("GET", url, session=session)
        return cls(connector, place, f"GET {url.raw_path}?".encode("ascii"), end.encode("ascii"))

    def request(self, query: str) -> bytes:
        """Return the bytes of a GET with `query`, which is encoded already."""
        return self._begin + query.encode("ascii") + self._end

    async def get(self, query: str) -> LeanResponse:
        """Send a GET with `query`, and wait for the head of the answer.

        If the connection breaks, as one does that the server closed while it was idle, it is sent
        once more on another, as aiohttp's session does.

        Raises:
            aiohttp.ClientError: no answer came, or one that is not HTTP.

        """
        request = self.request(query)
        connector = self._connector
        again = True
        while not connector.closed:
            connection = await connector.connect(self._place, traces=[], timeout=NO_TIMEOUT)
            try:
                protocol = _write(connection, request)
                while True:
                    message, content = await protocol.read()
                    if not 100 <= message.code <= 199 or message.code == 101:
                        return LeanResponse(connection, message, content)
            except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
                connection.close()
                if not again:
                    raise
                again = False
            except HttpProcessingError as error:
                connection.close()
                raise aiohttp.ClientPayloadError(error.message) from None
            except BaseException:
                connection.close()
                raise
        raise aiohttp.ClientConnectionError("the connector is closed")


def _write(connection: Any, request: bytes) -> Any:
    """Write a request to a connection; return the protocol that reads its answer."""
    protocol = connection.protocol
    protocol.set_response_params(read_until_eof=True, read_bufsize=BUFFER)
    transport = protocol.transport
    # An answer that nobody has asked for would be taken for this request's.
    if transport is None or transport.is_closing() or protocol.should_close:
        raise aiohttp.ServerDisconnectedError
    transport.write(request)
    return protocol


_REQUEST = getattr(aiohttp.ClientSession, "_request", None)


def is_replaced() -> bool:
    """Return whether a tool has replaced how sessions send requests, as mocks of aiohttp do."""
    return getattr(aiohttp.ClientSession, "_request", None) is not _REQUEST


# The check.

_verdict: bool | None = None
"""Whether lean requests work with the aiohttp that is installed: a fact about the process."""

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
                "aiohttp %s: sending ordinary requests",
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
        response_class=OrdinaryResponse,
    ) as session:
        wire = Wire.to(session, url, headers)
        for query in ("taskId=a%20b", "taskId=c"):
            response: aiohttp.ClientResponse | LeanResponse
            if lean:
                response = await wire.get(query)
            else:
                target = URL(f"{url}?{query}", encoded=True)
                response = await session.get(target, headers=headers)
            body = await response.content.read()
            connection = getattr(response, "used_connection", None)
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
