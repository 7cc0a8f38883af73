"""What `wait_adaptive` knows: how durations are spread, and where polls find their ends soonest.

`LifeTable` remembers, for each age, how many tasks got that far and how many ended there. A `Curve` is what follows from it for
a task of which nothing is known, and a `Plan` places polls over its ages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

_CELLS = 640
"""Cells of age in a life table. Each is 1 % of (age + 5 intervals) wide, so that they reach to 2,900 intervals: 4 hours at 5 s."""
_WIDTH = math.log(1.01)
_PER_WIDTH = 1.0 / _WIDTH
_SCALE = 5.0
"""The age in intervals up to which cells are about equally wide, at 1/20 of the interval."""
MEMORY = 150.0
"""Of how many tasks, the last that came to an age, the table remembers what they did there."""
_TAIL = 0.005
"""The plan ends at the age by which all tasks but this share have ended."""
_WATCHED = 0.2
"""Ages are left out at which fewer than this share of the tasks expected there have been looked at."""
_UNKNOWN = 0.5
"""There is no plan while more than this share of tasks outlives all ages that are known."""
_THRIFT = 0.985
"""The part of the polls at `interval` that a plan may spend; jitter takes the rest."""
_CHEAPEST = 0.2
"""The least price of a poll, relative to the one at which `interval` would be best: when all tasks take
equally long, more polls than a few find nothing."""


class Limits(NamedTuple):
    """How often a strategy may poll, in seconds; each is described at `wait_adaptive`."""

    interval: float
    minimum: float
    maximum: float


class LifeTable:
    """
    Ends and survivors by age, as an actuary counts them.

    The chance of ending at an age is the number of tasks that ended there out of those that came there, whatever
    became of them later. So tasks that are still running, or that nobody waits for any more, count as far as they were seen; to look at
    ended ones alone would take the first ends of a batch for typical.
    """

    __slots__ = ("_changes", "_ended", "_entered", "_survived", "_unit", "edges", "ends")

    def __init__(self, interval: float) -> None:
        self._unit = _SCALE * interval
        self.edges = [self._unit * math.expm1(cell * _WIDTH) for cell in range(_CELLS + 1)]
        self.ends = 0.0
        """The number of ends remembered, as of the last `curve()`."""
        self._ended = [0.0] * _CELLS
        self._survived = [0.0] * _CELLS
        self._entered = [0.0] * (_CELLS + 1)
        # Survivors not yet in `_survived`, by the difference to the cell before: four additions for each look.
        self._changes = [0.0] * (_CELLS + 1)

    def _place(self, age: float) -> float:
        """Give the number of the cell in which `age` lies, and how far in it."""
        return min(_CELLS - 1.0, math.log1p(age / self._unit) * _PER_WIDTH)

    def interpolate(self, values: list[float], age: float) -> float:
        """Give what `values`, one for each edge from the first on, amounts to at `age`."""
        place = min(math.log1p(age / self._unit) * _PER_WIDTH, len(values) - 1.000001)
        cell = int(place)
        value = values[cell]
        return value + (place - cell) * (values[cell + 1] - value)

    def entered(self, age: float) -> None:
        """Count a task that was found running, at this age, by the first look at it."""
        self._entered[int(self._place(age))] += 1.0
        self.survived(0.0, age)

    def survived(self, first: float, last: float) -> None:
        """Count a task that did not end between the ages `first` and `last`."""
        self._change(self._place(first), 1.0)
        self._change(self._place(last), -1.0)

    def ended(self, seen: float, first: float, last: float) -> None:
        """Count a task that was last seen running at the age `seen` and ended between `first` and `last`."""
        cells = range(int(self._place(first)), int(self._place(last)) + 1)
        self._change(min(self._place(seen), cells[0]), 1.0)
        for cell in cells:
            self._ended[cell] += 1.0 / len(cells)
            self._changes[cell] -= 1.0 / len(cells)

    def _change(self, place: float, number: float) -> None:
        # Of a cell only the part counts that a look has covered: the rest of it is seen a poll later, along with those that end there.
        cell = int(place)
        self._changes[cell] += number * (cell + 1 - place)
        self._changes[cell + 1] += number * (place - cell)

    def curve(self) -> Curve | None:
        """Give how durations are spread, smoothed; None while too little is known."""
        self._fold()
        masses, left = self._masses()
        if left > _UNKNOWN:
            return None
        masses = _smooth(masses, _half_width(masses, self.ends), padded=left < _TAIL)
        # One task more, of which nothing is known but the mean: the next may end where none has yet.
        doubt = 1.0 / (self.ends + 1.0)
        edges = self.edges
        mean = sum(mass * edges[cell + 1] for cell, mass in enumerate(masses)) / sum(masses)
        fading = [math.exp(-edge / mean) for edge in edges[: len(masses) + 1]]
        return Curve(
            self,
            [
                (1.0 - doubt) * mass + doubt * (fading[cell] - fading[cell + 1])
                for cell, mass in enumerate(masses)
            ],
            self._entered if any(self._entered) else [1.0, *self._entered[1:]],
        )

    def _fold(self) -> None:
        """Add the survivors since the last time, and let cells with more than `MEMORY` tasks forget older ones."""
        survivors = 0.0
        for cell, change in enumerate(self._changes[:-1]):
            survivors += change
            self._survived[cell] += max(0.0, survivors)
            known = self._survived[cell] + self._ended[cell]
            if known > MEMORY:
                self._survived[cell] *= MEMORY / known
                self._ended[cell] *= MEMORY / known
        self._changes = [0.0] * (_CELLS + 1)
        self.ends = sum(self._ended)
        entered = sum(self._entered)
        if entered > MEMORY:
            self._entered = [number * MEMORY / entered for number in self._entered]

    def _masses(self) -> tuple[list[float], float]:
        """Give the share of tasks that end in each cell up to the last that is known, and the share left over (Kaplan-Meier)."""
        masses: list[float] = []
        left = 1.0
        last = max((cell for cell, ended in enumerate(self._ended) if ended), default=-1)
        watched = _WATCHED * (self._survived[0] + self._ended[0])
        for ended, survived in zip(
            self._ended[: last + 1], self._survived[: last + 1], strict=True
        ):
            # The first to reach an age are few; of a batch that is under way they would tell too much or nothing.
            if left > _TAIL and ended + survived < watched * left:
                break
            mass = left * ended / (ended + survived) if ended else 0.0
            masses.append(mass)
            left -= mass
        return masses, left


def _half_width(masses: list[float], ends: float) -> int:
    """Give by how many cells to smooth: Silverman's rule, of the smaller of standard deviation and quartiles' distance."""
    total = sum(masses)
    mean = sum(cell * mass for cell, mass in enumerate(masses)) / total
    deviation = math.sqrt(
        sum((cell - mean) ** 2 * mass for cell, mass in enumerate(masses)) / total
    )
    quartiles: list[int] = []
    sought = [0.25 * total, 0.75 * total]
    share = 0.0
    for cell, mass in enumerate(masses):
        share += mass
        while len(quartiles) < 2 and share >= sought[len(quartiles)]:
            quartiles.append(cell)
    bandwidth = 0.9 * min(deviation, (quartiles[1] - quartiles[0]) / 1.34) * max(1.0, ends) ** -0.2
    # Three averages over 2h + 1 cells have the variance h (h + 1).
    return max(1, round((math.sqrt(4.0 * bandwidth**2 + 1.0) - 1.0) / 2.0))


def _smooth(masses: list[float], half: int, *, padded: bool) -> list[float]:
    """Average three times over `half` cells to either side; what would fall below age 0 is thrown back."""
    size = min(_CELLS, len(masses) + 3 * half) if padded else len(masses)
    masses = masses + [0.0] * (size - len(masses))
    for _ in range(3):
        mirrored = [*masses[:half][::-1], *masses, *[0.0] * (half + 1)]
        mirrored = [0.0] * (size + 2 * half + 1 - len(mirrored)) + mirrored
        window = sum(mirrored[: 2 * half + 1])
        averages = []
        for cell in range(size):
            averages.append(window / (2 * half + 1))
            window += mirrored[cell + 2 * half + 1] - mirrored[cell]
        masses = averages
    return masses


class Curve:
    """How durations are spread, at each edge of a life table's first cells."""

    __slots__ = ("ages", "shares", "sums", "table", "waiting")

    def __init__(self, table: LifeTable, masses: list[float], entered: list[float]) -> None:
        """Add up the tasks that end in each cell, out of one, until nearly all have, and the first looks made in each."""
        self.table = table
        self.shares = [0.0]
        """The share of tasks that have ended by then."""
        self.sums = [0.0]
        """The sum of their durations, for each task."""
        looks = sum(entered)
        present = entered[0] / looks
        self.waiting = [present]
        """The share of tasks that are then being waited for: less than have not ended, where first looks come late."""
        for cell, mass in enumerate(masses):
            self.shares.append(self.shares[-1] + mass)
            self.sums.append(self.sums[-1] + mass * (table.edges[cell] + table.edges[cell + 1]) / 2)
            if self.shares[-1] >= 1.0 - _TAIL:
                break
            present += entered[cell + 1] / looks / (1.0 - self.shares[-1])
            self.waiting.append((1.0 - self.shares[-1]) * present)
        self.waiting += [0.0] * (len(self.shares) - len(self.waiting))
        self.ages = table.edges[: len(self.shares)]

    @property
    def mean(self) -> float:
        """The mean duration, in which those that have not ended by the last age count up to there."""
        return self.sums[-1] + (1.0 - self.shares[-1]) * self.ages[-1]

    def polls(self, step: Callable[[float], float]) -> tuple[float, list[float]]:
        """Give how many polls a wait has on average until the last age, and at which ages, if `step` leads to each from the one before."""
        age, polls, path = 0.0, 0.0, [0.0]
        while age < self.ages[-1]:
            polls += self.table.interpolate(self.waiting, age)
            age = step(age)
            path.append(age)
        return polls, path


class _Trial(NamedTuple):
    """What a price of a poll leads to."""

    price: float
    following: list[float]
    polls: float
    path: list[float]


class Plan:
    """
    Where to poll next from each age, at the least expected delay for the polls that may be spent.

    That is the least of delay + price x polls, with the price found by trial.
    """

    __slots__ = ("_next", "_polls", "_table", "end", "price")

    def __init__(self, curve: Curve, limits: Limits, price: float | None) -> None:
        """Plan for `curve`, trying first the `price` of the plan before."""
        self._table = curve.table
        self.end = curve.ages[-1]
        """The age up to which there is a plan."""
        evenly, _ = curve.polls(lambda age: age + limits.interval)
        # Whoever is there from the first needs one poll at least; and where all come late there may be none to share out.
        allowance = max(0.05, curve.waiting[0], _THRIFT * evenly)
        # Even gaps of `interval` are best, at this price, where ends are equally likely at any time.
        floor = _CHEAPEST * limits.interval**2 / (2.0 * curve.mean)
        price = max(floor, price or floor / _CHEAPEST)
        low, high = 0.0, math.inf
        chosen = trial = self._try(curve, price, limits)
        for _ in range(4):
            if trial.polls > allowance:
                low = trial.price
            else:
                high = trial.price
            if 0.99 * allowance <= trial.polls <= allowance or high == floor or high < 1.05 * low:
                break
            # Polls fall about as the root of the price.
            price = max(floor, price * (trial.polls / allowance) ** 2)
            if not low < price < high:
                price = math.sqrt(max(low, floor) * high) if high < math.inf else 2.0 * low
            trial = self._try(curve, price, limits)
            if trial.polls <= allowance or high == math.inf:
                chosen = trial
        self.price = chosen.price
        self._next = chosen.following
        self._polls = _counts(curve.ages, chosen.path)

    def _try(self, curve: Curve, price: float, limits: Limits) -> _Trial:
        following = _cheapest(curve, price, limits)

        def step(age: float) -> float:
            gap = self._table.interpolate(following, age) - age
            return age + min(limits.maximum, max(limits.minimum, gap))

        return _Trial(price, following, *curve.polls(step))

    def next_poll(self, age: float) -> float:
        """Give the age at which to poll next a task that has just been polled at `age`."""
        return self._table.interpolate(self._next, age)

    def polls_between(self, first: float, last: float) -> float:
        """Give how many polls the plan has between two ages."""
        interpolate = self._table.interpolate
        return interpolate(self._polls, last) - interpolate(self._polls, max(0.0, first))


def _cheapest(curve: Curve, price: float, limits: Limits) -> list[float]:
    """
    Give for each of the curve's ages the age of the next poll that makes the rest of the way cheapest.

    The cost of polling next at age b, from age a, is price x unended(a), plus the delay of those that end between, which is
    b x (shares(b) - shares(a)) - (sums(b) - sums(a)), plus the cost from b on. But for terms that depend on a alone it is a line in
    shares(a) with the slope -b. So the candidates are lines of which only their lower hull matters, and as
    shares(a) falls from one age to the one before, the best of them only moves towards earlier ages.
    """
    ages, shares, sums = curve.ages, curve.shares, curve.sums
    last = len(ages) - 1
    following = [0.0] * last + [ages[last] + limits.interval]
    costs = [0.0] * (last + 1)
    slopes: list[float] = []
    offsets: list[float] = []
    best = 0
    candidate = last
    for place in range(last - 1, -1, -1):
        age, share = ages[place], shares[place]
        while candidate > place and ages[candidate] - age >= limits.minimum:
            slope = ages[candidate]
            offset = slope * shares[candidate] - sums[candidate] + costs[candidate]
            while len(slopes) - best >= 2 and (offsets[-1] - offset) * (
                slopes[-2] - slopes[-1]
            ) >= (offsets[-2] - offsets[-1]) * (slopes[-1] - slope):
                slopes.pop()
                offsets.pop()
            slopes.append(slope)
            offsets.append(offset)
            candidate -= 1
        while best + 1 < len(slopes) and (
            offsets[best + 1] - slopes[best + 1] * share <= offsets[best] - slopes[best] * share
        ):
            best += 1
        if best < len(slopes):
            following[place] = slopes[best]
            costs[place] = (
                price * (1.0 - share) + sums[place] + offsets[best] - slopes[best] * share
            )
        else:  # so near the end that the next poll falls behind it
            following[place] = age + limits.minimum
            costs[place] = price * (1.0 - share)
    return following


def _counts(ages: list[float], path: list[float]) -> list[float]:
    """Give how many of the polls on `path`, which begins at 0, come before each age, and what part of the way to the next."""
    counts = []
    step = 0
    for age in ages:
        while step + 2 < len(path) and path[step + 1] <= age:
            step += 1
        counts.append(step + (age - path[step]) / (path[step + 1] - path[step]))
    return counts
