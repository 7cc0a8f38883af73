"""One request, retried on transient errors as the policy says."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol, cast

from attrs import define
from tenacity import AsyncRetrying

from xai_tasks._errors import (
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    RateLimitError,
    ServerError,
    printable,
    transient_mark,
)
from xai_tasks._http.credentials import Credentials
from xai_tasks._http.transport import Response, Transport
from xai_tasks._limits.attempts import Attempts, Sleeps
from xai_tasks._limits.outage import Outage, PollsStopped, is_no_answer
from xai_tasks._limits.throttle import PauseTooLong, Throttle
from xai_tasks._models import TaskResult, TaskStatus
from xai_tasks._policies import RetryPolicy

logger = logging.getLogger("xai_tasks")

LONGEST_PAUSE = 3600.0
"""Seconds that all waits pause at most, whatever the server asks for."""

_MAX_UNKNOWN = 20
"""Unknown statuses that are warned of: a server that makes them up can't fill log and memory."""


@define
class Counters:
    """What `ClientStats` reports, counted where it happens."""

    requests: int = 0
    retries: int = 0
    polls: int = 0
    rate_limited: int = 0


class RetryBudget:
    """Tokens that all retries of a client share, so that a failing server gets few of them.

    A retry takes 5 tokens, a success gives 1 back: botocore's proportion.
    """

    __slots__ = ("_limit", "_tokens")

    COST = 5

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tokens = limit

    @property
    def allows_retry(self) -> bool:
        """Whether there are enough tokens for a retry."""
        return self._tokens >= self.COST

    def take(self) -> None:
        """Take the tokens for a retry."""
        self._tokens -= self.COST

    def give_back(self) -> None:
        """Return the tokens of a retry that was not made."""
        self._tokens = min(self._limit, self._tokens + self.COST)

    def succeeded(self) -> None:
        """Record a success."""
        if self._tokens < self._limit:
            self._tokens += 1


@define
class Deadline:
    """When a call of `get` ends, by the loop's clock, and the last error that it met."""

    at: float
    last_error: APIError | None = None

    def comes_before(self, error: APIError) -> bool:
        """Return whether the call ends before the server wants to be asked again."""
        self.last_error = error
        retry_after = error.retry_after if isinstance(error, APIStatusError) else None
        now = asyncio.get_running_loop().time()
        return retry_after is not None and now + retry_after > self.at


class Poll(Protocol):
    """What a request reports to, if it is a poll."""

    def on_send(self, now: float) -> None:
        """Record that a request is being sent."""

    def on_error(self, error: APIError) -> None:
        """Record a failed request, also one that is retried."""


class RetryingFetcher:
    """Makes requests: through the throttle, with retries that all share one budget."""

    __slots__ = (
        "_counters",
        "_credentials",
        "_id_warned",
        "_outage",
        "_pause_error",
        "_policy",
        "_sleeps",
        "_tenacity",
        "_throttle",
        "_transport",
        "_unknown_statuses",
        "budget",
    )

    def __init__(
        self,
        transport: Transport,
        throttle: Throttle,
        outage: Outage,
        credentials: Credentials,
        policy: RetryPolicy,
        counters: Counters,
    ) -> None:
        """Put the parts of one client together."""
        self._transport = transport
        self._throttle = throttle
        self._outage = outage
        self._credentials = credentials
        self._policy = policy
        self._counters = counters
        self.budget: RetryBudget = RetryBudget(policy.budget)
        self._sleeps = Sleeps("the client was closed")
        self._id_warned = False
        self._pause_error: APIError | None = None
        self._unknown_statuses: set[str] = set()
        self._tenacity = AsyncRetrying(stop=policy.stop, wait=policy.wait)

    async def fetch_within(self, task_id: str, timeout: float | None) -> Response:
        """Request one task as `fetch` does, for at most `timeout` seconds, retries included.

        Raises:
            APITimeoutError: the time ran out.
            APIError: as `fetch`; also where the server asks to wait longer than there is time.

        """
        if timeout is None:
            return await self.fetch(task_id)
        deadline = Deadline(asyncio.get_running_loop().time() + timeout)
        scope = asyncio.timeout_at(deadline.at)
        try:
            async with scope:
                return await self.fetch(task_id, deadline=deadline)
        except TimeoutError as error:
            if isinstance(error, APIError) or not scope.expired():
                raise
        detail = f"no good answer within {timeout:g} s, the timeout of the call"
        if deadline.last_error is not None:
            detail += f"; last error: {deadline.last_error.args[0]}"
        raise APITimeoutError(detail, task_id=task_id)

    async def fetch(
        self, task_id: str, *, poll: Poll | None = None, deadline: Deadline | None = None
    ) -> Response:
        """Request a task until there is a good answer, or the policy ends it.

        Args:
            task_id: the id to ask for.
            poll: what the request is made for, if it is a poll; it is not retried in an outage.
            deadline: where the call ends; a longer `Retry-After` fails now.

        Raises:
            APIError: the last attempt's error.
            ClientClosedError: the client was closed.
            PollsStopped: an outage began before a poll was sent.

        """
        credentials = self._credentials
        if credentials.key is None:
            await credentials.renew(credentials.version)
        version = credentials.version
        # The first attempt is made outside tenacity, which costs as much as a fifth of a request.
        answer = await self._request(task_id, poll, None)
        while not isinstance(answer, Response):
            if isinstance(answer.error, AuthenticationError) and credentials.renewable:
                await credentials.renew(version)
                logger.info(
                    "asking again with a renewed key: %s", answer.error, extra=_facts(answer.error)
                )
                answer = await self._request(task_id, poll, answer)
                if isinstance(answer, Response):
                    break
            if poll is not None:
                poll.on_error(answer.error)
            if (
                not self._may_retry(answer)
                or (deadline is not None and deadline.comes_before(answer.error))
                or (poll is not None and self._outage.since is not None)
            ):
                try:
                    raise answer.error
                finally:
                    # Break the reference cycle between exception and frame.
                    del answer
            _log_retry(answer)
            answer.idle_for += answer.delay
            answer.prepare_for_next_attempt()
            # Taken before the sleep: calls that sleep at the same time would otherwise
            # all spend the same tokens.
            self.budget.take()
            try:
                await self._sleeps.sleep(answer.delay)
            except BaseException:
                self.budget.give_back()
                raise
            version = credentials.version
            answer = await self._request(task_id, poll, answer)
        return answer

    def close(self) -> None:
        """End each sleep between attempts, and each wait for a key, with `ClientClosedError`."""
        self._credentials.close()
        self._sleeps.close()

    async def _request(
        self, task_id: str, poll: Poll | None, attempts: Attempts | None
    ) -> Response | Attempts:
        """Make one request when the throttle lets it, and report to throttle and outage."""
        throttle, outage = self._throttle, self._outage
        clock = asyncio.get_running_loop().time
        sent = clock()
        if not throttle.try_acquire(sent):
            stopped = await self._acquire(task_id, poll, attempts)
            if stopped is not None:
                return stopped  # pragma: no cover -- tested; Python 3.11 traces no line here
            sent = clock()
        try:
            self._counters.requests += 1
            if attempts is not None:
                self._counters.retries += 1
            if poll is not None:
                poll.on_send(sent)
            response = await self._transport.fetch(task_id)
            if response.task.task_id != task_id or response.task.status is TaskStatus.UNKNOWN:
                self._warn(response.task, task_id)
            now = clock()
            throttle.answered(now, sent, task_id, response.quotas)
            # After it, because after an outage requests begin slowly.
            outage.answered_well(task_id, now)
            self.budget.succeeded()
        except APIError as error:
            attempts = self._failed(attempts, error, sent, clock())
            self._report(attempts, sent, clock())
            return attempts
        else:
            return response
        finally:
            throttle.release(clock())

    async def _acquire(
        self, task_id: str, poll: Poll | None, attempts: Attempts | None
    ) -> Attempts | None:
        """Wait until a request may leave; return its attempts if it is a poll that may not."""
        try:
            await self._throttle.acquire(poll=poll is not None)
        except PollsStopped:
            if attempts is None:
                raise
            return attempts  # the poll has failed: its last error stands
        except PauseTooLong:
            pass
        else:
            return None
        raise self._paused_by(task_id, attempts)  # here, so that the error has no context

    def _report(self, attempts: Attempts, sent: float, now: float) -> None:
        """Report a failed request to throttle and outage."""
        throttle, error = self._throttle, attempts.error
        quotas = error._quotas if isinstance(error, APIStatusError) else ()  # noqa: SLF001
        pause = min(attempts.delay, LONGEST_PAUSE)
        if isinstance(error, APIStatusError) and error.status_code in (429, 503):
            self._pause_error = error.for_task(error.task_id)
        if is_no_answer(error):
            self._outage.failed(error)
            if isinstance(error, ServerError) and error.status_code == 503:
                if error.retry_after is not None:
                    throttle.pause(now, pause)
                else:
                    throttle.unavailable(now, sent, pause)
            return
        if isinstance(error, RateLimitError):
            self._counters.rate_limited += 1
            throttle.rejected(now, sent, pause, error.task_id, quotas)
        else:
            throttle.answered(now, sent, error.task_id, quotas)
        self._outage.answered()

    def _paused_by(self, task_id: str, attempts: Attempts | None) -> APIError:
        """Return the error of a request that can't wait for the end of a pause."""
        if attempts is not None:
            return attempts.error
        return cast("APIError", self._pause_error).for_task(task_id)

    def _warn(self, task: TaskResult, task_id: str) -> None:
        """Warn, once each, of an id that isn't the one asked for and of an unknown status."""
        if task.task_id != task_id and not self._id_warned:
            self._id_warned = True
            logger.warning(
                "asked for task %r, the server told of %r; further such answers are not logged",
                printable(task_id),
                printable(task.task_id),
                extra={"task_id": task_id},
            )
        if task.status is TaskStatus.UNKNOWN:
            word = printable(str(task.raw.get("status")), 50)
            if word not in self._unknown_statuses and len(self._unknown_statuses) < _MAX_UNKNOWN:
                self._unknown_statuses.add(word)
                logger.warning(
                    "task %r has the status %r, which this version does not know",
                    printable(task_id),
                    word,
                    extra={"task_id": task_id, "status": word},
                )

    def _failed(
        self, attempts: Attempts | None, error: APIError, sent: float, now: float
    ) -> Attempts:
        """Enter a failure into tenacity's state, which is begun with the first."""
        if attempts is None:
            attempts = Attempts(self._tenacity, fn=None, args=(error.task_id,), kwargs={})
            attempts.start_time = sent
        attempts.record(error, now, self._policy.wait)
        return attempts

    def _may_retry(self, attempts: Attempts) -> bool:
        """Return whether there is to be another attempt."""
        error = attempts.error
        mark = transient_mark(error)
        if mark is False:
            return False
        if isinstance(error, APIStatusError):
            if mark is None and error.status_code not in self._policy.statuses:
                return False
            if error.retry_after is not None and error.retry_after > self._policy.max_retry_after:
                return False
        return self.budget.allows_retry and not self._policy.stop(attempts)


def _log_retry(attempts: Attempts) -> None:
    logger.info(
        "retrying in %.3g s: %s",
        attempts.delay,
        attempts.error,
        extra={
            **_facts(attempts.error),
            "attempt": attempts.attempt_number,
            "seconds": attempts.delay,
        },
    )


def _facts(error: APIError) -> dict[str, object]:
    return {"task_id": error.task_id, "error": type(error).__name__}
