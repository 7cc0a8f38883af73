"""Requests: the jobs that can be submitted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeAlias

from attrs import Attribute, field, frozen

from xai_tasks._errors import printable

_REPR_LENGTH = 60
"""Characters of a prompt, or of an image's URL, in a `repr`: a `data:` URL may have millions."""


def _check_prompt(instance: object, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"prompt must be a string, not {type(value).__name__}")
    if not value.strip():
        raise ValueError("prompt is empty")


def _check_text(instance: object, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{attribute.name} must be a string, not {type(value).__name__}")


def _check_optional_text(instance: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None:
        _check_text(instance, attribute, value)


def _check_duration(instance: object, attribute: Attribute[Any], value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"duration must be a number of seconds, not {type(value).__name__}")
    if not abs(value) <= sys.float_info.max:
        raise ValueError("duration must be finite")


def _check_extra(instance: Any, attribute: Attribute[Any], value: Mapping[str, Any]) -> None:
    for name in value:
        if not isinstance(name, str):
            raise TypeError(f"extra must have strings as keys, not {type(name).__name__}")
        if name in instance._NAMES.values():  # noqa: SLF001 -- one of our two classes
            raise ValueError(f"extra holds {name!r}, which has a parameter of its own")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"extra can't be written as JSON: {error}") from None


def _images(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, (str, bytes)):
        raise TypeError("images must be a list of URLs, not a single string: write images=[url]")
    if not isinstance(value, Iterable):
        raise TypeError(f"images must be a list of URLs, not {type(value).__name__}")
    images = tuple(value)
    for image in images:
        if not isinstance(image, str):
            raise TypeError(f"images must hold strings, not {type(image).__name__}")
    return images


def _extra(value: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"extra must be a mapping, not {type(value).__name__}")
    return dict(value)


def _brief(value: str) -> str:
    return repr(printable(value, _REPR_LENGTH))


def _brief_images(value: tuple[str, ...]) -> str:
    return f"[{', '.join(map(_brief, value))}]"


def _to_json(request: ImageRequest | VideoRequest) -> dict[str, Any]:
    names = request._NAMES  # noqa: SLF001
    fields = {name: getattr(request, attribute) for attribute, name in names.items()}
    fields["images"] = list(request.images) or None
    known = {name: value for name, value in fields.items() if value is not None}
    return {**known, **request.extra}


@frozen
class ImageRequest:
    """An image to be made, for `TaskClient.submit`, `run` and `as_completed`.

    The server decides on lengths and allowed values, which change over time. Checked here: types,
    and a prompt that is not empty.

    Raises:
        TypeError: a field is of the wrong type.
        ValueError: the prompt is empty, or `extra` can't be written as JSON or holds a field that
            has a parameter.

    """

    _PATH: ClassVar[str] = "/xai/images"
    _NAMES: ClassVar[dict[str, str]] = {
        "prompt": "prompt",
        "model": "model",
        "aspect_ratio": "aspectRatio",
        "images": "images",
    }

    prompt: str = field(validator=_check_prompt, repr=_brief)
    """What the image shows, in words."""
    model: str = field(default="grok-imagine-image", kw_only=True, validator=_check_text)
    aspect_ratio: str | None = field(default=None, kw_only=True, validator=_check_optional_text)
    """Width to height, such as `"16:9"`; None: the server's default."""
    images: tuple[str, ...] = field(default=(), kw_only=True, converter=_images, repr=_brief_images)
    """URLs of images to start from."""
    extra: Mapping[str, Any] = field(
        factory=dict[str, Any],
        kw_only=True,
        converter=_extra,
        validator=_check_extra,
        hash=False,
        repr=False,
    )
    """Further fields, by the API's names, that this version does not know."""

    def to_json(self) -> dict[str, Any]:
        """Return the body of the submission, in the API's names, without what is None."""
        return _to_json(self)


@frozen
class VideoRequest:
    """A video to be made, for `TaskClient.submit`, `run` and `as_completed`.

    The server decides on lengths and allowed values, which change over time. Checked here: types,
    and a prompt that is not empty.

    Raises:
        TypeError: a field is of the wrong type.
        ValueError: the prompt is empty, the duration is not finite, or `extra` can't be written as
            JSON or holds a field that has a parameter.

    """

    _PATH: ClassVar[str] = "/xai/videos"
    _NAMES: ClassVar[dict[str, str]] = {
        "prompt": "prompt",
        "model": "model",
        "duration": "duration",
        "aspect_ratio": "aspectRatio",
        "resolution": "resolution",
        "images": "images",
    }

    prompt: str = field(validator=_check_prompt, repr=_brief)
    """What the video shows, in words."""
    model: str = field(default="grok-imagine-video", kw_only=True, validator=_check_text)
    duration: float | None = field(default=None, kw_only=True, validator=_check_duration)
    """Seconds; None: the server's default."""
    aspect_ratio: str | None = field(default=None, kw_only=True, validator=_check_optional_text)
    """Width to height, such as `"16:9"`; None: the server's default."""
    resolution: str | None = field(default=None, kw_only=True, validator=_check_optional_text)
    """Such as `"720P"`; None: the server's default."""
    images: tuple[str, ...] = field(default=(), kw_only=True, converter=_images, repr=_brief_images)
    """URLs of images to start from."""
    extra: Mapping[str, Any] = field(
        factory=dict[str, Any],
        kw_only=True,
        converter=_extra,
        validator=_check_extra,
        hash=False,
        repr=False,
    )
    """Further fields, by the API's names, that this version does not know."""

    def to_json(self) -> dict[str, Any]:
        """Return the body of the submission, in the API's names, without what is None."""
        return _to_json(self)


def check_request(request: object) -> None:
    """Check that something can be submitted.

    Raises:
        TypeError: it is neither an `ImageRequest` nor a `VideoRequest`.

    """
    if not isinstance(request, (ImageRequest, VideoRequest)):
        raise TypeError(
            f"request must be an ImageRequest or a VideoRequest, not {type(request).__name__}"
        )


Request: TypeAlias = ImageRequest | VideoRequest
"""What can be submitted."""
