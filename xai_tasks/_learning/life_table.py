"""How long tasks take, estimated from what polls saw: a life table and the distribution it gives.

`LifeTable` counts, for each age, how many tasks were at risk of ending there and how many ended.
A `Distribution` is the estimate of durations that follows from the counts.
"""

from __future__ import annotations

import bisect
import math

from attrs import field, frozen

TAIL = 0.005
"""A distribution stops at the age by which all tasks but this share have ended."""
MEMORY = 150.0
"""The number of tasks at risk that each cell remembers; older ones fade."""
_CELLS = 640
"""Cells of age. Each is 1 % of (age + 5 intervals) wide, so 640 reach to 2,900 intervals."""
_WIDTH = math.log(1.01)
_PER_WIDTH = 1.0 / _WIDTH
_SCALE = 5.0
"""In intervals: up to about this age all cells are 1/20 of the interval wide."""
_MIN_AT_RISK = 0.2
"""Ages are left out where fewer than this share of the expected tasks were at risk."""
_MAX_SURVIVAL = 0.5
"""There is no distribution while more than this share of tasks outlives all known ages."""


class LifeTable:
    """
    Tasks at risk and tasks that ended, by age: the actuary's life table.

    The chance of ending at an age is the number of tasks that ended there, divided by the number
    at risk there. Tasks that are still running count for the ages at which they were seen, and so
    do tasks whose wait timed out (in statistics: censored ones). The ended tasks alone would be
    misleading: the first ends of a batch are its shortest tasks.
    """

    __slots__ = ("_ended", "_entered", "_survived", "_survived_changes", "_unit", "edges", "ends")

    def __init__(self, interval: float) -> None:
        self._unit = _SCALE * interval
        self.edges: list[float] = [
            self._unit * math.expm1(cell * _WIDTH) for cell in range(_CELLS + 1)
        ]
        self.ends: float = 0.0
        """The number of ends remembered, as of the last `distribution()`."""
        self._ended = [0.0] * _CELLS
        self._survived = [0.0] * _CELLS
        self._entered = [0.0] * (_CELLS + 1)
        # Survivors not yet in `_survived`, as differences between neighbouring cells: recording
        # a survival of any length costs four additions.
        self._survived_changes = [0.0] * (_CELLS + 1)

    def _position(self, age: float) -> float:
        """Return the index of the cell that `age` lies in, plus how far into the cell it lies."""
        return min(_CELLS - 1.0, math.log1p(age / self._unit) * _PER_WIDTH)

    def interpolate(self, values: list[float], age: float) -> float:
        """Return the value at `age`; `values` holds one for each edge, from the first edge on."""
        position = math.log1p(age / self._unit) * _PER_WIDTH
        cell = int(position)
        if cell >= len(values) - 1:
            return values[-1]
        value = values[cell]
        return value + (position - cell) * (values[cell + 1] - value)

    def record_entry(self, age: float) -> None:
        """Count a task whose first poll found it running at `age`."""
        self._entered[int(self._position(age))] += 1.0
        self.record_survival(0.0, age)

    def record_survival(self, first: float, last: float) -> None:
        """Count a task that did not end between the ages `first` and `last`."""
        self._change_survived(self._position(first), 1.0)
        self._change_survived(self._position(last), -1.0)

    def record_end(self, seen: float, first: float, last: float) -> None:
        """Count a task last seen running at age `seen`, that ended between `first` and `last`."""
        cells = range(int(self._position(first)), int(self._position(last)) + 1)
        self._change_survived(min(self._position(seen), cells[0]), 1.0)
        for cell in cells:
            self._ended[cell] += 1.0 / len(cells)
            self._survived_changes[cell] -= 1.0 / len(cells)

    def _change_survived(self, position: float, number: float) -> None:
        # A cell counts in part where a poll fell inside it. The next poll covers the rest,
        # together with the tasks that end there.
        cell = int(position)
        self._survived_changes[cell] += number * (cell + 1 - position)
        self._survived_changes[cell + 1] += number * (position - cell)

    def distribution(self) -> Distribution | None:
        """Estimate how durations are distributed, smoothed; None while too little is known."""
        self._fold()
        pmf, survival = self._kaplan_meier()
        if survival > _MAX_SURVIVAL:
            return None
        pmf = _smooth(pmf, _half_width(pmf, self.ends), padded=survival < TAIL)
        # The next task may end where none has ended yet. So one part in n + 1 goes to an
        # exponential distribution: what is known of a task if only the mean is.
        uncertainty = 1.0 / (self.ends + 1.0)
        edges = self.edges
        mean = sum(mass * edges[cell + 1] for cell, mass in enumerate(pmf)) / sum(pmf)
        exponential = [math.exp(-edge / mean) for edge in edges[: len(pmf) + 1]]
        return distribution_of(
            self,
            [
                (1.0 - uncertainty) * mass
                + uncertainty * (exponential[cell] - exponential[cell + 1])
                for cell, mass in enumerate(pmf)
            ],
            self._entered if any(self._entered) else [1.0, *self._entered[1:]],
        )

    def _fold(self) -> None:
        """Add the survivors since the last call; fade cells that remember over `MEMORY` tasks."""
        survived = 0.0
        for cell, change in enumerate(self._survived_changes[:-1]):
            survived += change
            self._survived[cell] += max(0.0, survived)
            at_risk = self._survived[cell] + self._ended[cell]
            if at_risk > MEMORY:
                self._survived[cell] *= MEMORY / at_risk
                self._ended[cell] *= MEMORY / at_risk
        self._survived_changes = [0.0] * (_CELLS + 1)
        self.ends = sum(self._ended)
        entered = sum(self._entered)
        if entered > MEMORY:
            self._entered = [number * MEMORY / entered for number in self._entered]

    def _kaplan_meier(self) -> tuple[list[float], float]:
        """Return the pmf, cell by cell up to the last known one, and the survival after it."""
        pmf: list[float] = []
        survival = 1.0
        last = max((cell for cell, ended in enumerate(self._ended) if ended), default=-1)
        required = _MIN_AT_RISK * (self._survived[0] + self._ended[0])
        for ended, survived in zip(
            self._ended[: last + 1], self._survived[: last + 1], strict=True
        ):
            at_risk = ended + survived
            # In a batch under way only a few tasks have reached the highest ages yet.
            # A chance taken from so few would be far off.
            if survival > TAIL and at_risk < required * survival:
                break
            mass = survival * ended / at_risk if ended else 0.0
            pmf.append(mass)
            survival -= mass
        return pmf, survival


@frozen(eq=False)
class Distribution:
    """How durations are distributed, at the edges of a life table's cells."""

    table: LifeTable = field(repr=False)
    ages: list[float]
    """The edges, up to the age by which all tasks but `TAIL` have ended, if that is known."""
    cdf: list[float]
    """The share of tasks that have ended by each age."""
    cumulated: list[float]
    """The pmf times the duration, summed up to each age: the mean is built from it."""
    waiting: list[float]
    """The share of tasks that are being polled at each age.

    This is less than the survival where first polls come late.
    """

    @property
    def mean(self) -> float:
        """The mean duration; tasks that outlive the last age count up to it."""
        return self.cumulated[-1] + (1.0 - self.cdf[-1]) * self.ages[-1]

    def median_remaining(self, age: float) -> float:
        """
        Return the median time left, in seconds, of a task that has not ended at `age`.

        `age` plus the time left never falls as `age` rises. Where half of the tasks left outlive
        the last age, the time left grows in proportion to the age, as in a heavy tail: slowly, so
        that a task which takes unusually long makes no number jump.
        """
        end, tail = self.ages[-1], 1.0 - self.cdf[-1]
        known = self._age_at(1.0 - 2.0 * tail)
        if age < known:
            survival = 1.0 - self.table.interpolate(self.cdf, age)
            return max(0.0, self._age_at(1.0 - survival / 2.0) - age)
        left = end - known
        growth = left / known if left < known else 1.0
        return max(left + growth * (age - known), age - end)

    def _age_at(self, share: float) -> float:
        """Return the age by which `share` of all tasks have ended."""
        cell = min(bisect.bisect_left(self.cdf, share), len(self.cdf) - 1) - 1
        if cell < 0:
            return 0.0
        before, after = self.cdf[cell], self.cdf[cell + 1]
        part = min(1.0, (share - before) / (after - before))
        return self.ages[cell] + part * (self.ages[cell + 1] - self.ages[cell])


def distribution_of(table: LifeTable, pmf: list[float], entered: list[float]) -> Distribution:
    """
    Build a distribution from its probabilities.

    Args:
        table: Its cells are those of `pmf` and `entered`.
        pmf: The share of tasks that end in each cell.
        entered: The number of first polls made in each cell; one item more than `pmf` at least.

    """
    cdf = [0.0]
    cumulated = [0.0]
    polled = sum(entered)
    present = entered[0] / polled
    waiting = [present]
    for cell, mass in enumerate(pmf):
        cdf.append(cdf[-1] + mass)
        cumulated.append(cumulated[-1] + mass * (table.edges[cell] + table.edges[cell + 1]) / 2)
        if cdf[-1] >= 1.0 - TAIL:
            break
        present += entered[cell + 1] / polled / (1.0 - cdf[-1])
        waiting.append((1.0 - cdf[-1]) * present)
    waiting += [0.0] * (len(cdf) - len(waiting))
    return Distribution(table, table.edges[: len(cdf)], cdf, cumulated, waiting)


def _half_width(pmf: list[float], ends: float) -> int:
    """
    Return by how many cells to smooth to either side: Silverman's rule.

    It takes the smaller of the standard deviation and the distance between the quartiles.
    """
    total = sum(pmf)
    mean = sum(cell * mass for cell, mass in enumerate(pmf)) / total
    deviation = math.sqrt(sum((cell - mean) ** 2 * mass for cell, mass in enumerate(pmf)) / total)
    quartiles: list[int] = []
    targets = [0.25 * total, 0.75 * total]
    cumulated = 0.0
    for cell, mass in enumerate(pmf):
        cumulated += mass
        while len(quartiles) < 2 and cumulated >= targets[len(quartiles)]:
            quartiles.append(cell)
    spread = min(deviation, (quartiles[1] - quartiles[0]) / 1.34)
    bandwidth = 0.9 * spread * max(1.0, ends) ** -0.2
    # Three moving averages over 2h + 1 cells together have the variance h (h + 1).
    return max(1, round((math.sqrt(4.0 * bandwidth**2 + 1.0) - 1.0) / 2.0))


def _smooth(pmf: list[float], half: int, *, padded: bool) -> list[float]:
    """Average three times over `half` cells to either side; age 0 reflects what would pass it."""
    size = min(_CELLS, len(pmf) + 3 * half) if padded else len(pmf)
    smooth = pmf + [0.0] * (size - len(pmf))
    for _ in range(3):
        mirrored = [*smooth[:half][::-1], *smooth, *[0.0] * (half + 1)]
        mirrored = [0.0] * (size + 2 * half + 1 - len(mirrored)) + mirrored
        window = sum(mirrored[: 2 * half + 1])
        averages = []
        for cell in range(size):
            averages.append(window / (2 * half + 1))
            window += mirrored[cell + 2 * half + 1] - mirrored[cell]
        smooth = averages
    return smooth
