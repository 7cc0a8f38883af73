"""Listen on loopback, in the running loop or in a thread with its own loop."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress

from aiohttp import web

_UNLIMITED = 1e9
"""Seconds; finite, because not every event loop accepts an infinite timer."""
_BACKLOG = 1024
"""Connections that wait to be accepted. Tests connect a thousand at once, and some would wait a
second with aiohttp's 128."""


class Listener:
    """A loopback port and its connections.

    Args:
        handle: called with each request; returns the response.
        port: where to listen; 0: a free port, kept from then on.
        ssl_context: use TLS with it.

    """

    __slots__ = ("_handle", "_runner", "_socket", "_ssl_context", "port")

    def __init__(
        self,
        handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        port: int,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        self._handle = handle
        self._ssl_context = ssl_context
        self._runner: web.ServerRunner | None = None
        self.port = port

    @property
    def url(self) -> str:
        """The origin it listens at."""
        return f"{'http' if self._ssl_context is None else 'https'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start listening.

        Raises:
            RuntimeError: it already listens.
            OSError: the port is taken.

        """
        if self._runner is not None:
            raise RuntimeError("the server runs already")
        # Handlers are cancelled when the client disconnects, so no stalled answer outlives its
        # connection. Idle connections are kept: a fake clock soon passes aiohttp's limit, an hour.
        server = web.Server(
            self._handle, access_log=None, handler_cancellation=True, keepalive_timeout=_UNLIMITED
        )
        runner = web.ServerRunner(server, access_log=None, shutdown_timeout=1.0)
        self._socket = socket.create_server(("127.0.0.1", self.port), backlog=_BACKLOG)
        try:
            await runner.setup()
            site = web.SockSite(
                runner, self._socket, ssl_context=self._ssl_context, backlog=_BACKLOG
            )
            await site.start()
        except BaseException:
            self._socket.close()
            await runner.cleanup()
            raise
        self.port = self._socket.getsockname()[1]
        self._runner = runner

    async def aclose(self) -> None:
        """Stop listening and drop every connection, answered or not. Closing twice is fine."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        # asyncio loses a connection that it accepted just before its server is closed. So first
        # accept no more, and let those get their protocols, which takes three turns of the loop.
        with suppress(NotImplementedError):  # Windows
            asyncio.get_running_loop().remove_reader(self._socket)
        for _ in range(3):
            await asyncio.sleep(0)
        for connection in runner.server.connections if runner.server else ():
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()


@contextmanager
def loop_in_thread() -> Generator[asyncio.AbstractEventLoop, None, None]:
    """Run an event loop in a thread while the context is open."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="TaskServer", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
