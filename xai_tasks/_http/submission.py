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
    in a borrowed session too. A middleware of that session may try to send the request again: the
    body is written once only.

    Args:
        request: what to submit.
        on_send: called before the first byte is written; if it raises, nothing is written.

    """

    def __init__(self, request: Request, on_send: Callable[[], None]) -> None:
        data = json.dumps(request.to_json(), separators=(",", ":")).encode()
        super().__init__(data, content_type="application/json")
        self._on_send = on_send
        self.sent = False
        self.refused = False
        """Whether it was to be sent a second time."""
        self.problem: Exception | None = None
        """What `on_send` raised."""

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        """Write the body to a connection.

        Raises:
            RuntimeError: it was written before, or `on_send` raised something.

        """
        if self.sent:
            self.refused = True
            raise RuntimeError("a submission is sent once")
        try:
            self._on_send()
        except Exception as error:  # noqa: BLE001 -- it is the user's
            self.problem = error
        if self.problem is not None:  # not raised as it is: aiohttp would tie it to its frames
            raise RuntimeError("a submission may not be sent")
        self.sent = True
        await super().write_with_length(writer, content_length)
