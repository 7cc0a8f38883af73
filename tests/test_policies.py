from __future__ import annotations

import math

import attrs
import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st
from tenacity import stop_after_attempt, stop_after_delay, wait_exponential, wait_fixed, wait_random

from xai_tasks import PollPolicy, RetryPolicy, wait_adaptive
from xai_tasks._policies import check_count, check_seconds


def state(attempt):
    """Return tenacity's state after so many attempts."""
    made = tenacity.RetryCallState(tenacity.Retrying(), fn=None, args=(), kwargs={})
    made.attempt_number = attempt
    return made


def test_a_retry_policy_is_the_documented_one_by_default():
    policy = RetryPolicy()

    assert policy.statuses == {408, 429, 500, 502, 503, 504}
    assert (policy.max_retry_after, policy.budget) == (60.0, 500)
    assert [policy.stop(state(attempt)) for attempt in (1, 2, 3, 4)] == [False, False, False, True]


@pytest.mark.parametrize(
    ("attempt", "bound"), [(1, 0.5), (2, 1), (3, 2), (4, 4), (5, 8), (6, 8), (50, 8)]
)
def test_the_default_retry_wait_is_full_jitter_below_a_doubling_bound(attempt, bound):
    wait = RetryPolicy().wait

    waits = [wait(state(attempt)) for _ in range(2000)]

    assert min(waits) < bound / 4
    assert bound * 0.75 < max(waits) <= bound


def test_a_poll_policy_is_the_documented_one_by_default():
    policy = PollPolicy()

    assert isinstance(policy.wait, wait_adaptive)
    assert (policy.timeout, policy.max_outage) == (600.0, 300.0)


def test_two_poll_policies_learn_apart():
    assert PollPolicy().wait is not PollPolicy().wait


@pytest.mark.parametrize(
    "wait",
    [
        wait_fixed(5),
        wait_exponential(max=60) + wait_random(0, 1),
        tenacity.wait_none(),
        lambda state: 1.5,
    ],
)
def test_any_strategy_of_tenacitys_is_taken_as_it_is(wait):
    assert PollPolicy(wait=wait).wait is wait
    assert RetryPolicy(wait=wait).wait is wait


def test_any_stop_of_tenacitys_is_taken_as_it_is():
    stop = stop_after_attempt(2) | stop_after_delay(10)

    assert RetryPolicy(stop=stop).stop is stop


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (RetryPolicy, {"stop": 3}),
        (RetryPolicy, {"wait": 0.5}),
        (RetryPolicy, {"stop": None}),
        (PollPolicy, {"wait": 5}),
        (PollPolicy, {"wait": "5"}),
    ],
)
def test_a_strategy_that_is_none_is_refused_by_name(cls, arguments):
    (name,) = arguments

    with pytest.raises(TypeError, match=f"^{name} must be a tenacity strategy, not "):
        cls(**arguments)


@pytest.mark.parametrize("cls", [RetryPolicy, PollPolicy])
def test_a_strategys_class_in_place_of_a_strategy_is_refused_by_name(cls):
    with pytest.raises(
        TypeError, match="^wait must be a tenacity strategy, not a class of them: call wait_fixed$"
    ):
        cls(wait=wait_fixed)


@pytest.mark.parametrize(
    ("statuses", "message"),
    [
        (503, "statuses must be a set of HTTP statuses, not int"),
        ("503", "statuses must be a set of HTTP statuses, not str"),
        (["503"], "statuses must be whole numbers, not str"),
        ([True], "statuses must be whole numbers, not bool"),
    ],
)
def test_what_are_no_statuses_is_refused_by_name(statuses, message):
    with pytest.raises(TypeError, match=f"^{message}$"):
        RetryPolicy(statuses=statuses)


@pytest.mark.parametrize(
    ("cls", "arguments", "error", "message"),
    [
        (RetryPolicy, {"max_retry_after": -1}, ValueError,
         "max_retry_after must be finite and 0 or more"),
        (RetryPolicy, {"max_retry_after": math.inf}, ValueError, "max_retry_after must be finite"),
        (RetryPolicy, {"max_retry_after": math.nan}, ValueError, "max_retry_after must be finite"),
        (RetryPolicy, {"max_retry_after": "60"}, TypeError,
         "max_retry_after must be a number of seconds, not str"),
        (RetryPolicy, {"max_retry_after": None}, TypeError,
         "max_retry_after must be a number of seconds, not None"),
        (RetryPolicy, {"budget": -1}, ValueError, "budget must be at least 0, not -1"),
        (RetryPolicy, {"budget": 0.5}, TypeError, "budget must be a whole number, not float"),
        (RetryPolicy, {"budget": True}, TypeError, "budget must be a whole number, not bool"),
        (PollPolicy, {"timeout": -0.1}, ValueError,
         "timeout must be finite and 0 or more.*None means no limit"),
        (PollPolicy, {"timeout": math.inf}, ValueError,
         "timeout must be finite.*None means no limit"),
        (PollPolicy, {"timeout": True}, TypeError,
         "timeout must be a number of seconds or None for no limit, not bool"),
        (PollPolicy, {"timeout": 10**400}, ValueError,
         "timeout must be finite.*not an integer beyond a float's range"),
        (PollPolicy, {"max_outage": 10**5000}, ValueError, "max_outage must be finite"),
        (RetryPolicy, {"max_retry_after": -(10**400)}, ValueError,
         "max_retry_after must be finite"),
        (PollPolicy, {"max_outage": -1}, ValueError, "max_outage must be finite"),
        (PollPolicy, {"max_outage": "5m"}, TypeError,
         "max_outage must be a number of seconds or None"),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_refused_by_name(cls, arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        cls(**arguments)


@pytest.mark.parametrize("field", ["timeout", "max_outage"])
@pytest.mark.parametrize("value", [None, 0, 0.5, 10**6])
def test_a_poll_policy_takes_any_length_and_no_limit(field, value):
    assert getattr(PollPolicy(**{field: value}), field) == value


def test_statuses_are_kept_as_a_frozen_set_whatever_they_come_in():
    statuses = RetryPolicy(statuses=iter([503, 503, 429])).statuses

    assert statuses == frozenset({429, 503})
    assert isinstance(statuses, frozenset)


def test_policies_are_frozen():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        PollPolicy().timeout = 1
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        RetryPolicy().budget = 1


@pytest.mark.parametrize("cls", [PollPolicy, RetryPolicy])
def test_policies_are_equal_only_if_they_hold_the_same_strategy_objects(cls):
    policy = cls(wait=wait_fixed(1))
    twin = attrs.evolve(policy)

    assert policy == twin
    assert hash(policy) == hash(twin)
    assert policy != cls(wait=wait_fixed(1))
    assert policy != attrs.evolve(policy, wait=wait_fixed(1))


def test_policies_differ_by_their_numbers():
    policy = PollPolicy()

    assert policy != attrs.evolve(policy, timeout=1)
    assert policy != attrs.evolve(policy, max_outage=1)


# The checks that the client shares.


@given(st.integers(min_value=0, max_value=2**60) | st.floats(min_value=0, allow_infinity=False))
def test_every_finite_number_from_0_on_is_a_number_of_seconds(value):
    check_seconds("timeout", value)
    check_seconds("timeout", value, optional=True)


@given(
    st.integers(max_value=-1)
    | st.floats(max_value=0, exclude_max=True)
    | st.just(math.nan)
    | st.just(math.inf)
)
def test_no_other_number_is(value):
    with pytest.raises(ValueError, match="^timeout must be finite and 0 or more, not"):
        check_seconds("timeout", value)


def test_zero_seconds_are_refused_where_there_must_be_some():
    with pytest.raises(ValueError, match="^request_timeout must be finite and more than 0, not 0$"):
        check_seconds("request_timeout", 0, positive=True)
    check_seconds("request_timeout", 1e-9, positive=True)


@pytest.mark.parametrize("value", [None, "1", 1j, [1], True])
def test_what_is_no_number_is_a_type_error(value):
    with pytest.raises(TypeError, match="^timeout must be a number of seconds, not"):
        check_seconds("timeout", value)


def test_a_count_has_a_least_value():
    check_count("max_pending", 1, 1)
    with pytest.raises(ValueError, match="^max_pending must be at least 1, not 0$"):
        check_count("max_pending", 0, 1)
