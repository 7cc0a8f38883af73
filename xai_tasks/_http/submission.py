"""The body of a submission, which knows whether it was sent."""

from __future__ import annotations

import json
from collections.abc import Callable

import aiohttp
from aiohttp.abc import AbstractStreamWriter

from xai_tasks._requests import Request


class SubmissionBody(aiohttp.BytesPayload):
    """The JSON of a request, which records that the first byte may have left.

    aiohttp holds the headers back until the body is written, so nothing is sent before. This works
    in a borrowed session too.

    Args:
        request: what to submit.
        on_send: called before the first byte is written; if it raises, nothing is written.

    """

    def __init__(self, request: Request, on_send: Callable[[], None]) -> None:
        data = json.dumps(request.to_json(), separators=(",", ":")).encode()
        super().__init__(data, content_type="application/json")
        self._on_send = on_send
        self.sent = False
        self.problem: Exception | None = None
        """What `on_send` raised; aiohttp would wrap it."""

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        """Write the body to a connection."""
        try:
            self._on_send()
        except Exception as error:
            self.problem = error
            raise
        self.sent = True
        await super().write_with_length(writer, content_length)
