"""A client's whole knowledge of limits against servers in virtual time.

Like `rate_simulation.py`, but the client is the library's own `Pacer`, with all that it learns
from: refusals, 503s, headers, ids, requests in flight. A server says all that a real one says.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rate_simulation import Noise, Run

from xai_tasks._http.hints import Quota
from xai_tasks._limits.pacer import Pacer

__all__ = [
    "Answer",
    "Concurrency",
    "FixedWindow",
    "Nginx",
    "Noise",
    "OneBadId",
    "RandomFaults",
    "Run",
    "Server",
    "SlidingWindow",
    "Throttler",
    "Trouble",
    "TokenBucket",
    "jain",
    "simulate",
]


class Answer(NamedTuple):
    """What a server says."""

    status: int = 200
    retry_after: float | None = None
    quotas: tuple[Quota, ...] = ()


OK = Answer()


class Server:
    """A server without a limit."""

    service = (0.0, 0.0)
    """Seconds that a request takes."""

    def ask(self, now: float, task_id: str) -> Answer:
        return OK

    def done(self) -> None:
        """End a request that was accepted."""


class TokenBucket(Server):
    """`rate` requests a second (a number, or a function of time) and `burst` at once."""

    def __init__(
        self,
        rate: float | Callable[[float], float],
        burst: float,
        *,
        retry_after: float | None = 1.0,
        status: int = 429,
    ) -> None:
        self._rate = rate if callable(rate) else lambda _: rate
        self._burst = self._tokens = burst
        self._time = 0.0
        self._refusal = Answer(status, retry_after)

    def ask(self, now: float, task_id: str) -> Answer:
        gained = (now - self._time) * self._rate(now)
        self._tokens = min(self._burst, self._tokens + gained)
        self._time = now
        if self._tokens < 1.0:
            return self._refusal
        self._tokens -= 1.0
        return OK


class Nginx(Server):
    """`limit_req` with `nodelay`: a leaky bucket that counts in milliseconds."""

    def __init__(self, rate: int, burst: int, *, status: int = 503) -> None:
        self._rate = rate
        self._burst = 1000 * burst
        self._excess = 0
        self._last: int | None = None
        self._status = status

    def ask(self, now: float, task_id: str) -> Answer:
        milliseconds = int(now * 1000)
        excess = 0
        if self._last is not None:
            leaked = self._rate * (milliseconds - self._last)
            excess = max(0, self._excess - leaked + 1000)
        if excess > self._burst:
            return Answer(self._status)
        self._excess, self._last = excess, milliseconds
        return OK


class FixedWindow(Server):
    """`limit` in each window of `period` seconds; with `headers` as express-rate-limit's."""

    def __init__(
        self,
        limit: int,
        period: float,
        *,
        retry_after: float | None = None,
        headers: bool = False,
    ) -> None:
        self._limit = limit
        self._period = period
        self._retry_after = retry_after
        self._headers = headers
        self._window = -1.0
        self._count = 0

    def ask(self, now: float, task_id: str) -> Answer:
        window, spent = divmod(now, self._period)
        if window != self._window:
            self._window, self._count = window, 0
        self._count += 1
        left = self._period - spent
        quotas: tuple[Quota, ...] = ()
        if self._headers:
            left = float(math.ceil(left))
            quotas = (Quota("", max(0, self._limit - self._count), left),)
        if self._count > self._limit:
            pause = left if self._retry_after is None else self._retry_after
            return Answer(429, pause, quotas)
        return Answer(quotas=quotas)


class SlidingWindow(Server):
    """`limit` in any `period` seconds; a 429 says when the oldest leaves the window."""

    def __init__(self, limit: int, period: float) -> None:
        self._limit = limit
        self._period = period
        self._log: deque[float] = deque()

    def ask(self, now: float, task_id: str) -> Answer:
        while self._log and self._log[0] <= now - self._period:
            self._log.popleft()
        if len(self._log) >= self._limit:
            return Answer(429, self._log[0] + self._period - now)
        self._log.append(now)
        return OK


class Throttler(Server):
    """@nestjs/throttler 6: any number of windows, each a limit and seconds."""

    def __init__(self, *windows: tuple[int, float], headers: bool = True) -> None:
        self._windows = windows
        self._logs: list[deque[float]] = [deque() for _ in windows]
        self._blocked = [0.0 for _ in windows]
        self._headers = headers

    def ask(self, now: float, task_id: str) -> Answer:
        quotas = []
        for n, (limit, period) in enumerate(self._windows):
            log = self._logs[n]
            if self._blocked[n]:
                if now < self._blocked[n]:
                    return Answer(429, float(math.ceil(self._blocked[n] - now)))
                self._blocked[n] = 0.0
                log.clear()
            while log and log[0] <= now - period:
                log.popleft()
            log.append(now)
            if len(log) > limit:
                self._blocked[n] = now + period
                return Answer(429, float(math.ceil(period)))
            quotas.append(Quota(str(n), limit - len(log), None))
        return Answer(quotas=tuple(quotas) if self._headers else ())


class Concurrency(Server):
    """At most `limit` requests in flight."""

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit = limit
        self.service = (seconds, seconds)
        self._in_flight = 0

    def ask(self, now: float, task_id: str) -> Answer:
        if self._in_flight >= self._limit:
            return Answer(429)
        self._in_flight += 1
        return OK

    def done(self) -> None:
        self._in_flight -= 1


class RandomFaults(Server):
    """A share of the answers has another status, at any rate."""

    def __init__(self, share: float, status: int) -> None:
        self._share = share
        self._answer = Answer(status)
        self._random = random.Random(0)

    def ask(self, now: float, task_id: str) -> Answer:
        return self._answer if self._random.random() < self._share else OK


class Trouble(Server):
    """Refuses at random, 429 or 503, one or several in a row, for so many seconds."""

    def __init__(self, share: float, row: int, seconds: float, *, seed: int) -> None:
        self._share = share
        self._row = row
        self._seconds = seconds
        self._random = random.Random(seed)
        self._answer = OK
        self._left = 0

    def ask(self, now: float, task_id: str) -> Answer:
        if now >= self._seconds:
            return OK
        if not self._left and self._random.random() < self._share:
            self._answer = self._random.choice([Answer(429), Answer(429, 3.0), Answer(503)])
            self._left = self._random.randint(1, self._row)
        if not self._left:
            return OK
        self._left -= 1
        return self._answer


class OneBadId(Server):
    """One id is always answered 429."""

    def __init__(self, retry_after: float | None = None) -> None:
        self._answer = Answer(429, retry_after)

    def ask(self, now: float, task_id: str) -> Answer:
        return self._answer if task_id == "7" else OK


def jain(shares: Sequence[float]) -> float:
    """Return Jain's index of fairness: 1 if all are equal, 1/n if one has all."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


class _Client:
    """One event loop, its pacer, and the ids that it asks for in turns."""

    def __init__(self, start: float, stop: float, ids: int) -> None:
        self.pacer = Pacer(64, None)
        self.run = Run()
        self.stop = stop
        self.stalled_until = start
        self.wake = math.inf
        self.sent = 0
        self._ids = ids
        self._next = 0
        self._waiting: dict[str, float] = {}

    def next_id(self, now: float) -> str:
        """Return an id whose retry is due, or else the next that does not wait for one."""
        for task_id, due in self._waiting.items():
            if due <= now:
                del self._waiting[task_id]
                return task_id
        while True:
            self._next += 1
            task_id = str(self._next % self._ids if self._ids else self._next)
            if task_id not in self._waiting:
                return task_id

    def retry(self, task_id: str, due: float) -> None:
        if self._ids:
            self._waiting[task_id] = due


def simulate(  # noqa: C901 -- an event loop
    server: Server,
    clients: int = 1,
    *,
    duration: float,
    seed: int,
    noise: Noise = Noise(),
    starts: Sequence[float] = (),
    stops: Sequence[float] = (),
    ids: int = 0,
    demand: Callable[[float], float] = lambda _: math.inf,
) -> list[Run]:
    """Run clients against a server, each with all the work it can do.

    `starts` and `stops` are times for the first of them; 0 and never for the others. `ids` is how
    many different ones each client asks for; 0: never the same. `demand` is how many requests each
    has been asked for by a given time.
    """
    rng = random.Random(seed)
    begun = [*starts, *([0.0] * (clients - len(starts)))]
    ended = [*stops, *([math.inf] * (clients - len(stops)))]
    all_clients = [_Client(start, stop, ids) for start, stop in zip(begun, ended, strict=True)]
    events: list[tuple[float, int, str, _Client, float, Answer, str]] = []
    serial = 0

    def at(
        time: float,
        kind: str,
        client: _Client,
        sent: float = 0.0,
        answer: Answer = OK,
        task_id: str = "",
    ) -> None:
        nonlocal serial
        serial += 1
        heapq.heappush(events, (time, serial, kind, client, sent, answer, task_id))

    def wake(client: _Client, time: float) -> None:
        if time < client.wake:
            client.wake = time
            at(time, "wake", client)

    def pump(client: _Client, now: float) -> None:
        while now < client.stop:
            if client.sent >= demand(now):
                wake(client, now + 0.05)
                return
            delay = client.pacer.delay(now)
            if delay > 0:
                if delay < math.inf:
                    wake(client, now + delay + rng.random() * noise.timer)
                return
            client.pacer.take(now)
            client.sent += 1
            task_id = client.next_id(now)
            at(now + rng.uniform(*noise.latency) / 2, "arrive", client, now, OK, task_id)

    def receive(client: _Client, now: float, sent: float, answer: Answer, task_id: str) -> None:
        pacer, run = client.pacer, client.run
        if answer.status == 200:
            run.accepts.append(now)
            pacer.accepted(now, sent, task_id, answer.quotas)
        else:
            run.rejects.append(now)
            before = pacer.paused_until
            seconds = rng.uniform(0, 0.5) if answer.retry_after is None else answer.retry_after
            if answer.status == 429:
                pacer.refused(now, sent, seconds, task_id, answer.quotas)
            else:
                pacer.unavailable(now, sent, seconds)
            if pacer.paused_until > before:
                run.pauses.append(now)
            client.retry(task_id, now + seconds + rng.uniform(0.05, 0.3))
        pacer.release()

    for client, start in zip(all_clients, begun, strict=True):
        wake(client, start)
        if noise.stalls:
            at(start + rng.expovariate(noise.stalls), "stall", client)
    while events:
        now, _, kind, client, sent, answer, task_id = heapq.heappop(events)
        if now > duration:
            break
        if kind == "arrive":
            answer = server.ask(now, task_id)
            busy = rng.uniform(*server.service) if answer.status == 200 else 0.0
            at(now + busy, "leave", client, sent, answer, task_id)
        elif kind == "leave":
            if answer.status == 200:
                server.done()
            at(now + rng.uniform(*noise.latency) / 2, "answer", client, sent, answer, task_id)
        elif kind == "stall":
            client.stalled_until = now + rng.uniform(*noise.stall)
            at(client.stalled_until + rng.expovariate(noise.stalls), "stall", client)
        elif kind == "wake" and now != client.wake:
            pass  # an earlier wake has taken its place
        elif now < client.stalled_until:
            if kind == "wake":
                client.wake = client.stalled_until
            at(client.stalled_until, kind, client, sent, answer, task_id)
        else:
            if kind == "wake":
                client.wake = math.inf
            else:
                receive(client, now, sent, answer, task_id)
            pump(client, now)
    return [client.run for client in all_clients]
