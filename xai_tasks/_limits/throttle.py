"""When a request may leave: requests in flight, rate, pauses."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Callable

from xai_tasks._errors import ClientClosedError
from xai_tasks._limits.alarm import Alarm
from xai_tasks._limits.outage import PollsStopped
from xai_tasks._limits.rate_finder import RateFinder

logger = logging.getLogger("xai_tasks")

_GROWTH = 0.05
"""Seconds in which requests in flight grow by one, after a pause or an outage, even if none is answered."""

Queue = OrderedDict[asyncio.Future[None], None]


class Bucket:
    """A token bucket: a request takes one token, tokens come back at a rate, up to a burst."""

    __slots__ = ("_stamp", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        """Start full. `rate` in tokens per second, infinite for no limit; `burst` of at least 1."""
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._stamp = 0.0

    def delay(self, now: float) -> float:
        """Give the seconds until a token is there."""
        if self.rate == math.inf:
            return 0.0
        if now > self._stamp:
            self._tokens = min(self.burst, self._tokens + (now - self._stamp) * self.rate)
            self._stamp = now
        # A millionth of a token is rounding: without it a timer would fire, find it missing, and fire again.
        return 0.0 if self._tokens >= 1 - 1e-6 else (1 - self._tokens) / self.rate

    def take(self) -> None:
        """Take the token that `delay` found."""
        self._tokens -= 1

    def give_back(self) -> None:
        """Return the token of a request that was never sent."""
        self._tokens = min(self.burst, self._tokens + 1)

    def hold(self, until: float) -> None:
        """Have one token at most at `until`, so that then one request may leave, and the others at the rate."""
        gained = math.inf if self.rate == math.inf else max(0.0, until - self._stamp) * self.rate
        self._tokens = min(1.0, self._tokens + gained)
        self._stamp = until


class Throttle:
    """Lets requests of a client leave one by one, as soon as every limit allows.

    Requests of `get` and polls of waits stand in a queue each and go in turns, first come first
    served. A pause is a point in time, so nobody has to end it. After a pause or an outage, requests
    in flight start from one and grow by one with each answer, and with time, so that a stalled one
    does not hold up the others. A server that has just come back is not met by all at once.
    """

    __slots__ = (
        "_alarm",
        "_bucket",
        "_finder",
        "_gets",
        "_grown",
        "_limit",
        "_polls",
        "_polls_turn",
        "_released_at",
        "_window",
        "closed",
        "in_flight",
        "paused_until",
    )

    def __init__(self, max_concurrency: int, rate_limit: float | None) -> None:
        """Take `TaskClient`'s arguments; None as `rate_limit`: learned from the server's 429s."""
        self._limit = max_concurrency
        self._window = max_concurrency
        self._grown = 0.0
        self._finder = RateFinder() if rate_limit is None else None
        rate = math.inf if rate_limit is None else rate_limit
        self._bucket = Bucket(rate, max(1.0, rate))
        self._gets: Queue = OrderedDict()
        self._polls: Queue = OrderedDict()
        self._polls_turn = False
        self._alarm = Alarm(self._admit)
        self.paused_until: float = 0.0
        self._released_at = 0.0
        self.in_flight: int = 0
        self.closed: bool = False

    async def acquire(self, *, poll: bool) -> None:
        """Wait until a request may leave; each acquire needs its `release`.

        Raises:
            ClientClosedError: the client is closed, or was while waiting.
            PollsStopped: an outage began while a poll was waiting.

        """
        if self.closed:
            raise ClientClosedError("the client is closed")
        if not self._gets and not self._polls:
            now = asyncio.get_running_loop().time()
            if self._delay(now) <= 0:
                self._take()
                return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._polls if poll else self._gets
        queue[turn] = None
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # Granted and cancelled at the same moment: nothing was sent.
                self._bucket.give_back()
                self.release(asyncio.get_running_loop().time())
            queue.pop(turn, None)
            raise

    def is_stalled(self, now: float) -> bool:
        """Return whether `max_concurrency` requests are in flight and none ended for a second."""
        return self.in_flight >= self._limit and now > self._released_at + 1.0

    def release(self, now: float) -> None:
        """Let the next request go: one that had been let through has ended at `now`."""
        self.in_flight -= 1
        self._released_at = now
        if self._gets or self._polls:
            self._admit()

    def answered(self, now: float) -> None:
        """Record an answer, other than 429 or 5xx."""
        # One that comes in a pause was asked for before it, and does not end it.
        if self._window < self._limit and now >= self.paused_until:
            self._window += 1
        if self._finder is not None:
            self._finder.accepted(now)

    def rejected(self, now: float, sent: float, seconds: float) -> None:
        """Record a 429 to a request that left at `sent`, and pause for `seconds`."""
        if self._finder is not None:
            self._finder.rejected(now, sent, seconds)
        self.pause(now, seconds)

    def pause(self, now: float, seconds: float) -> None:
        """Let nothing leave for `seconds`; of two pauses the longer holds."""
        until = now + seconds
        if until <= self.paused_until:
            return
        if now >= self.paused_until:
            logger.info(
                "the server asks for a pause of %.3g s", seconds, extra={"seconds": seconds}
            )
        self.paused_until = until
        self.start_slowly(until)
        self._bucket.hold(until)

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
        """Let requests in flight grow from one, beginning at `when`."""
        self._window = 1
        self._grown = when

    def _take(self) -> None:
        self.in_flight += 1
        self._bucket.take()

    def _delay(self, now: float) -> float:
        """Return the seconds until a request may leave; infinity if that takes a `release`."""
        if now < self.paused_until:
            return self.paused_until - now
        while self._window < self._limit and now >= self._grown + _GROWTH:
            self._window += 1
            self._grown += _GROWTH
        if self.in_flight >= self._window:
            return math.inf if self._window == self._limit else self._grown + _GROWTH - now
        if self._finder is not None:
            self._bucket.rate = self._finder.pace(now)
            self._bucket.burst = self._finder.burst
        return self._bucket.delay(now)

    def _admit(self) -> None:
        """Let go all that may leave, and set the alarm for the next one."""
        now = asyncio.get_running_loop().time()
        while self._gets or self._polls:
            delay = self._delay(now)
            if delay > 0:
                self._alarm.set(now + delay)
                return
            poll = bool(self._polls) and (self._polls_turn or not self._gets)
            self._polls_turn = not poll
            turn, _ = (self._polls if poll else self._gets).popitem(last=False)
            if not turn.done():
                self._take()
                turn.set_result(None)
        self._alarm.cancel()


def _fail(queue: Queue, error: Callable[[], Exception]) -> None:
    """End each wait in `queue` with an error of its own."""
    for turn in queue:
        if not turn.done():
            turn.set_exception(error())
    queue.clear()
