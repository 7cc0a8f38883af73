"""The client: what a user holds."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterable, Awaitable, Callable, Collection, Iterable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Self, TypeVar, cast, overload

from xai_tasks._errors import (
    ClientClosedError,
    ConfigurationError,
    TaskError,
    WaitTimeoutError,
    XaiTasksError,
    printable,
)
from xai_tasks._http.base_url import DEFAULT_BASE_URL, check_base_url
from xai_tasks._http.credentials import Credentials
from xai_tasks._http.proxy import ProxySetting
from xai_tasks._models import ClientStats, TaskResult, task_error
from xai_tasks._parts import Parts
from xai_tasks._policies import PollPolicy, RetryPolicy, check_count, check_seconds, check_statuses
from xai_tasks._polling.entries import Subscriber
from xai_tasks._polling.producers import check_one_of_many, check_task_id
from xai_tasks._requests import Request, check_request
from xai_tasks._streams import OutcomeStream, Watch, WatchAll

if TYPE_CHECKING:
    import aiohttp


P = TypeVar("P", RetryPolicy, PollPolicy)


logger = logging.getLogger("xai_tasks")


class _FromPolicy(Enum):
    """The type of `FROM_POLICY`, so that None can mean: no limit."""

    FROM_POLICY = "<policy>"

    def __repr__(self) -> str:
        return self.value


FROM_POLICY: Final = _FromPolicy.FROM_POLICY
Timeout = float | None | Literal[_FromPolicy.FROM_POLICY]


class _Waiter(Subscriber):
    """One call of `wait`."""

    __slots__ = ("future",)

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout: float | None) -> None:
        super().__init__(loop.time(), timeout)
        # Errors are set as results: asyncio logs an exception that is never retrieved.
        self.future: asyncio.Future[TaskResult | BaseException] = loop.create_future()

    def on_end(self, task_id: str, task: TaskResult | None, error: BaseException | None) -> None:
        if not self.future.done():
            end = task if error is None else error
            self.future.set_result(cast("TaskResult | BaseException", end))


class TaskClient:
    """Asks the API for tasks and waits for them to end.

    Use it as ``async with TaskClient() as client:`` or call `close()` when done. One client serves
    a whole application: all its waits share one queue, one connection pool and one rate limit. It
    may be built anywhere. From its first use on it belongs to the event loop of that use.

    Args:
        api_key: the key, or a function, plain or async, that returns it. A function is called when
            the key is first needed, and again after each 401. None: ``$MOUNTSEA_API_KEY``.
        base_url: the URL of the API; a path in it is kept. None: ``$MOUNTSEA_BASE_URL``, else
            ``https://api.mountsea.ai``.
        session: an aiohttp session to use instead of one of the client's own; it is never closed.
            If it opens fewer connections than `max_concurrency`, that is lowered to their number.
            A middleware of it that retries can't send a submission twice: its second attempt fails.
        proxy: the URL of an HTTP proxy for the client's own session, such as
            ``http://user:password@host:3128``. https requests go through it by CONNECT.
        trust_env: whether to read the proxy from ``HTTPS_PROXY``, ``HTTP_PROXY``, ``NO_PROXY``, if
            `proxy` is None. A login is never taken from a netrc file.
        request_timeout: seconds, more than 0, for one HTTP request, from connecting to the last
            byte. Waiting for `max_concurrency`, the rate or a pause does not count.
        retry: how a request is retried; None: ``RetryPolicy()``.
        poll: how tasks are polled; None: a ``PollPolicy()`` of the client's own, so that what it
            learns is its own.
        max_concurrency: the most requests in flight, 1 or more.
        rate_limit: the most requests per second, more than 0. They leave evenly: at most a tenth
            of a second's worth at once, and always at least one. None: learned from what the
            server's answers say of its limit, and from its refusals.
        submit_retry_statuses: HTTP statuses, 400 to 599, with which the server surely has not
            accepted a submission, so that it may be made again. Add 503 if nginx's `limit_req`
            is in front of the API.
        max_response_bytes: the largest body accepted, in bytes after decompression, 1 or more.
        max_download_bytes: the largest file that `download` saves, in bytes, 1 or more.
        allow_insecure_http: whether the key may be sent over plain http to other hosts than this.
        user_agent: put in front of the library's own ``User-Agent``.

    Raises:
        ConfigurationError: there is no key, or it is malformed; or `base_url` is.
        ValueError: a number is out of its range.
        TypeError: an argument is of the wrong type.

    """

    __slots__ = (
        "__dict__",  # so that tests can replace a method of one client
        "__weakref__",
        "_base_url",
        "_closed",
        "_loop",
        "_parts",
        "_poll",
    )

    def __init__(
        self,
        api_key: str | Callable[[], str | Awaitable[str]] | None = None,
        *,
        base_url: str | None = None,
        session: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        trust_env: bool = False,
        request_timeout: float = 30.0,
        retry: RetryPolicy | None = None,
        poll: PollPolicy | None = None,
        max_concurrency: int = 64,
        rate_limit: float | None = None,
        max_response_bytes: int = 16 * 2**20,
        max_download_bytes: int = 2 * 2**30,
        submit_retry_statuses: Collection[int] = (429,),
        allow_insecure_http: bool = False,
        user_agent: str | None = None,
    ) -> None:
        credentials = Credentials(api_key)
        proxies = ProxySetting(proxy, trust_env=trust_env)
        del api_key, proxy  # before anything is raised: see Credentials
        credentials.check()
        if session is not None and proxies.given:
            raise ConfigurationError(
                "proxy and trust_env are for the client's own session: "
                "set the proxy on the session that you pass"
            )
        self._base_url = _checked_base_url(base_url, allow_insecure_http=allow_insecure_http)
        check_seconds("request_timeout", request_timeout, positive=True)
        check_count("max_concurrency", max_concurrency, 1)
        check_count("max_response_bytes", max_response_bytes, 1)
        check_count("max_download_bytes", max_download_bytes, 1)
        if rate_limit is not None:
            check_seconds("rate_limit", rate_limit, positive=True)
        retry = _policy("retry", retry, RetryPolicy)
        self._poll = _policy("poll", poll, PollPolicy)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._parts = Parts(
            credentials,
            self._base_url,
            session=session,
            proxies=proxies,
            request_timeout=request_timeout,
            retry=retry,
            max_concurrency=max_concurrency,
            rate_limit=rate_limit,
            max_response_bytes=max_response_bytes,
            max_download_bytes=max_download_bytes,
            retry_statuses=_refusals(submit_retry_statuses),
            allow_insecure_http=allow_insecure_http,
            user_agent=user_agent,
        )

    def __repr__(self) -> str:
        if not hasattr(self, "_parts"):  # a traceback out of the constructor may show it
            return "<TaskClient unfinished>"
        state = "closed" if self._closed else f"{self._parts.poller.waiting} waiting"
        return f"<TaskClient {self._base_url} {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a TaskClient can't be pickled: it holds a key and connections; "
            "make one where it is needed"
        )

    async def __aenter__(self) -> Self:
        self._bind()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def get(self, task_id: str, *, timeout: float | None = None) -> TaskResult:
        """Request a task once; transient errors are retried as the `RetryPolicy` says.

        Args:
            task_id: the id that the job's submission returned.
            timeout: seconds for the whole call, retries included, 0 or more; None: no limit.

        Returns:
            the task as it is now, also if it has failed.

        Raises:
            APIError: there was no usable answer; the subclass says why.
            APITimeoutError: the timeout ran out, or one request took longer than `request_timeout`.
            InvalidTaskIdError: the id is empty.
            TypeError: the id is not a string.
            ClientClosedError: the client is closed.

        """
        check_task_id(task_id)
        check_seconds("timeout", timeout, optional=True)
        self._bind()
        return (await self._parts.fetcher.fetch_within(task_id, timeout)).task

    async def submit(self, request: Request, *, on_send: Callable[[], None] | None = None) -> str:
        """Submit a job, at most once: it costs money.

        It is repeated, as the `RetryPolicy` says, only if it surely was not accepted: it was not
        sent, because there was no connection, or the answer is one of `submit_retry_statuses`.
        Cancelling the call after the request was sent does not take it back: a warning is logged.

        Args:
            request: an `ImageRequest` or a `VideoRequest`.
            on_send: called just before the request is sent, with each attempt, to write it down
                where a crash does not lose it. If it raises, nothing is sent.

        Returns:
            the id of the task, to be waited for.

        Raises:
            SubmissionUncertainError: the request was sent, and no clear answer came. The task may
                exist, so the request is not sent again.
            APIError: the request was refused, or could not be sent; the subclass says why.
            TypeError: the request is neither of the two.
            ClientClosedError: the client is closed.
            Exception: what `on_send` raised.

        """
        check_request(request)
        self._bind()
        return await self._parts.submitter.submit(request, on_send=on_send)

    async def run(
        self,
        request: Request,
        *,
        timeout: Timeout = FROM_POLICY,
        poll: PollPolicy | None = None,
        check: bool = True,
    ) -> TaskResult:
        """Submit a job as `submit` does, and wait until its task has ended.

        Args:
            request: an `ImageRequest` or a `VideoRequest`.
            timeout: seconds from now, 0 or more; None: no limit. Default: the policy's. A request
                that has been sent is never cut: its answer is awaited, so that its id is not lost.
            poll: another policy than the client's.
            check: whether to raise an error if the task ended without completing.

        Returns:
            the ended task.

        Raises:
            XaiTasksError: what `submit` and `wait` raise. In a `WaitTimeoutError`, `task_id` is ""
                if the request was not sent.
            TypeError: the request is neither of the two.

        """
        check_request(request)
        _, seconds = self._terms(poll, timeout)
        loop = self._bind()
        began = loop.time()
        task_id = await self._parts.submitter.submit(request, timeout=seconds)
        left = None if seconds is None else max(0.0, began + seconds - loop.time())
        try:
            return await self.wait(task_id, timeout=left, poll=poll, check=check)
        except WaitTimeoutError as error:
            error.timeout = cast("float", seconds)
            raise
        except (ClientClosedError, asyncio.CancelledError):
            logger.warning(
                "stopped waiting for task %r, which was submitted and continues on the server",
                printable(task_id),
                extra={"task_id": task_id},
            )
            raise

    async def wait(
        self,
        task_id: str,
        *,
        timeout: Timeout = FROM_POLICY,
        poll: PollPolicy | None = None,
        check: bool = True,
    ) -> TaskResult:
        """Poll a task until it has ended.

        Waits for the same id under the same policy share one poll loop. The task continues on the
        server if this wait is cancelled or times out.

        Args:
            task_id: the id that the job's submission returned.
            timeout: seconds from now, 0 or more; None: no limit. Default: the policy's.
            poll: another policy than the client's.
            check: whether to raise an error if the task ended without completing.

        Returns:
            the ended task.

        Raises:
            TaskError: the task ended without completing, and `check` is set.
            WaitTimeoutError: time ran out.
            APIError: the server refused, or all polls failed for `PollPolicy.max_outage`.
            InvalidTaskIdError: the id is empty.
            ClientClosedError: the client is closed, or was closed during the call.

        """
        check_task_id(task_id)
        # Few local variables: 100,000 calls that wait hold 100,000 of each.
        poll, timeout = self._terms(poll, timeout)
        waiter = _Waiter(self._bind(), timeout)
        self._parts.poller.subscribe(task_id, poll, waiter)
        try:
            await waiter.future
        except asyncio.CancelledError:
            # A wait whose timeout was 0 has no entry, and its future is already done.
            self._parts.poller.leave(waiter.entry, waiter)
            raise
        try:
            return _task_of(waiter.future.result(), task_id, check=check)
        finally:
            # Break the reference cycles between exception and frame.
            del waiter

    def watch(
        self, task_id: str, *, timeout: Timeout = FROM_POLICY, poll: PollPolicy | None = None
    ) -> Watch:
        """Iterate over the changes of a task.

        The first item is the first answer, then comes each change of status, and last the ended
        task. Leaving the loop early ends the wait. Changes during the loop's body are kept.

        Args:
            task_id: the id that the job's submission returned.
            timeout: seconds from the first iteration, 0 or more; None: no limit. Default: the
                policy's.
            poll: another policy than the client's.

        Returns:
            an async iterator of `TaskResult`; also an async context manager, with `aclose()`. It
            raises what `wait` raises, but no `TaskError`.

        Raises:
            InvalidTaskIdError: the id is empty.
            ClientClosedError: the client is closed.

        """
        check_task_id(task_id)
        policy, seconds = self._terms(poll, timeout)
        self._check_open()
        return Watch(self._parts.poller, self._bind, task_id, policy, seconds)

    def watch_all(
        self,
        task_ids: Iterable[str] | AsyncIterable[str],
        *,
        timeout: Timeout = FROM_POLICY,
        poll: PollPolicy | None = None,
        max_pending: int = 10_000,
    ) -> WatchAll:
        """Iterate over the changes of many tasks: `watch` for many ids, in one stream.

        An error ends the wait for its own id only. A task that failed is a final update without an
        error. A slow reader gets the latest status of each id, so memory is bounded by the ids.
        `stream.add(task_id)` watches one more.

        Args:
            task_ids: the ids, from any iterable or async iterable, also an endless one; pulled as
                there is room.
            timeout: seconds for each wait, from when its id is pulled, 0 or more; None: no limit.
                Default: the policy's.
            poll: another policy than the client's.
            max_pending: ids at most, 1 or more, whose last update has not been taken.

        Returns:
            a stream of `Update`; also an async context manager, with `aclose()`.

        Raises:
            ValueError: `max_pending` or `timeout` is out of range.
            TypeError: `task_ids` is not an iterable, or is a single string.
            ClientClosedError: the client is closed.

        """
        _check_ids(task_ids)
        policy, seconds = self._terms(poll, timeout)
        check_count("max_pending", max_pending, 1)
        self._check_open()
        return WatchAll(self._parts.poller, self._bind, task_ids, policy, seconds, max_pending)

    @overload
    async def wait_all(
        self,
        task_ids: Iterable[str] | AsyncIterable[str],
        *,
        timeout: Timeout = ...,
        poll: PollPolicy | None = ...,
        check: bool = ...,
        return_exceptions: Literal[False] = ...,
    ) -> list[TaskResult]: ...

    @overload
    async def wait_all(
        self,
        task_ids: Iterable[str] | AsyncIterable[str],
        *,
        timeout: Timeout = ...,
        poll: PollPolicy | None = ...,
        check: bool = ...,
        return_exceptions: bool,
    ) -> list[TaskResult | XaiTasksError]: ...

    async def wait_all(
        self,
        task_ids: Iterable[str] | AsyncIterable[str],
        *,
        timeout: Timeout = FROM_POLICY,
        poll: PollPolicy | None = None,
        check: bool = True,
        return_exceptions: bool = False,
    ) -> list[TaskResult] | list[TaskResult | XaiTasksError]:
        """Wait for many tasks, and return them in the order of their ids.

        Args:
            task_ids: the ids; all are read before the first request, and checked.
            timeout: seconds for each wait, from when its polling begins, 0 or more; None: no limit.
                Default: the policy's. All begin at once, but for ids beyond what the rate allows
                for (while no limit is known: 5,000), which begin as there is room.
            poll: another policy than the client's.
            check: whether a task that ended without completing counts as an error.
            return_exceptions: whether errors are put into the list. Otherwise the first one is
                raised, and the other waits end.

        Returns:
            the ended tasks, in the order of `task_ids`.

        Raises:
            XaiTasksError: what `wait` raises, unless `return_exceptions` is set.
            InvalidTaskIdError: an id is empty, or is not a string; as above.
            TypeError: `task_ids` is not an iterable, or is a single string.

        """
        _check_ids(task_ids)
        policy, seconds = self._terms(poll, timeout)
        ids = [i async for i in task_ids] if isinstance(task_ids, AsyncIterable) else list(task_ids)
        if not return_exceptions:  # else it stands in the list, as any other error
            for task_id in ids:
                check_one_of_many(task_id)
        self._bind()
        results: list[Any] = [None] * len(ids)
        stream = OutcomeStream(
            self._parts.poller,
            self._bind,
            ids,
            policy,
            seconds,
            max(1, len(ids)),
            raise_refusals=False,
        )
        async with stream:
            async for outcome in stream:
                error = outcome.error
                if not check and isinstance(error, TaskError):
                    error = None
                if error is not None and not return_exceptions:
                    try:
                        raise error
                    finally:
                        del error, outcome  # break the reference cycles of exception and frame
                results[outcome.index] = outcome.task if error is None else error
        return results

    def as_completed(
        self,
        task_ids: Iterable[str | Request] | AsyncIterable[str | Request],
        *,
        timeout: Timeout = FROM_POLICY,
        poll: PollPolicy | None = None,
        max_pending: int = 10_000,
        download_to: str | os.PathLike[str] | None = None,
    ) -> OutcomeStream:
        """Wait for any number of tasks, and yield each one's outcome as it ends.

        Args:
            task_ids: the ids, from any iterable or async iterable, also one that never ends. They
                are pulled as there is room. An `ImageRequest` or a `VideoRequest` in place of an id
                is submitted, as `submit` does; its outcome has it as `request`. A refusal for the
                rate does not count against `RetryPolicy.stop` here: the request waits.
            timeout: seconds for each wait, from when its id is pulled, or its request accepted, 0
                or more; None: no limit. Default: the policy's.
            poll: another policy than the client's.
            max_pending: the most ids in rotation, 1 or more, outcomes not yet taken included. With
                requests, it bounds the tasks that are alive on the server.
            download_to: a directory in which to save the files of each completed task, as
                `download` does, while others are polled. `Outcome.files` has them; a
                `DownloadError` stands beside its task. A full disk is an `OSError` out of the loop.

        Returns:
            a stream of `Outcome`; each id pulled comes out of it once.

        Raises:
            ValueError: `max_pending` or `timeout` is out of range.
            TypeError: `task_ids` is not an iterable, or is a single string.
            ClientClosedError: the client is closed.

        """
        _check_ids(task_ids)
        policy, seconds = self._terms(poll, timeout)
        check_count("max_pending", max_pending, 1)
        save = None
        if download_to is not None:
            save = partial(self._parts.downloader.complete, _directory("download_to", download_to))
        self._check_open()
        return OutcomeStream(
            self._parts.poller,
            self._bind,
            task_ids,
            policy,
            seconds,
            max_pending,
            save=save,
            submit=partial(self._parts.submitter.submit, bulk=True),
        )

    async def download(self, task: TaskResult, directory: str | os.PathLike[str]) -> list[Path]:
        """Save the files that a task's result points to, whole or not at all.

        A file is called `<task id>.<extension>`, or `<task id>~<n>.<extension>` if there are
        several. One that is there already is kept. The key is not sent. See the how-to page "Save
        the results" for what is refused, and how an interrupted download goes on.

        Args:
            task: the task, as `get` or `wait` returned it.
            directory: where to put the files; made if missing.

        Returns:
            the files, in the order of `task.urls`.

        Raises:
            DownloadExpiredError: a URL was answered with 403, 404 or 410, again and again.
            DownloadError: a file could not be saved; the others were.
            OSError: the disk is full, or the directory can't be written.
            TypeError: `task` is not a `TaskResult`, or `directory` not a path.
            InvalidTaskIdError: the task's id is empty.
            ClientClosedError: the client is closed, or was closed during the call.

        """
        if not isinstance(task, TaskResult):
            raise TypeError(
                f"task must be a TaskResult, as get() returns it, not {type(task).__name__}"
            )
        check_task_id(task.task_id)
        path = _directory("directory", directory)
        self._bind()
        files, error = await self._parts.downloader.save(task, task.task_id, path)
        if error is not None:
            try:
                raise error
            finally:
                del error  # break the reference cycle between exception and frame
        return list(files)

    @property
    def stats(self) -> ClientStats:
        """What the client has done so far: a snapshot."""
        counters = self._parts.counters
        return ClientStats(
            requests=counters.requests,
            retries=counters.retries,
            polls=counters.polls,
            rate_limited=counters.rate_limited,
            waiting=self._parts.poller.waiting,
            in_flight=self._parts.in_flight,
        )

    @property
    def closed(self) -> bool:
        """Whether `close()` has been called."""
        return self._closed

    async def close(self) -> None:
        """End every open wait with `ClientClosedError`, and close the client's own session.

        A borrowed session stays open. Closing twice is fine.

        Raises:
            RuntimeError: the client belongs to another event loop.

        """
        self._check_loop()
        self._closed = True
        await self._parts.close()

    def _bind(self) -> asyncio.AbstractEventLoop:
        """Bind the client to the running loop, on its first use."""
        self._check_open()
        loop = self._check_loop()
        if self._loop is None:
            self._parts.transport.check_loop(loop)
            self._loop = loop
        return loop

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosedError("this TaskClient is closed: make a new one")

    def _check_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise RuntimeError(
                "this TaskClient belongs to the event loop of its first use, "
                "and this is another one: make a client for each loop (for each asyncio.run)"
            )
        return loop

    def _terms(self, poll: PollPolicy | None, timeout: Timeout) -> tuple[PollPolicy, float | None]:
        policy = self._poll if poll is None else _policy("poll", poll, PollPolicy)
        if timeout is FROM_POLICY:
            return policy, policy.timeout
        check_seconds("timeout", timeout, optional=True)
        return policy, timeout


def _task_of(answer: TaskResult | BaseException, task_id: str, *, check: bool) -> TaskResult:
    """Return the task that a wait has ended with, or raise what it has ended with."""
    if isinstance(answer, BaseException):
        error: BaseException | None = answer
    else:
        error = task_error(answer, task_id) if check else None
    if error is not None:
        try:
            raise error
        finally:
            # Break the reference cycle between exception and frame.
            del error, answer
    return cast("TaskResult", answer)


def _policy(name: str, value: P | None, cls: type[P]) -> P:
    if value is None:
        return cls()
    if not isinstance(value, cls):
        raise TypeError(f"{name} must be a {cls.__name__}, not {type(value).__name__}")
    return value


def _directory(name: str, value: object) -> Path:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise TypeError(f"{name} must be a path, not {type(value).__name__}")
    return Path(path)


def _check_ids(task_ids: object) -> None:
    if isinstance(task_ids, (str, bytes)):
        raise TypeError("task_ids is a single string: pass a list of ids, or use wait()")
    if not isinstance(task_ids, (Iterable, AsyncIterable)):
        raise TypeError(f"task_ids must be an iterable of ids, not {type(task_ids).__name__}")


def _refusals(statuses: Collection[int]) -> frozenset[int]:
    found = check_statuses("submit_retry_statuses", statuses)
    if not all(400 <= status <= 599 for status in found):
        raise ValueError(f"submit_retry_statuses must be within 400 and 599, not {statuses!r}")
    return found


def _checked_base_url(base_url: str | None, *, allow_insecure_http: bool) -> str:
    """Check the argument or, if it is None, what the environment says; return it without `/`."""
    name = "base_url"
    if base_url is None:
        name = "MOUNTSEA_BASE_URL"
        base_url = os.environ.get(name) or DEFAULT_BASE_URL
    return check_base_url(base_url, name=name, allow_insecure_http=allow_insecure_http)
