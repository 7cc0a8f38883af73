"""How long made-up tasks take: small seeded distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import TypeAlias

Duration: TypeAlias = Callable[[Random], float]
"""A function that draws a time in seconds, >= 0, with the random generator it is given."""


def constant(seconds: float) -> Duration:
    """Return a `Duration` that is always `seconds` (>= 0)."""
    _check(seconds >= 0, f"seconds must be >= 0, not {seconds!r}")
    return lambda _random: seconds


def uniform(low: float, high: float) -> Duration:
    """Return a uniform `Duration` from `low` to `high` seconds; 0 <= low <= high."""
    _check(0 <= low <= high, f"need 0 <= low <= high, not {low!r} and {high!r}")
    return lambda random: random.uniform(low, high)


def lognormal(median: float, sigma: float) -> Duration:
    """Return a `Duration` near `median` seconds with a long tail, as generation jobs have.

    Args:
        median: half of the tasks take less than this many seconds; > 0.
        sigma: the spread, as the standard deviation of the duration's logarithm; >= 0.
            With 0.5, about one task in six takes longer than 1.65 medians (e to the sigma).

    """
    _check(median > 0, f"median must be > 0, not {median!r}")
    _check(sigma >= 0, f"sigma must be >= 0, not {sigma!r}")
    mu = math.log(median)
    return lambda random: random.lognormvariate(mu, sigma)


_FORMS: dict[str, tuple[Callable[..., Duration], int]] = {
    "constant": (constant, 1),
    "uniform": (uniform, 2),
    "lognormal": (lognormal, 2),
}


def parse_duration(text: str) -> Duration:
    """Parse a duration as written on a command line.

    Args:
        text: `constant:5`, `uniform:1:10` or `lognormal:45:0.5`; the numbers are the arguments of
            the function of that name.

    Raises:
        ValueError: the text has another form, or a number is out of range.

    """
    name, *numbers = text.split(":")
    make, wanted = _FORMS.get(name, (None, 0))
    if make is None or len(numbers) != wanted:
        raise ValueError(
            f"{text!r} must be constant:SECONDS, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA"
        )
    return make(*map(float, numbers))


def _check(holds: bool, message: str) -> None:
    if not holds:  # NaN compares false, so it ends here too
        raise ValueError(message)
