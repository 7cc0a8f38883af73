"""Requests as `run` reads them: a prompt a line, or JSON with the API's own fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import attrs
import click
from attrs import frozen

from xai_tasks import ImageRequest, VideoRequest

Request: TypeAlias = ImageRequest | VideoRequest

KINDS: dict[str, type[ImageRequest | VideoRequest]] = {
    "image": ImageRequest,
    "video": VideoRequest,
}
_FIELDS = {"aspectRatio": "aspect_ratio"}
"""Parameters that have another name than the API's field."""


@frozen
class Wanted:
    """A request, with the user's own id for it."""

    kind: str
    """A key of `KINDS`."""
    request: Request
    id: Any = None

    @property
    def record(self) -> dict[str, Any]:
        """What a line of the output says of it."""
        record: dict[str, Any] = {"request": self.request.to_json(), "kind": self.kind}
        return record if self.id is None else {**record, "id": self.id}

    @property
    def line(self) -> str:
        """A line that `RequestLines` reads as this request."""
        own_id = {} if self.id is None else {"id": self.id}
        return json.dumps({**self.request.to_json(), **own_id})

    @property
    def key(self) -> str:
        """The same for equal requests, and for those alone."""
        return json.dumps(self.record, sort_keys=True)


def from_fields(kind: str, fields: Mapping[str, Any], own_id: Any = None) -> Wanted:
    """Build a request from the API's own fields.

    Raises:
        ValueError: they are not those of a request; the message says why.

    """
    cls = KINDS[kind]
    known = {each.name for each in attrs.fields(cls)} - {"extra"}
    parameters: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in fields.items():
        parameter = _FIELDS.get(name, name)
        if value is None:
            continue
        if parameter in known and name not in _FIELDS.values():
            parameters[parameter] = value
        else:
            extra[name] = value
    if "prompt" not in parameters:
        raise ValueError("a request without a prompt")
    try:
        return Wanted(kind, cls(**parameters, extra=extra), own_id)
    except TypeError as error:
        raise ValueError(str(error)) from None


class RequestLines:
    """Reads requests from lines.

    Args:
        kind: a key of `KINDS`.
        defaults: fields that hold where a line has none of that name.

    """

    def __init__(self, kind: str, defaults: Mapping[str, Any]) -> None:
        self._kind = kind
        self._defaults = defaults

    def parse(self, line: str) -> Wanted | None:
        """Parse a line: a prompt, or a JSON object.

        Returns:
            the request; None for a blank line.

        Raises:
            ValueError: it is no request; the message says why.

        """
        text = line.strip()
        if not text:
            return None
        if not text.startswith("{"):
            return from_fields(self._kind, {**self._defaults, "prompt": text})
        try:
            fields = json.loads(text)
        except RecursionError:
            raise ValueError("JSON that is nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"broken JSON: {error}") from None
        own_id = fields.pop("id", None)
        return from_fields(self._kind, {**self._defaults, **fields}, own_id)

    def parse_prompt(self, prompt: str) -> str:
        """Check a prompt that is an argument, and return a line that `parse` reads as it.

        Raises:
            click.UsageError: it is empty.

        """
        try:
            from_fields(self._kind, {**self._defaults, "prompt": prompt})
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        return json.dumps({"prompt": prompt})

    def feed(self, line: bytes) -> str | None:
        """Check a line, and return its text; None for a blank line.

        Raises:
            ValueError: it is no request; the message says why.

        """
        text = line.decode()
        return None if self.parse(text) is None else text

    def end(self) -> None:
        """Check nothing: each line stands alone."""
