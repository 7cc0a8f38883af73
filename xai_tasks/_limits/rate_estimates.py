"""Estimate a server's limit from what it accepted.

The server is taken to be a token bucket: R requests a second, and up to B at once. In a stretch of
w seconds it accepts A(w) <= B + R*w. It accepts that many, less a part of one request, if the
stretch begins with a full bucket and ends with a refusal. So

- the burst accepted up to the first refusal, when nothing is paced yet, is B;
- (A(w) - B) / w is at most R for each stretch that ends with a refusal, and the greatest of them
  is R, but for a part of a request;
- from one refusal, which found the bucket empty, to another, A(w) / w is at most R, whatever B is.

Other servers are not quite buckets: windows, or limits that several clients share. What they accept
bounds them in the same way.
"""

from __future__ import annotations

from typing import NamedTuple

from xai_tasks._limits.rate_meter import Stretch

__all__ = ["JITTER", "SLOWEST", "Estimate", "estimate_ceiling", "estimate_start"]

JITTER = 0.002
"""Seconds by which answers may bunch up: a late timer of the event loop, there and back."""
SLOWEST = 1 / 20
"""Requests per second, however often the server refuses: a change is noticed within a minute."""


class Estimate(NamedTuple):
    """The greatest lower bound of R."""

    rate: float
    seconds: float
    """The length of the stretch that decided it."""
    uncertainty: float
    """The part by which it may be too low."""


def estimate_start(stretches: list[Stretch], pause: float) -> tuple[float, float]:
    """Return rate and burst to begin with after the first refusal.

    The rate is twice what the server would have given if the burst had been all of it, and the
    pause its price.
    """
    whole, width = stretches[0]
    rate = max(min(1.0, 2 / pause), *(got / (width + pause / 2) for got, width in stretches))
    # Only what was sustained for a while may be taken off the burst; a short burst was all burst.
    sustained = max(
        (got / width for got, width in stretches if width >= 0.5), default=whole / (width + 1.0)
    )
    return rate, max(1.0, *(got - sustained * width for got, width in stretches))


def estimate_ceiling(
    stretches: list[Stretch], burst: float, between_refusals: Stretch | None
) -> Estimate:
    """Return what bounds R best, by the stretches that end with a refusal."""
    best = Estimate(SLOWEST, 1.0, 1.0)
    for got, seconds in stretches:
        width = seconds + JITTER
        if (rate := (got - burst) / width) > best.rate:
            best = Estimate(rate, width, 1 / (got - burst) + JITTER / width)
    if between_refusals is not None:
        got, width = between_refusals
        if got / width > best.rate:
            best = Estimate(got / width, width, 1 / got + JITTER / width)
    return best
