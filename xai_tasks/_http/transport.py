"""Sends one request and returns one answer, or raises one of our errors."""

from __future__ import annotations

import asyncio
import logging
import platform
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
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
    InvalidTaskIdError,
    SubmissionUncertainError,
    printable,
)
from xai_tasks._http.credentials import Credentials, Redactor
from xai_tasks._http.exchange import MAX_ERROR_BYTES, Exchanges
from xai_tasks._http.hints import Quota, parse_hints
from xai_tasks._http.lean import BUFFER, NO_TIMEOUT, LeanResponse, Wire, is_replaced
from xai_tasks._http.proxy import ProxySetting
from xai_tasks._http.responses import (
    invalid_answer,
    read_task,
    read_task_id,
    status_error,
    too_large,
)
from xai_tasks._http.sessions import Sessions
from xai_tasks._http.submission import SubmissionBody
from xai_tasks._models import TaskResult
from xai_tasks._requests import Request
from xai_tasks._version import __version__

logger = logging.getLogger("xai_tasks")

_PATH = "/xai/tasks"

_UNRESERVED = re.compile(r"[\w.~-]*", re.ASCII)
"""An id that stands in a URL as it is."""


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
    """Sends lean requests; None where they are not used."""
    redactor: Redactor = field(repr=False)


class Transport:
    """Sends requests over its own aiohttp session, made on first use, or over a borrowed one."""

    __slots__ = (
        "_agent",
        "_build_url",
        "_credentials",
        "_exchanges",
        "_max_bytes",
        "_proxy",
        "_sessions",
        "_submission_url",
        "_template",
        "_url",
        "_used",
        "_version",
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
        self._proxy = proxies.for_url(self._url) if proxies is not None else None
        self._sessions = Sessions(session, lean=self._proxy is None)
        self._exchanges = Exchanges(self._sessions, self._proxy, request_timeout)
        self._max_bytes = max_bytes
        own = (
            f"xai-tasks/{__version__} aiohttp/{aiohttp.__version__} "
            f"Python/{platform.python_version()}"
        )
        self._agent = f"{user_agent} {own}" if user_agent else own
        self._template = _RequestTemplate({}, None, Redactor(None))
        self._version = -1
        self._used: WeakSet[ResponseHandler] = WeakSet()

    @property
    def agent(self) -> str:
        """What requests say in `User-Agent`."""
        return self._agent

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._sessions.closed

    async def close(self) -> None:
        """Close the own sessions; requests in flight end with `ClientClosedError`."""
        await self._sessions.close()

    def check_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Check, as `Sessions.check_loop` does, that a borrowed session belongs to `loop`."""
        self._sessions.check_loop(loop)

    def limit_concurrency(self, wanted: int) -> int:
        """Return how many of `wanted` requests the session lets be in flight at once."""
        return self._sessions.limit_concurrency(wanted)

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
        session = self._sessions.current() or await self._sessions.open()
        template = self._template_for(session)
        sending: Awaitable[aiohttp.ClientResponse | LeanResponse]
        if template.wire is not None and not is_replaced():
            sending = template.wire.get(query)
        else:
            sending = session.get(self._build_url(query_string=query), **template.options)
        redactor = template.redactor
        answer, doubtful = await self._exchanges.run(
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
        session = self._sessions.for_one_request(session)
        logger.debug(
            "an answer for task %r came in place of that for %r: asking again",
            printable(stray.task.task_id),
            printable(task_id),
            extra={"task_id": task_id},
        )
        redactor = template.redactor
        sending = session.get(self._build_url(query_string=query), **template.options)
        answer, _ = await self._exchanges.run(
            self._exchange(sending, redactor, task_id), redactor, task_id
        )
        if self._sessions.borrowed and answer.task.task_id not in (task_id, stray.task.task_id):
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
        session = self._sessions.current() or await self._sessions.open()
        template = self._template_for(session)
        session = self._sessions.for_one_request(session)
        url = self._submission_url
        path = url.raw_path.rstrip("/") + request._PATH  # noqa: SLF001 -- ours
        body = SubmissionBody(request, on_send)
        sending = session.post(url.with_path(path, encoded=True), data=body, **template.options)
        redactor = template.redactor
        try:
            return await self._exchanges.run(self._read_accepted(sending, redactor), redactor, "")
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
        problem, body.problem = body.problem, None
        if problem is not None:
            try:
                raise problem
            finally:
                del problem  # break the reference cycle between exception and frame
        if body.refused:
            detail = "a middleware of the borrowed session was kept from sending it again"
            cause = APIConnectionError(detail, task_id="")
        elif not isinstance(cause, APIError):
            cause = APIConnectionError("the client was closed before the answer came", task_id="")
        raise SubmissionUncertainError(request, cause.with_traceback(None))

    async def _read_accepted(
        self, sending: Awaitable[aiohttp.ClientResponse], redactor: Redactor
    ) -> Accepted:
        """Read the answer to a submission."""
        response = await sending
        try:
            status = response.status
            server_time = self._exchanges.server_time(response.headers)
            if not 200 <= status < 300:
                try:
                    body, _ = await self._exchanges.read(response.content, MAX_ERROR_BYTES)
                except (aiohttp.ClientError, OSError):
                    body = b""  # the status alone is a clear answer
                raise status_error(
                    status,
                    response.headers,
                    redactor.body(body),
                    redactor,
                    "",
                    server_time=server_time,
                    hint=self._exchanges.proxy_hint(status),
                )
            body, whole = await self._exchanges.read(response.content, self._max_bytes)
            if not whole:
                raise too_large(status, self._max_bytes, body, redactor, "")
            task_id = read_task_id(status, redactor.body(body), redactor)
            _, quotas = parse_hints(response.headers, server_time)
            return Accepted(task_id, quotas)
        finally:
            if not response.content.is_eof():
                response.close()

    def _template_for(self, session: aiohttp.ClientSession) -> _RequestTemplate:
        """Return what the newest key makes of a request."""
        if self._version != self._credentials.version:
            self._version = self._credentials.version
            self._template = self._make_template(session)
        return self._template

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
            "read_bufsize": BUFFER,
            "timeout": NO_TIMEOUT,
        }
        secrets: tuple[str, ...] = ()
        if self._proxy is not None:
            options.update(self._proxy.options)
            if self._url.scheme == "http":  # without a tunnel, the proxy reads the request itself
                headers.update(self._proxy.options.get("proxy_headers", {}))
            secrets = self._proxy.secrets
        wire = Wire.to(session, self._url, headers) if self._sessions.lean else None
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

    async def _exchange(
        self,
        sending: Awaitable[aiohttp.ClientResponse | LeanResponse],
        redactor: Redactor,
        task_id: str,
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
            limit = self._max_bytes if ok else MAX_ERROR_BYTES
            body, whole = await self._exchanges.read(response.content, limit)
            if ok and not whole:
                raise too_large(status, self._max_bytes, body, redactor, task_id)
            body = redactor.body(body)
            server_time = self._exchanges.server_time(headers)
            if not ok:
                raise status_error(
                    status,
                    headers,
                    body,
                    redactor,
                    task_id,
                    server_time=server_time,
                    hint=self._exchanges.proxy_hint(status),
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


def _query(task_id: str) -> str:
    # Put together from encoded parts: parsing and checking takes more than twice as long.
    if _UNRESERVED.fullmatch(task_id):
        return "taskId=" + task_id
    try:
        return "taskId=" + quote(task_id, safe="")
    except UnicodeEncodeError:
        pass
    raise InvalidTaskIdError(
        f"task id {printable(task_id)!r} holds a lone surrogate and can't be sent"
    )
