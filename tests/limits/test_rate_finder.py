from __future__ import annotations

import itertools
import math
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rate_simulation import AIMD, Cubic, FixedWindow, Noise, SlidingWindow, TokenBucket, simulate

from xai_tasks._limits.rate_estimates import SLOWEST
from xai_tasks._limits.rate_finder import RateFinder

STILL = Noise(latency=(0.002, 0.002), timer=0.0, stalls=0.0)


def accept(finder, start, end, rate):
    """Accept evenly, and ask for the pace before each; give the time after the last."""
    count = round((end - start) * rate)
    for n in range(count):
        finder.pace(start + n / rate)
        finder.accepted(start + n / rate)
    return start + count / rate


def after_burst(accepted, *, pause=1.0, later=0):
    """A finder that has had `accepted` answers at once, then a 429 and its pause, and
    `later` answers in the pause.
    """
    finder = RateFinder()
    for _ in range(accepted):
        finder.accepted(100.0)
    finder.rejected(100.0, 100.0, pause)
    for _ in range(later):
        finder.accepted(100.01)
    finder.pace(100.0 + pause)
    return finder


def play(server, *, duration, seed=1, noise=STILL, finder=RateFinder, **options):
    """A single client's run, and its finder as it is at the end."""
    client = finder()
    (run,) = simulate(server, [client], duration=duration, seed=seed, noise=noise, **options)
    return run, client


class TestBeforeTheFirst429:
    def test_there_is_no_limit_however_much_is_accepted(self):
        finder = RateFinder()

        paces = set()
        for n in range(10_000):
            finder.accepted(n / 1000)
            paces.add(finder.pace(n / 1000))

        assert paces == {math.inf}
        assert finder.rate == math.inf

    def test_nothing_need_have_been_accepted(self):
        finder = after_burst(0)

        assert 0 < finder.rate < 10
        assert finder.burst == 1


class TestPause:
    def test_begins_with_the_429_and_there_is_a_limit_at_once(self):
        finder = RateFinder()
        finder.accepted(1.0)

        assert finder.rejected(1.01, 1.0, 5.0)

        assert 0 < finder.rate < math.inf

    def test_refusals_of_what_was_in_flight_begin_no_other_and_cost_nothing(self):
        alone, many = RateFinder(), RateFinder()
        for finder in (alone, many):
            for n in range(50):
                finder.accepted(1.0 + n / 1000)
            finder.rejected(1.1, 1.05, 1.0)

        begun = [many.rejected(1.1 + n / 1000, 1.06, 1.0 - n / 1000) for n in range(90)]

        assert not any(begun)
        assert many.pace(2.2) == alone.pace(2.2)

    def test_nothing_is_learnt_before_it_is_over(self):
        finder = RateFinder()
        for _ in range(100):
            finder.accepted(1.0)
        finder.rejected(1.0, 1.0, 2.0)
        finder.rejected(1.1, 1.0, 5.0)
        during = finder.rate

        assert finder.pace(3.5) == during
        assert finder.pace(6.0) == during
        assert finder.pace(6.2) > during

    def test_answers_that_come_in_it_to_what_was_in_flight_count(self):
        assert after_burst(50, later=50).rate == pytest.approx(2 * after_burst(50).rate, rel=0.1)

    def test_the_longer_it_is_the_slower_the_start(self):
        rates = [after_burst(100, pause=seconds).rate for seconds in (1, 3, 10, 60)]

        assert rates == sorted(rates, reverse=True)
        assert 50 < rates[0] < 400
        assert rates[3] < 10

    def test_a_retry_after_of_0_is_no_pause_to_divide_by(self):
        finder = after_burst(100, pause=0.0)

        finder.pace(100.1)

        assert 0 < finder.rate < math.inf

    def test_too_short_to_measure_in_leaves_a_rate_to_pace_by(self):
        finder = after_burst(100, pause=0.0)
        finder.accepted(100.0005)
        finder.rejected(100.001, 100.0005, 0.0)

        finder.pace(100.1)

        assert 0 < finder.rate < 2000

    def test_the_longer_it_is_the_seldomer_the_probes(self):
        counts = []
        for seconds in (1, 10):
            run, _ = play(TokenBucket(10, 5, retry_after=seconds), duration=1500)
            counts.append(sum(time > 120 for time in run.pauses))

        assert 1 <= counts[1] < counts[0]

    def test_the_first_request_after_it_may_be_refused_again_and_again(self):
        finder = after_burst(100)
        now, rates = 101.0, []

        for _ in range(40):
            finder.rejected(now + 0.01, now, 1.0)
            now += 1.01
            rates.append(finder.pace(now))

        assert rates == sorted(rates, reverse=True)
        assert rates[-1] >= SLOWEST
        assert rates[-1] < 5

    def test_however_long_nothing_is_accepted_there_are_some_requests_a_minute(self):
        finder = after_burst(0)
        now = 101.0

        for _ in range(10_000):
            finder.rejected(now + 0.01, now, 1.0)
            now += 1.01
            finder.pace(now)

        assert finder.rate == pytest.approx(3 / 60)


class TestBurst:
    @pytest.mark.parametrize("burst", [10, 50, 150])
    def test_is_most_of_what_the_server_lets_pass_at_once_but_not_all(self, burst):
        _, finder = play(TokenBucket(200, burst), duration=10)

        assert 0.45 * burst < finder.burst < 0.85 * burst

    def test_of_a_server_that_allows_none_is_one(self):
        _, finder = play(TokenBucket(50, 1), duration=10, max_in_flight=8)

        assert finder.burst == pytest.approx(1, abs=0.5)

    def test_is_at_most_a_second_of_requests(self):
        _, finder = play(TokenBucket(20, 500), duration=30)

        assert finder.burst == finder.rate

    def test_what_was_sustained_before_the_first_429_is_not_taken_for_it(self):
        finder = RateFinder()
        end = accept(finder, 0.0, 20.0, 100)
        finder.rejected(end, end - 0.001, 1.0)
        finder.pace(end + 1)

        assert finder.burst < 20


class TestCeiling:
    @pytest.mark.parametrize("rate", [1, 7, 20, 200, 1500])
    def test_is_learnt_from_what_was_accepted_and_held_just_under(self, rate):
        duration = 25 if rate > 20 else 200

        run, finder = play(TokenBucket(rate, max(2, rate // 10)), duration=duration)

        assert 0.93 * rate < median(pace for _, pace in run.paces) < rate
        assert 0.93 * rate < finder.rate < 1.15 * rate
        assert run.accepted_rate(duration / 2, duration) > 0.88 * rate

    def test_is_found_in_three_pauses(self):
        run, _ = play(TokenBucket(200, 10), duration=40)

        assert len(run.pauses) == 3

    def test_is_climbed_to_only_as_far_as_the_rate_is_used(self):
        finder = after_burst(20)
        rate = finder.rate

        accept(finder, 101.0, 161.0, 0.2 * rate)

        assert finder.rate == rate

    def test_is_kept_through_a_time_in_which_little_was_asked_for(self):
        run, finder = play(
            TokenBucket(200, 10),
            duration=320,
            demand=lambda t: math.inf if t < 20 else 5000 + 20 * t,
        )

        assert 0.93 * 200 < finder.rate < 200
        assert sum(time > 20 for time in run.pauses) == 0

    def test_is_kept_through_a_quarter_of_an_hour_without_work(self):
        run, finder = play(
            TokenBucket(200, 10),
            duration=930,
            demand=lambda t: 200 * t if t < 20 else 4000 if t < 910 else math.inf,
        )

        assert 0.9 * 200 < finder.rate < 200
        assert run.accepted_rate(912, 930) > 0.8 * 200

    def test_measured_while_the_server_starts_half_empty_is_put_right(self):
        run, _ = play(TokenBucket(200, 200, full=False), duration=60)

        assert run.accepted_rate(30, 60) > 0.85 * 200

    def test_one_429_out_of_turn_is_not_believed_beyond_half_of_it(self):
        _, finder = play(TokenBucket(200, 10), duration=20)
        held, now = finder.rate, 20.0
        finder.accepted(now)
        finder.rejected(now + 0.01, now + 0.005, 1.0)

        finder.pace(now + 1.1)
        lowest = finder.rate
        now = accept(finder, now + 1.1, now + 20, held)

        assert 0.2 * held < lowest < held
        assert finder.rate > 0.48 * held


class TestProbe:
    def test_comes_rarely(self):
        run, _ = play(TokenBucket(50, 10), duration=1000)

        gaps = [after - before for before, after in itertools.pairwise(run.pauses)]
        assert min(gaps[3:]) > 40
        assert max(gaps) < 60

    def test_is_gentle(self):
        run, _ = play(TokenBucket(50, 10), duration=600)

        assert max(rate for time, rate in run.paces if time > 30) < 1.15 * 50
        assert run.rejected_share(30, 600) < 0.001

    def test_waits_until_the_rate_is_used(self):
        run, _ = play(
            TokenBucket(50, 10),
            duration=300,
            demand=lambda t: math.inf if t < 30 else 1500 + 20 * (t - 30),
        )

        assert all(time < 60 for time in run.pauses)

    def test_goes_on_faster_and_faster_where_there_is_no_limit_any_more(self):
        run, finder = play(
            TokenBucket(lambda t: 50 if t < 20 else 1e9, 10),
            duration=150,
            max_in_flight=8,
            noise=Noise(latency=(0.01, 0.01), timer=0, stalls=0),
        )

        assert run.accepted_rate(140, 150) > 0.9 * 8 / 0.01
        assert finder.rate < math.inf


class TestAnotherLimit:
    @pytest.mark.parametrize("rate", [100, 180, 7])
    def test_below_is_noticed_within_seconds(self, rate):
        run, _ = play(TokenBucket(lambda t: 200 if t < 20 else rate, 10), duration=70)

        assert run.accepted_rate(35, 70) > 0.85 * rate
        assert run.rejected_share(35, 70) < 0.03

    @pytest.mark.parametrize("rate", [75, 100, 500])
    def test_above_is_noticed_by_a_probe(self, rate):
        run, _ = play(TokenBucket(lambda t: 50 if t < 20 else rate, 10), duration=150)

        assert run.accepted_rate(120, 150) > 0.85 * rate
        assert run.rejected_share(120, 150) < 0.01


class TestSlowServers:
    @pytest.mark.parametrize("retry_after", [1, 10])
    def test_a_pause_too_short_for_one_request_is_made_up_for(self, retry_after):
        run, _ = play(TokenBucket(0.1, 1, retry_after=retry_after), duration=1200)

        assert run.accepted_rate(60, 1200) > 0.7 * 0.1
        # Each probe is refused, and so low a ceiling is probed often: most have other causes.
        assert run.rejected_share(60, 1200) < 0.15

    @pytest.mark.parametrize("good", [0, 1, 3])
    def test_a_rate_that_many_refusals_in_a_row_drove_down_is_left_soon(self, good):
        finder, now = after_burst(2), 101.0
        for _ in range(40):
            for _ in range(good):
                now += 1 / finder.rate
                finder.pace(now)
                finder.accepted(now)
            now += 1 / finder.rate
            finder.pace(now)
            finder.rejected(now, now, 0.3)
            now += 0.3
            finder.pace(now)
        lowest, began = finder.rate, now

        while finder.rate < 10:
            now += 1 / finder.rate
            finder.pace(now)
            finder.accepted(now)

        assert lowest < 0.2
        assert now - began < 120

    def test_without_a_retry_after_the_limit_is_found_just_as_well(self):
        run, _ = play(TokenBucket(7, 1, retry_after=0), duration=60)

        assert run.accepted_rate(10, 60) > 0.85 * 7
        assert run.rejected_share(10, 60) < 0.03


class TestRefusalsWhileTheRateIsNotUsed:
    @pytest.mark.parametrize("demand", [0.1, 2, 20])
    def test_leave_what_was_found_as_it_was(self, demand):
        _, finder = play(TokenBucket(200, 10), duration=60)
        held, now = finder.rate, 60.0
        for _ in range(10):
            now = accept(finder, now, now + max(30, 3 / demand), demand)
            finder.pace(now)
            finder.rejected(now, now, 1.0)
            now += 1.0
            finder.pace(now)
        slowed = finder.rate

        accept(finder, now, now + 30, 2)

        assert 0.4 * held < slowed < 0.8 * held
        assert finder.rate > 0.95 * held

    def test_teach_a_limit_below_what_is_used(self):
        run, _ = play(TokenBucket(0.1, 1), duration=1200, demand=lambda t: 0.5 * t)

        assert run.accepted_rate(60, 1200) > 0.7 * 0.1
        assert run.rejected_share(60, 1200) < 0.15

    def test_teach_one_that_has_fallen_below_it(self):
        run, _ = play(
            TokenBucket(lambda t: 200 if t < 20 else 1, 2),
            duration=120,
            demand=lambda t: 200 * t if t < 10 else 2000 + 20 * (t - 10),
        )

        assert run.accepted_rate(50, 120) > 0.7
        assert run.rejected_share(50, 120) < 0.2


# Seconds of the run, what is to be used of the limit, and how many 429s are too
# many, both from some time on.
BUCKETS = {
    "burst 200": (200, 200, 200, 10, 50),
    "burst 10": (200, 200, 10, 10, 50),
    "burst 10, halved after 20 s": (200, 100, 10, 30, 70),
    "burst 10, doubled after 20 s": (100, 200, 10, 100, 130),
}


class TestNoise:
    @pytest.mark.parametrize("name", BUCKETS)
    def test_of_timers_and_stalls_leaves_most_of_the_limit_used_and_little_refused(self, name):
        before, after, burst, start, end = BUCKETS[name]
        used, refused = [], []
        for seed in range(3):
            server = TokenBucket(lambda t: before if t < 20 else after, burst)
            run, _ = play(server, duration=end, seed=seed, noise=Noise())
            used.append(run.accepted_rate(start, end) / after)
            refused.append(run.rejected_share(start, end))

        assert median(used) > 0.92
        assert median(refused) < 0.01

    @pytest.mark.parametrize("other", [AIMD, Cubic])
    def test_and_sawtooths_use_less_of_it(self, other):
        shares = {}
        for finder in (RateFinder, other):
            run, _ = play(TokenBucket(200, 10), duration=60, noise=Noise(), finder=finder)
            shares[finder] = run.accepted_rate(10, 60)

        assert shares[RateFinder] > shares[other] + 0.1 * 200

    def test_of_a_far_server_leaves_most_of_the_limit_used(self):
        run, _ = play(
            TokenBucket(200, 200), duration=60, noise=Noise(latency=(0.2, 0.3)), max_in_flight=100
        )

        assert run.accepted_rate(10, 60) > 0.85 * 200
        assert run.rejected_share(10, 60) < 0.01


class TestWindows:
    @pytest.mark.parametrize("window", [FixedWindow, SlidingWindow])
    @pytest.mark.parametrize("retry_after", [None, 1])
    def test_of_a_minute_are_used(self, window, retry_after):
        run, _ = play(window(60, 60, retry_after=retry_after), duration=900)

        assert run.accepted_rate(180, 900) > 0.8
        assert run.rejected_share(180, 900) < 0.12

    @pytest.mark.parametrize("window", [FixedWindow, SlidingWindow])
    def test_of_ten_seconds_are_used(self, window):
        run, _ = play(window(500, 10), duration=90)

        assert run.accepted_rate(20, 90) > 0.8 * 50
        assert run.rejected_share(20, 90) < 0.02


def test_clients_that_share_a_limit_use_it_and_none_starves():
    runs = simulate(
        TokenBucket(100, 50),
        [RateFinder() for _ in range(3)],
        duration=180,
        seed=1,
        starts=(0, 10, 30),
    )

    each = [run.accepted_rate(90, 180) for run in runs]
    assert 75 < sum(each) <= 101
    assert min(each) > 8


STEPS = st.sampled_from([0.0, 1e-9, 0.001, 0.05, 0.3, 1.0, 30.0, 1e4, 1e7])


@given(
    start=st.sampled_from([0.0, 1e3, 1e7]),
    events=st.lists(
        st.tuples(
            STEPS,
            st.sampled_from(["accepted", "rejected", "in flight", "pace"]),
            st.sampled_from([0.0, 0.01, 1.0, 60.0, 1e6]),
            st.integers(1, 30),
        ),
        max_size=60,
    ),
)
def test_whatever_happens_and_however_the_clock_jumps_the_rate_is_one_to_pace_by(start, events):
    finder = RateFinder()
    now, refused = start, False

    for step, event, pause, times in events:
        for _ in range(times):
            now += step
            if event == "accepted":
                finder.accepted(now)
            elif event != "pace":
                sent = now if event == "rejected" else now - 1.0
                refused |= finder.rejected(now, sent, pause)
            rate = finder.pace(now)

            assert rate == finder.rate
            assert (SLOWEST <= rate < math.inf) if refused else rate == math.inf
            assert 1 <= finder.burst <= max(1.0, rate)


@pytest.mark.parametrize("start", [1e4, 1e7])
def test_the_time_at_which_a_clock_starts_makes_no_difference(start):
    def rate_after(start):
        finder = RateFinder()
        end = accept(finder, start, start + 2, 256)
        finder.rejected(end, end - 1 / 256, 1.0)
        end = accept(finder, end + 1, end + 9, 64)
        finder.rejected(end, end - 1 / 256, 1.0)
        accept(finder, end + 1, end + 9, 32)
        return finder.rate

    assert rate_after(start) == pytest.approx(rate_after(0.0), rel=1e-3)
