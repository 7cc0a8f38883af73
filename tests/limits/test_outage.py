from __future__ import annotations

import math

import pytest
from fakes import refused

from xai_tasks import APIConnectionError
from xai_tasks._limits.outage import Outage


def failing(outage, times, now=0.0):
    return [outage.failed(refused("a"), now, probe=False) for _ in range(times)]


def test_outage_begins_with_the_tenth_failure_in_a_row():
    outage = Outage()

    began = failing(outage, 10, now=7.0)

    assert began == [False] * 9 + [True]
    assert outage.since == 7.0


def test_an_answer_in_between_starts_the_count_anew():
    outage = Outage()
    failing(outage, 9)

    assert outage.answered() is False
    assert failing(outage, 9) == [False] * 9
    assert outage.since is None
    assert failing(outage, 1) == [True]


def test_no_poll_is_held_back_outside_an_outage():
    outage = Outage()
    failing(outage, 9)

    assert outage.delay(0.0) == 0.0


def test_probes_are_due_after_half_a_second_and_double_up_to_fifteen():
    outage = Outage()
    now = 100.0
    failing(outage, 10, now)
    distances = []

    for _ in range(8):
        distances.append(outage.delay(now))
        now += outage.delay(now)
        assert outage.delay(now) <= 0
        outage.failed(refused("a"), now, probe=True)

    assert distances == [0.5, 1, 2, 4, 8, 15, 15, 15]


def test_failures_of_others_than_the_probe_do_not_put_the_next_probe_off():
    outage = Outage()
    failing(outage, 10, now=100.0)

    assert failing(outage, 100, now=100.3) == [False] * 100
    assert outage.delay(100.3) == pytest.approx(0.2)


def test_while_a_probe_is_under_way_there_is_no_other():
    outage = Outage()
    failing(outage, 10, now=100.0)

    outage.probing = True

    assert outage.delay(1000.0) == math.inf


def test_the_last_error_is_kept_without_the_frames_that_it_goes_through():
    outage = Outage()
    failing(outage, 10)
    last = refused("b")

    outage.failed(last, 0.0, probe=False)
    with pytest.raises(APIConnectionError):
        raise last

    assert str(outage.error) == str(last)
    assert outage.error.__traceback__ is None


def test_the_answer_that_ends_an_outage_says_so_once():
    outage = Outage()
    failing(outage, 10)

    assert outage.answered() is True
    assert outage.since is None
    assert outage.delay(0.0) == 0.0
    assert outage.answered() is False


def test_a_second_outage_begins_as_the_first_did():
    outage = Outage()
    failing(outage, 10, now=100.0)
    outage.failed(refused("a"), 100.5, probe=True)
    outage.answered()

    assert failing(outage, 10, now=200.0)[-1] is True
    assert outage.since == 200.0
    assert outage.delay(200.0) == 0.5
