from __future__ import annotations

import pytest

from xai_tasks._polling.stops import Stops


def test_a_timer_that_is_far_too_late_shows_a_stop():
    stops = Stops()

    stops.observe(due=100.0, now=105.0)

    assert [stops.cover(moment) for moment in (99.9, 100.0, 103.0, 105.0, 105.1)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert stops.end == 105.0


@pytest.mark.parametrize("late", [0.0, 0.1, 0.25])
def test_a_timer_that_is_a_little_late_shows_none(late):
    stops = Stops()

    stops.observe(due=100.0, now=100.0 + late)

    assert not stops.cover(100.0)


def test_slices_of_long_work_after_a_timer_show_none():
    stops = Stops()

    for n in range(100):
        stops.observe(due=100.0, now=100.0 + n / 10)

    assert not stops.cover(100.0)
