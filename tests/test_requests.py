"""Requests: what is checked, and the JSON that is sent."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xai_tasks import (
    ImageRequest,
    Outcome,
    ServerError,
    SubmissionUncertainError,
    VideoRequest,
)

KINDS = pytest.mark.parametrize("kind", [ImageRequest, VideoRequest])


def test_video_request_has_the_api_names():
    request = VideoRequest(
        "a cat",
        duration=10,
        aspect_ratio="9:16",
        resolution="720P",
        images=["https://a/1.png"],
        extra={"seed": 7},
    )

    assert request.to_json() == {
        "prompt": "a cat",
        "model": "grok-imagine-video",
        "duration": 10,
        "aspectRatio": "9:16",
        "resolution": "720P",
        "images": ["https://a/1.png"],
        "seed": 7,
    }


def test_image_request_has_the_api_names():
    request = ImageRequest("a cat", model="m", aspect_ratio="1:1", images=("u", "v"))

    assert request.to_json() == {
        "prompt": "a cat",
        "model": "m",
        "aspectRatio": "1:1",
        "images": ["u", "v"],
    }


@KINDS
def test_none_is_not_sent(kind):
    assert kind("a cat").to_json().keys() == {"prompt", "model"}


@KINDS
@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"prompt": ""}, ValueError, "prompt is empty"),
        ({"prompt": " \n"}, ValueError, "prompt is empty"),
        ({"prompt": 7}, TypeError, "prompt must be a string, not int"),
        ({"prompt": None}, TypeError, "prompt must be a string"),
        ({"model": None}, TypeError, "model must be a string"),
        ({"aspect_ratio": 1.5}, TypeError, "aspect_ratio must be a string, not float"),
        ({"images": "https://a/1.png"}, TypeError, r"write images=\[url\]"),
        ({"images": b"x"}, TypeError, r"write images=\[url\]"),
        ({"images": 7}, TypeError, "images must be a list of URLs, not int"),
        ({"images": [7]}, TypeError, "images must hold strings, not int"),
        ({"extra": [1]}, TypeError, "extra must be a mapping"),
        ({"extra": {1: 1}}, TypeError, "extra must have strings as keys"),
        ({"extra": {"prompt": "b"}}, ValueError, "'prompt', which has a parameter"),
        ({"extra": {"aspectRatio": "1:1"}}, ValueError, "'aspectRatio', which has a parameter"),
        ({"extra": {"x": object()}}, ValueError, "extra can't be written as JSON"),
        ({"extra": {"x": float("nan")}}, ValueError, "extra can't be written as JSON"),
    ],
)
def test_bad_field_is_refused(kind, fields, error, message):
    with pytest.raises(error, match=message):
        kind(**{"prompt": "a cat", **fields})


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"duration": "10"}, TypeError),
        ({"duration": True}, TypeError),
        ({"duration": float("inf")}, ValueError),
        ({"resolution": 720}, TypeError),
    ],
)
def test_bad_video_field_is_refused(fields, error):
    with pytest.raises(error, match=next(iter(fields))):
        VideoRequest("a cat", **fields)


@KINDS
def test_request_is_a_frozen_value(kind):
    images, extra = ["u"], {"seed": 7}
    request = kind("a cat", images=images, extra=extra)
    same = kind("a cat", images=("u",), extra={"seed": 7})
    images.append("v")
    extra["seed"] = 8

    assert request == same
    assert hash(request) == hash(same)
    assert request != kind("a dog")
    assert pickle.loads(pickle.dumps(request)) == copy.deepcopy(request) == request
    with pytest.raises(AttributeError):
        request.prompt = "a dog"


@KINDS
def test_repr_is_short_and_has_one_line(kind):
    request = kind("a\ncat" * 100, images=["data:image/png;base64," + "A" * 10_000])

    assert len(repr(request)) < 400
    assert repr(request).isprintable()


@given(st.text().filter(str.strip))
def test_any_prompt_can_be_sent(prompt):
    data = json.dumps(VideoRequest(prompt).to_json()).encode("ascii")

    assert json.loads(data)["prompt"] == prompt


def test_uncertain_submission_names_prompt_and_cause():
    cause = ServerError("HTTP 502", task_id="", status_code=502)
    error = SubmissionUncertainError(VideoRequest("a cat"), cause)

    assert error.task_id == ""
    assert (error.request, error.cause) == (VideoRequest("a cat"), cause)
    for word in ("submission", "VideoRequest('a cat')", "may have been accepted", "HTTP 502"):
        assert word in str(error)


def test_uncertain_submission_pickles():
    error = SubmissionUncertainError(
        ImageRequest("a cat"), ServerError("HTTP 502", task_id="", status_code=502)
    )

    again = pickle.loads(pickle.dumps(error))

    assert (again.request, str(again)) == (error.request, str(error))
    assert again.cause.status_code == 502


def test_outcome_holds_its_request():
    assert Outcome("a", 0, request=ImageRequest("a cat")).request == ImageRequest("a cat")
    assert Outcome("a", 0).request is None
