from __future__ import annotations

import math

from xai_tasks._limits.in_flight_finder import InFlightFinder


def found(limit=5):
    """Build a finder that has found a limit and had it confirmed."""
    finder = InFlightFinder()
    for time in range(4):
        for level in range(1, limit + 1):
            for _ in range(50):
                finder.accepted(float(time), level)
        assert finder.limit == math.inf
        voids = finder.refused(float(time), limit + 1, new=True)
    assert voids
    assert finder.limit == limit
    for _ in range(200):
        finder.accepted(5.0, 1)
    return finder


def test_a_limit_is_found_where_refusals_come_above_what_is_accepted():
    assert found().limit == 5


def test_the_least_number_of_a_pause_counts():
    finder = InFlightFinder()
    finder.refused(0.0, 9, new=False)
    for time in range(3):
        finder.accepted(float(time), 5)
        finder.refused(float(time), 9, new=True)
        finder.refused(float(time), 7, new=False)
    assert finder.limit == math.inf

    finder.refused(9.0, 9, new=True)

    assert finder.limit == 6


def test_a_limit_on_the_rate_is_not_taken_for_one():
    finder = InFlightFinder()

    for time in range(10):
        for level in (1, 2, 3, 4):
            finder.accepted(float(time), level)
        assert not finder.refused(float(time), 2, new=True)

    assert finder.limit == math.inf


def test_a_refusal_soon_after_proves_it_wrong():
    finder = InFlightFinder()
    for time in range(4):
        finder.accepted(float(time), 5)
        finder.refused(float(time), 6, new=True)
    assert finder.limit == 5

    assert finder.refused(5.0, 5, new=True)
    assert finder.limit == math.inf

    for time in range(6, 500):
        finder.refused(float(time), 6, new=True)
        assert finder.limit == math.inf


def test_refusals_of_what_was_in_flight_say_nothing_more():
    finder = found()

    assert not finder.refused(6.0, 5, new=False)

    assert finder.limit == 5


def test_one_more_is_tried_from_time_to_time_and_taken_back_when_refused():
    finder = found()
    finder.accepted(14.0, 5)
    assert finder.limit == 6

    assert finder.refused(15.0, 6, new=True)
    assert finder.limit == 5

    finder.accepted(26.0, 5)
    assert finder.limit == 5
    finder.accepted(36.0, 5)
    assert finder.limit == 6


def test_refusals_far_below_it_are_of_another_kind():
    finder = found()

    assert finder.refused(6.0, 1, new=True)

    assert finder.limit == math.inf
