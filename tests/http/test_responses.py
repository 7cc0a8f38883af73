"""What errors say of the bodies of answers, and which of them are transient."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xai_tasks import NotFoundError, PermissionDeniedError
from xai_tasks._errors import is_transient
from xai_tasks._http.credentials import Redactor
from xai_tasks._http.responses import status_error

KEY = "sk-test/0123456789"


def error_of(status, body, headers=None):
    return status_error(status, headers or {}, body, Redactor(KEY), "a", server_time=None)


# Error pages that are not the API's.

FOREIGN = [
    b"404 page not found\n",
    b"default backend - 404",
    b"no",
    b"<html><head><title>403 Forbidden</title></head><body>nginx</body></html>",
    b"<!DOCTYPE html>\n<title>Attention Required! | Cloudflare</title>",
    b"\xff\xfe\x00",
    b"{broken",
    b"'single quotes'",
    "禁止访问".encode(),
    b"\xef\xbb\xbf",
]
THE_APIS = [
    b"",
    b" \r\n\t",
    b"{}",
    b"null",
    b'"Forbidden"',
    b"404",
    b'{"message":"Forbidden resource","error":"Forbidden","statusCode":403}',
    b'\xef\xbb\xbf{"message": "no such task"}',
    b' [{"message": "no"}] ',
]


@pytest.mark.parametrize("body", FOREIGN)
@pytest.mark.parametrize(("status", "cls"), [(403, PermissionDeniedError), (404, NotFoundError)])
def test_foreign_error_page_is_transient(status, cls, body):
    error = error_of(status, body)

    assert type(error) is cls
    assert is_transient(error)
    assert "not the API's own error page" in str(error)
    assert "no such task" not in str(error)


@pytest.mark.parametrize("body", THE_APIS)
@pytest.mark.parametrize("status", [403, 404])
def test_the_apis_own_refusal_is_final(status, body):
    error = error_of(status, body)

    assert not is_transient(error)
    assert "error page" not in str(error)


@pytest.mark.parametrize("status", [400, 401, 402, 405, 407, 410, 418, 422, 301, 304])
@pytest.mark.parametrize("body", [*FOREIGN, *THE_APIS])
def test_other_refusals_stay_final(status, body):
    assert not is_transient(error_of(status, body))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 530])
@pytest.mark.parametrize("body", [*FOREIGN, *THE_APIS])
def test_transient_statuses_stay_transient(status, body):
    assert is_transient(error_of(status, body))


# Texts.


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "Too many requests, please try again later.",
            "Too many requests, please try again later.",
        ),
        ("404 page not found\n", "404 page not found"),
        ("one\n\n  two\tthree", "one two three"),
        ("\ufeffplain", "plain"),
        ("x" * 121, "x" * 120 + "…"),
        ("任" * 121, "任" * 120 + "…"),
        ("<html><head><title>502 Bad Gateway</title></head><body>nginx", "502 Bad Gateway"),
        ("  <!doctype html><TITLE lang=en>\n Too &amp; much\n</TITLE>", "Too & much"),
        ("<title></title><h1>Sorry</h1><p>We are <b>down</b></p>", "Sorry We are down"),
        ("<title>unclosed", "unclosed"),
        ("<titl", None),
        ("<pre>Cannot POST /x</pre>", "Cannot POST /x"),
        ("a < b", "a < b"),
        ("<", None),
        ("<>", None),
        ("\x1b[31mred", r"\x1b[31mred"),
    ],
)
def test_a_body_that_is_not_json_is_quoted(body, message):
    error = error_of(503, body.encode())

    assert error.message == message
    assert str(error) == f"task 'a': HTTP 503{'' if message is None else f': {message}'}"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            b'{"message": "no", "errorCode": 40001, "traceId": "t"}',
            ": no (code 40001) (trace id t)",
        ),
        (b'{"errorCode": -1.5}', "HTTP 400 (code -1.5)"),
        (b'{"msg": "no", "code": "E\\n7"}', ": no (code E\\n7)"),
        (b'{"message": "no", "code": 400}', ": no"),
        (b'{"message": "no", "errorCode": true}', ": no"),
        (b'{"message": "no", "errorCode": ""}', ": no"),
        (b'{"message": "no", "code": {"a": 1}}', ": no"),
    ],
)
def test_message_names_the_error_code(body, text):
    assert str(error_of(400, body)).endswith(text)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ({"database": {"status": "down"}}, "database: down"),
        ({"database": {"status": "down", "message": "refused"}}, "database: refused"),
        ({"a": {"status": "down"}, "b": {"status": "slow"}}, "a: down; b: slow"),
        (
            {f"c{n}": {"status": "down"} for n in range(9)},
            "; ".join(f"c{n}: down" for n in range(5)),
        ),
        ({"a": {"status": 7}, "b": "down", "c": {}}, None),
        ({}, None),
        ([], None),
        (None, None),
    ],
)
def test_a_failed_health_check_is_named(error, message):
    body = {"status": "error", "info": {}, "error": error, "details": {}}

    assert error_of(503, json.dumps(body).encode()).message == message


@pytest.mark.parametrize(
    ("body", "transient"),
    [
        (
            b'{"message":"Cannot GET /xai/tasks?taskId=a","error":"Not Found","statusCode":404}',
            False,
        ),
        (b"<!DOCTYPE html><title>Error</title><pre>Cannot GET /v1/xai/tasks</pre>", True),
        (b'{"message":"Cannot POST /xai/images"}', False),
    ],
)
def test_an_unknown_route_points_to_base_url(body, transient):
    error = error_of(404, body)

    assert str(error).endswith("; the server has no such route: check base_url")
    assert is_transient(error) is transient


@pytest.mark.parametrize(
    "body",
    [
        f"your key {KEY} is bad",
        f"<title>{KEY}</title>",
        f"<title>{KEY.replace('/', '&#47;')}</title>",
        f"<p>{KEY[:9]}<b>{KEY[9:]}</b>",
        "<p>" * 5000 + KEY,
        " " * (2**14 - 10) + KEY,
        "<p>" * 5458 + KEY,
        KEY.replace("/", "%2F"),
        KEY.replace("/", r"\u002f"),
    ],
)
def test_quoted_text_holds_no_part_of_key(body):
    error = error_of(403, body.encode())

    for text in (str(error), error.body, error.message or ""):
        assert KEY[8:14] not in text


@pytest.mark.parametrize(
    "body", [b"<" * 65536, b"<title" * 10922, b"<title>" * 9362, b"&#" * 32768, b"<!--" * 16384]
)
def test_a_hostile_body_takes_no_time(body):
    began = time.perf_counter()
    for _ in range(10):
        error_of(403, body)

    assert time.perf_counter() - began < 5


@given(st.binary(max_size=200), st.sampled_from([400, 403, 404, 500, 503]))
def test_any_body_makes_a_printable_error(body, status):
    error = error_of(status, body)

    assert str(error).isprintable()
    assert error.message is None or error.message.isprintable()
