from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xai_tasks._http.hints import NO_HINTS, Quota, parse_hints

NOON = datetime(2025, 1, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": " 7 "}, 7.0),
        ({"Retry-After": "007"}, 7.0),
        ({"Retry-After": "86400"}, 86400.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "0.5"}, 0.0005),
        ({"retry-after-ms": "250", "Retry-After": "7"}, 0.25),
        ({"retry-after-ms": "soon", "Retry-After": "7"}, 7.0),
        ({"retry-after-ms": "-1", "Retry-After": "7"}, 7.0),
        ({"retry-after-ms": "nan", "Retry-After": "Thu, 02 Jan 2025 12:00:09 GMT"}, 9.0),
        ({"Retry-After": "Thu, 02 Jan 2025 12:00:07 GMT"}, 7.0),
        ({"Retry-After": "Thursday, 02-Jan-25 12:00:07 GMT"}, 7.0),
        ({"Retry-After": "Thu Jan  2 12:00:07 2025"}, 7.0),
        ({"Retry-After": "Thu, 02 Jan 2025 12:00:07 -0000"}, 7.0),
        ({"Retry-After": "Thu, 02 Jan 2025 13:00:07 +0100"}, 7.0),
        ({"Retry-After": "Thu, 02 Jan 2025 12:00:00 GMT"}, 0.0),
        ({"Retry-After": "Thu, 02 Jan 2025 11:59:59 GMT"}, None),
    ],
)  # fmt: skip
def test_every_form_of_retry_after_is_read(headers, seconds):
    assert parse_hints(headers, NOON.timestamp()).retry_after == seconds


@pytest.mark.parametrize(
    "value",
    ["", " ", "-1", "+7", "inf", "Infinity", "nan", "NaN", "1e3", "0x10", "7s", "7, 8", "1_000",
     "7.", ".7", "٧", "soon",
     "9" * 400, "9" * 5000, "2025-01-02T12:00:07Z", "Thu, 32 Jan 2025 12:00:07 GMT",
     "Thu, 02 Jan 99999 12:00:07 GMT",
     "Thu, 02 Jan 2025 12:00:07 +999999", "02 Jan", "Jan", ";", "\x00"],
)  # fmt: skip
@pytest.mark.parametrize("header", ["Retry-After", "retry-after-ms"])
def test_a_malformed_retry_after_is_ignored(header, value):
    assert parse_hints({header: value}, NOON.timestamp()) == NO_HINTS


def test_a_date_counts_from_the_clock_where_the_answer_has_no_date():
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)

    assert 50 < parse_hints({"Retry-After": in_a_minute}, None).retry_after <= 60


@pytest.fixture
def in_new_york(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


def test_a_date_without_a_zone_is_in_utc_wherever_we_are(in_new_york):
    headers = {"Retry-After": "Thu Jan  2 12:00:07 2025"}

    assert parse_hints(headers, NOON.timestamp()).retry_after == 7.0


@given(st.text() | st.from_regex(r"\A[0-9a-zA-Z ,:+.-]{0,40}\Z"), st.none() | st.floats(0, 4e9))
def test_any_retry_after_gives_finite_seconds_or_nothing(value, server_time):
    for header in ("Retry-After", "retry-after-ms"):
        seconds = parse_hints({header: value}, server_time).retry_after

        assert seconds is None or (math.isfinite(seconds) and seconds >= 0)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After-short": "3"}, 3.0),
        ({"Retry-After-short": "3", "Retry-After-long": "40"}, 40.0),
        ({"RETRY-AFTER-LONG": "40", "retry-after": "3"}, 40.0),
        ({"Retry-After-short": "soon", "Retry-After": "3"}, 3.0),
        ({"Retry-After-short": "Thu, 02 Jan 2025 12:00:07 GMT"}, 7.0),
    ],
)
def test_retry_after_of_a_named_throttler_is_read(headers, seconds):
    assert parse_hints(headers, NOON.timestamp()).retry_after == seconds


@pytest.mark.parametrize(
    ("headers", "quotas"),
    [
        ({"RateLimit": "limit=9, remaining=5, reset=7"}, [Quota("", 5, 7.0)]),
        ({"ratelimit": "remaining=5"}, [Quota("", 5, None)]),
        ({"RateLimit": "Limit=9,REMAINING=0,reset=1"}, [Quota("", 0, 1.0)]),
        ({"RateLimit": '"2-in-10sec"; r=1; t=10'}, [Quota("2-in-10sec", 1, 10.0)]),
        ({"RateLimit": "default;r=50;t=30"}, [Quota("default", 50, 30.0)]),
        ({"RateLimit": '"a;b,c";r=1;t=2, "d";r=3'}, [Quota("a;b,c", 1, 2.0), Quota("d", 3, None)]),
        ({"RateLimit": '"a"; q=5'}, []),
        ({"RateLimit-Remaining": "4", "RateLimit-Reset": "9"}, [Quota("", 4, 9.0)]),
        ({"RateLimit-Remaining": "4"}, [Quota("", 4, None)]),
        ({"RateLimit-Reset": "9"}, []),
        ({"RateLimit-Remaining": "4", "RateLimit-Reset": "1764086400"}, [Quota("", 4, None)]),
        ({"X-RateLimit-Remaining": "4", "X-RateLimit-Reset": "9"}, [Quota("", 4, None)]),
        (
            {"X-RateLimit-Remaining-short": "4", "x-ratelimit-remaining-LONG": "90"},
            [Quota("short", 4, None), Quota("long", 90, None)],
        ),
        (
            {"RateLimit": '"a"; r=1; t=3', "RateLimit-Remaining": "9", "RateLimit-Reset": "3"},
            [Quota("a", 1, 3.0)],
        ),
    ],
)
def test_every_form_of_what_is_left_is_read(headers, quotas):
    assert parse_hints(headers, None) == (None, tuple(quotas))


@pytest.mark.parametrize(
    "value",
    ["", ",", ";", "=", '"', "remaining", "remaining=-1", "remaining=1.5", "remaining=nan",
     "remaining=",
     "remaining=1e3", "remaining=99999999999", '"a"', '"a"; r', '"a"; r=; t=3',
     '"a"; r=-1; t=3', "r=1; t=3", "limit=5", "x" * 5000, "remaining=1," + " " * 5000],
)  # fmt: skip
def test_a_malformed_header_of_what_is_left_is_ignored(value):
    assert parse_hints({"RateLimit": value}, None) == NO_HINTS


HEADERS = st.dictionaries(
    st.sampled_from(
        ["RateLimit", "RateLimit-Remaining", "RateLimit-Reset", "X-RateLimit-Remaining",
         "X-RateLimit-Remaining-a", "X-RateLimit-Reset", "Retry-After", "Retry-After-a",
         "retry-after-ms", "Date", "Server"]
    ),
    st.text(max_size=60)
    | st.from_regex(r'\A("[a-z]*"|[a-z]+)?[;,=]? ?(limit|remaining|reset|r|t|q)=[0-9.e+-]{0,12}\Z')
    | st.lists(
        st.sampled_from(["remaining", "reset", "r", "t", "=", ";", ",", '"', "a", "0", "1",
        "9" * 30, " "]),
        max_size=30,
    ).map("".join)
    | st.integers(-10, 10**12).map(str),
)  # fmt: skip


@given(HEADERS, st.none() | st.floats(0, 4e9))
def test_whatever_headers_say_of_limits_is_bounded(headers, server_time):
    retry_after, quotas = parse_hints(headers, server_time)

    assert retry_after is None or 0 <= retry_after < math.inf
    for name, remaining, reset in quotas:
        assert isinstance(name, str)
        assert 0 <= remaining <= 10**9
        assert reset is None or 0 <= reset <= 86_400
