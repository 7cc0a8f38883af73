"""Simulate tasks and polls in virtual time, under any tenacity wait strategy.

Measures how late ends are noticed, and for how many polls. Event-driven, without asyncio: 10,000
tasks take about a second. The poll at a task's creation is the same under every strategy and is
not counted. Answers arrive at once, so a fixed interval meets a duration that is a multiple of it
exactly.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from tenacity import wait_exponential, wait_fixed

__all__ = [
    "BACKOFF",
    "DURATIONS",
    "Run",
    "State",
    "Task",
    "compare",
    "durations",
    "matching_interval",
    "simulate",
    "stream",
]

BACKOFF = wait_exponential(multiplier=1, exp_base=1.5, max=10)
"""The backoff that others are compared with: 1 s, growing by half up to 10 s."""

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def _lognormal(median: float, sigma: float) -> Callable[[random.Random, float], float]:
    return lambda rng, _: rng.lognormvariate(math.log(median), sigma)


def _humps(rng: random.Random, _: float) -> float:
    return rng.lognormvariate(math.log(4 if rng.random() < 0.15 else 60), 0.25)


def _doubling(rng: random.Random, progress: float) -> float:
    return rng.lognormvariate(math.log(45 if progress < 0.5 else 90), 0.5)


DURATIONS: dict[str, Callable[[random.Random, float], float]] = {
    "lognormal 45 s, sigma 0.5": _lognormal(45, 0.5),
    "lognormal 45 s, sigma 0.25": _lognormal(45, 0.25),
    "lognormal 45 s, sigma 1.0": _lognormal(45, 1.0),
    "two humps, 15 % near 4 s, 85 % near 60 s": _humps,
    "doubling half-way through": _doubling,
    # A multiple of no interval in use: fixed polls are never late for one that is.
    "constant 47 s": lambda rng, _: 47.0,
    "uniform 0 to 120 s": lambda rng, _: rng.uniform(0, 120),
    "exponential, mean 45 s": lambda rng, _: rng.expovariate(1 / 45),
    "Pareto, alpha 1.5, from 15 s": lambda rng, _: 15 * rng.paretovariate(1.5),
}
"""Seconds that a task takes, given how far into the run it is created, 0 to 1."""


def durations(name: str, count: int, seed: int) -> list[float]:
    rng = random.Random(f"{name} {seed}")
    return [DURATIONS[name](rng, number / count) for number in range(count)]


def stream(count: int, rate: float = 1.0) -> list[float]:
    """Return the times at which tasks are created, `rate` per second."""
    return [number / rate for number in range(count)]


class Task(NamedTuple):
    """What a strategy sees of an answer."""

    created_at: datetime | None
    finished_at: datetime | None


class State:
    """What strategies read of tenacity's state, and the outcome in it."""

    failed = False

    def __init__(self, task: Task | None) -> None:
        self.task = task
        self.attempt_number = 0
        self.seconds_since_start = self.idle_for = self.upcoming_sleep = 0.0
        self.server_time: float | None = None

    @property
    def outcome(self) -> State:
        return self

    def result(self) -> Task | None:
        return self.task


class Run(NamedTuple):
    """What a strategy cost.

    Polls for each task, seconds from its end to the poll that found it, the times of all polls.
    """

    polls: list[int]
    delays: list[float]
    times: list[float]

    @property
    def mean_polls(self) -> float:
        return sum(self.polls) / len(self.polls)

    @property
    def mean_delay(self) -> float:
        return sum(self.delays) / len(self.delays)


def simulate(
    wait: Any,
    lengths: Sequence[float],
    created: Sequence[float] | None = None,
    *,
    dates: bool = True,
    first_poll: Sequence[float] | None = None,
    skew: float = 0.0,
) -> Run:
    """
    Poll each task until it has ended, and report each end to `wait` if it learns.

    Args:
        wait: Any tenacity wait strategy.
        lengths: Seconds that each task takes.
        created: When each is created, in seconds; None for one per second.
        dates: Whether answers hold dates, and the server's time in whole seconds.
        first_poll: The age of each at its first poll; None for 0.
        skew: How far the server's clock is ahead, in seconds.

    """
    created = stream(len(lengths)) if created is None else created
    epoch = EPOCH.timestamp()
    run = Run([0] * len(lengths), [0.0] * len(lengths), [])
    observe = getattr(wait, "observe", None)
    states = []
    for start in created:
        date = EPOCH + timedelta(seconds=start + skew) if dates else None
        states.append(State(Task(date, None)))
    started = [
        start + (0.0 if first_poll is None else first_poll[number])
        for number, start in enumerate(created)
    ]
    queue = [(time, number) for number, time in enumerate(started)]
    heapq.heapify(queue)
    while queue:
        now, number = heapq.heappop(queue)
        state, length, start = states[number], lengths[number], created[number]
        waited = now - started[number]
        if state.attempt_number:
            run.polls[number] += 1
            run.times.append(now)
        if now >= start + length and (state.attempt_number or first_poll is not None):
            run.delays[number] = now - max(start + length, started[number])
            if observe is not None:
                begin = state.task.created_at
                ended = Task(begin, None if begin is None else begin + timedelta(seconds=length))
                observe(ended, waited=waited, gap=state.upcoming_sleep)
            continue
        state.attempt_number += 1
        state.seconds_since_start = state.idle_for = waited
        state.server_time = math.floor(epoch + now + skew) if dates else None
        state.upcoming_sleep = wait(state)
        heapq.heappush(queue, (now + state.upcoming_sleep, number))
    return run


def matching_interval(lengths: Sequence[float], polls: float) -> float:
    """Return the shortest fixed interval that costs at most `polls` for each task."""
    low, high = 0.01, 1000.0
    for _ in range(50):
        middle = math.sqrt(low * high)
        if sum(math.ceil(length / middle) for length in lengths) > polls * len(lengths):
            low = middle
        else:
            high = middle
    return high


class Comparison(NamedTuple):
    """Three strategies on the same tasks."""

    interval: float
    backoff: Run
    fixed: Run
    adaptive: Run

    def ratios(self) -> tuple[float, float, float]:
        """Return adaptive polls / fixed, adaptive delay / fixed, adaptive delay / backoff."""
        return (
            self.adaptive.mean_polls / self.fixed.mean_polls,
            self.adaptive.mean_delay / self.fixed.mean_delay,
            self.adaptive.mean_delay / self.backoff.mean_delay,
        )


def compare(
    learner: Callable[[float], Any],
    lengths: Sequence[float],
    created: Sequence[float] | None = None,
    *,
    interval: float | None = None,
    **options: Any,
) -> Comparison:
    """Compare `learner(interval)` with a fixed interval and with backoff.

    Without `interval`, with the fixed interval that costs what backoff does.
    """
    backoff = simulate(BACKOFF, lengths, created)
    if interval is None:
        interval = matching_interval(lengths, backoff.mean_polls)
    fixed = simulate(wait_fixed(interval), lengths, created)
    return Comparison(
        interval, backoff, fixed, simulate(learner(interval), lengths, created, **options)
    )
