"""A loopback server that answers with the very bytes it is told to, for
what no HTTP library would send.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Answer = bytes | Play

_NO_LINGER = struct.pack("ii", 1, 0)


def response(
    status: int = 200,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    content_type: str = "application/json",
) -> bytes:
    """Return a well-formed answer, after which the connection is closed."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", "Connection: close"]
    if content_type:
        lines.append(f"Content-Type: {content_type}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with a TCP reset."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer nothing until the client is gone."""
    await reader.read()


class RawServer:
    """Serves one request per connection: the next of `answers`, or
    `default` when there is none left.
    """

    def __init__(self, default: Answer = b"", *, tls: ssl.SSLContext | None = None) -> None:
        self.default = default
        self.answers: deque[Answer] = deque()
        self.requests: list[bytes] = []
        """The heads of all requests, as they came."""
        self.arrived = asyncio.Event()
        self._tls = tls
        self._open: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    def header(self, name: str, request: int = -1) -> str | None:
        """Return a header of a request; None if it has none, and an error if it has several."""
        values = [
            line.partition(":")[2].strip()
            for line in self.requests[request].decode("latin-1").split("\r\n")[1:]
            if line.partition(":")[0].lower() == name.lower()
        ]
        assert len(values) < 2, values
        return values[0] if values else None

    def target(self, request: int = -1) -> str:
        """Return the path and query of a request, as they came."""
        return self.requests[request].split(b" ")[1].decode("latin-1")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            if self._tls is not None:
                # Not by start_server: asyncio, in debug mode, logs a handshake
                # that failed there as an error.
                await writer.start_tls(self._tls)
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            self.arrived.set()
            answer = self.answers.popleft() if self.answers else self.default
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client is gone, or the test is over
        finally:
            writer.close()
            self._open.discard(task)
