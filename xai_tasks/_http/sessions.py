"""The aiohttp sessions that requests go over: the client's own, or a borrowed one."""

from __future__ import annotations

import asyncio
import logging

import aiohttp

from xai_tasks._errors import ClientClosedError
from xai_tasks._http import lean
from xai_tasks._http.lean import BUFFER, NO_TIMEOUT, OrdinaryResponse

logger = logging.getLogger("xai_tasks")


class Sessions:
    """The session of a client: a borrowed one, never closed, or its own, made on first use."""

    __slots__ = ("_fresh", "_session", "borrowed", "closed", "lean")

    borrowed: bool
    """Whether the session is the user's."""
    closed: bool
    """Whether `close` has been called."""
    lean: bool
    """Whether requests may be lean; once there is a session, whether they are."""

    def __init__(self, session: aiohttp.ClientSession | None, *, lean: bool) -> None:
        """Use `session`, or make one; `lean` is whether its requests may be lean.

        Raises:
            TypeError: `session` is not an `aiohttp.ClientSession`.

        """
        if session is not None and not isinstance(session, aiohttp.ClientSession):
            raise TypeError(
                f"session must be an aiohttp.ClientSession, not {type(session).__name__}"
            )
        self._session = session
        self._fresh: aiohttp.ClientSession | None = None
        self.lean = lean and session is None
        self.borrowed = session is not None
        self.closed = False

    async def close(self) -> None:
        """Close the own sessions; requests in flight end with `ClientClosedError`."""
        self.closed = True
        try:
            if self._session is not None and not self.borrowed:
                await self._session.close()
        finally:
            if self._fresh is not None:
                await self._fresh.close()

    def check_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Check that a borrowed session belongs to `loop`.

        Raises:
            RuntimeError: it belongs to another loop.

        """
        # The public attribute `loop` is deprecated without a replacement.
        if self.borrowed and getattr(self._session, "_loop", loop) is not loop:
            raise RuntimeError(
                "the session belongs to another event loop: make it in the loop that uses it"
            )

    def limit_concurrency(self, wanted: int) -> int:
        """Return how many of `wanted` requests may be in flight at once.

        A borrowed session may open fewer connections. The rest would wait for one, and this would
        count against the request timeout, so they wait in the throttle instead.
        """
        connector = self._session.connector if self._session is not None else None
        limits = (connector.limit, connector.limit_per_host) if connector is not None else ()
        limit = min(filter(None, limits), default=wanted)
        if limit >= wanted:
            return wanted
        logger.warning(
            "the session opens at most %d connections: max_concurrency is lowered to that from %d",
            limit,
            wanted,
            extra={"connections": limit, "max_concurrency": wanted},
        )
        return limit

    def current(self) -> aiohttp.ClientSession | None:
        """Return the session for the next request; None if it is to be opened first.

        Raises:
            ClientClosedError: the client, or the borrowed session, is closed.

        """
        if self.closed:
            raise ClientClosedError("the client is closed")
        session = self._session
        if self.borrowed and session is not None and session.closed:
            raise ClientClosedError("the borrowed session is closed")
        return session

    def for_one_request(self, session: aiohttp.ClientSession) -> aiohttp.ClientSession:
        """Return an own session each of whose connections serves one request.

        Where `session`, as `current` returned it, is borrowed, this can't be had: return that.

        Raises:
            ClientClosedError: the client is closed: a session made now would never be closed.

        """
        if self.closed:
            raise ClientClosedError("the client is closed")
        if self.borrowed:
            return session
        if self._fresh is None:
            self._fresh = _own_session(aiohttp.TCPConnector(limit=0, force_close=True))
        return self._fresh

    async def open(self) -> aiohttp.ClientSession:
        """Make the own session, and find out whether its requests can be lean.

        Raises:
            ClientClosedError: the client was closed meanwhile.

        """
        may_be_lean = self.lean and await lean.works()
        if self.closed:
            raise ClientClosedError("the client is closed")
        if self._session is None:  # else another call has made it meanwhile
            self._session = _own_session(aiohttp.TCPConnector(limit=0))
            # Instrumentation adds its trace configs to every session, and lean requests go past it.
            self.lean = may_be_lean and not self._session.trace_configs
        return self._session


def _own_session(connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    # No limit in the connector: the throttle limits requests, outside the request timeout.
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        timeout=NO_TIMEOUT,
        read_bufsize=BUFFER,
        response_class=OrdinaryResponse,
    )
