"""One submission: made at most once, whatever happens on the wire."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from attrs import define
from tenacity import AsyncRetrying

from xai_tasks._errors import (
    APIError,
    APIResponseValidationError,
    APIStatusError,
    AuthenticationError,
    RateLimitError,
    SubmissionUncertainError,
    WaitTimeoutError,
    is_transient,
    printable,
)
from xai_tasks._http.credentials import Credentials
from xai_tasks._http.transport import Transport
from xai_tasks._limits.attempts import Attempts, Sleeps
from xai_tasks._limits.retrying import LONGEST_PAUSE, Counters, RetryBudget
from xai_tasks._limits.throttle import PauseTooLong, Throttle
from xai_tasks._policies import RetryPolicy
from xai_tasks._requests import Request

logger = logging.getLogger("xai_tasks")


@define
class _Submission:
    """One call of `submit`."""

    request: Request
    bulk: bool
    on_send: Callable[[], None] | None
    deadline: float | None
    limit: asyncio.Timeout
    """Cuts what comes before the first byte is sent, and nothing after it."""
    on_refusal: Callable[[], None] | None = None
    attempts: Attempts | None = None
    refusals: int = 0
    """In a row, for the backoff."""

    @property
    def last_error(self) -> APIError | None:
        """The error of the last attempt."""
        return None if self.attempts is None else self.attempts.error

    def before_send(self) -> None:
        """Call `on_send`, and cut nothing from now on."""
        if self.limit.expired():
            raise TimeoutError  # it expires at this very moment, and nothing is written yet
        if self.on_send is not None:
            self.on_send()
        self.limit.reschedule(None)


class Submitter:
    """Submits requests through a throttle of their own, because the API limits each route apart.

    Only what surely was not accepted is repeated: the request was not sent, or the answer is one of
    `retry_statuses`. Everything else that is no clear answer is a `SubmissionUncertainError`.
    """

    __slots__ = (
        "_budget",
        "_counters",
        "_credentials",
        "_on_answer",
        "_pause_error",
        "_policy",
        "_retry_statuses",
        "_sleeps",
        "_tenacity",
        "_throttle",
        "_transport",
    )

    def __init__(
        self,
        transport: Transport,
        throttle: Throttle,
        credentials: Credentials,
        policy: RetryPolicy,
        counters: Counters,
        budget: RetryBudget,
        *,
        retry_statuses: frozenset[int],
        on_answer: Callable[[], None],
    ) -> None:
        """Put the parts of one client together.

        `on_answer` is called with each answer that shows that the server is there.
        """
        self._transport = transport
        self._throttle = throttle
        self._credentials = credentials
        self._policy = policy
        self._counters = counters
        self._budget = budget
        self._retry_statuses = retry_statuses
        self._on_answer = on_answer
        self._sleeps = Sleeps("the client was closed before the request was sent")
        self._pause_error: APIError | None = None
        """The refusal that began the last pause."""
        self._tenacity = AsyncRetrying(stop=policy.stop, wait=policy.wait)

    async def submit(
        self,
        request: Request,
        *,
        timeout: float | None = None,
        bulk: bool = False,
        on_send: Callable[[], None] | None = None,
        on_refusal: Callable[[], None] | None = None,
    ) -> str:
        """Submit a request at most once.

        Args:
            request: what to submit.
            timeout: seconds in which the request must be sent. Once sent it is never cut: its
                answer is awaited.
            bulk: whether it is one of many. In bulk, a refusal in `retry_statuses` does not count
                against `RetryPolicy.stop`, and pauses are kept in full.
            on_send: called just before each attempt is sent; if it raises, nothing is sent.
            on_refusal: called when an attempt surely was not accepted, before it is repeated;
                what it raises ends the call.

        Returns:
            the id of the task.

        Raises:
            SubmissionUncertainError: the request was sent, and no clear answer came.
            APIError: the request was refused, or could not be sent.
            WaitTimeoutError: it was not sent in time.
            ClientClosedError: the client was closed before it was sent.
            Exception: what `on_send` raised.

        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        limit = asyncio.timeout_at(deadline)
        work = _Submission(request, bulk, on_send, deadline, limit, on_refusal)
        try:
            async with work.limit:
                return await self._until_accepted(work)
        except TimeoutError as error:
            if timeout is None or isinstance(error, APIError) or not work.limit.expired():
                raise
        raise WaitTimeoutError("", timeout, last_error=work.last_error)

    def close(self) -> None:
        """End every sleep between two attempts with `ClientClosedError`."""
        self._sleeps.close()

    async def _until_accepted(self, work: _Submission) -> str:
        credentials, renewed = self._credentials, False
        if credentials.key is None:
            await credentials.renew(credentials.version)
        while True:
            version = credentials.version
            task_id = await self._attempt(work)
            if task_id is not None:
                return task_id
            if work.on_refusal is not None:
                work.on_refusal()
            work.limit.reschedule(work.deadline)
            attempts = cast("Attempts", work.attempts)
            is_refused_key = isinstance(attempts.error, AuthenticationError)
            if is_refused_key and credentials.renewable and not renewed:
                renewed = True
                await credentials.renew(version)
            elif work.bulk and self._is_refusal(attempts.error):
                await self._sleeps.sleep(min(attempts.delay, LONGEST_PAUSE))
            else:
                await self._before_retry(attempts)
            self._counters.retries += 1

    async def _acquire(self, work: _Submission) -> None:
        """Wait until the throttle allows the submission."""
        with suppress(PauseTooLong):
            # The queue of polls waits out every pause; the other one does not.
            await self._throttle.acquire(poll=work.bulk)
            return
        # Raised here, outside the handler, so that the error has no context. A copy, because one
        # error would gather the tracebacks of all who meet the pause.
        if work.attempts is not None:
            raise work.attempts.take_error()
        raise cast("APIError", self._pause_error).for_task("")

    async def _attempt(self, work: _Submission) -> str | None:
        """Submit once when the throttle allows it; return the task's id, None if it has none."""
        throttle = self._throttle
        await self._acquire(work)
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            self._counters.requests += 1
            accepted = await self._transport.submit(work.request, on_send=work.before_send)
        except SubmissionUncertainError as error:
            if isinstance(error.cause, APIResponseValidationError):
                self._on_answer()
            raise
        except APIError as error:
            status = error.status_code if isinstance(error, APIStatusError) else 0
            limited = status in self._retry_statuses or isinstance(error, RateLimitError)
            if (status >= 500 or status == 408) and not limited:
                raise SubmissionUncertainError(work.request, error) from None
            delay = self._failed(work, error, began, clock())
            if 0 < status < 500:
                self._on_answer()
            if isinstance(error, RateLimitError):
                self._counters.rate_limited += 1
            quotas = error._quotas if isinstance(error, APIStatusError) else ()  # noqa: SLF001
            if limited:
                self._pause_error = error.for_task("")
                pause = min(delay, LONGEST_PAUSE)
                throttle.rejected(clock(), began, pause, quotas=quotas)
            return None
        else:
            task_id = accepted.task_id
            throttle.answered(clock(), began, quotas=accepted.quotas)
            self._on_answer()
            self._budget.succeeded()
            logger.info("submitted as task %r", printable(task_id), extra={"task_id": task_id})
            return task_id
        finally:
            throttle.release(clock())

    def _failed(self, work: _Submission, error: APIError, began: float, now: float) -> float:
        """Record a failure in tenacity's state; return the seconds before the next attempt."""
        attempts = work.attempts
        work.refusals = work.refusals + 1 if self._is_refusal(error) else 0
        if attempts is None or (work.bulk and self._is_refusal(attempts.error)):
            # Made with the first failure, and again after a refusal that does not count.
            attempts = Attempts(self._tenacity, fn=None, args=(work.request,), kwargs={})
            attempts.start_time = began
            attempts.attempt_number = max(1, work.refusals)
            work.attempts = attempts
        else:
            attempts.prepare_for_next_attempt()
        attempts.record(error, now, self._policy.wait)
        return attempts.delay

    def _is_refusal(self, error: APIError) -> bool:
        return isinstance(error, APIStatusError) and error.status_code in self._retry_statuses

    def _may_retry(self, attempts: Attempts) -> bool:
        error = attempts.error
        if self._is_refusal(error):
            allowed = attempts.delay <= self._policy.max_retry_after
        else:
            allowed = is_transient(error) and not isinstance(error, APIStatusError)
        return allowed and self._budget.allows_retry and not self._policy.stop(attempts)

    async def _before_retry(self, attempts: Attempts) -> None:
        """Wait until the request may be made again; raise its error if it may not."""
        if not self._may_retry(attempts):
            raise attempts.take_error()
        seconds = attempts.delay
        logger.info(
            "submitting again in %.3g s: %s",
            seconds,
            attempts.error,
            extra={"error": type(attempts.error).__name__, "seconds": seconds},
        )
        self._budget.take()
        try:
            await self._sleeps.sleep(seconds)
        except BaseException:
            self._budget.give_back()
            raise
        attempts.idle_for += seconds
