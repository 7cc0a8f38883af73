"""The API key: where it comes from, when it is asked for again, and how it stays unseen."""

from __future__ import annotations

import asyncio
import html
import inspect
import json
import os
import re
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

from xai_tasks._errors import ConfigurationError

KeySource = str | Callable[[], str | Awaitable[str]]
ENVIRONMENT_NAME = "MOUNTSEA_API_KEY"


def _problem(key: object) -> str | None:
    """Say what is wrong with a key without showing it."""
    if not isinstance(key, str):
        return f"must be a string, not {type(key).__name__}"
    if not key.strip():
        return "is empty"
    if not key.isascii():
        return "holds a character that is not ASCII"
    if not key.isprintable():
        return "holds a control character, perhaps a line break at its end"
    return None


_MIN_SECRET = 8
"""Characters of a key from which on echoes of it are blotted out; a shorter one is a test's, and stands in any text."""

_JSON_ESCAPE = re.compile(r"""\\u00([0-7][0-9a-fA-F])|\\(["/\\])""")


def _without_json_escapes(text: str) -> str:
    return _JSON_ESCAPE.sub(lambda match: chr(int(match[1], 16)) if match[1] else match[2], text)


class Redactor:
    """Blots a key out of what a server wrote, where it echoes it by accident or malice."""

    __slots__ = ("_forms", "_key")

    def __init__(self, key: str | None) -> None:
        """Look for `key`; for None, and for a short one, nothing is blotted out."""
        self._key = key if key is not None and len(key) >= _MIN_SECRET else None
        self._forms: set[bytes] = set()
        if self._key is not None:
            escaped = json.dumps(self._key)[1:-1]
            # Some encoders escape slashes, which base64 has.
            self._forms = {
                form.encode() for form in (self._key, escaped, escaped.replace("/", r"\/"))
            }

    def body(self, body: bytes) -> bytes:
        """Give an answer's body without the key, be it as it is or as JSON encoders write it."""
        for form in self._forms:
            if form in body:
                body = body.replace(form, b"[key]")
        return body

    def text(self, text: str) -> str:
        """Give a text without the key, be it as it is or escaped for JSON, a URL or HTML."""
        if self._key is not None:
            for decode in (str, _without_json_escapes, unquote, html.unescape):
                plain = decode(text)
                if self._key in plain:
                    text = plain.replace(self._key, "[key]")
        return text


class Credentials:
    """Holds the key and asks its source for a new one after a 401.

    Tracebacks may be printed with the locals of their frames, so no frame that raises may have the key among
    its own: hence a constructor that only notes what is wrong, and versions where keys could be compared.
    """

    __slots__ = ("_error", "_lock", "_source", "key", "version")

    key: str | None
    """The key in use, or None before its source was first asked."""
    version: int
    """How many keys the source has given."""

    def __init__(self, source: KeySource | None) -> None:
        """Take a key, a function that gives one, or None for the environment's."""
        self.key = None
        self.version = 0
        self._error: Exception | None = None
        self._source: Callable[[], str | Awaitable[str]] | None = None
        self._lock = asyncio.Lock()
        if callable(source):
            self._source = source
            return
        name = "api_key" if source is not None else f"${ENVIRONMENT_NAME}"
        self.key = source if source is not None else os.environ.get(ENVIRONMENT_NAME)
        if self.key is None:
            self._error = ConfigurationError(f"no API key: pass api_key or set ${ENVIRONMENT_NAME}")
        elif source is not None and not isinstance(source, str):
            self._error = TypeError(
                f"api_key must be a string or a function, not {type(source).__name__}"
            )
        elif problem := _problem(self.key):
            self._error = ConfigurationError(f"{name} {problem}")

    def check(self) -> None:
        """Raise what was wrong with the constructor's argument.

        Raises:
            ConfigurationError: there is no key, or it is malformed.
            TypeError: the source is neither a string nor a function.

        """
        if self._error is not None:
            raise self._error

    @property
    def renewable(self) -> bool:
        """Whether there is a source to ask for a new key."""
        return self._source is not None

    async def renew(self, version: int) -> None:
        """Ask the source for a key, unless the one of `version` was replaced meanwhile: one call serves all.

        Raises:
            ConfigurationError: the source gave no usable key.
            Exception: whatever the source raises.

        """
        async with self._lock:
            if self._source is None or self.version != version:
                return
            problem = await self._take(self._source())
        if problem is not None:
            raise ConfigurationError(f"the key that the function api_key gave {problem}")

    async def _take(self, answer: str | Awaitable[str]) -> str | None:
        """Take the source's answer for the key, or say what is wrong with it."""
        key = await answer if inspect.isawaitable(answer) else answer
        problem = _problem(key)
        if problem is None:
            self.key = key
            self.version += 1
        return problem
