"""HTTP answers as the bytes that `TaskServer` writes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from http.client import responses
from typing import cast

from aiohttp import web
from attrs import frozen

JSON = "application/json; charset=utf-8"


@frozen
class Reply:
    """An HTTP answer to send."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = (("Content-Type", JSON),)

    def head(self, *, framing: str | None = None, keep_alive: bool = True) -> bytes:
        """Return everything before the body.

        Args:
            framing: the header that marks the end of the body; None: `Content-Length`.
            keep_alive: False adds `Connection: close`.

        """
        lines = [f"HTTP/1.1 {self.status} {responses.get(self.status, '')}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if not self._bodiless:
            lines.append(framing or f"Content-Length: {len(self.body)}")
        if not keep_alive:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def encode(self, *, keep_alive: bool = True) -> bytes:
        """Return the whole answer."""
        head = self.head(keep_alive=keep_alive)
        return head if self._bodiless else head + self.body

    @property
    def _bodiless(self) -> bool:
        # These statuses have no body: what followed would be read as the next answer.
        return self.status < 200 or self.status in {204, 304}


def refusal(
    status: int,
    message: str | list[str],
    headers: Iterable[tuple[str, str]] = (),
    task_id: str | None = None,
) -> Reply:
    """Build an error answer with a body like NestJS's; see `TaskServer`."""
    phrase = responses[status]
    error: dict[str, object] = {"statusCode": status, "message": message, "error": phrase}
    if task_id is not None:
        error["traceId"] = f"trace-{task_id}"
    return Reply(status, json.dumps(error).encode(), (("Content-Type", JSON), *headers))


class Sent(web.StreamResponse):
    """Tells `aiohttp.web` that the answer has been sent: we write to the transport ourselves.

    So faults can send what `web.Response` never would. It is also faster: 32 microseconds instead
    of 40 for a request and its answer, client included.
    """

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._stays = keep_alive

    @property
    def keep_alive(self) -> bool:
        """Whether the connection stays open for the next request."""
        return self._stays

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send nothing."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Send nothing."""


KEEP_ALIVE = Sent(keep_alive=True)
HANG_UP = Sent(keep_alive=False)


def transport_of(request: web.BaseRequest) -> asyncio.Transport:
    """Return the request's connection. Handlers are cancelled when it is lost, so there is one."""
    return cast("asyncio.Transport", request.transport)


def send(request: web.BaseRequest, reply: Reply) -> web.StreamResponse:
    """Write an answer to the request's connection; return what the handler must return."""
    stays = request.keep_alive
    data = reply.encode(keep_alive=stays)
    if request.method == "HEAD":  # its answer has no body
        data = data[: len(data) - len(reply.body)]
    transport_of(request).write(data)
    return KEEP_ALIVE if stays else HANG_UP
