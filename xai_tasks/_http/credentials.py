"""The API key: where it comes from, when it is renewed, and how it is redacted."""

from __future__ import annotations

import asyncio
import contextvars
import html
import inspect
import os
import re
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

from xai_tasks._errors import ClientClosedError, ConfigurationError

KeySource = str | Callable[[], str | Awaitable[str]]
ENVIRONMENT_NAME = "MOUNTSEA_API_KEY"


def _problem(key: object) -> str | None:
    """Return what is wrong with a key, without showing it; None for a good one."""
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
"""Shorter secrets are not redacted: they are a test's, and stand in any text."""


class Redactor:
    """Redacts secrets in what a server sent, where it echoes them by accident or malice."""

    __slots__ = ("_escapes", "_pattern", "_plain", "_secrets")

    def __init__(self, *secrets: str | None) -> None:
        """Redact each of `secrets`, in ASCII, that is not None and not short."""
        self._secrets = [each for each in secrets if each is not None and len(each) >= _MIN_SECRET]
        self._plain = [secret.encode() for secret in self._secrets]
        # A body without any of these holds no escaped character of a secret, and looking for them
        # takes far less time than the pattern.
        special = set("".join(self._secrets)) & set('"/\\')
        self._escapes = [b"\\u00", *(b"\\" + char.encode() for char in special)]
        self._pattern = re.compile("|".join(map(_any_escape, self._secrets)).encode())

    def body(self, body: bytes) -> bytes:
        """Return a body with every secret replaced, in each form in which JSON can write it."""
        for plain in self._plain:
            if plain in body:
                body = body.replace(plain, b"[key]")
        if self._secrets:
            for escape in self._escapes:
                if escape in body:
                    return self._pattern.sub(b"[key]", body)
        return body

    def text(self, text: str) -> str:
        """Return a text with every secret replaced: plain, or escaped for JSON, a URL or HTML."""
        text = self.body(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")
        for secret in self._secrets:
            for decode in (unquote, html.unescape):
                plain = decode(text)
                if secret in plain:
                    text = plain.replace(secret, "[key]")
        return text


def _any_escape(secret: str) -> str:
    r"""Return a pattern for every way in which JSON can write `secret`.

    Each character may stand plain or as an escape, in digits of either case. An escape may begin
    with more than one backslash: so it does in JSON within a JSON string.
    """
    return "".join(_any_escape_of(char) for char in secret)


def _any_escape_of(char: str) -> str:
    digits = "".join(f"[{d}{d.upper()}]" if d.isalpha() else d for d in f"{ord(char):02x}")
    plain = r"\\+" if char == "\\" else rf"\\*{char}" if char in '"/' else re.escape(char)
    return rf"(?:\\+u00{digits}|{plain})"


class _Call:
    """One call of the source of keys, and how many wait for it."""

    __slots__ = ("over", "task", "waiting")

    def __init__(self, task: asyncio.Task[str | None]) -> None:
        self.task = task
        self.waiting = 0
        # Not the task itself is waited for: its source may go on in spite of `close`.
        self.over: asyncio.Future[None] = task.get_loop().create_future()

    def end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


class Credentials:
    """Holds the key, and asks its source for a new one after a 401.

    Tracebacks may be printed with the locals of their frames, so no frame that raises may hold the
    key in a local variable. Hence the constructor stores what is wrong, and `check` raises it.
    """

    __slots__ = (
        "_call",
        "_closed",
        "_context",
        "_error",
        "_source",
        "key",
        "version",
    )

    key: str | None
    """The key in use, or None before its source was first asked."""
    version: int
    """How many keys the source has returned."""

    def __init__(self, source: KeySource | None) -> None:
        """Take a key, a function that returns one, or None for the environment's."""
        self.key = None
        self.version = 0
        self._error: Exception | None = None
        self._source: Callable[[], str | Awaitable[str]] | None = None
        self._context = contextvars.Context()
        self._call: _Call | None = None
        self._closed = False
        if callable(source):
            self._source = source
            self._context = contextvars.copy_context()
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
        """Raise what is wrong with the constructor's argument.

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
        """Ask the source for a key, unless the one of `version` has been replaced meanwhile.

        Single flight: callers at the same time share one call of the source and its failure. The
        call is cancelled when the last of them leaves, and by `close`.

        Raises:
            ClientClosedError: the client is closed, or was during the call.
            ConfigurationError: the source returned no usable key.
            BaseException: whatever the source raises, `CancelledError` included.

        """
        if self._source is None or self.version != version:
            return
        if self._closed:
            raise ClientClosedError("the client is closed")
        call = self._call = self._call or self._begin(self._source)
        call.waiting += 1
        try:
            await asyncio.wait([call.over])
            if self._closed:
                raise ClientClosedError("the client was closed while it waited for a key")
            problem = call.task.result()
        finally:
            call.waiting -= 1
            if not call.waiting:
                call.task.cancel()
                self._forget(call)
            del call  # break the cycle of the task's exception and this frame in its traceback
        if problem is not None:
            raise ConfigurationError(f"the key that the function api_key gave {problem}")

    def close(self) -> None:
        """End a call of the source, and all waiting for it, with `ClientClosedError`."""
        self._closed = True
        if self._call is not None:
            self._call.task.cancel()
            self._call.end()

    def _begin(self, source: Callable[[], str | Awaitable[str]]) -> _Call:
        # In a task even if the source is a plain function: so that its failure can be shared, and
        # with the contextvars of the client, not of the wait that needs the key first.
        # `create_task(context=...)` would fail under task factories of the old form.
        create_task = asyncio.get_running_loop().create_task
        call = _Call(self._context.copy().run(create_task, self._ask(source)))

        def ended(task: asyncio.Task[str | None]) -> None:
            self._forget(call)
            call.end()
            if not task.cancelled():
                task.exception()  # retrieved: asyncio would log it if nobody waits any more

        call.task.add_done_callback(ended)
        return call

    def _forget(self, call: _Call) -> None:
        """Make the next caller begin a call of its own."""
        if self._call is call:
            self._call = None

    async def _ask(self, source: Callable[[], str | Awaitable[str]]) -> str | None:
        """Take the source's answer as the key; return what is wrong with it, if anything."""
        await asyncio.sleep(0)  # so that others share this call, also under an eager task factory
        answer = source()
        key = await answer if inspect.isawaitable(answer) else answer
        problem = _problem(key)
        if problem is None:
            self.key = key
            self.version += 1
        return problem
