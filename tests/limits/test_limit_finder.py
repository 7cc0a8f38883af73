from __future__ import annotations

import math

from xai_tasks._limits.limit_finder import LimitFinder


def run(finder, start, pattern, *, in_flight=1, status=429, pause=0.1):
    """Play answers a tenth of a second apart; give the time and what each refusal was taken for."""
    now, taken = start, []
    for one in pattern:
        now += 0.1
        if one == ".":
            finder.accepted(now, now - 0.01, in_flight)
        else:
            taken.append(finder.refused(now, now - 0.01, pause, in_flight, status))
            now += pause
        finder.pace(now)
    return now, taken


def test_a_refusal_is_a_limit_on_the_rate_at_first():
    finder = LimitFinder()

    _, taken = run(finder, 0.0, "....x")

    assert taken == [True]
    assert finder.rate < math.inf
    assert finder.burst >= 1
    assert finder.max_in_flight == math.inf


def test_refusals_that_come_at_any_rate_are_none():
    finder = LimitFinder()

    _, taken = run(finder, 0.0, "..x" * 12)

    assert taken[0]
    assert not taken[-1]
    assert finder.rate == math.inf


def test_503s_and_429s_are_tested_apart():
    finder = LimitFinder()
    now, _ = run(finder, 0.0, "..x" * 12, status=503)

    _, taken = run(finder, now, "..x", status=429)

    assert taken == [True]
    assert finder.rate < math.inf
    assert run(finder, now + 10, "..x", status=503)[1] == [False]


def test_one_of_two_kinds_that_proves_no_limit_leaves_what_the_other_taught():
    finder = LimitFinder()
    now, _ = run(finder, 0.0, "..x", status=429)

    _, taken = run(finder, now, "..x" * 12, status=503)

    assert not taken[-1]
    assert finder.rate < math.inf


def test_a_limit_on_requests_in_flight_replaces_one_on_the_rate():
    finder = LimitFinder()
    now = 0.0

    for _ in range(4):
        now, _ = run(finder, now, "." * 40, in_flight=3)
        now, _ = run(finder, now, "x", in_flight=6)

    assert finder.max_in_flight == 5
    assert finder.rate == math.inf


def test_requests_are_answered_if_one_was_shortly_before():
    finder = LimitFinder()
    assert not finder.is_answered(0.0)

    finder.accepted(1.0, 0.9, 1)

    assert finder.is_answered(0.5)
    assert finder.is_answered(1.4)
    assert not finder.is_answered(1.6)
