from __future__ import annotations

import statistics
from random import Random

import pytest

from xai_tasks.testing import constant, lognormal, parse_duration, uniform


def draws(duration, n=5_000):
    random = Random(1)
    return [duration(random) for _ in range(n)]


def test_constant_is_always_the_same():
    assert set(draws(constant(2.5))) == {2.5}


def test_uniform_fills_its_range():
    drawn = draws(uniform(2, 4))

    assert 2 <= min(drawn) < 2.01
    assert 3.99 < max(drawn) <= 4
    assert statistics.mean(drawn) == pytest.approx(3, abs=0.05)


def test_lognormal_has_its_median_and_its_tail():
    drawn = draws(lognormal(45, 0.5))

    assert statistics.median(drawn) == pytest.approx(45, rel=0.05)
    # A sixth lies beyond one standard deviation of the logarithm: e to the 0.5 is 1.65.
    assert sum(seconds > 45 * 1.65 for seconds in drawn) / len(drawn) == pytest.approx(
        0.16, abs=0.02
    )


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("constant:5", constant(5)),
        ("uniform:1:10", uniform(1, 10)),
        ("lognormal:45:0.5", lognormal(45, 0.5)),
    ],
)
def test_parse_duration_reads_what_the_functions_take(text, duration):
    assert draws(parse_duration(text), 10) == draws(duration, 10)


@pytest.mark.parametrize(
    "text", ["", "5", "constant", "constant:1:2", "gauss:1:2", "uniform:1", "uniform:1:x"]
)
def test_parse_duration_refuses_other_texts(text):
    with pytest.raises(ValueError, match="must be constant|could not convert"):
        parse_duration(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: constant(-1),
        lambda: constant(float("nan")),
        lambda: uniform(2, 1),
        lambda: uniform(-1, 1),
        lambda: lognormal(0, 1),
        lambda: lognormal(1, -1),
        lambda: parse_duration("constant:nan"),
    ],
)
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="must be|need"):
        make()
