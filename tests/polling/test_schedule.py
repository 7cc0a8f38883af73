from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from xai_tasks._polling.schedule import _EXACT, _TICK, Schedule


def drain(schedule, now=math.inf):
    items = []
    while (item := schedule.pop(now)) is not None:
        items.append(item)
    return items


def test_what_is_due_comes_out_in_the_order_of_its_time():
    schedule = Schedule()
    for item, when in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("d", 4.0)):
        schedule.add(item, when)

    assert drain(schedule, now=3.0) == ["a", "b", "c"]
    assert (len(schedule), schedule.next_time()) == (1, 4.0)


def test_items_of_one_moment_come_out_in_the_order_in_which_they_were_added():
    schedule = Schedule()
    for n in range(100):
        schedule.add(n, 1.0)

    assert drain(schedule) == list(range(100))


def test_an_item_added_for_the_moment_that_is_being_emptied_comes_last():
    schedule = Schedule()
    for n in range(3):
        schedule.add(n, 1.0)
    assert schedule.pop(1.0) == 0

    schedule.add("late", 1.0)

    assert drain(schedule) == [1, 2, "late"]


@pytest.mark.parametrize("where", ["in its bucket", "in the bucket that is being emptied"])
def test_a_removed_item_does_not_come_out(where):
    schedule = Schedule()
    due = [schedule.add(n, 1.0) for n in range(4)]
    if where != "in its bucket":
        schedule.pop(1.0)

    schedule.remove(2, due[2])

    assert 2 not in drain(schedule)
    assert len(schedule) == 0
    assert schedule.next_time() == math.inf


def test_nothing_is_due_before_its_time():
    schedule = Schedule()
    schedule.add("a", 1.0)

    assert schedule.pop(0.999) is None


@pytest.mark.parametrize("early", [False, True])
def test_many_items_share_buckets_whose_time_is_rounded(early):
    schedule = Schedule(early=early)
    for n in range(_EXACT):
        assert schedule.add(n, n / 7) == n / 7

    due = schedule.add("rounded", 3.0012)

    assert abs(due - 3.0012) <= _TICK
    assert (due < 3.0012) is early
    schedule.remove("rounded", due)
    assert len(schedule) == _EXACT


def test_times_that_were_emptied_do_not_pile_up():
    schedule = Schedule()
    schedule.add("kept", 1e9)

    for n in range(100_000):
        schedule.remove(n, schedule.add(n, n / 3))

    assert len(schedule._heap) <= 2 * _EXACT
    assert schedule.next_time() == 1e9


class Machine(RuleBasedStateMachine):
    """Holds a schedule against a sorted list."""

    def __init__(self):
        super().__init__()
        self.schedule = Schedule()
        self.items = {}
        self.serial = 0
        self.now = 0.0

    @rule(delay=st.floats(-5, 100), copies=st.integers(1, 3))
    def add(self, delay, copies):
        for _ in range(copies):
            self.serial += 1
            self.items[self.serial] = self.schedule.add(self.serial, self.now + delay)

    @rule(data=st.data())
    def remove(self, data):
        if self.items:
            item = data.draw(st.sampled_from(sorted(self.items)))
            self.schedule.remove(item, self.items.pop(item))

    @rule(seconds=st.floats(0, 50), most=st.integers(0, 5))
    def pop(self, seconds, most):
        self.now += seconds
        for _ in range(most):
            item = self.schedule.pop(self.now)
            due = sorted(when for when in self.items.values() if when <= self.now)
            if item is None:
                assert due == []
                break
            assert self.items.pop(item) <= self.now

    @invariant()
    def nothing_is_lost(self):
        assert len(self.schedule) == len(self.items)
        assert (self.schedule.next_time() == math.inf) == (not self.items)
        assert self.schedule.next_time() >= min(self.items.values(), default=math.inf)


TestMachine = Machine.TestCase


@given(st.lists(st.floats(0, 1000), max_size=50))
def test_all_that_goes_in_comes_out_sorted(times):
    schedule = Schedule()
    for n, when in enumerate(times):
        schedule.add((n, when), when)

    found = drain(schedule)

    assert [when for _, when in found] == sorted(times)
    assert sorted(found) == list(enumerate(times))
