from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from xai_tasks._http.hints import Quota
from xai_tasks._limits.quotas import Quotas


def told(*quotas, now=100.0, sent=100.0):
    """Build quotas after one answer."""
    known = Quotas()
    known.accepted(quotas, now, sent)
    return known


def use_up(quotas, count, *, now=100.0, name="", reset=None):
    """Send and answer `count` requests one by one, the last with nothing left."""
    for left in reversed(range(count)):
        quotas.take(now)
        quotas.accepted([Quota(name, left, reset)], now, now)


def test_nothing_is_held_back_without_headers():
    quotas = Quotas()

    quotas.take(1.0)

    assert not quotas.known
    assert not quotas.guide
    assert quotas.delay(1.0, 1000) == 0
    assert quotas.rate == math.inf


class TestRequestsInFlight:
    def test_stay_within_what_is_left(self):
        quotas = told(Quota("", 5, None))

        assert quotas.delay(100.0, 4) == 0
        assert quotas.delay(100.0, 5) == math.inf

    def test_of_several_windows_the_tightest_counts(self):
        quotas = told(Quota("short", 5, None), Quota("long", 2, None))

        assert quotas.delay(100.0, 2) == math.inf

    def test_of_answers_to_requests_that_were_in_flight_together_the_least_counts(self):
        quotas = told(Quota("", 5, None))

        quotas.accepted([Quota("", 3, None)], 100.2, 99.0)
        quotas.accepted([Quota("", 9, None)], 100.3, 99.9)
        assert quotas.delay(100.3, 3) == math.inf

        quotas.accepted([Quota("", 9, None)], 100.5, 100.4)
        assert quotas.delay(100.5, 8) == 0

    def test_one_may_be_in_flight_though_nothing_is_left_if_nobody_says_until_when(self):
        quotas = told(Quota("", 0, None))

        assert quotas.delay(100.0, 0) == 0
        assert quotas.delay(100.0, 1) == math.inf


class TestReset:
    def test_is_waited_for_when_nothing_is_left(self):
        quotas = told(Quota("", 0, 7.0))

        assert quotas.guide
        assert quotas.delay(100.0, 0) == 7
        assert quotas.delay(107.0, 0) == 0

    def test_lets_one_request_leave_that_tells_what_is_left(self):
        quotas = told(Quota("", 0, 7.0))

        assert quotas.delay(107.0, 1) == math.inf
        quotas.accepted([Quota("", 99, 10.0)], 107.1, 107.0)

        assert quotas.delay(107.1, 50) == 0

    def test_is_waited_for_a_minute_at_most(self):
        quotas = told(Quota("", 0, 3600.0))

        assert quotas.delay(100.0, 0) == 60

    def test_that_proves_wrong_is_not_believed_again(self):
        quotas = told(Quota("", 0, 3600.0))

        quotas.accepted([Quota("", 0, 3600.0)], 160.1, 160.0)

        assert quotas.delay(160.1, 0) == 0

    def test_is_approached_evenly_once_some_of_the_window_is_used(self):
        quotas = told(Quota("", 100, 10.0))
        quotas.take(100.0)
        assert quotas.delay(100.0, 1) == 0

        for left in range(99, 49, -1):
            quotas.take(100.0)
            quotas.accepted([Quota("", left, 10.0)], 100.0, 100.0)

        assert 0 < quotas.delay(100.0, 1) < 10 / 50

    def test_is_approached_more_slowly_by_clients_that_share_the_window(self):
        alone, shared = told(Quota("", 100, 10.0)), told(Quota("", 100, 10.0))
        for quotas, left in ((alone, 91), (shared, 50)):
            for _ in range(9):
                quotas.take(100.0)
            quotas.accepted([Quota("", left, 10.0)], 100.0, 100.0)

        assert shared.delay(100.0, 0) > 2 * alone.delay(100.0, 0)

    def test_gives_the_rate_of_whole_windows(self):
        assert told(Quota("", 99, 10.0)).rate == 10


class TestWindowWithoutReset:
    def test_is_learned_from_a_refusal_that_blocks_for_all_of_it(self):
        quotas = Quotas()
        use_up(quotas, 10)
        quotas.take(100.1)
        assert not quotas.guide

        quotas.refused([], 100.1, 100.1, 20.0)
        use_up(quotas, 10, now=121.0)

        assert quotas.guide
        assert quotas.delay(121.0, 0) == 20
        assert quotas.rate == 0.5

    def test_is_learned_from_a_refusal_that_names_the_rest_of_it(self):
        quotas = Quotas()
        use_up(quotas, 10)
        quotas.take(107.0)

        quotas.refused([], 107.0, 107.0, 3.0)
        use_up(quotas, 10, now=110.0)

        assert quotas.delay(110.0, 0) == 10

    def test_of_several_the_one_that_is_used_up_is_learned(self):
        quotas = told(Quota("long", 500, None))
        use_up(quotas, 10, name="short")

        quotas.refused([], 100.1, 100.1, 1.0)

        assert not quotas.guide
        use_up(quotas, 10, now=102.0, name="short")
        assert quotas.delay(102.0, 0) == 1

    def test_that_refuses_again_and_again_is_no_guide(self):
        quotas = Quotas()
        use_up(quotas, 10)
        for n in range(4):
            assert quotas.guide == (n > 0)
            quotas.refused([], 101.0 + n, 101.0 + n, 1.0)

        assert not quotas.guide

    def test_refusals_ten_minutes_apart_are_forgiven(self):
        quotas = Quotas()
        use_up(quotas, 10)

        for n in range(9):
            quotas.refused([], 101.0 + 700 * n, 101.0 + 700 * n, 1.0)

        assert quotas.guide


def test_a_refusal_by_others_where_headers_say_when_there_is_more_is_no_strike():
    quotas = told(Quota("", 99, 10.0))

    for n in range(9):
        quotas.refused([Quota("", 0, 5.0)], 101.0 + n, 101.0 + n, 1.0)

    assert quotas.guide


def test_no_more_than_eight_windows_are_kept():
    quotas = told(*(Quota(str(n), 0, 50.0) for n in range(8)))

    quotas.accepted([Quota("another", 0, 60.0)], 100.0, 100.0)

    assert quotas.delay(100.0, 0) == 50


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["accepted", "refused", "take"]),
            st.sampled_from([0.0, 0.001, 1.0, 30.0, 1e5]),
            st.sampled_from(["", "a"]),
            st.integers(0, 3) | st.integers(0, 10**9),
            st.none() | st.floats(0, 86_400),
            st.floats(0, 3600),
        ),
        max_size=60,
    )
)
def test_whatever_headers_say_a_request_leaves_within_a_minute(events):
    quotas, now = Quotas(), 0.0

    for event, step, name, left, reset, pause in events:
        now += step
        if event == "take":
            quotas.take(now)
        elif event == "accepted":
            quotas.accepted([Quota(name, left, reset)], now, now)
        else:
            quotas.refused([Quota(name, left, reset)], now, now, pause)

        delay = quotas.delay(now, 0)
        assert delay <= 60.001
        assert quotas.rate > 0
