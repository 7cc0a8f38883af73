from __future__ import annotations

import copy
import pickle
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

import xai_tasks
from xai_tasks import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ClientClosedError,
    ConfigurationError,
    DownloadError,
    DownloadExpiredError,
    InvalidTaskIdError,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    SubmissionUncertainError,
    TaskCancelledError,
    TaskError,
    TaskFailedError,
    TaskResult,
    TaskStatus,
    TaskTimedOutError,
    VideoRequest,
    WaitTimeoutError,
    XaiTasksError,
)
from xai_tasks._errors import (
    is_transient,
    mark_transient,
    printable,
    status_error_class,
    transient_mark,
)

FAILED = TaskResult(
    "a",
    TaskStatus.FAILED,
    error_message="no\nGPU",
    error_code=17.0,
    trace_id="t\x1b1",
    raw={"taskId": "a", "status": "failed"},
)

ERRORS = [
    ConfigurationError("no API key"),
    ClientClosedError("the client is closed"),
    InvalidTaskIdError("task_id is empty"),
    APIError("odd", task_id="a"),
    APIConnectionError("refused", task_id="a"),
    APITimeoutError("no whole answer within 3 s", task_id="a"),
    APIResponseValidationError("no JSON", task_id="a", status_code=200, body="<html>"),
    SubmissionUncertainError(
        VideoRequest("a cat"), APITimeoutError("no whole answer within 3 s", task_id="")
    ),
    APIStatusError("HTTP 302", task_id="a", status_code=302),
    BadRequestError("HTTP 400", task_id="a", status_code=400),
    AuthenticationError("HTTP 401", task_id="a", status_code=401, body="{}", message="who?"),
    PaymentRequiredError("HTTP 402", task_id="a", status_code=402),
    PermissionDeniedError("HTTP 403", task_id="a", status_code=403),
    NotFoundError("HTTP 404", task_id="a", status_code=404),
    RateLimitError("HTTP 429", task_id="a", status_code=429, retry_after=1.5),
    ServerError("HTTP 500", task_id="a", status_code=500, trace_id="t1"),
    TaskError(FAILED),
    TaskFailedError(FAILED, task_id="asked"),
    TaskCancelledError(FAILED),
    TaskTimedOutError(FAILED),
    WaitTimeoutError("a", 600.0),
    WaitTimeoutError("a", 600.0, FAILED, APITimeoutError("slow", task_id="a")),
    DownloadError("reset", task_id="a", url="https://cdn.example/a.mp4"),
    DownloadExpiredError("HTTP 403", task_id="a", url="https://b.example/", status_code=403),
]

BASES = {
    ConfigurationError: (XaiTasksError, ValueError),
    ClientClosedError: (XaiTasksError, RuntimeError),
    InvalidTaskIdError: (XaiTasksError, ValueError),
    APIError: (XaiTasksError,),
    APIConnectionError: (APIError,),
    APITimeoutError: (APIConnectionError, TimeoutError),
    APIResponseValidationError: (APIError,),
    SubmissionUncertainError: (APIError,),
    APIStatusError: (APIError,),
    BadRequestError: (APIStatusError,),
    AuthenticationError: (APIStatusError,),
    PaymentRequiredError: (APIStatusError,),
    PermissionDeniedError: (APIStatusError,),
    NotFoundError: (APIStatusError,),
    RateLimitError: (APIStatusError,),
    ServerError: (APIStatusError,),
    DownloadError: (XaiTasksError,),
    DownloadExpiredError: (DownloadError,),
    TaskError: (XaiTasksError,),
    TaskFailedError: (TaskError,),
    TaskCancelledError: (TaskError,),
    TaskTimedOutError: (TaskError,),
    WaitTimeoutError: (XaiTasksError, TimeoutError),
    XaiTasksError: (Exception,),
}


def test_the_tree_of_errors_is_the_documented_one():
    classes = {
        each
        for each in map(xai_tasks.__dict__.get, xai_tasks.__all__)
        if isinstance(each, type) and issubclass(each, BaseException)
    }

    assert {cls: cls.__bases__ for cls in classes} == BASES


def test_the_head_of_the_module_draws_every_error():
    drawing = xai_tasks._errors.__doc__

    assert [cls.__name__ for cls in BASES if cls.__name__ not in drawing] == []


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_pickle_and_unpickle_whole(error, protocol):
    twin = pickle.loads(pickle.dumps(error, protocol))

    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert repr(twin) == repr(error)
    assert repr(twin.__dict__) == repr(error.__dict__)
    assert "".join(traceback.format_exception_only(twin)) == "".join(
        traceback.format_exception_only(error)
    )


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_copy_whole(error):
    assert str(copy.copy(error)) == str(copy.deepcopy(error)) == str(error)


def test_a_note_added_to_an_error_survives_pickling():
    error = APITimeoutError("slow", task_id="a")
    error.add_note("in the nightly run")

    assert pickle.loads(pickle.dumps(error)).__notes__ == ["in the nightly run"]


@pytest.mark.parametrize(
    "error",
    [APITimeoutError("slow", task_id="a"), WaitTimeoutError("a", 600.0)],
    ids=lambda error: type(error).__name__,
)
def test_timeouts_pretend_to_no_errno(error):
    assert isinstance(error, OSError)
    assert (error.errno, error.strerror, error.filename) == (None, None, None)


def test_an_api_errors_message_names_the_task_id():
    assert str(APIConnectionError("refused", task_id="a")) == "task 'a': refused"


def test_the_same_error_can_be_said_of_another_task():
    error = APITimeoutError("slow", task_id="a")

    other = error.for_task("b")

    assert (str(error), str(other)) == ("task 'a': slow", "task 'b': slow")
    assert type(other) is APITimeoutError


def test_status_error_defaults():
    error = APIStatusError("HTTP 500", task_id="a", status_code=500)

    assert (error.body, error.message, error.trace_id, error.retry_after) == ("", None, None, None)


def test_task_error_names_all_on_one_line():
    assert str(TaskFailedError(FAILED)) == (
        r"task 'a' ended as 'failed': no\nGPU (code 17.0, trace id t\x1b1)"
    )


def test_task_error_leaves_out_what_is_missing():
    task = TaskResult("a", TaskStatus.CANCELLED, error_code=0)

    assert str(TaskCancelledError(task)) == "task 'a' ended as 'cancelled' (code 0)"


def test_task_error_shows_servers_word_for_unknown_end():
    task = TaskResult("a", TaskStatus.UNKNOWN, raw={"status": "exp\x1bloded"})

    assert str(TaskError(task)) == r"task 'a' ended as 'exp\\x1bloded'"


def test_task_error_carries_requested_id():
    error = TaskFailedError(FAILED, task_id="asked")

    assert (error.task_id, error.task.task_id) == ("asked", "a")
    assert str(error).startswith("task 'asked' ended")


def test_task_error_defaults_to_tasks_id():
    assert TaskFailedError(FAILED).task_id == "a"


def test_wait_timeout_says_what_to_do():
    assert str(WaitTimeoutError("a", 600.0)) == (
        "task 'a' had not ended after 600 s; "
        "it may still be running: wait again, or with a longer timeout"
    )


def test_wait_timeout_tells_last_answer_and_error():
    last = TaskResult("a", TaskStatus.PROCESSING, trace_id="t\n1")
    error = WaitTimeoutError("a", 0.5, last, APITimeoutError("slow", task_id="a"))

    assert str(error).startswith(
        r"task 'a' had not ended after 0.5 s; last seen 'processing' (trace id t\n1); "
        "last error: task 'a': slow; it may"
    )
    assert (error.task_id, error.timeout, error.last) == ("a", 0.5, last)


def test_wait_timeout_without_trace_id():
    error = WaitTimeoutError("a", 1.0, TaskResult("a", TaskStatus.PENDING))

    assert "last seen 'pending'; it may" in str(error)


@pytest.mark.parametrize("error", ERRORS[3:], ids=lambda error: type(error).__name__)
def test_control_characters_in_ids_are_escaped(error):
    twin = copy.copy(error)
    twin.task_id = "a\r\n\x1b[31m\u2028\x00\ud800b"

    assert str(twin).isprintable()
    assert r"a\\r\\n\\x1b[31m\\u2028\\x00\\ud800b" in str(twin)


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (100, APIStatusError),
        (301, APIStatusError),
        (304, APIStatusError),
        (400, BadRequestError),
        (401, AuthenticationError),
        (402, PaymentRequiredError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (405, APIStatusError),
        (408, APIStatusError),
        (409, APIStatusError),
        (418, APIStatusError),
        (422, BadRequestError),
        (429, RateLimitError),
        (499, APIStatusError),
        (500, ServerError),
        (503, ServerError),
        (599, ServerError),
        (999, ServerError),
    ],
)
def test_each_status_has_its_class(status, cls):
    assert status_error_class(status) is cls


@pytest.mark.parametrize(
    ("status", "passing"),
    [
        (302, False),
        (400, False),
        (401, False),
        (402, False),
        (403, False),
        (404, False),
        (408, True),
        (409, False),
        (422, False),
        (429, True),
        (500, True),
        (502, True),
        (529, True),
    ],
)
def test_some_statuses_are_transient(status, passing):
    error = status_error_class(status)("HTTP", task_id="a", status_code=status)

    assert is_transient(error) is passing


@pytest.mark.parametrize("transient", [True, False])
@pytest.mark.parametrize("error", ERRORS[3:15], ids=lambda error: type(error).__name__)
def test_mark_decides_whether_error_is_transient(error, transient):
    marked = mark_transient(copy.copy(error), transient)

    for each in (
        marked,
        copy.copy(marked),
        marked.for_task("b"),
        pickle.loads(pickle.dumps(marked)),
    ):
        assert type(each) is type(error)
        assert (is_transient(each), transient_mark(each)) == (transient, transient)
    assert transient_mark(error) is None


def test_an_error_that_is_not_the_apis_has_no_mark():
    assert transient_mark(ValueError("odd")) is None


def test_connection_and_validation_errors_are_transient():
    passing = [
        type(error)
        for error in ERRORS
        if is_transient(error) and not isinstance(error, APIStatusError)
    ]

    assert passing == [APIConnectionError, APITimeoutError, APIResponseValidationError]


def test_printable_leaves_plain_text_alone():
    assert printable("任务 ok ü") == "任务 ok ü"


def test_printable_cuts_long_text_and_says_so():
    assert printable("x" * 501) == "x" * 500 + "…"
    assert printable("x" * 500) == "x" * 500
    assert printable("abcd", 3) == "abc…"


@given(st.text(st.characters(), max_size=600))
def test_printable_text_is_one_bounded_line(text):
    shown = printable(text)

    assert shown.isprintable()
    assert len(shown) <= 501 * len(r"\U0010ffff")
