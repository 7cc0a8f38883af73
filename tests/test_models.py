from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xai_tasks import (
    ClientStats,
    Outcome,
    TaskCancelledError,
    TaskError,
    TaskFailedError,
    TaskResult,
    TaskStatus,
    TaskTimedOutError,
    WaitTimeoutError,
    _models,
)
from xai_tasks._models import body_to_keep, decode_task, parse_json, task_error

NOON = datetime(2025, 1, 2, 12, tzinfo=UTC)
ENDS = {
    "completed": None,
    "failed": TaskFailedError,
    "cancelled": TaskCancelledError,
    "timeout": TaskTimedOutError,
}
NOT_ENDS = ["pending", "ready", "assigned", "processing"]


def decode(**fields):
    return decode_task(json.dumps({"taskId": "a", "status": "pending", **fields}).encode())


# Statuses.


def test_statuses_are_the_apis_own_words_and_unknown():
    assert list(TaskStatus) == [*NOT_ENDS, *ENDS, "unknown"]
    assert all(status.name == status.value.upper() for status in TaskStatus)


@pytest.mark.parametrize("word", ENDS)
def test_a_task_with_an_end_status_is_done(word):
    assert decode(status=word).done


@pytest.mark.parametrize("word", NOT_ENDS)
def test_other_status_is_not_done_whatever_finished_at(word):
    assert not decode(status=word, finishedAt="2025-01-02T12:00:00Z").done


def test_only_a_completed_task_has_succeeded():
    assert [status for status in TaskStatus if TaskResult("a", status).succeeded] == [
        TaskStatus.COMPLETED
    ]


@pytest.mark.parametrize(
    "word", ["queued", "succeeded", "", "COMPLETED", " completed", "unknown", "ä" * 100]
)
def test_unknown_status_is_no_end(word):
    task = decode(status=word)

    assert task.status is TaskStatus.UNKNOWN
    assert task.raw["status"] == word
    assert not task.done


@pytest.mark.parametrize("date", ["2025-01-02T12:00:00Z", "yesterday", 1735819200])
def test_unknown_status_with_finished_at_is_an_end(date):
    assert decode(status="exploded", finishedAt=date).done


def test_unknown_status_without_finished_at_is_no_end():
    assert not decode(status="exploded", finishedAt=None).done


def test_unknown_status_by_hand_with_finished_at_is_an_end():
    assert TaskResult("a", TaskStatus.UNKNOWN, finished_at=NOON).done


def test_dates_given_by_hand_are_in_utc():
    naive, east = (
        datetime(2025, 1, 2, 12),  # noqa: DTZ001 -- naive on purpose
        datetime(2025, 1, 2, 14, tzinfo=timezone(timedelta(hours=1))),
    )

    task = TaskResult("a", "exploded", created_at=naive, finished_at=east)

    assert task.done
    assert task.elapsed == timedelta(hours=1)
    assert {date.tzinfo for date in (task.created_at, task.finished_at)} == {UTC}


@pytest.mark.parametrize(
    "value",
    [0, -0.0, 0.0, 1, 86399, -62135596800, False, True, "", " ", "0", "0.0", [], {},
     "0000-00-00 00:00:00",
     "0000-00-00T00:00:00Z", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00",
     "0001-01-01T00:00:00+14:00",
     "1899-12-30T00:00:00Z", "1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z", "1970-01-01T08:00:00",
     "1970-01-01T00:00:00-08:00", "1970-01-01"],
)  # fmt: skip
def test_a_placeholder_date_is_not_an_end(value):
    task = decode(status="queued", finishedAt=value)

    assert not task.done
    assert task.raise_for_status() is task


@pytest.mark.parametrize(
    "value", [86400, 1735819200.5, 1735819200000, "1735819200", "1970-01-02T00:00:00Z"]
)
def test_real_date_ends_unknown_status(value):
    assert decode(status="exploded", finishedAt=value).done


@pytest.mark.parametrize("status", TaskStatus)
def test_a_status_given_as_a_string_is_converted(status):
    task = TaskResult("a", status.value)

    assert task.status is status
    assert task == TaskResult("a", status)
    assert status.value in repr(task)
    assert task.succeeded is (status is TaskStatus.COMPLETED)


def test_unknown_status_word_becomes_unknown():
    assert TaskResult("a", "exploded").status is TaskStatus.UNKNOWN


@pytest.mark.parametrize("status", [None, 7, b"completed", ["completed"]])
def test_status_of_wrong_type_is_a_type_error(status):
    with pytest.raises(TypeError, match="^status must be a string, not "):
        TaskResult("a", status)


# What follows from a task.


@pytest.mark.parametrize(("word", "cls"), [(word, cls) for word, cls in ENDS.items() if cls])
def test_raise_for_status_raises_each_ends_error(word, cls):
    task = decode(status=word)

    with pytest.raises(TaskError) as caught:
        task.raise_for_status()

    assert type(caught.value) is cls
    assert caught.value.task is task


def test_raise_for_status_of_unknown_end():
    with pytest.raises(TaskError) as caught:
        decode(status="exploded", finishedAt="2025-01-02T12:00:00Z").raise_for_status()

    assert type(caught.value) is TaskError
    assert "ended as 'exploded'" in str(caught.value)


@pytest.mark.parametrize("word", ["completed", *NOT_ENDS, "exploded"])
def test_raise_for_status_returns_other_tasks(word):
    task = decode(status=word)

    assert task.raise_for_status() is task


def test_task_error_has_requested_id():
    error = task_error(decode(status="failed"), "asked")

    assert error.task_id == "asked"


def test_result_as_converts_and_propagates_errors():
    task = decode(status="completed", result={"n": "7"})

    assert task.result_as(lambda result: int(result["n"])) == 7
    with pytest.raises(KeyError):
        task.result_as(lambda result: result["m"])


def test_elapsed_runs_from_created_to_finished():
    task = decode(createdAt="2025-01-02T12:00:00Z", finishedAt="2025-01-02T13:00:30+01:00")

    assert task.elapsed == timedelta(seconds=30)


@pytest.mark.parametrize("missing", ["createdAt", "finishedAt"])
def test_elapsed_is_none_where_a_date_is_missing(missing):
    dates = {
        "createdAt": "2025-01-02T12:00:00Z",
        "finishedAt": "2025-01-02T12:00:00Z",
        missing: None,
    }

    assert decode(**dates).elapsed is None


def test_repr_hides_result_and_raw():
    task = decode(
        status="failed",
        errorMessage="no\x1bGPU",
        errorCode=7,
        traceId="t",
        result="SECRET",
        more="SECRET",
    )

    assert repr(task) == (
        r"TaskResult(task_id='a', status='failed', "
        r"error_message='no\\x1bGPU', error_code=7, trace_id='t')"
    )


def test_repr_leaves_out_what_is_not_there():
    assert repr(decode()) == "TaskResult(task_id='a', status='pending')"


@pytest.mark.parametrize(
    "model",
    [TaskResult("a", TaskStatus.PENDING), Outcome("a", 0), ClientStats()],
    ids=lambda m: type(m).__name__,
)
def test_models_are_frozen_slotted_hashable_picklable(model):
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        model.task_id = "b"
    assert not hasattr(model, "__dict__")
    assert hash(model) == hash(pickle.loads(pickle.dumps(model)))
    assert pickle.loads(pickle.dumps(model)) == model


def test_task_with_result_pickles_and_hashes():
    task = decode(status="completed", result={"imageUrls": ["x"]}, createdAt="2025-01-02T12:00:00Z")

    assert pickle.loads(pickle.dumps(task)) == task
    assert {task: 1}[task] == 1


# Tasks as JSON.


@pytest.mark.parametrize(
    "raw",
    [
        {"taskId": "a", "status": "pending"},
        {"taskId": "a", "status": "exploded", "finishedAt": "2025-01-02T12:00:00Z", "new": [1]},
        {
            "taskId": "a",
            "status": "failed",
            "errorCode": 7,
            "error": "TaskFailedError",
            "files": [],
        },
    ],
)
def test_a_task_goes_through_json_and_back(raw):
    task = TaskResult.from_raw(raw)

    assert task == decode_task(json.dumps(raw).encode())
    assert task.to_dict() == raw
    assert TaskResult.from_raw(json.loads(json.dumps(task.to_dict()))) == task


def test_to_dict_of_handmade_task_has_api_fields():
    task = TaskResult("a", "failed", [1], "no GPU", 7, NOON, NOON, "t")

    assert task.to_dict() == {
        "taskId": "a",
        "status": "failed",
        "result": [1],
        "errorMessage": "no GPU",
        "errorCode": 7,
        "createdAt": "2025-01-02T12:00:00+00:00",
        "finishedAt": "2025-01-02T12:00:00+00:00",
        "traceId": "t",
    }
    assert attrs.evolve(TaskResult.from_raw(task.to_dict()), raw={}) == task


def test_a_bare_task_made_by_hand_has_null_fields():
    data = TaskResult("a", "pending").to_dict()

    assert {name for name, value in data.items() if value is not None} == {"taskId", "status"}


def test_to_dict_returns_a_copy():
    task = decode()
    task.to_dict()["taskId"] = "b"

    assert task.to_dict() == task.raw == {"taskId": "a", "status": "pending"}


@pytest.mark.parametrize(
    "raw", [{}, {"taskId": "a"}, {"status": "x"}, {"taskId": 7, "status": "x"}]
)
def test_from_raw_refuses_what_is_no_task(raw):
    with pytest.raises(ValueError, match="is missing or not a string"):
        TaskResult.from_raw(raw)


@pytest.mark.parametrize(
    "raw", [None, "task", b"{}", [("taskId", "a")], TaskResult("a", "completed")], ids=repr
)
def test_from_raw_of_wrong_type_is_a_type_error(raw):
    with pytest.raises(TypeError, match="^raw must be a mapping, not "):
        TaskResult.from_raw(raw)


# The answer that is kept of an unfinished task.


def kept(**fields):
    body = json.dumps({"taskId": "a", "status": "processing", **fields}).encode()
    return body, body_to_keep(decode_task(body), body)


@pytest.mark.parametrize(
    "fields", [{}, {"result": "x" * 16_000}, {"result": "x" * 16_000, "new": "y" * 16_000}]
)
def test_a_small_result_is_kept(fields):
    body, left = kept(**fields)

    assert left is body


@pytest.mark.parametrize(
    "result", ["x" * 17_000, "任" * 17_000, ["x"] * 9_000, [[[["x" * 2**20]]]]]
)
def test_large_unfinished_result_is_dropped(result):
    _, left = kept(result=result, errorMessage="no\ud800 GPU", new=[1])
    task = decode_task(left)

    assert task.result is None
    assert (task.error_message, task.raw["new"], len(left) < 1000) == ("no\ud800 GPU", [1], True)


def test_answer_with_an_infinity_is_kept_whole(monkeypatch):
    monkeypatch.setattr(_models, "orjson", None)
    new = '"new": 1e999'
    body = f'{{"taskId": "a", "status": "processing", {new}, "result": "{"x" * 17_000}"}}'.encode()

    assert body_to_keep(decode_task(body), body) is body


def test_answer_that_is_nested_too_deeply_to_be_written_is_kept_whole():
    task = TaskResult("a", "processing", raw={"new": nested(50_000)})
    body = b"x" * 17_000

    assert body_to_keep(task, body) is body


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


# Outcomes.


def test_outcome_of_completed_task_is_ok():
    task = TaskResult("a", TaskStatus.COMPLETED)
    outcome = Outcome("a", 3, task)

    assert outcome.ok
    assert outcome.unwrap() is task


@pytest.mark.parametrize(
    "task", [None, *(TaskResult("a", status) for status in ("failed", "processing", "exploded"))]
)
def test_outcome_without_a_completed_task_is_not_ok(task):
    assert not Outcome("a", 0, task).ok


@pytest.mark.parametrize("task", [None, TaskResult("a", TaskStatus.PENDING)])
def test_outcome_with_error_unwraps_to_raising_it(task):
    error = WaitTimeoutError("a", 1.0)
    outcome = Outcome("a", 3, task, error)

    assert not outcome.ok
    with pytest.raises(WaitTimeoutError) as caught:
        outcome.unwrap()
    assert caught.value is error


def test_an_outcome_with_neither_says_so():
    with pytest.raises(
        ValueError, match=r"the outcome of task 'a\\\\n' holds neither task nor error"
    ):
        Outcome("a\n", 0).unwrap()


# Decoding.


def test_decoding_takes_every_field():
    body = {
        "taskId": "任务",
        "status": "failed",
        "result": {"deep": [1, None, {"x": True}]},
        "errorMessage": "no GPU",
        "errorCode": -13850663.04,
        "createdAt": "1932-05-07T17:11:20.0Z",
        "finishedAt": "2025-01-02T12:00:00.123456+08:00",
        "traceId": "t1",
        "added later": [1],
    }

    task = decode_task(json.dumps(body).encode())

    assert (task.task_id, task.status, task.result) == ("任务", TaskStatus.FAILED, body["result"])
    assert (task.error_message, task.error_code, task.trace_id) == ("no GPU", -13850663.04, "t1")
    assert task.created_at == datetime(1932, 5, 7, 17, 11, 20, tzinfo=UTC)
    assert task.finished_at == datetime(2025, 1, 2, 4, 0, 0, 123456, tzinfo=UTC)
    assert task.raw == body


def test_decoding_needs_no_more_than_id_and_status():
    task = decode_task(b'{"taskId": "", "status": ""}')

    assert attrs.asdict(task) == {
        "task_id": "",
        "status": TaskStatus.UNKNOWN,
        "result": None,
        "error_message": None,
        "error_code": None,
        "created_at": None,
        "finished_at": None,
        "trace_id": None,
        "raw": {"taskId": "", "status": ""},
    }


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "Expecting value"),
        (b"<html>", "Expecting value"),
        (b"[]", "an object was expected, not list"),
        (b"null", "an object was expected, not NoneType"),
        (b'"completed"', "an object was expected, not str"),
        (b"{}", "'taskId' is missing or not a string"),
        (b'{"taskId": "a"}', "'status' is missing or not a string"),
        (b'{"status": "pending"}', "'taskId' is missing or not a string"),
        (b'{"taskId": 7, "status": "pending"}', "'taskId' is missing or not a string"),
        (b'{"taskId": "a", "status": null}', "'status' is missing or not a string"),
        (b'{"taskId": "a", "status": ["pending"]}', "'status' is missing or not a string"),
        (b'{"taskId": "a", "status": "pending"', "Expecting ',' delimiter"),
        (b'{"taskId": "a", "status": "pending"} {}', "Extra data"),
        (b'{"taskId": "a", "status": "pending", "result": NaN}', "NaN is not JSON"),
        (b'{"taskId": "a", "status": "pending", "result": -Infinity}', "-Infinity is not JSON"),
        (b'{"taskId": "\xff", "status": "pending"}', "invalid start byte"),
        ('{"taskId": "a", "status": "pending"}'.encode("utf-16"), "invalid start byte"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b'{"taskId": "a", "status": "pending", "result": ' + b"9" * 5000 + b"}", "4300"),
        (b'{"taskId": "a\x00", "status": "pending"}', "Invalid control character"),
    ],
)
def test_malformed_task_is_a_value_error(body, problem):
    with pytest.raises(ValueError, match=problem):
        decode_task(body)


def test_a_byte_order_mark_may_lead():
    assert decode_task(b'\xef\xbb\xbf{"taskId": "a", "status": "pending"}').task_id == "a"


def test_number_beyond_floats_is_infinite():
    assert parse_json(b"1e999") == math.inf


def parsed(body, decoder):
    """Return what `decoder`, or the standard library where it is None, makes of a body."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_models, "orjson", decoder)
        try:
            return repr(parse_json(body))  # in which 1 is not 1.0, and -0.0 not 0.0
        except ValueError as error:
            return str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
)


@given(
    JSON.map(lambda value: json.dumps(value).encode())
    | st.from_regex(rb"-?[0-9.eE+-]{1,30}", fullmatch=True)
)
@example(b"9223372036854775808")
@example(b"-9223372036854775809")
@example(b"18446744073709551616")
@example(b'["1e999", -0, -0.0, 5e-324, 1e999]')
@example(b'"\\ud800"')
@example(b'{"a": 1, "a": 2}')
@example(b"\xef\xbb\xbf{}")
@example(b"\x0b1")
@example(b'"\x00"')
@example(b"[1,]")
@example(b"NaN")
def test_orjson_equals_the_standard_library(body):
    assert parsed(body, _models.orjson) == parsed(body, None)


@pytest.mark.slow
def test_orjson_is_not_needed():
    program = """if True:
        import sys
        sys.modules["orjson"] = None  # as if it were not installed
        from xai_tasks._models import decode_task, orjson
        assert orjson is None
        print(decode_task(b'{"taskId": "a", "status": "completed"}').status.value)
    """

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == "completed\n"


@pytest.mark.parametrize("value", [None, 7, True, ["x"], {"x": 1}])
@pytest.mark.parametrize(
    ("name", "attribute"), [("errorMessage", "error_message"), ("traceId", "trace_id")]
)
def test_optional_field_of_wrong_type_stays_in_raw(name, attribute, value):
    task = decode(**{name: value})

    assert getattr(task, attribute) is None
    assert task.raw[name] == value


@pytest.mark.parametrize(
    ("value", "code"), [(7, 7), (-0.5, -0.5), ("E7", "E7"), (10**100, 10**100), (0, 0)]
)
def test_an_error_code_may_be_a_number_or_a_string(value, code):
    assert decode(errorCode=value).error_code == code


@pytest.mark.parametrize("value", [None, True, [7], {"code": 7}])
def test_error_code_of_wrong_type_stays_in_raw(value):
    task = decode(errorCode=value)

    assert task.error_code is None
    assert task.raw["errorCode"] == value


@pytest.mark.parametrize("result", [None, [], 0, False, "text", {"taskId": 1}, [[{}]]])
def test_the_result_is_passed_on_untouched(result):
    assert decode(result=result).result == result


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2025-01-02T12:00:00Z", NOON),
        ("2025-01-02T12:00:00.000Z", NOON),
        ("2025-01-02T12:00:00+00:00", NOON),
        ("2025-01-02T20:00:00+08:00", NOON),
        ("2025-01-02 12:00:00", NOON),
        ("2025-01-02T12:00:00", NOON),
        ("20250102T120000Z", NOON),
        ("2025-01-02T12:00:00.123456789Z", NOON.replace(microsecond=123456)),
        ("2025-01-02", NOON.replace(hour=0)),
    ],
)
def test_dates_come_out_aware_and_in_utc(text, date):
    task = decode(createdAt=text, finishedAt=text)

    assert task.created_at == task.finished_at == date
    assert task.created_at.tzinfo is UTC


@pytest.mark.parametrize(
    "value",
    [None, 1735819200, "", "yesterday", "2025-02-30T00:00:00Z", "2025-01-02T25:00:00Z",
     ["2025-01-02"],
     "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2025-01-02T23:59:60Z"],
)  # fmt: skip
def test_unreadable_date_stays_in_raw(value):
    task = decode(createdAt=value)

    assert task.created_at is None
    assert task.raw["createdAt"] == value


@given(
    st.datetimes(
        datetime(2, 1, 1),  # noqa: DTZ001 -- the zone is drawn beside it
        datetime(9998, 1, 1),  # noqa: DTZ001
        timezones=st.integers(-1439, 1439).map(
            lambda minutes: timezone(timedelta(minutes=minutes))
        ),
    )
)
def test_any_iso_date_is_read(date):
    task = decode(createdAt=date.isoformat())

    assert task.created_at == date
    assert task.created_at.tzinfo is UTC


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {"taskId": st.text(), "status": st.sampled_from([*ENDS, *NOT_ENDS]) | st.text()},
        optional=dict.fromkeys(
            ("result", "errorMessage", "errorCode", "createdAt", "finishedAt", "traceId", "new"),
            json_values,
        ),
    )
)
def test_optional_fields_never_sink_an_answer(answer):
    task = decode_task(json.dumps(answer).encode("utf-8", "surrogatepass"))

    assert task.raw == answer
    assert task.result == answer.get("result")
    assert repr(task).isprintable()
    error = task_error(task, "asked")
    assert error is None or str(error).isprintable()


@given(
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_bytes_decode_or_raise_value_error(body):
    try:
        task = decode_task(body)
    except ValueError:
        return
    assert isinstance(task.task_id, str)


class TestUrls:
    @pytest.mark.parametrize(
        ("result", "urls"),
        [
            (None, ()),
            ("https://a/1", ("https://a/1",)),
            ({"videoUrl": "https://a/1"}, ("https://a/1",)),
            ({"z": ["https://a/2", {"y": "https://a/1"}], "a": "https://a/3"}, "213"),
            (["https://a/1", "https://a/2", "https://a/1"], "12"),
            ({"https://key/": 1}, ()),
            (("data:,x", "data:image/png;base64,AA=="), ("data:,x", "data:image/png;base64,AA==")),
            (["see https://a/1", "https://a/1 and more", " https://a/1", "https://a/1\n"], ()),
            (["https://", "https:///path", "https://?q", "ftp://a/1", "a/1", "//a/1"], ()),
            (["data: my prompt, please", "data:image/png", 1, 1.5, True, {}], ()),
            (["HTTPS://A/1", "hTTp://b"], ("HTTPS://A/1", "hTTp://b")),
            (["https://a/\u732b?sig=%2f+%2B#f"], ("https://a/\u732b?sig=%2f+%2B#f",)),
        ],
    )
    def test_are_found_in_document_order_each_once(self, result, urls):
        task = TaskResult("a", TaskStatus.COMPLETED, result)

        found = task.urls

        if isinstance(urls, str):
            urls = tuple(f"https://a/{n}" for n in urls)
        assert found == urls

    def test_are_found_however_deep(self):
        result = "https://a/1"
        for _ in range(10_000):
            result = [result]

        assert TaskResult("a", TaskStatus.COMPLETED, result).urls == ("https://a/1",)
