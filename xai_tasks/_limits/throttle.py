"""When a request may leave: requests in flight, rate, pauses."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

from xai_tasks._errors import ClientClosedError
from xai_tasks._http.hints import Quota
from xai_tasks._limits.alarm import Alarm
from xai_tasks._limits.outage import PollsStopped
from xai_tasks._limits.pacer import Pacer

logger = logging.getLogger("xai_tasks")

_REQUESTS_EACH = 10
"""Requests for each id within its timeout that bulk streams leave room for."""

_FIRST_IDS = 5_000
"""Ids in rotation before anything was answered."""

Queue = OrderedDict[asyncio.Future[None], None]


class PauseTooLong(Exception):  # noqa: N818 -- not for users: what paused the client is
    """Raised where a request of `get` would have to wait for too long a pause."""


class Throttle:
    """Lets requests of a client leave one by one, as soon as the `Pacer` allows.

    Requests of `get` and polls of waits stand in a queue each and go in turns, first come first
    served. A pause is a point in time, so nobody has to end it. After a pause or an outage,
    requests in flight start from one and grow by one with each answer, and with time, so that a
    stalled one does not hold up the others. A server that has just come back is not met by all at
    once.
    """

    __slots__ = (
        "_alarm",
        "_gets",
        "_max_concurrency",
        "_max_wait",
        "_pacer",
        "_polls",
        "_polls_turn",
        "_released_at",
        "closed",
    )

    def __init__(
        self, max_concurrency: int, rate_limit: float | None, max_wait: float = math.inf
    ) -> None:
        """Take `TaskClient`'s arguments; without `rate_limit` the server's limit is learned.

        Args:
            max_concurrency: requests in flight.
            rate_limit: requests per second; None: learned from refusals and headers.
            max_wait: seconds that a request of `get` waits at most for a pause.

        """
        self._max_concurrency = max_concurrency
        self._max_wait = max_wait
        self._pacer = Pacer(max_concurrency, rate_limit)
        self._gets: Queue = OrderedDict()
        self._polls: Queue = OrderedDict()
        self._polls_turn = False
        self._alarm = Alarm(self._admit)
        self._released_at = 0.0
        self.closed: bool = False

    @property
    def in_flight(self) -> int:
        """Requests that have left and are not answered."""
        return self._pacer.in_flight

    @property
    def paused_until(self) -> float:
        """When the pause that the server asked for is over."""
        return self._pacer.paused_until

    def max_in_rotation(self, timeout: float) -> float:
        """Return how many ids can each be asked for about ten times within `timeout` seconds.

        Without a timeout there is no limit. While no rate is known, it grows with what was
        answered, so that a limit is met before too many ids have begun to wait.
        """
        rate = self._pacer.rate
        if timeout == math.inf:
            return math.inf
        if rate == math.inf:
            return max(_FIRST_IDS, _REQUESTS_EACH * self._pacer.answered)
        return max(1.0, rate * timeout / _REQUESTS_EACH)

    def try_acquire(self, now: float) -> bool:
        """Acquire if a request may leave at once; return False if it has to `acquire` instead."""
        if self.closed or self._gets or self._polls or self._pacer.delay(now) > 0:
            return False
        self._pacer.take(now)
        return True

    async def acquire(self, *, poll: bool) -> None:
        """Wait until a request may leave; each acquire needs its `release`.

        Raises:
            ClientClosedError: the client is closed, or was while waiting.
            PollsStopped: an outage began while a poll was waiting.
            PauseTooLong: a request of `get` would have to wait for longer than `max_wait`.

        """
        if self.closed:
            raise ClientClosedError("the client is closed")
        now = asyncio.get_running_loop().time()
        if self.try_acquire(now):
            return
        if not poll and self.paused_until - now > self._max_wait:
            raise PauseTooLong
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._polls if poll else self._gets
        queue[turn] = None
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # Granted and cancelled at the same moment: nothing was sent.
                self._pacer.give_back()
                self._admit_next(asyncio.get_running_loop().time())
            queue.pop(turn, None)
            raise

    def is_stalled(self, now: float) -> bool:
        """Return whether `max_concurrency` requests are in flight and none ended for a second."""
        return self.in_flight >= self._max_concurrency and now > self._released_at + 1.0

    def release(self, now: float) -> None:
        """Admit the next request: one that had been admitted has ended at `now`."""
        self._pacer.release()
        self._admit_next(now)

    def answered(
        self, now: float, sent: float = 0.0, task_id: str = "", quotas: Sequence[Quota] = ()
    ) -> None:
        """Record an answer, other than 429 or 5xx.

        Args:
            now: when it came.
            sent: when its request left.
            task_id: what was asked for; "" if it was not a task.
            quotas: what it says is left.

        """
        self._pacer.accepted(now, sent, task_id, quotas)

    def rejected(
        self,
        now: float,
        sent: float,
        seconds: float,
        task_id: str = "",
        quotas: Sequence[Quota] = (),
    ) -> None:
        """Record a 429, and pause for `seconds` if it has to do with the rate."""
        if self._pacer.refused(now, sent, seconds, task_id, quotas):
            self._tell_pause(now)

    def unavailable(self, now: float, sent: float, seconds: float) -> None:
        """Record a 503 that names no pause: it may be a limit."""
        if self._pacer.unavailable(now, sent, seconds):
            self._tell_pause(now)

    def pause(self, now: float, seconds: float) -> None:
        """Hold all requests for `seconds`; of two pauses the longer holds."""
        if self._pacer.pause(now, seconds):
            self._tell_pause(now)

    def _tell_pause(self, now: float) -> None:
        seconds = self.paused_until - now
        logger.info("the server asks for a pause of %.3g s", seconds, extra={"seconds": seconds})
        if seconds > self._max_wait:
            _fail(self._gets, PauseTooLong)

    def close(self) -> None:
        """End the wait of each request in a queue with `ClientClosedError`."""
        self.closed = True
        for queue in (self._gets, self._polls):
            _fail(queue, lambda: ClientClosedError("the client was closed"))
        self._alarm.cancel()

    def stop_polls(self) -> None:
        """End the wait of each poll in the queue with `PollsStopped`."""
        _fail(self._polls, PollsStopped)

    def start_slowly(self, when: float) -> None:
        """Limit requests in flight to one at `when`, and to more from then on."""
        self._pacer.start_slowly(when)

    def _admit_next(self, now: float) -> None:
        self._released_at = now
        if self._gets or self._polls:
            self._admit()

    def _admit(self) -> None:
        """Admit all that may leave, and set the alarm for the next one."""
        now = asyncio.get_running_loop().time()
        while self._gets or self._polls:
            delay = self._pacer.delay(now)
            if delay > 0:
                self._alarm.set(now + delay)
                return
            poll = bool(self._polls) and (self._polls_turn or not self._gets)
            self._polls_turn = not poll
            turn, _ = (self._polls if poll else self._gets).popitem(last=False)
            if not turn.done():
                self._pacer.take(now)
                turn.set_result(None)
        self._alarm.cancel()


def _fail(queue: Queue, error: Callable[[], Exception]) -> None:
    """End each wait in `queue` with an error of its own."""
    for turn in queue:
        if not turn.done():
            turn.set_exception(error())
    queue.clear()
