"""When a request may leave: requests in flight, rate, pauses, outages."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import cast

from xai_tasks._errors import APIError, ClientClosedError
from xai_tasks._limits.outage import Outage
from xai_tasks._limits.rate_finder import RateFinder

logger = logging.getLogger("xai_tasks")

_GROWTH = 0.05
"""Seconds in which requests in flight grow by one, after a pause or an outage, even if none is answered."""

Queue = OrderedDict[asyncio.Future[bool], None]


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

    Looks for `get` and polls for waits stand in a queue each and go in turns, first come first served. A pause is
    a point in time and not something to be lifted, so nobody can forget to lift it. After a pause or an outage,
    requests in flight start from one and grow by one with each answer, and with time lest a stalled one holds up the
    others, so that a server that has just come back isn't met by all of them at once.
    """

    __slots__ = (
        "_bucket",
        "_finder",
        "_grown",
        "_limit",
        "_looks",
        "_polls",
        "_polls_turn",
        "_timer",
        "_timer_at",
        "_window",
        "closed",
        "in_flight",
        "on_outage",
        "outage",
        "paused_until",
    )

    def __init__(self, max_concurrency: int, rate_limit: float | None) -> None:
        """Arguments as `TaskClient`'s; with `rate_limit` None, the server's limit is found out from its 429s."""
        self._limit = max_concurrency
        self._window = max_concurrency
        self._grown = 0.0
        self._finder = RateFinder() if rate_limit is None else None
        rate = math.inf if rate_limit is None else rate_limit
        self._bucket = Bucket(rate, max(1.0, rate))
        self._looks: Queue = OrderedDict()
        self._polls: Queue = OrderedDict()
        self._polls_turn = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float = 0.0  # uvloop's handles can't all say it
        self.outage: Outage = Outage()
        self.on_outage: Callable[[], None] | None = None
        """Called when an outage begins, and with each probe of it that fails."""
        self.paused_until: float = 0.0
        self.in_flight: int = 0
        self.closed: bool = False

    async def acquire(self, *, poll: bool) -> bool:
        """Wait until a request may leave; each acquire needs its `release`.

        Returns:
            whether the request is an outage's probe.

        Raises:
            ClientClosedError: the client is closed, or was while waiting.

        """
        if self.closed:
            raise ClientClosedError("the client is closed")
        if not self._looks and not self._polls:
            now = asyncio.get_running_loop().time()
            if self._delay(now) <= 0 and (not poll or self.outage.delay(now) <= 0):
                return self._take(poll)
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        queue = self._polls if poll else self._looks
        queue[turn] = None
        self._admit()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # Granted and cancelled in the same breath: nothing was sent.
                self._bucket.give_back()
                self.release(probe=turn.result())
            queue.pop(turn, None)
            raise

    def release(self, *, probe: bool) -> None:
        """Let the next one go: a request that had been let through has ended."""
        self.in_flight -= 1
        if probe:
            self.outage.probing = False
        if self._looks or self._polls:
            self._admit()

    def answered(self, now: float) -> None:
        """Note an answer, other than 429, of a server that is there."""
        # One that comes in a pause was asked for before it, and says nothing of what may follow.
        if self._window < self._limit and now >= self.paused_until:
            self._window += 1
        if self._finder is not None:
            self._finder.accepted(now)
        self._end_outage(now)

    def sign_of_life(self, now: float) -> None:
        """Record that the server has answered a request of another throttle."""
        self._end_outage(now)

    def failed(self, error: APIError, now: float, *, probe: bool) -> None:
        """Note a transient error other than 429."""
        if self.outage.failed(error, now, probe=probe):
            logger.warning(
                "an outage has begun: polls stop but for one probe at a time; last error: %s",
                error,
                extra={"task_id": error.task_id, "error": type(error).__name__},
            )
        elif not probe:
            return
        if self.on_outage is not None:
            self.on_outage()

    def rejected(self, now: float, sent: float, seconds: float) -> None:
        """Note a 429 to a request that left at `sent`, and pause for `seconds`."""
        if self.outage.since is not None:
            self._end_outage(now)
        if self._finder is not None:
            self._finder.rejected(now, sent, seconds)
        self.pause(now, seconds)

    def pause(self, now: float, seconds: float) -> None:
        """Let nothing leave for `seconds`; of two pauses the one that ends later holds."""
        until = now + seconds
        if until <= self.paused_until:
            return
        if now >= self.paused_until:
            logger.info(
                "the server asks for a pause of %.3g s", seconds, extra={"seconds": seconds}
            )
        self.paused_until = until
        self._start_slowly(until)
        self._bucket.hold(until)

    def close(self) -> None:
        """End the wait of everybody in a queue with `ClientClosedError`."""
        self.closed = True
        for queue in (self._looks, self._polls):
            for turn in queue:
                if not turn.done():
                    turn.set_exception(ClientClosedError("the client was closed"))
            queue.clear()
        self._disarm()

    def _take(self, poll: bool) -> bool:
        self.in_flight += 1
        self._bucket.take()
        probe = poll and self.outage.since is not None
        if probe:
            self.outage.probing = True
        return probe

    def _end_outage(self, now: float) -> None:
        since = self.outage.since
        if self.outage.answered():
            seconds = now - cast("float", since)
            logger.warning(
                "the outage is over: the server answers again, %.3g s after it began",
                seconds,
                extra={"seconds": seconds},
            )
            self._start_slowly(now)

    def _start_slowly(self, when: float) -> None:
        """Have requests in flight grow anew, from `when` on."""
        self._window = 1
        self._grown = when

    def _delay(self, now: float) -> float:
        """Give the seconds until a request may leave; infinity where that takes a `release`."""
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

    def _on_time(self) -> None:
        self._timer = None
        self._admit()

    def _admit(self) -> None:
        """Let go whoever may, and set the timer for the next one who will."""
        now = asyncio.get_running_loop().time()
        while self._looks or self._polls:
            delay = self._delay(now)
            held_back = self.outage.delay(now)  # concerns polls alone
            polls_may = bool(self._polls) and held_back <= 0
            if delay <= 0 and not self._looks and not polls_may:
                delay = held_back
            if delay > 0:
                self._arm(now + delay)
                return
            poll = polls_may and (self._polls_turn or not self._looks)
            self._polls_turn = not poll
            turn, _ = (self._polls if poll else self._looks).popitem(last=False)
            if not turn.done():
                turn.set_result(self._take(poll))
        self._disarm()

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            if self._timer_at <= when:
                return  # it comes in time, and sets itself anew
            self._disarm()
        if when < math.inf:
            self._timer_at = when
            self._timer = asyncio.get_running_loop().call_at(when, self._on_time)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
