"""Sends one request and returns one answer, or raises one of our errors."""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar, cast
from urllib.parse import quote
from weakref import WeakSet

import aiohttp
from aiohttp.client_proto import ResponseHandler
from attrs import define, field, frozen
from multidict import CIMultiDict
from yarl import URL

from xai_tasks._errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    ClientClosedError,
    InvalidTaskIdError,
    SubmissionUncertainError,
    mark_transient,
    printable,
)
from xai_tasks._http import lean
from xai_tasks._http.credentials import Credentials, Redactor
from xai_tasks._http.hints import Quota, parse_date, parse_hints
from xai_tasks._http.lean import LeanRequest, LeanResponse, OrdinaryResponse, Wire
from xai_tasks._http.proxy import Proxy, ProxySetting
from xai_tasks._http.request_timeout import RequestTimeout
from xai_tasks._http.responses import (
    invalid_answer,
    read_task,
    read_task_id,
    status_error,
    too_large,
)
from xai_tasks._http.submission import SubmissionBody
from xai_tasks._models import TaskResult
from xai_tasks._requests import Request
from xai_tasks._version import __version__

T = TypeVar("T")

logger = logging.getLogger("xai_tasks")

_PATH = "/xai/tasks"
_MAX_ERROR_BYTES = 64 * 2**10
"""How much of an error's body is read: more than any message, less than a hostile body."""

_BUFFER = 2**16
"""aiohttp's buffer: it decompresses three times as many bytes in one go, for less than 1 ms."""

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
"""aiohttp's own timeouts overrun and miss a drip; `RequestTimeout` does neither."""


_CERTIFICATE_HINT = (
    "the server's certificate can't be verified: name the file of your authorities in "
    "SSL_CERT_FILE, or pass a session of your own"
)


@define
class Response:
    """One good answer: the task, and what the answer says beside it."""

    task: TaskResult
    body: bytes
    server_time: float | None
    """Unix seconds of the answer's `Date`: a task's age by the clock that wrote its dates."""
    retry_after: float | None
    """Seconds to wait before the next request, if the server named any."""
    quotas: tuple[Quota, ...] = ()
    """What is left of the server's windows, if the answer says so."""


@define
class Accepted:
    """The answer to a submission that was accepted."""

    task_id: str
    quotas: tuple[Quota, ...] = ()
    """What is left of the server's windows, if the answer says so."""


@frozen
class _RequestTemplate:
    """What one key makes of every request, and what redacts it in the answers.

    Its `repr` shows neither, nor do printers of tracebacks that read attrs fields, as rich does.
    """

    options: dict[str, Any] = field(repr=False)
    """What aiohttp's `get` takes."""
    wire: Wire | None = field(repr=False)
    """The same as bytes, for lean requests; None where they are not used."""
    redactor: Redactor = field(repr=False)


class Transport:
    """Sends requests over its own aiohttp session, made on first use, or over a borrowed one."""

    __slots__ = (
        "_agent",
        "_borrowed",
        "_build_url",
        "_credentials",
        "_date",
        "_fresh",
        "_large_bodies",
        "_max_bytes",
        "_proxy",
        "_request_timeout",
        "_session",
        "_submission_url",
        "_template",
        "_timeout",
        "_url",
        "_used",
        "_version",
        "closed",
        "proxies",
    )

    def __init__(
        self,
        credentials: Credentials,
        base_url: str,
        *,
        session: aiohttp.ClientSession | None,
        request_timeout: float,
        max_bytes: int,
        user_agent: str | None,
        proxies: ProxySetting | None = None,
    ) -> None:
        """Prepare requests to `base_url`, as `check_base_url` returned it.

        Other arguments as `TaskClient`'s.

        Raises:
            ConfigurationError: the proxy's URL is malformed.
            TypeError: `session` is not an `aiohttp.ClientSession`, or `user_agent` not a string.
            ValueError: `user_agent` can't be a header's value.

        """
        if session is not None and not isinstance(session, aiohttp.ClientSession):
            raise TypeError(
                f"session must be an aiohttp.ClientSession, not {type(session).__name__}"
            )
        if user_agent is not None and not isinstance(user_agent, str):
            raise TypeError(f"user_agent must be a string, not {type(user_agent).__name__}")
        if user_agent is not None and not (user_agent.isascii() and user_agent.isprintable()):
            raise ValueError(f"user_agent must be printable ASCII, not {user_agent!r}")
        self._credentials = credentials
        url = URL(base_url)
        self._build_url: Callable[..., URL] = partial(
            URL.build,
            scheme=url.scheme,
            authority=url.raw_authority,
            path=url.raw_path.rstrip("/") + _PATH,
            encoded=True,
        )
        self._url = self._build_url()
        self._submission_url = url
        self._session = session
        self._fresh: aiohttp.ClientSession | None = None
        self._borrowed = session is not None
        self.proxies: ProxySetting = proxies or ProxySetting()
        self._proxy: Proxy | None = self.proxies.for_url(self._url)
        self._timeout = request_timeout
        self._request_timeout = RequestTimeout(request_timeout)
        self._max_bytes = max_bytes
        own = (
            f"xai-tasks/{__version__} aiohttp/{aiohttp.__version__} "
            f"Python/{platform.python_version()}"
        )
        self._agent = f"{user_agent} {own}" if user_agent else own
        self._template = _RequestTemplate({}, None, Redactor(None))
        self._version = -1
        self._used: WeakSet[ResponseHandler] = WeakSet()
        self._large_bodies = asyncio.Lock()
        self._date: tuple[str, float | None] = ("", None)
        self.closed: bool = False

    @property
    def agent(self) -> str:
        """What requests say in `User-Agent`."""
        return self._agent

    async def close(self) -> None:
        """Close the own sessions; requests in flight end with `ClientClosedError`."""
        self.closed = True
        try:
            if self._session is not None and not self._borrowed:
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
        if self._borrowed and getattr(self._session, "_loop", loop) is not loop:
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

    async def fetch(self, task_id: str) -> Response:
        """Ask for one task, once, with the newest key that `Credentials` has.

        An answer for another task is not taken from a connection that was used before: a stray
        answer on it would shift every later one. The connection is closed, and the request made
        again on a new one.

        Raises:
            APIError: no usable answer came; the subclass says why.
            ClientClosedError: the client, or the session it borrowed, is closed.
            InvalidTaskIdError: the id can't be written into a URL.

        """
        query = _query(task_id)
        session, template = await self._ready()
        if template.wire is not None:
            sending = session.get(
                template.wire.url,
                params=cast("Any", template.wire.request(query)),
                allow_redirects=False,
            )
        else:
            sending = session.get(self._build_url(query_string=query), **template.options)
        redactor = template.redactor
        answer, doubtful = await self._timed(
            self._exchange(sending, redactor, task_id), redactor, task_id
        )
        if not doubtful:
            return answer
        return await self._ask_again(answer, session, template, query, task_id)

    async def _ask_again(
        self,
        stray: Response,
        session: aiohttp.ClientSession,
        template: _RequestTemplate,
        query: str,
        task_id: str,
    ) -> Response:
        """Repeat a request that was answered for another task; no retry in the policy's sense."""
        if not self._borrowed:
            session = self._fresh_session()
        logger.debug(
            "an answer for task %r came in place of that for %r: asking again",
            printable(stray.task.task_id),
            printable(task_id),
            extra={"task_id": task_id},
        )
        redactor = template.redactor
        sending = session.get(self._build_url(query_string=query), **template.options)
        answer, _ = await self._timed(self._exchange(sending, redactor, task_id), redactor, task_id)
        if self._borrowed and answer.task.task_id not in (task_id, stray.task.task_id):
            problem = "the answers to two requests are for two other tasks"
            raise invalid_answer(200, problem, answer.body, redactor, task_id)
        return answer

    async def submit(self, request: Request, *, on_send: Callable[[], None]) -> Accepted:
        """Submit a request once, with the newest key that `Credentials` has.

        On the own session, each submission has a new connection. The server may close an idle one
        at the moment it is used, and then nobody knows whether the request was accepted.

        Args:
            request: what to submit.
            on_send: called before the first byte is written; if it raises, nothing is written.

        Returns:
            the answer, with the id of the task.

        Raises:
            SubmissionUncertainError: the request was sent, and no readable answer came.
            APIStatusError: the server answered with another status than 2xx.
            APIError: the request was not sent; the subclass says why.
            ClientClosedError: the client, or the session it borrowed, is closed.
            Exception: what `on_send` raised.

        """
        session, template = await self._ready()
        if not self._borrowed:
            session = self._fresh_session()
        url = self._submission_url
        path = url.raw_path.rstrip("/") + request._PATH  # noqa: SLF001 -- ours
        body = SubmissionBody(request, on_send)
        sending = session.post(url.with_path(path, encoded=True), data=body, **template.options)
        redactor = template.redactor
        try:
            return await self._timed(self._read_accepted(sending, redactor), redactor, "")
        except Exception as error:
            if body.problem is None and (not body.sent or isinstance(error, APIStatusError)):
                raise
            cause = error
        except BaseException:
            if body.sent:
                logger.warning(
                    "a submission was cancelled after it was sent: %r may have been accepted",
                    request,
                    extra={"request": request},
                )
            raise
        if body.problem is not None:
            raise body.problem
        if not isinstance(cause, APIError):
            cause = APIConnectionError("the client was closed before the answer came", task_id="")
        raise SubmissionUncertainError(request, cause.with_traceback(None))

    async def _read_accepted(
        self, sending: Awaitable[aiohttp.ClientResponse], redactor: Redactor
    ) -> Accepted:
        """Read the answer to a submission."""
        response = await sending
        try:
            status = response.status
            server_time = self._server_time(response.headers)
            if not 200 <= status < 300:
                try:
                    body, _ = await self._read(response.content, _MAX_ERROR_BYTES)
                except (aiohttp.ClientError, OSError):
                    body = b""  # the status alone is a clear answer
                raise status_error(
                    status,
                    response.headers,
                    redactor.body(body),
                    redactor,
                    "",
                    server_time=server_time,
                    hint=self._proxy_hint(status),
                )
            body, whole = await self._read(response.content, self._max_bytes)
            if not whole:
                raise too_large(status, self._max_bytes, body, redactor, "")
            task_id = read_task_id(status, redactor.body(body), redactor)
            _, quotas = parse_hints(response.headers, server_time)
            return Accepted(task_id, quotas)
        finally:
            if not response.content.is_eof():
                response.close()

    def _fresh_session(self) -> aiohttp.ClientSession:
        """Return an own session each of whose connections serves one request."""
        if self._fresh is None:
            self._fresh = _own_session(aiohttp.TCPConnector(limit=0, force_close=True))
        return self._fresh

    async def _ready(self) -> tuple[aiohttp.ClientSession, _RequestTemplate]:
        """Return the session, and what the newest key makes of a request."""
        if self.closed:
            raise ClientClosedError("the client is closed")
        session = self._session or await self._open()
        if self._borrowed and session.closed:
            raise ClientClosedError("the borrowed session is closed")
        if self._version != self._credentials.version:
            self._version = self._credentials.version
            self._template = self._make_template(session)
        return session, self._template

    async def _open(self) -> aiohttp.ClientSession:
        """Make the own session, lean if that works and there is no proxy."""
        is_lean = self._proxy is None and await lean.works()
        if self.closed:
            raise ClientClosedError("the client is closed")
        if self._session is None:  # else another call has made it meanwhile
            self._session = _own_session(aiohttp.TCPConnector(limit=0), is_lean)
        return self._session

    def _make_template(self, session: aiohttp.ClientSession) -> _RequestTemplate:
        headers = CIMultiDict(
            {
                "Accept": "application/json",
                # Not left to aiohttp: it offers Brotli also where it can't read it.
                "Accept-Encoding": "gzip, deflate",
                "Authorization": f"Bearer {self._credentials.key}",
                "User-Agent": self._agent,
            }
        )
        # Each is named, since a borrowed session may have other defaults.
        options: dict[str, Any] = {
            "allow_redirects": False,
            "auto_decompress": True,
            "headers": headers,
            "raise_for_status": False,
            "read_bufsize": _BUFFER,
            "timeout": _NO_TIMEOUT,
        }
        secrets: tuple[str, ...] = ()
        if self._proxy is not None:
            options.update(self._proxy.options)
            if self._url.scheme == "http":  # without a tunnel, the proxy reads the request itself
                headers.update(self._proxy.options.get("proxy_headers", {}))
            secrets = self._proxy.secrets
        is_lean = getattr(session, "_request_class", None) is LeanRequest
        wire = Wire.to(self._url, headers) if is_lean else None
        if session.auth is not None or session.trust_env:
            # aiohttp refuses our header beside the session's own login, or one from a netrc file,
            # so a middleware sets it after those.
            authorization = headers.pop("Authorization")

            async def sign(
                request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
            ) -> aiohttp.ClientResponse:
                request.headers["Authorization"] = authorization
                return await handler(request)

            options["middlewares"] = (*(getattr(session, "_middlewares", None) or ()), sign)
        return _RequestTemplate(options, wire, Redactor(self._credentials.key, *secrets))

    async def _timed(self, exchange: Awaitable[T], redactor: Redactor, task_id: str) -> T:
        """Await an exchange for at most the request timeout; raise our errors alone."""
        failure: BaseException
        request = self._request_timeout.start()
        try:
            result = await exchange
        except BaseException as error:  # noqa: BLE001 -- cancellation, Ctrl-C: raised again below
            late = self._request_timeout.stop(request)
            if late and isinstance(error, asyncio.CancelledError):
                failure = APITimeoutError(
                    f"no whole answer within {self._timeout:g} s{self._through()}",
                    task_id=task_id,
                )
            elif isinstance(error, APIError) or not isinstance(error, Exception):
                failure = error
            else:
                failure = self._translate(error, redactor, task_id)
        else:
            self._request_timeout.stop(request)
            return result
        # aiohttp's frames hold the key: nothing that leaves here may lead to them.
        failure.__cause__ = failure.__context__ = None
        try:
            raise failure.with_traceback(None)
        finally:
            del failure, exchange  # break the cycle of the exception and this frame

    async def _exchange(
        self, sending: Awaitable[aiohttp.ClientResponse], redactor: Redactor, task_id: str
    ) -> tuple[Response, bool]:
        """Read an answer; return it, and whether it may be a stray one: for another task.

        On the own session, the connection of such an answer is closed.
        """
        response = await sending
        connection: ResponseHandler | None = getattr(response, "used_connection", None)
        is_new = connection is not None and connection not in self._used
        if connection is not None and is_new:
            self._used.add(connection)
        try:
            status, headers = response.status, response.headers
            ok = 200 <= status < 300
            limit = self._max_bytes if ok else _MAX_ERROR_BYTES
            body, whole = await self._read(response.content, limit)
            if ok and not whole:
                raise too_large(status, self._max_bytes, body, redactor, task_id)
            body = redactor.body(body)
            server_time = self._server_time(headers)
            if not ok:
                raise status_error(
                    status,
                    headers,
                    body,
                    redactor,
                    task_id,
                    server_time=server_time,
                    hint=self._proxy_hint(status),
                )
            task = read_task(status, body, redactor, task_id)
            doubtful = task.task_id != task_id and not is_new
            if doubtful and connection is not None:
                connection.close()
            hints = parse_hints(headers, server_time)
            return Response(task, body, server_time, *hints), doubtful
        finally:
            if not response.content.is_eof():
                response.close()

    async def _read(self, content: aiohttp.StreamReader, limit: int) -> tuple[bytes, bool]:
        """Read a body of at most `limit` bytes, after decompression.

        Returns the body and True; of a larger one, a beginning of at most 64 KiB and False.
        """
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
                return _beginning(chunks, min(limit, _MAX_ERROR_BYTES)), False
        return (chunks[0] if len(chunks) == 1 else b"".join(chunks)), True

    def _server_time(self, headers: Mapping[str, str]) -> float | None:
        # The same Date stands on all answers of a second: parse it once.
        text = headers.get("Date")
        if text is None:
            return None
        if text != self._date[0]:
            self._date = (text, parse_date(text))
        return self._date[1]

    def _translate(self, error: Exception, redactor: Redactor, task_id: str) -> Exception:
        """Return our error for one of aiohttp's, without the key and without its chain."""
        if self.closed:
            doing = f"it asked for task {printable(task_id)!r}" if task_id else "it connected"
            return ClientClosedError(f"the client was closed while {doing}")
        text = str(error.message if isinstance(error, aiohttp.ClientResponseError) else error)
        text = printable(redactor.text(text))
        detail = f"{type(error).__name__}: {text}" if text else type(error).__name__
        hint = None
        if isinstance(error, aiohttp.ClientHttpProxyError):
            detail = f"the proxy answered HTTP {error.status} ({text})"
            hint = self._proxy_hint(error.status)
        detail += self._through()
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            hint = _CERTIFICATE_HINT
        if hint is None:
            return APIConnectionError(detail, task_id=task_id)
        # What only the user can mend is met again by each attempt.
        return mark_transient(APIConnectionError(f"{detail}; {hint}", task_id=task_id), False)

    def _through(self) -> str:
        return f" (through the proxy {self._proxy.url})" if self._proxy is not None else ""

    def _proxy_hint(self, status: int) -> str | None:
        if status != 407 or self._proxy is None:
            return None
        if self._proxy.has_login:
            return f"the proxy {self._proxy.url} refused the login in its URL"
        return f"the proxy {self._proxy.url} wants a login: put user and password into its URL"


def _own_session(connector: aiohttp.BaseConnector, is_lean: bool = False) -> aiohttp.ClientSession:
    # No limit in the connector: the throttle limits requests, outside the request timeout.
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        timeout=_NO_TIMEOUT,
        read_bufsize=_BUFFER,
        request_class=LeanRequest if is_lean else aiohttp.ClientRequest,
        response_class=LeanResponse if is_lean else OrdinaryResponse,
    )


def _query(task_id: str) -> str:
    # Put together from encoded parts: parsing and checking takes more than twice as long.
    try:
        return "taskId=" + quote(task_id, safe="")
    except UnicodeEncodeError:
        pass
    raise InvalidTaskIdError(
        f"task id {printable(task_id)!r} holds a lone surrogate and can't be sent"
    )


def _beginning(chunks: list[bytes], size: int) -> bytes:
    """Return the first `size` bytes of chunks that hold at least as many."""
    beginning = b""
    pieces = iter(chunks)
    while len(beginning) < size:
        beginning += next(pieces)[:size]
    return beginning[:size]
