from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xai_tasks._http.hints import parse_retry_after

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
    assert parse_retry_after(headers, NOON.timestamp()) == seconds


@pytest.mark.parametrize(
    "value",
    ["", " ", "-1", "+7", "inf", "Infinity", "nan", "NaN", "1e3", "0x10", "7s", "7, 8", "1_000", "7.", ".7", "٧", "soon",
     "9" * 400, "9" * 5000, "2025-01-02T12:00:07Z", "Thu, 32 Jan 2025 12:00:07 GMT", "Thu, 02 Jan 99999 12:00:07 GMT",
     "Thu, 02 Jan 2025 12:00:07 +999999", "02 Jan", "Jan", ";", "\x00"],
)  # fmt: skip
@pytest.mark.parametrize("header", ["Retry-After", "retry-after-ms"])
def test_a_malformed_retry_after_is_ignored(header, value):
    assert parse_retry_after({header: value}, NOON.timestamp()) is None


def test_a_date_counts_from_the_clock_where_the_answer_has_no_date():
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)

    assert 50 < parse_retry_after({"Retry-After": in_a_minute}, None) <= 60


@pytest.fixture
def in_new_york(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


def test_a_date_without_a_zone_is_in_utc_wherever_we_are(in_new_york):
    assert parse_retry_after({"Retry-After": "Thu Jan  2 12:00:07 2025"}, NOON.timestamp()) == 7.0


@given(st.text() | st.from_regex(r"\A[0-9a-zA-Z ,:+.-]{0,40}\Z"), st.none() | st.floats(0, 4e9))
def test_any_retry_after_gives_finite_seconds_or_nothing(value, server_time):
    for header in ("Retry-After", "retry-after-ms"):
        seconds = parse_retry_after({header: value}, server_time)

        assert seconds is None or (math.isfinite(seconds) and seconds >= 0)
