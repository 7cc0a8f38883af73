"""Where to poll, for a known distribution of durations: `Plan`, the plan of least cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from xai_tasks._learning.life_table import Distribution

_USABLE = 0.985
"""The part of the polls at `interval` that a plan may spend; jitter takes the rest."""
_MIN_COST = 0.2
"""The least cost per poll, relative to the one at which polling every `interval` is best.

If all tasks take equally long, polls beyond the first few would find nothing sooner.
"""


class Limits(NamedTuple):
    """How often a strategy may poll, in seconds; `wait_adaptive` describes each."""

    interval: float
    minimum: float
    maximum: float


class _Candidate(NamedTuple):
    """A plan, and the cost per poll that it is the best for."""

    cost_per_poll: float
    next_ages: list[float]
    polls: float
    path: list[float]


class Plan:
    """
    The age of the next poll, for every age: least expected delay for the polls that may be spent.

    The plan minimises delay + cost per poll x polls. The cost per poll, in seconds of delay, is
    found by trial: it is the one at which the plan spends what polling every `interval` would.
    """

    __slots__ = ("_next_ages", "_polls", "_table", "cost_per_poll", "distribution", "end")

    def __init__(
        self, distribution: Distribution, limits: Limits, cost_per_poll: float | None
    ) -> None:
        """Plan for `distribution`; try first the `cost_per_poll` of an earlier plan."""
        self._table = distribution.table
        self.distribution: Distribution = distribution
        self.end: float = distribution.ages[-1]
        """The age up to which there is a plan."""
        at_interval, _ = _follow(distribution, lambda age: age + limits.interval)
        # A task that is polled from age 0 needs one poll at least.
        # Where all first polls come late, there may be none to spend before them.
        allowance = max(0.05, distribution.waiting[0], _USABLE * at_interval)
        # If ends were equally likely at any age, polling every `interval` would be best at a cost
        # of interval^2 / (2 x mean) per poll.
        floor = _MIN_COST * limits.interval**2 / (2.0 * distribution.mean)
        cost_per_poll = max(floor, cost_per_poll or floor / _MIN_COST)
        low, high = 0.0, math.inf
        chosen = candidate = self._candidate(distribution, cost_per_poll, limits)
        for _ in range(4):
            if candidate.polls > allowance:
                low = candidate.cost_per_poll
            else:
                high = candidate.cost_per_poll
            close = 0.99 * allowance <= candidate.polls <= allowance
            if close or high == floor or high < 1.05 * low:
                break
            # Polls fall about as the square root of their cost.
            cost_per_poll = max(floor, cost_per_poll * (candidate.polls / allowance) ** 2)
            if not low < cost_per_poll < high:
                cost_per_poll = math.sqrt(max(low, floor) * high) if high < math.inf else 2.0 * low
            candidate = self._candidate(distribution, cost_per_poll, limits)
            if candidate.polls <= allowance or high == math.inf:
                chosen = candidate
        self.cost_per_poll: float = chosen.cost_per_poll
        self._next_ages = chosen.next_ages
        self._polls = _polls_by_age(distribution.ages, chosen.path)

    def _candidate(
        self, distribution: Distribution, cost_per_poll: float, limits: Limits
    ) -> _Candidate:
        next_ages = _optimal_next_ages(distribution, cost_per_poll, limits)

        def step(age: float) -> float:
            gap = self._table.interpolate(next_ages, age) - age
            return age + min(limits.maximum, max(limits.minimum, gap))

        return _Candidate(cost_per_poll, next_ages, *_follow(distribution, step))

    def next_poll(self, age: float) -> float:
        """Return the age at which to poll next a task that has just been polled at `age`."""
        return self._table.interpolate(self._next_ages, age)

    def polls_between(self, first: float, last: float) -> float:
        """Return how many polls the plan has between two ages."""
        interpolate = self._table.interpolate
        return interpolate(self._polls, last) - interpolate(self._polls, max(0.0, first))


def _follow(
    distribution: Distribution, step: Callable[[float], float]
) -> tuple[float, list[float]]:
    """
    Follow polls from age 0 to the last age.

    Args:
        distribution: Of the tasks polled.
        step: Returns the age of the next poll, given the age of a poll.

    Returns:
        The mean number of polls for each task, and the ages of all polls, the first at age 0.

    """
    age, polls, path = 0.0, 0.0, [0.0]
    while age < distribution.ages[-1]:
        polls += distribution.table.interpolate(distribution.waiting, age)
        age = step(age)
        path.append(age)
    return polls, path


def _optimal_next_ages(
    distribution: Distribution, cost_per_poll: float, limits: Limits
) -> list[float]:
    """
    Return, for each age of the distribution, the age of the next poll in the plan of least cost.

    Dynamic programming from the last age down. The cost of polling next at age b, from age a, is

        cost_per_poll x survival(a)                               what the poll costs
        + b x (cdf(b) - cdf(a)) - (cumulated(b) - cumulated(a))   the delay of ends in between
        + the cost from b on

    Apart from terms in a alone, that is a straight line in cdf(a), with the slope -b. So only
    the lower hull of the lines of all candidates b matters. And as cdf(a) falls from one age to
    the age before, the best candidate only moves towards lower ages (the convex hull trick).
    """
    ages, cdf, cumulated = distribution.ages, distribution.cdf, distribution.cumulated
    last = len(ages) - 1
    next_ages = [0.0] * last + [ages[last] + limits.interval]
    costs = [0.0] * (last + 1)
    # The hull: a line's value at cdf(a) is its offset less its slope x cdf(a).
    slopes: list[float] = []
    offsets: list[float] = []
    best = 0
    candidate = last
    for index in range(last - 1, -1, -1):
        age, ended = ages[index], cdf[index]
        while candidate > index and ages[candidate] - age >= limits.minimum:
            slope = ages[candidate]
            offset = slope * cdf[candidate] - cumulated[candidate] + costs[candidate]
            while len(slopes) - best >= 2 and (offsets[-1] - offset) * (
                slopes[-2] - slopes[-1]
            ) >= (offsets[-2] - offsets[-1]) * (slopes[-1] - slope):
                slopes.pop()
                offsets.pop()
            slopes.append(slope)
            offsets.append(offset)
            candidate -= 1
        while best + 1 < len(slopes) and (
            offsets[best + 1] - slopes[best + 1] * ended <= offsets[best] - slopes[best] * ended
        ):
            best += 1
        if best < len(slopes):
            next_ages[index] = slopes[best]
            costs[index] = (
                cost_per_poll * (1.0 - ended)
                + cumulated[index]
                + offsets[best]
                - slopes[best] * ended
            )
        else:  # less than `minimum` before the last age: the next poll falls behind it
            next_ages[index] = age + limits.minimum
            costs[index] = cost_per_poll * (1.0 - ended)
    return next_ages


def _polls_by_age(ages: list[float], path: list[float]) -> list[float]:
    """Return how many polls of `path` come after age 0 and before each age, with fractions."""
    counts = []
    step = 0
    for age in ages:
        while step + 2 < len(path) and path[step + 1] <= age:
            step += 1
        counts.append(step + (age - path[step]) / (path[step + 1] - path[step]))
    return counts
