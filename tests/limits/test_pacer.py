from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xai_tasks._http.hints import Quota
from xai_tasks._limits.pacer import Bucket, Pacer


class TestBucket:
    def test_full_at_first_it_lets_a_burst_go(self):
        bucket = Bucket(10, 3)

        for _ in range(3):
            assert bucket.delay(100.0) == 0
            bucket.take()

        assert bucket.delay(100.0) == pytest.approx(0.1)

    def test_fills_at_its_rate_but_not_over_its_burst(self):
        bucket = Bucket(10, 2)
        bucket.delay(0.0)
        for _ in range(2):
            bucket.take()

        assert bucket.delay(0.1) == 0
        assert bucket.delay(1e9) == 0
        for _ in range(2):
            bucket.take()
        assert bucket.delay(1e9) == pytest.approx(0.1)

    def test_at_an_infinite_rate_never_asks_to_wait(self):
        bucket = Bucket(math.inf, 1)

        for _ in range(1000):
            assert bucket.delay(1.0) == 0
            bucket.take()

    def test_takes_a_token_back_but_not_over_its_burst(self):
        bucket = Bucket(1, 1)
        bucket.delay(5.0)
        bucket.take()

        bucket.give_back()
        bucket.give_back()

        assert bucket.delay(5.0) == 0
        bucket.take()
        assert bucket.delay(5.0) == 1

    @pytest.mark.parametrize("rate", [10, math.inf])
    def test_held_until_some_time_it_has_one_token_then_and_fills_from_then_on(self, rate):
        bucket = Bucket(rate, 5)
        for _ in range(4):
            bucket.delay(1.0)
            bucket.take()

        bucket.hold(60.0)
        bucket.rate = 10

        assert bucket.delay(60.0) == 0
        bucket.take()
        assert bucket.delay(60.0) == pytest.approx(0.1)
        assert bucket.delay(60.1) == 0

    def test_held_for_less_than_a_token_takes_it_has_none_sooner_than_without(self):
        bucket = Bucket(0.1, 1)
        bucket.delay(5.0)
        bucket.take()

        bucket.hold(6.0)
        bucket.hold(7.0)

        assert bucket.delay(7.0) == pytest.approx(8)

    @given(
        rate=st.floats(0.01, 1000),
        burst=st.floats(1, 100),
        start=st.floats(0, 1e6),
        takes=st.integers(1, 300),
    )
    def test_who_waits_as_long_as_it_asks_finds_a_token(self, rate, burst, start, takes):
        bucket = Bucket(rate, burst)
        time = start

        for _ in range(takes):
            asked = 0
            while (delay := bucket.delay(time)) > 0:
                asked += 1
                assert asked < 3
                time += delay
            bucket.take()

        assert takes <= burst + (time - start) * rate + 1e-3


class TestRefusal:
    def test_of_one_id_alone_pauses_nobody_once_that_is_plain(self):
        pacer = Pacer(64, None)
        time, pauses = 0.0, []

        for _ in range(5):
            time = max(time, pacer.paused_until) + 1
            for n in range(20):
                pacer.take(time)
                pacer.accepted(time, time, f"good {n}", ())
                pacer.release()
            pacer.take(time)
            pauses.append(pacer.refused(time, time, 30.0, "bad", ()))
            pacer.release()

        assert pauses == [True, False, False, False, False]
        assert pacer.rate == math.inf

    def test_of_something_without_an_id_is_never_of_one_id_alone(self):
        pacer = Pacer(64, None)
        time = 0.0

        for _ in range(5):
            time = pacer.paused_until + 1
            for n in range(20):
                pacer.accepted(time, time, f"good {n}", ())
            assert pacer.refused(time, time, 30.0, "", ())

    def test_with_a_given_rate_pauses_too(self):
        pacer = Pacer(64, 10)

        assert pacer.refused(1.0, 1.0, 30.0, "a", ())
        assert pacer.delay(1.0) == 30
        assert not pacer.unavailable(1.0, 1.0, 30.0)

    def test_while_headers_guide_pauses_and_changes_no_rate(self):
        pacer = Pacer(64, None)
        pacer.accepted(1.0, 1.0, "a", [Quota("", 9, 10.0)])

        assert pacer.refused(2.0, 2.0, 30.0, "b", [Quota("", 0, 9.0)])

        assert pacer.delay(2.0) == 30
        assert pacer.finder.rate == math.inf

    def test_that_comes_at_any_rate_pauses_nobody_once_that_is_plain(self):
        pacer = Pacer(64, None)
        time, begun = 0.0, []

        for n in range(40):
            time = max(time, pacer.paused_until) + 1
            for _ in range(3):
                pacer.accepted(time, time, f"good {n}", ())
            pacer.delay(time)
            begun.append(pacer.refused(time, time, 2.0, f"bad {n}", ()))

        assert begun[0]
        assert not any(begun[-20:])

    def test_of_one_id_beside_a_given_rate_pauses_nobody_once_that_is_plain(self):
        pacer = Pacer(64, 10)

        assert pacer.refused(1.0, 1.0, 2.0, "bad", ())
        for n in range(10):
            pacer.accepted(4.0, 3.5, f"good {n}", ())

        assert not pacer.refused(5.0, 5.0, 2.0, "bad", ())


class TestInFlight:
    def test_stays_within_a_limit_that_was_found(self):
        pacer = Pacer(64, None)
        time = 0.0
        for _ in range(4):
            for level in (1, 2, 3):
                pacer.in_flight = level
                for n in range(30):
                    pacer.accepted(time, time, f"good {n}", ())
            pacer.in_flight = 4
            pacer.refused(time, time, 1.0, f"bad {time}", ())
            time = pacer.paused_until + 1
            pacer.delay(time)

        pacer.in_flight = 3
        assert pacer.delay(time + 10) == math.inf
        pacer.in_flight = 2
        assert pacer.delay(time + 10) == 0

    def test_stays_within_what_is_left(self):
        pacer = Pacer(64, None)
        pacer.accepted(1.0, 1.0, "a", [Quota("", 3, None)])

        for _ in range(3):
            assert pacer.delay(1.0) == 0
            pacer.take(1.0)

        assert pacer.delay(1.0) == math.inf

    def test_one_more_may_leave_after_one_was_never_sent(self):
        pacer = Pacer(1, 1.0)
        pacer.take(1.0)

        pacer.give_back()

        assert pacer.delay(1.0) == 0

    def test_what_was_never_sent_uses_up_nothing_of_what_headers_say_is_left(self):
        pacer = Pacer(64, None)
        pacer.accepted(1.0, 1.0, "a", [Quota("", 100, 10.0)])
        for _ in range(4):
            pacer.take(1.0)
            pacer.release()

        for _ in range(20):
            assert pacer.delay(1.05) == 0
            pacer.take(1.05)
            pacer.give_back()

        pacer.take(1.05)
        assert pacer.delay(1.05) > 0  # as after each that was sent
