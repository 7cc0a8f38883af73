"""The real program, and a server for it."""

from __future__ import annotations

import pytest
from cli_program import KEY, Program

from xai_tasks.testing import TaskServer


@pytest.fixture
def server():
    with TaskServer.in_thread(api_key=KEY) as server:
        yield server


@pytest.fixture
def program(server):
    program = Program(server.url)
    yield program
    program.close()
