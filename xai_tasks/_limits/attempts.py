"""What retries of requests and of submissions have in common."""

from __future__ import annotations

import asyncio
import math

from tenacity import RetryCallState

from xai_tasks._errors import APIError, APIStatusError, ClientClosedError
from xai_tasks._policies import WaitStrategy


class Attempts(RetryCallState):
    """tenacity's state of one call whose last attempt failed."""

    error: APIError
    """The error of the last attempt."""
    delay: float
    """Seconds before the next attempt: from the server, else from the policy's `wait`."""

    def record(self, error: APIError, now: float, wait: WaitStrategy) -> None:
        """Record that an attempt failed at `now`, and ask for the delay before the next one.

        Raises:
            ValueError: the strategy returned no finite number.
            BaseException: whatever the strategy raises.

        """
        self.error = error.with_traceback(None)
        self.set_exception((type(error), error, None))
        self.outcome_timestamp = now  # by the loop's clock, which a test may replace
        retry_after = error.retry_after if isinstance(error, APIStatusError) else None
        delay = wait(self) if retry_after is None else retry_after
        if not math.isfinite(delay):
            raise ValueError(f"the wait strategy of the retry policy gave {float(delay)} seconds")
        self.delay = self.upcoming_sleep = max(0.0, delay)

    def take_error(self) -> APIError:
        """Return the error to raise it, and hold it no more: it will hold the frames that hold us.

        `error` must not be read after it.
        """
        error, self.outcome = self.error, None
        del self.error
        return error


class Sleeps:
    """Sleeps between attempts, which `close` ends."""

    __slots__ = ("_closed", "_closing", "_message")

    def __init__(self, message: str) -> None:
        """Raise `ClientClosedError` with `message` in each sleep that is ended."""
        self._message = message
        self._closed = False
        self._closing: asyncio.Future[None] | None = None

    async def sleep(self, seconds: float) -> None:
        """Sleep.

        Raises:
            ClientClosedError: the client is closed, or was closed during the sleep.

        """
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_future()
        if not self._closed:
            await asyncio.wait([self._closing], timeout=seconds)
        if self._closed:
            raise ClientClosedError(self._message)

    def close(self) -> None:
        """End each sleep. Twice is fine."""
        self._closed = True
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)
