"""One GET for a file: without the key, with checked redirects, at public addresses only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from concurrent.futures import Executor
from urllib.parse import quote

import aiohttp
from yarl import URL

from xai_tasks._errors import ConfigurationError, printable
from xai_tasks._http.addresses import (
    AddressRefusedError,
    Lookup,
    PublicResolver,
    check_host,
)
from xai_tasks._http.base_url import is_loopback
from xai_tasks._http.hints import parse_date, parse_hints
from xai_tasks._http.proxy import ProxySetting

_BUFFER = 2**18
"""Bytes that a response may buffer: as many as asyncio reads at once, which then rarely stops."""
_MAX_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}

_ASCII = "".join(map(chr, range(0x21, 0x7F)))
"""What may stand in a request as it is. Signatures break if any of it is encoded again."""


class TransferError(Exception):
    """A file could not be fetched. It leads to no URL: queries hold signatures.

    Attributes:
        transient: whether another attempt may help.
        status_code: the HTTP status, if there was one.
        retry_after: seconds that the server asked to wait, if it did.

    """

    def __init__(
        self,
        detail: str,
        *,
        transient: bool = False,
        status_code: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.transient = transient
        self.status_code = status_code
        self.retry_after = retry_after


class FileResponse:
    """The answer to one GET, read bit by bit."""

    __slots__ = ("_response", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks to wait, if it does."""
        date = self.headers.get("Date")
        return parse_hints(self.headers, None if date is None else parse_date(date)).retry_after

    async def read(self) -> bytes:
        """Return more of the body as it was sent, not decoded; empty at its end.

        Raises:
            TransferError: the connection broke, or the body is not as long as was promised.

        """
        content = self._response.content
        try:
            return await content.readany()
        except (aiohttp.ClientError, OSError, RuntimeError) as error:  # the last: closed before
            # What came before the connection broke is still there, and worth a `Range` request.
            if rest := content._read_nowait(-1):  # noqa: SLF001 -- the public ones raise again
                return rest
            failure = _translate(error)
        raise failure from None

    def close(self) -> None:
        """Drop what is left of the body."""
        if not self._response.content.is_eof():
            self._response.close()


class FileTransport:
    """Fetches files over a session of its own, which does not have the key.

    Args:
        base_url: where the API is; on loopback, any address may be connected to, by http also.
        executor: where to look up names.
        allow_insecure_http: whether http may be used anywhere.
        request_timeout: seconds for connecting, and for each silence.
        agent: the `User-Agent`.
        proxies: which proxy to use. A proxy looks up names itself, so it decides where they lead;
            hosts that are addresses are checked all the same.
        lookup: `socket.getaddrinfo`.

    """

    __slots__ = (
        "_agent",
        "_any_address",
        "_executor",
        "_http",
        "_lookup",
        "_proxies",
        "_sessions",
        "_timeout",
    )

    def __init__(
        self,
        base_url: str,
        executor: Executor,
        *,
        allow_insecure_http: bool,
        request_timeout: float,
        agent: str,
        proxies: ProxySetting,
        lookup: Lookup = socket.getaddrinfo,
    ) -> None:
        self._any_address = is_loopback(URL(base_url).raw_host or "")
        self._http = self._any_address or allow_insecure_http
        self._timeout = aiohttp.ClientTimeout(connect=request_timeout, sock_read=request_timeout)
        self._agent = agent
        self._executor = executor
        self._proxies = proxies
        self._lookup = lookup
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        """One for direct requests, one for those by a proxy, whose own address is not checked."""

    async def get(self, url: str, headers: Mapping[str, str]) -> FileResponse:
        """Make a request, and those that redirects ask for.

        Args:
            url: sent byte for byte; only what can't stand in a request is encoded.
            headers: more headers.

        Returns:
            the answer, of whatever status; it must be closed.

        Raises:
            TransferError: there was none, or a URL is refused.
            ConfigurationError: the proxy for it is malformed.

        """
        try:
            return await self._follow(_parse(url), headers)
        except ConfigurationError:  # of the proxy for this URL's scheme
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            failure = _translate(error)
        raise failure from None

    async def close(self) -> None:
        """Close the sessions; what is under way breaks off."""
        if self._sessions:
            _, session = self._sessions.popitem()
            try:
                await session.close()
            finally:  # a cancelled close must not leave the other one open
                await self.close()

    async def _follow(self, url: URL, headers: Mapping[str, str]) -> FileResponse:
        redirects = 0
        while True:
            self._check(url)
            proxy = self._proxies.for_url(url)
            session = self._session(by_proxy=proxy is not None)
            options = {"headers": headers, **({} if proxy is None else proxy.options)}
            if url.scheme == "http":  # without a tunnel, the proxy reads the request itself
                options["headers"] = {**headers, **options.get("proxy_headers", {})}
            response = await session.get(url, allow_redirects=False, **options)
            if response.status not in _REDIRECTS:
                return FileResponse(response)
            response.close()
            location = response.headers.get("Location")
            if location is None:
                raise TransferError(
                    f"HTTP {response.status} without a Location", status_code=response.status
                )
            if redirects == _MAX_REDIRECTS:
                raise TransferError(
                    f"more than {_MAX_REDIRECTS} redirects", status_code=response.status
                )
            redirects += 1
            url = url.join(_parse(location))

    def _session(self, *, by_proxy: bool) -> aiohttp.ClientSession:
        if by_proxy in self._sessions:
            return self._sessions[by_proxy]
        any_address = self._any_address or by_proxy
        resolver = PublicResolver(self._executor, any_address=any_address, lookup=self._lookup)
        self._sessions[by_proxy] = session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, resolver=resolver),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": self._agent},
            auto_decompress=False,  # the length that was promised is that of what is sent
            read_bufsize=_BUFFER,
            timeout=self._timeout,
            trust_env=False,
        )
        return session

    def _check(self, url: URL) -> None:
        """Refuse a URL that must not be requested, before anything is sent."""
        host = url.raw_host
        if not host:
            raise TransferError("the URL has no host")
        if url.scheme != "https" and not (self._http and url.scheme == "http"):
            raise TransferError(f"{url.scheme}://{printable(host)} is not https")
        if not self._any_address:
            check_host(host)


def shown(url: str) -> str:
    """Return a URL without what may be a secret: login, query and fragment; of data, the type."""
    if url[:5].lower() == "data:":
        return f"{url.partition(',')[0][:100]},…"
    head, _, rest = url.partition("://")
    authority, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
    return f"{head}://{authority.rpartition('@')[2]}{slash}{path}"


def _parse(url: str) -> URL:
    exact = URL(quote(url, safe=_ASCII), encoded=True)
    if not url.isascii() and (host := URL(url).raw_host) and host != exact.raw_host:
        exact = exact.with_host(host)  # a name in another script
    return exact


def _translate(error: Exception) -> TransferError:
    """Turn an error of the HTTP library into ours, and keep URLs out of it."""
    cause = getattr(error, "os_error", error)
    transient = False
    if isinstance(cause, AddressRefusedError):
        detail = str(cause)
    elif isinstance(error, aiohttp.ClientConnectorCertificateError):
        detail = (
            f"the certificate of {error.host} can't be verified: {error.certificate_error}; if a "
            "proxy of your own signs it, point SSL_CERT_FILE to its certificate"
        )
    elif isinstance(error, (aiohttp.InvalidURL, ValueError)):
        detail = "the URL is malformed"
    elif isinstance(error, aiohttp.ClientHttpProxyError):
        detail = f"the proxy answered HTTP {error.status}"
        transient = error.status >= 500
    else:
        transient = True
        text = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
        detail = f"{type(error).__name__}: {printable(text)}" if text else type(error).__name__
        if isinstance(error, asyncio.TimeoutError):
            detail = "no answer, or nothing more, within request_timeout"
        elif isinstance(error, aiohttp.ClientPayloadError):
            detail = "the connection broke in the middle of the file"
    return TransferError(detail, transient=transient)
