"""Items ordered by the time at which each is due."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

_EXACT = 1000
"""Up to this many items, each due time is kept as it is."""

_TICK = 0.005
"""Seconds to which due times are rounded where there are more items, so that many share one bucket:
an item then costs 45 bytes, and in a bucket of its own 300."""

_SLACK = 0.001
"""The part of a delay by which an item may be late, if that is more than a tick."""


class Schedule(Generic[T]):
    """Items in buckets by due time, and a heap of these times.

    To add and to remove an item takes the same time however many there are. Items of one bucket
    come out in the order in which they were added.
    """

    __slots__ = ("_buckets", "_early", "_front", "_front_due", "_heap", "_size")

    def __init__(self, *, early: bool = False) -> None:
        """Round due times up or, with `early`, down."""
        self._buckets: dict[float, tuple[float, dict[T, None]]] = {}
        """Each with its time once more: its items share this one float, of 24 bytes."""
        self._heap: list[float] = []
        """The times of `_buckets`, and of some that have been emptied."""
        self._front: dict[T, None] = {}
        """The bucket that is being emptied, last item first: `dict.popitem` takes the last."""
        self._front_due = -math.inf
        self._size = 0
        self._early = early

    def __len__(self) -> int:
        return self._size

    def add(self, item: T, when: float, delay: float = 0.0) -> float:
        """Schedule `item`, which must not be scheduled already.

        Args:
            item: what to schedule.
            when: the time at which it is due.
            delay: the seconds until then. The longer, the more `when` may be rounded.

        Returns:
            the time at which it is due, for `remove`.

        """
        if self._size >= _EXACT:
            when = self._rounded(when, delay)
        self._size += 1
        found = self._buckets.get(when)
        if found is None:
            self._buckets[when] = (when, {item: None})
            heapq.heappush(self._heap, when)
            return when
        due, bucket = found
        bucket[item] = None
        return due

    def _rounded(self, when: float, delay: float) -> float:
        tick = _TICK
        if delay * _SLACK > _TICK:
            # A power of two, so that ticks of different lengths coincide.
            tick = math.ldexp(_TICK, math.frexp(delay * _SLACK / _TICK)[1] - 1)
        return (math.floor if self._early else math.ceil)(when / tick) * tick

    def remove(self, item: T, due: float) -> None:
        """Remove `item`, which `add` said is due at `due`."""
        if due == self._front_due and item in self._front:
            del self._front[item]
        else:
            _, bucket = self._buckets[due]
            del bucket[item]
            if not bucket:
                del self._buckets[due]
                if len(self._heap) > 2 * len(self._buckets) + _EXACT:
                    self._heap = list(self._buckets)
                    heapq.heapify(self._heap)
        self._size -= 1

    def next_time(self) -> float:
        """Return the earliest due time; infinity if nothing is scheduled."""
        if self._front:
            return self._front_due
        heap = self._heap
        while heap and heap[0] not in self._buckets:
            heapq.heappop(heap)
        return heap[0] if heap else math.inf

    def pop(self, now: float) -> T | None:
        """Remove and return the item that has been due for longest; None if none is due."""
        if not self._front:
            due = self.next_time()
            if due > now or not self._buckets:
                return None
            _, bucket = self._buckets.pop(due)
            self._front = bucket if len(bucket) == 1 else dict.fromkeys(reversed(bucket))
            self._front_due = due
        self._size -= 1
        item = self._front.popitem()[0]
        if not self._front:
            self._front = {}  # an emptied dict keeps its size
        return item
