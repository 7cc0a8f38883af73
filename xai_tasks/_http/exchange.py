"""One request and its answer: for at most the request timeout, and with our errors alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import TypeVar

import aiohttp

from xai_tasks._errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    ClientClosedError,
    mark_transient,
    printable,
)
from xai_tasks._http.credentials import Redactor
from xai_tasks._http.hints import parse_date
from xai_tasks._http.proxy import Proxy
from xai_tasks._http.request_timeout import RequestTimeout
from xai_tasks._http.sessions import Sessions

T = TypeVar("T")

MAX_ERROR_BYTES = 64 * 2**10
"""How much of an error's body is read: more than any message, less than a hostile body."""

_CERTIFICATE_HINT = (
    "the server's certificate can't be verified: name the file of your authorities in "
    "SSL_CERT_FILE, or pass a session of your own"
)


class Exchanges:
    """Runs exchanges, each of one request and its answer, and reads the answers' bodies."""

    __slots__ = ("_date", "_large_bodies", "_proxy", "_request_timeout", "_seconds", "_sessions")

    def __init__(self, sessions: Sessions, proxy: Proxy | None, request_timeout: float) -> None:
        """Run exchanges over `sessions` and `proxy`, of `request_timeout` seconds at most."""
        self._sessions = sessions
        self._proxy = proxy
        self._seconds = request_timeout
        self._request_timeout = RequestTimeout(request_timeout)
        self._large_bodies = asyncio.Lock()
        self._date: tuple[str, float | None] = ("", None)

    async def run(self, exchange: Awaitable[T], redactor: Redactor, task_id: str) -> T:
        """Await an exchange for at most the request timeout; raise our errors alone."""
        failure: BaseException
        request = self._request_timeout.start()
        try:
            result = await exchange
        except BaseException as error:  # noqa: BLE001 -- cancellation, Ctrl-C: raised again below
            late = self._request_timeout.stop(request)
            if late and isinstance(error, asyncio.CancelledError):
                failure = APITimeoutError(
                    f"no whole answer within {self._seconds:g} s{self._through()}",
                    task_id=task_id,
                )
            elif isinstance(error, APIError) or not isinstance(error, Exception):
                failure = error
            else:
                failure = self._translate(error, redactor, task_id)
                _drop_frames(error)
        else:
            self._request_timeout.stop(request)
            return result
        # aiohttp's frames hold the key: nothing that leaves here may lead to them.
        failure.__cause__ = failure.__context__ = None
        try:
            raise failure.with_traceback(None)
        finally:
            del failure, exchange  # break the cycle of the exception and this frame

    async def read(self, content: aiohttp.StreamReader, limit: int) -> tuple[bytes, bool]:
        """Read a body of at most `limit` bytes, after decompression.

        Returns the body and True; of a larger one, a beginning of at most 64 KiB and False.
        """
        if content.is_eof() and content.total_bytes <= limit:  # most answers come as a whole
            return content.read_nowait(), True
        chunks: list[bytes] = []
        size = 0
        while not content.at_eof():
            if chunks:
                # A compressed body is there without waiting for it, however large it is. So one
                # chunk of one body at a time, and others on the loop between them.
                async with self._large_bodies:
                    await asyncio.sleep(0)
            chunk = await content.readany()
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                return _beginning(chunks, min(limit, MAX_ERROR_BYTES)), False
        return (chunks[0] if len(chunks) == 1 else b"".join(chunks)), True

    def server_time(self, headers: Mapping[str, str]) -> float | None:
        """Return the `Date` of an answer in Unix seconds, if it has one."""
        # The same Date stands on all answers of a second: parse it once.
        text = headers.get("Date")
        if text is None:
            return None
        if text != self._date[0]:
            self._date = (text, parse_date(text))
        return self._date[1]

    def proxy_hint(self, status: int) -> str | None:
        """Return what to do about a proxy's 407; None for another status, or without a proxy."""
        if status != 407 or self._proxy is None:
            return None
        if self._proxy.has_login:
            return f"the proxy {self._proxy.url} refused the login in its URL"
        return f"the proxy {self._proxy.url} wants a login: put user and password into its URL"

    def _translate(self, error: Exception, redactor: Redactor, task_id: str) -> Exception:
        """Return our error for one of aiohttp's, without the key and without its chain."""
        if self._sessions.closed:
            doing = f"it asked for task {printable(task_id)!r}" if task_id else "it connected"
            return ClientClosedError(f"the client was closed while {doing}")
        text = str(error.message if isinstance(error, aiohttp.ClientResponseError) else error)
        text = printable(redactor.text(text))
        detail = f"{type(error).__name__}: {text}" if text else type(error).__name__
        hint = None
        if isinstance(error, aiohttp.ClientHttpProxyError):
            detail = f"the proxy answered HTTP {error.status} ({text})"
            hint = self.proxy_hint(error.status)
        detail += self._through()
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            hint = _CERTIFICATE_HINT
        if hint is None:
            return APIConnectionError(detail, task_id=task_id)
        # What only the user can mend is met again by each attempt.
        return mark_transient(APIConnectionError(f"{detail}; {hint}", task_id=task_id), False)

    def _through(self) -> str:
        return f" (through the proxy {self._proxy.url})" if self._proxy is not None else ""


def _beginning(chunks: list[bytes], size: int) -> bytes:
    """Return the first `size` bytes of chunks that hold at least as many."""
    beginning = b""
    pieces = iter(chunks)
    while len(beginning) < size:
        beginning += next(pieces)[:size]
    return beginning[:size]


def _drop_frames(error: BaseException | None) -> None:
    """Drop the frames of an error of aiohttp's: they hold it, and through their callers our own."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
