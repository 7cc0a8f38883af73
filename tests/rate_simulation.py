"""Clients, servers and the wire between them in virtual time: what finding a rate limit
costs, in milliseconds of CPU.

Event-driven and without asyncio: a minute of 200 requests a second takes about a quarter of a
second. The client is the one that `RateFinder` is written for: at most so many requests in flight,
a pacing bucket filled at `pace()` up to `burst`, silent until a pause is over and then starting
from an empty bucket. What disturbs it can be set: latency, late timers, and stalls in which the
event loop does nothing at all.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

__all__ = [
    "AIMD",
    "Cubic",
    "Finder",
    "FixedWindow",
    "Noise",
    "Run",
    "Server",
    "SlidingWindow",
    "TokenBucket",
    "simulate",
]


class Finder(Protocol):
    """What a client asks for its pace: `RateFinder`, or one that it is compared with."""

    rate: float
    burst: float

    def accepted(self, now: float) -> None: ...

    def rejected(self, now: float, sent: float, pause: float) -> bool: ...

    def pace(self, now: float) -> float: ...


class Server(Protocol):
    def ask(self, now: float) -> float | None:
        """Answer a request that arrives at `now`: None accepts it, a number is a 429's
        `Retry-After`, 0 a 429 without one.
        """


class TokenBucket:
    """`rate` requests a second (a number, or a function of time) and `burst` at once; nginx's
    `burst=5 nodelay` is `burst=6`.
    """

    def __init__(
        self,
        rate: float | Callable[[float], float],
        burst: float,
        *,
        retry_after: float = 1.0,
        full: bool = True,
    ) -> None:
        self._rate = rate if callable(rate) else lambda _: rate
        self._burst = burst
        self._tokens = burst if full else 0.0
        self._time = 0.0
        self._retry_after = retry_after

    def ask(self, now: float) -> float | None:
        self._tokens = min(self._burst, self._tokens + (now - self._time) * self._rate(now))
        self._time = now
        if self._tokens < 1.0:
            return self._retry_after
        self._tokens -= 1.0
        return None


class FixedWindow:
    """`limit` requests in each window of `period` seconds; a 429 names the time until the
    window ends, or `retry_after`.
    """

    def __init__(
        self, limit: int, period: float, *, retry_after: float | None = None, offset: float = 0.0
    ) -> None:
        self._limit = limit
        self._period = period
        self._retry_after = retry_after
        self._offset = offset
        self._window = -1
        self._count = 0

    def ask(self, now: float) -> float | None:
        window, spent = divmod(now + self._offset, self._period)
        if window != self._window:
            self._window, self._count = int(window), 0
        if self._count >= self._limit:
            return self._period - spent if self._retry_after is None else self._retry_after
        self._count += 1
        return None


class SlidingWindow:
    """`limit` requests in any `period` seconds; a 429 names the time until the oldest one leaves
    the window, or `retry_after`.
    """

    def __init__(self, limit: int, period: float, *, retry_after: float | None = None) -> None:
        self._limit = limit
        self._period = period
        self._retry_after = retry_after
        self._log: deque[float] = deque()

    def ask(self, now: float) -> float | None:
        while self._log and self._log[0] <= now - self._period:
            self._log.popleft()
        if len(self._log) >= self._limit:
            return (
                self._log[0] + self._period - now
                if self._retry_after is None
                else self._retry_after
            )
        self._log.append(now)
        return None


class AIMD:
    """After each pause half the rate, then `step` of the rate that was refused more each second;
    before the second, doubling.
    """

    def __init__(self, *, step: float = 0.05) -> None:
        self.rate = math.inf
        self.burst = 1.0
        self._step = step
        self._count = 0
        self._first: float | None = None
        self._paused = -math.inf
        self._resumed = 0.0
        self._base = 0.0
        self._refused = math.inf

    def accepted(self, now: float) -> None:
        self._first = now if self._first is None else self._first
        self._count += 1

    def rejected(self, now: float, sent: float, pause: float) -> bool:
        if sent <= self._paused:
            return False
        if self.rate == math.inf:
            self._base = max(self._count, 1) / (
                now - (sent if self._first is None else self._first) + max(pause, 0.1)
            )
        else:
            self._refused = self.rate
            self._base = max(0.05, self.rate / 2)
        self._paused, self._resumed = now, now + pause
        self.rate = self._base
        return True

    def pace(self, now: float) -> float:
        if self.rate < math.inf:
            since = max(0.0, now - self._resumed)
            if self._refused == math.inf:
                self.rate = self._base * 2.0**since
            else:
                self.rate = self._base + self._step * self._refused * since
            self.burst = max(1.0, self.rate / 20)
        return self.rate


class Cubic:
    """The arithmetic of botocore's `adaptive` retry mode, but with one decrease for each pause
    instead of one for each 429.
    """

    def __init__(self) -> None:
        self.rate = math.inf
        self.burst = 1.0
        self._paused = -math.inf
        self._fail = 0.0
        self._peak = 0.0
        self._zero = 0.0
        self._measured = 0.0
        self._slot = 0.0
        self._count = 0

    def _clock(self, now: float) -> None:
        self._count += 1
        slot = math.floor(now * 2.0) / 2.0
        if slot > self._slot:
            self._measured = 0.8 * self._count / (slot - self._slot) + 0.2 * self._measured
            self._count, self._slot = 0, slot

    def _set(self, rate: float) -> None:
        self.rate = max(min(rate, 2.0 * self._measured), 0.5)
        self.burst = max(1.0, self.rate)

    def accepted(self, now: float) -> None:
        self._clock(now)
        if self.rate < math.inf:
            self._set(0.4 * (now - self._fail - self._zero) ** 3 + self._peak)

    def rejected(self, now: float, sent: float, pause: float) -> bool:
        self._clock(now)
        if sent <= self._paused:
            return False
        self._peak = min(self._measured, self.rate)
        self._zero = (self._peak * 0.3 / 0.4) ** (1.0 / 3.0)
        self._paused = self._fail = now
        self._set(self._peak * 0.7)
        return True

    def pace(self, now: float) -> float:
        return self.rate


class Run:
    """What came of one client: when its answers came, and what its pace was."""

    def __init__(self) -> None:
        self.accepts: list[float] = []
        self.rejects: list[float] = []
        self.pauses: list[float] = []
        self.paces: list[tuple[float, float]] = []

    def accepted_rate(self, start: float, end: float) -> float:
        """Requests accepted per second between two times."""
        return sum(start <= t < end for t in self.accepts) / (end - start)

    def rejected_share(self, start: float, end: float) -> float:
        """The part of the answers between two times that were 429s."""
        rejects = sum(start <= t < end for t in self.rejects)
        return rejects / max(1, rejects + sum(start <= t < end for t in self.accepts))


class Noise(NamedTuple):
    """What disturbs a client; seconds, and stalls per second."""

    latency: tuple[float, float] = (0.0015, 0.0025)  # there and back
    timer: float = 0.001  # a timer is up to this late
    stalls: float = 0.5
    stall: tuple[float, float] = (0.02, 0.1)
    server_stalls: float = 0.0  # in which requests pile up, to be answered all at once


class _Client:
    """One event loop with its pacing bucket."""

    def __init__(self, finder: Finder, demand: Callable[[float], float], start: float) -> None:
        self.finder = finder
        self.demand = demand
        self.run = Run()
        self.tokens = 0.0
        self.refilled = start
        self.paused_until = start
        self.stalled_until = start
        self.in_flight = 0
        self.sent = 0
        self.wake = math.inf


def simulate(
    server: Server,
    finders: Sequence[Finder],
    *,
    duration: float,
    seed: int,
    noise: Noise = Noise(),
    max_in_flight: int = 64,
    starts: Sequence[float] = (),
    demand: Callable[[float], float] = lambda _: math.inf,
) -> list[Run]:
    """Run one client per finder against the server.

    `starts` are the times at which the clients begin (0 where not given), and `demand` is how many
    requests a client has been asked for by a given time: unlimited, unless told otherwise. The
    answer is one `Run` per client.
    """
    rng = random.Random(seed)
    begun = [*starts, *([0.0] * (len(finders) - len(starts)))]
    clients = [_Client(finder, demand, start) for finder, start in zip(finders, begun, strict=True)]
    events: list[tuple[float, int, str, _Client, float, float | None]] = []
    serial = 0

    def at(
        time: float, kind: str, client: _Client, sent: float = 0.0, verdict: float | None = None
    ) -> None:
        nonlocal serial
        serial += 1
        heapq.heappush(events, (time, serial, kind, client, sent, verdict))

    def wake(client: _Client, time: float) -> None:
        if time < client.wake:
            client.wake = time
            at(time, "wake", client)

    def pump(client: _Client, now: float) -> None:
        if now < client.paused_until:
            wake(client, client.paused_until + rng.random() * noise.timer)
            return
        pace = client.finder.pace(now)
        if pace == math.inf:
            client.tokens = math.inf
        else:
            earned = max(0.0, now - client.refilled) * pace
            client.tokens = min(client.finder.burst, client.tokens + earned)
        client.refilled = max(client.refilled, now)
        while client.in_flight < max_in_flight:
            if client.sent >= client.demand(now):
                wake(client, now + 0.005)
                return
            if (
                client.tokens < 1 - 1e-6
            ):  # as the library: a timer might find a rounding error and fire again
                wake(
                    client,
                    now + min(1.0, (1.0 - client.tokens) / pace) + rng.random() * noise.timer,
                )
                return
            client.tokens -= 1.0
            client.in_flight += 1
            client.sent += 1
            at(now + rng.uniform(*noise.latency) / 2, "arrive", client, now)

    def answer(client: _Client, now: float, sent: float, verdict: float | None) -> None:
        client.in_flight -= 1
        if verdict is None:
            client.run.accepts.append(now)
            client.finder.accepted(now)
            return
        client.run.rejects.append(now)
        pause = verdict or rng.uniform(0.1, 0.5)
        if client.finder.rejected(now, sent, pause):
            client.run.pauses.append(now)
        client.paused_until = max(client.paused_until, now + pause)
        client.tokens, client.refilled = 0.0, client.paused_until

    for client, start in zip(clients, begun, strict=True):
        wake(client, start)
        if noise.stalls:
            at(start + rng.expovariate(noise.stalls), "stall", client)
    server_stalled_until = 0.0
    server_stall = rng.expovariate(noise.server_stalls) if noise.server_stalls else math.inf
    while events:
        now, _, kind, client, sent, verdict = heapq.heappop(events)
        if now > duration:
            break
        if kind == "arrive":
            while server_stall <= now:
                server_stalled_until = server_stall + rng.uniform(*noise.stall)
                server_stall = server_stalled_until + rng.expovariate(noise.server_stalls)
            if now < server_stalled_until:
                at(server_stalled_until, kind, client, sent)
                continue
            verdict = server.ask(now)
            at(now + rng.uniform(*noise.latency) / 2, "answer", client, sent, verdict)
        elif kind == "stall":
            client.stalled_until = now + rng.uniform(*noise.stall)
            at(client.stalled_until + rng.expovariate(noise.stalls), "stall", client)
        elif kind == "wake" and now != client.wake:
            pass  # an earlier wake has taken its place
        elif now < client.stalled_until:
            if kind == "wake":
                client.wake = client.stalled_until
            at(client.stalled_until, kind, client, sent, verdict)
        else:
            if kind == "wake":
                client.wake = math.inf
            else:
                answer(client, now, sent, verdict)
            pump(client, now)
            client.run.paces.append((now, client.finder.rate))
    return [client.run for client in clients]
