"""One GET in, one answer or one of our errors out: the only module that imports aiohttp's client."""

from __future__ import annotations

import asyncio
import ipaddress
import platform
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

import aiohttp
from attrs import define, field, frozen
from multidict import CIMultiDict
from yarl import URL

from xai_tasks._errors import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APITimeoutError,
    ClientClosedError,
    ConfigurationError,
    InvalidTaskIdError,
    printable,
    status_error_class,
)
from xai_tasks._http.credentials import Credentials, Redactor
from xai_tasks._http.hints import Quota, parse_date, parse_hints
from xai_tasks._http.request_timeout import RequestTimeout
from xai_tasks._http.responses import HINTS, excerpt, explain
from xai_tasks._models import TaskResult, decode_task
from xai_tasks._version import __version__

DEFAULT_BASE_URL = "https://api.mountsea.ai"
_PATH = "/xai/tasks"
_MAX_ERROR_BYTES = 64 * 2**10
"""How much of an error's body is read: far more than any message, far less than a hostile body."""

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
"""aiohttp's own clocks overrun and miss a drip; `RequestTimeout` around the whole request does neither."""


@define
class Response:
    """One good answer: the task, and what the answer says beside it."""

    task: TaskResult
    body: bytes
    server_time: float | None
    """Unix seconds of the answer's `Date`, which tells a task's age by the clock that stamped it."""
    retry_after: float | None
    """Seconds before which the server doesn't want to be asked again."""
    quotas: tuple[Quota, ...] = ()
    """What is left of the server's windows, if the answer says so."""


@frozen
class _RequestTemplate:
    """What one key makes of a request, and what keeps it out of what we tell of the answer.

    Its `repr` shows neither, and neither do printers of tracebacks that read attrs fields one by one, as rich does.
    """

    options: dict[str, Any] = field(repr=False)
    redactor: Redactor = field(repr=False)


class Transport:
    """Sends requests over one aiohttp session, its own (made on first use) or a borrowed one (never closed)."""

    __slots__ = (
        "_agent",
        "_borrowed",
        "_build_url",
        "_credentials",
        "_date",
        "_max_bytes",
        "_request_timeouts",
        "_session",
        "_signature",
        "_timeout",
        "_version",
        "closed",
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
    ) -> None:
        """Prepare to ask `base_url`, as `check_base_url` gave it; arguments as `TaskClient`'s.

        Raises:
            TypeError: `session` is no `aiohttp.ClientSession`, or `user_agent` no string.
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
        self._session = session
        self._borrowed = session is not None
        self._timeout = request_timeout
        self._request_timeouts = RequestTimeout(request_timeout)
        self._max_bytes = max_bytes
        own = f"xai-tasks/{__version__} aiohttp/{aiohttp.__version__} Python/{platform.python_version()}"
        self._agent = f"{user_agent} {own}" if user_agent else own
        self._signature = _RequestTemplate({}, Redactor(None))
        self._version = -1
        self._date: tuple[str, float | None] = ("", None)
        self.closed: bool = False

    async def close(self) -> None:
        """Close the session, if it is our own; requests under way end with `ClientClosedError`."""
        self.closed = True
        if self._session is not None and not self._borrowed:
            await self._session.close()

    async def fetch(self, task_id: str) -> Response:
        """Ask for one task, once, with the newest key that `Credentials` has.

        Raises:
            APIError: no usable answer came; the subclass says why.
            ClientClosedError: the client, or the session it borrowed, is closed.
            InvalidTaskIdError: the id can't be written into a URL.

        """
        url = self._url(task_id)
        session, signature = self._ready()
        failure: BaseException
        request = self._request_timeouts.start()
        try:
            look = await self._exchange(session, signature, url, task_id)
        except BaseException as error:  # noqa: BLE001 -- also cancellation, Ctrl-C: raised again below
            late = self._request_timeouts.stop(request)
            if late and isinstance(error, asyncio.CancelledError):
                failure = APITimeoutError(
                    f"no whole answer within {self._timeout:g} s", task_id=task_id
                )
            elif isinstance(error, APIError) or not isinstance(error, Exception):
                failure = error
            else:
                failure = self._translate(error, signature.redactor, task_id)
        else:
            self._request_timeouts.stop(request)
            return look
        # Frames of aiohttp hold the key: nothing that leaves here may lead to them.
        failure.__cause__ = failure.__context__ = None
        try:
            raise failure.with_traceback(None)
        finally:
            del failure  # with its frame in the traceback, each would keep the other alive

    def _url(self, task_id: str) -> URL:
        # Put together of its encoded parts: to parse and check it whole each time would take more than twice as long.
        try:
            query = "taskId=" + quote(task_id, safe="")
        except UnicodeEncodeError:
            pass
        else:
            return self._build_url(query_string=query)
        raise InvalidTaskIdError(
            f"task id {printable(task_id)!r} holds a lone surrogate and can't be sent"
        )

    def _ready(self) -> tuple[aiohttp.ClientSession, _RequestTemplate]:
        """Give the session, and what the newest key makes of a request."""
        if self.closed:
            raise ClientClosedError("the client is closed")
        if self._session is None:
            self._session = _own_session()
        elif self._session.closed:
            raise ClientClosedError("the borrowed session is closed")
        if self._version != self._credentials.version:
            self._version = self._credentials.version
            redactor = Redactor(self._credentials.key)
            self._signature = _RequestTemplate(self._request_options(self._session), redactor)
        return self._session, self._signature

    def _request_options(self, session: aiohttp.ClientSession) -> dict[str, Any]:
        headers = CIMultiDict(  # what aiohttp would make of a dict with each request
            {
                "Accept": "application/json",
                "Authorization": f"Bearer {self._credentials.key}",
                "User-Agent": self._agent,
            }
        )
        # Each is said outright, since a borrowed session may have other defaults.
        options: dict[str, Any] = {
            "allow_redirects": False,
            "auto_decompress": True,
            "headers": headers,
            "raise_for_status": False,
            "timeout": _NO_TIMEOUT,
        }
        if session.auth is not None or session.trust_env:
            # aiohttp refuses our header beside the session's own login or one from a netrc file, so it is put in
            # place after those.
            authorization = headers.pop("Authorization")

            async def sign(
                request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
            ) -> aiohttp.ClientResponse:
                request.headers["Authorization"] = authorization
                return await handler(request)

            options["middlewares"] = (*(getattr(session, "_middlewares", None) or ()), sign)
        return options

    async def _exchange(
        self, session: aiohttp.ClientSession, signature: _RequestTemplate, url: URL, task_id: str
    ) -> Response:
        redactor = signature.redactor
        response = await session.get(url, **signature.options)
        try:
            ok = 200 <= response.status < 300
            body, whole = await _read(response.content, self._max_bytes if ok else _MAX_ERROR_BYTES)
            body = redactor.body(body)
            if not ok:
                raise self._status_error(response, body, redactor, task_id)
            problem = None if whole else f"the answer is larger than {self._max_bytes} bytes"
            task = None
            if problem is None:
                try:
                    task = decode_task(body)
                except ValueError as error:
                    problem = f"the answer can't be read: {_empty(body) or error}"
            if task is None:
                shown = excerpt(body, redactor)
                raise APIResponseValidationError(
                    f"HTTP {response.status}, but {problem}: {shown!r}",
                    task_id=task_id,
                    status_code=response.status,
                    body=shown,
                )
            headers = response.headers
            server_time = self._server_time(headers)
            return Response(task, body, server_time, *parse_hints(headers, server_time))
        finally:
            if not response.content.is_eof():
                response.close()

    def _server_time(self, headers: Mapping[str, str]) -> float | None:
        # The same Date stands on all answers of a second: parse it once.
        text = headers.get("Date")
        if text is None:
            return None
        if text != self._date[0]:
            self._date = (text, parse_date(text))
        return self._date[1]

    def _status_error(
        self, response: aiohttp.ClientResponse, body: bytes, redactor: Redactor, task_id: str
    ) -> APIError:
        status = response.status
        message, trace_id = (text and printable(redactor.text(text)) for text in explain(body))
        headers = response.headers
        retry_after, quotas = parse_hints(headers, self._server_time(headers))
        detail = f"HTTP {status}"
        if message is not None:
            detail += f": {message}"
        if trace_id is not None:
            detail += f" (trace id {trace_id})"
        if retry_after is not None:
            detail += f" (retry after {retry_after:g} s)"
        location = headers.get("Location")
        if 300 <= status < 400 and location is not None:
            location = printable(redactor.text(location))
            detail += f": a redirect to {location}, which is never followed; check base_url"
        elif hint := HINTS.get(status):
            detail += f"; {hint}"
        error = status_error_class(status)(
            detail,
            task_id=task_id,
            status_code=status,
            body=excerpt(body, redactor),
            message=message,
            trace_id=trace_id,
            retry_after=retry_after,
        )
        error._quotas = quotas  # noqa: SLF001 -- for the throttle, not for users
        return error

    def _translate(self, error: Exception, redactor: Redactor, task_id: str) -> Exception:
        if self.closed:
            return ClientClosedError(
                f"the client was closed while it asked for task {printable(task_id)!r}"
            )
        text = str(error.message if isinstance(error, aiohttp.ClientResponseError) else error)
        text = printable(redactor.text(text))
        return APIConnectionError(
            f"{type(error).__name__}: {text}" if text else type(error).__name__, task_id=task_id
        )


def check_base_url(base_url: object, *, allow_insecure_http: bool, name: str = "base_url") -> str:
    """Give `base_url` without a slash at its end; `name` is what messages call it.

    Raises:
        ConfigurationError: it has no scheme or host, another scheme than https (or http to loopback, or anywhere with
            `allow_insecure_http`), credentials, a query or a fragment.
        TypeError: it is no string.

    """
    if not isinstance(base_url, str):
        raise TypeError(f"{name} must be a string, not {type(base_url).__name__}")
    try:
        url = URL(base_url) if base_url.isprintable() and " " not in base_url else None
    except ValueError:
        url = None
    if url is None or url.scheme not in ("https", "http") or not url.raw_host:
        raise ConfigurationError(f"{name} must be like https://host or https://host/prefix")
    if url.raw_user is not None or url.raw_password is not None:
        raise ConfigurationError(f"{name} must not hold credentials: pass the key as api_key")
    if url.raw_query_string or url.raw_fragment or base_url.rstrip("/").endswith(("?", "#")):
        raise ConfigurationError(f"{name} must not have a query or a fragment")
    if url.scheme == "http" and not allow_insecure_http and not _is_loopback(url.raw_host):
        raise ConfigurationError(
            f"{name} would send the key over plain http to {printable(url.raw_host)}: use https, or pass "
            "allow_insecure_http=True"
        )
    return str(url).rstrip("/")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _own_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        # No cap of the pool's own: the throttle stands in front of it, outside the request's clock.
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )


async def _read(content: aiohttp.StreamReader, limit: int) -> tuple[bytes, bool]:
    """Read at most `limit` bytes of a body, after decompression; False if there were more."""
    chunks: list[bytes] = []
    size = 0
    while not content.at_eof():
        chunk = await content.readany()
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            return b"".join(chunks)[:limit], False
    return (chunks[0] if len(chunks) == 1 else b"".join(chunks)), True


def _empty(body: bytes) -> str | None:
    return None if body.strip() else "its body is empty"
