"""Rows of `tests/benchmarks/limit_targets.py` that take little time: what each mechanism is for."""

from __future__ import annotations

import pytest
from limit_simulation import (
    Concurrency,
    FixedWindow,
    Nginx,
    Noise,
    OneBadId,
    RandomFaults,
    Server,
    Throttler,
    TokenBucket,
    Trouble,
    jain,
    simulate,
)

FAR = Noise(latency=(0.05, 0.06))


def share(runs, limit, start, end):
    """Return what is used of the limit and what is refused, between two times."""
    accepted = sum(run.accepted_rate(start, end) for run in runs)
    rejects = sum(start <= time < end for run in runs for time in run.rejects)
    return accepted / limit, rejects / (rejects + accepted * (end - start))


@pytest.mark.parametrize(
    ("server", "limit", "start", "least", "most"),
    [
        (lambda: TokenBucket(50, 1), 50, 30, 0.86, 0.02),
        (lambda: TokenBucket(20, 6), 20, 60, 0.93, 0.02),
        (lambda: Nginx(50, 0), 50, 30, 0.85, 0.03),
        (lambda: Nginx(50, 5, status=429), 50, 30, 0.93, 0.02),
        (lambda: FixedWindow(100, 10, headers=True), 10, 0, 0.95, 0.01),
        (lambda: Throttler((100, 10)), 10, 30, 0.9, 0.01),
        (lambda: Throttler((10, 1), (100, 60)), 100 / 60, 120, 0.85, 0.01),
        (lambda: Concurrency(5, 0.05), 5 / 0.052, 60, 0.85, 0.03),
    ],
)
def test_most_of_a_limit_is_used_and_little_refused(server, limit, start, least, most):
    end = start + 120

    used, refused = share(simulate(server(), duration=end, seed=1), limit, start, end)

    assert used >= least
    assert refused <= most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "least"),
    [
        (lambda: RandomFaults(0.3, 503), 0.6),
        (lambda: RandomFaults(0.01, 429), 0.9),
        (lambda: OneBadId(), 0.95),
        (lambda: OneBadId(30.0), 0.95),
    ],
)
def test_what_is_no_limit_slows_nobody_down(server, least):
    options = {"duration": 150, "seed": 1, "noise": FAR, "ids": 2000}
    (free,) = simulate(Server(), **options)

    (run,) = simulate(server(), **options)

    assert run.accepted_rate(120, 150) >= least * free.accepted_rate(120, 150)


@pytest.mark.parametrize("clients", [3, 8])
def test_clients_share_a_window_by_what_headers_say(clients):
    server = FixedWindow(200, 10, headers=True)

    runs = simulate(server, clients, duration=120, seed=1)

    used, refused = share(runs, 20, 60, 120)
    assert used >= 0.9
    assert refused <= 0.05
    assert jain([run.accepted_rate(60, 120) for run in runs]) >= 0.9


def test_clients_share_a_bucket_that_one_had_alone():
    runs = simulate(TokenBucket(100, 20), 2, duration=150, seed=1, starts=(0, 30))

    used, _ = share(runs, 100, 90, 150)
    assert used >= 0.8
    assert min(run.accepted_rate(90, 150) for run in runs) >= 15


def test_what_one_of_them_had_is_taken_over_when_it_leaves():
    runs = simulate(TokenBucket(100, 20), 2, duration=180, seed=1, stops=(60,))

    assert runs[1].accepted_rate(120, 180) >= 85


@pytest.mark.parametrize("low", [0, 1])
def test_a_limit_that_was_low_for_ten_minutes_is_used_again_within_one(low):
    server = TokenBucket(lambda t: low if 30 <= t < 630 else 100, 10)

    (run,) = simulate(server, duration=750, seed=1)

    assert run.accepted_rate(690, 750) >= 85


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("demand", [0.1, 1, 10])
@pytest.mark.parametrize(("share", "row"), [(0.1, 1), (0.3, 5), (0.8, 1)])
def test_a_job_after_long_trouble_is_at_full_speed_within_minutes(share, row, demand, seed):
    trouble = 600.0

    (run,) = simulate(
        Trouble(share, row, trouble, seed=seed),
        duration=trouble + 180,
        seed=seed,
        demand=lambda now: demand * now + 20 * max(0.0, now - trouble),
    )

    assert run.accepted_rate(trouble + 150, trouble + 180) > 18
