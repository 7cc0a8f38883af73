"""Transports to a raw server, lean and by aiohttp's session."""

from __future__ import annotations

import pytest
from raw_server import RawServer, response

from xai_tasks._http.credentials import Credentials
from xai_tasks._http.transport import Transport

KEY = "sk-test-0123456789"
PENDING = b'{"taskId": "a", "status": "pending"}'


@pytest.fixture
async def server():
    async with RawServer(response(200, PENDING)) as server:
        yield server


@pytest.fixture
async def make(server, request_class):
    """Make transports to the server, closed at the test's end."""
    made = []

    def make(base_url=None, **options):
        options = {
            "session": None,
            "request_timeout": 30.0,
            "max_bytes": 2**20,
            "user_agent": None,
            **options,
        }
        credentials = options.pop("credentials", None) or Credentials(KEY)
        url = server.url if base_url is None else base_url
        made.append(Transport(credentials, url, **options))
        return made[-1]

    yield make
    for transport in made:
        await transport.close()


@pytest.fixture
def transport(make):
    return make()
