"""Fixtures for pytest: a `TaskServer`, and a `TaskClient` that talks to it.

Opt in with one line in the `conftest.py` at the root of the tests::

    pytest_plugins = ["xai_tasks.testing.pytest_plugin"]

The fixtures work with pytest-asyncio 0.26 and later, in auto and strict mode and with every
`loop_scope`, and with anyio's plugin on its asyncio backend.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from importlib.metadata import version
from typing import cast

import pytest
from tenacity import wait_fixed

from xai_tasks import PollPolicy, TaskClient
from xai_tasks.testing._server import TaskServer

try:
    import pytest_asyncio
except ImportError:
    pytest_asyncio = None  # type: ignore[assignment]  # mypy has no optional modules

_OLDEST = "0.26"
"""The first pytest-asyncio in which the loop of a test can be configured."""
_too_old = pytest_asyncio is not None and (
    [int(part) for part in version("pytest-asyncio").split(".")[:2]]
    < [int(part) for part in _OLDEST.split(".")]
)
_POLL = PollPolicy(wait=wait_fixed(0.02))


@pytest.fixture
def xai_task_server() -> Generator[TaskServer, None, None]:
    """Run a `TaskServer` with the key `"test"` for one test, in its own thread.

    The test may be asynchronous or not.

    Its clock is the system's. A test with a fake clock needs `async with TaskServer()` instead.
    """
    with TaskServer.in_thread() as server:
        yield server


@pytest.fixture
def xai_task_client(request: pytest.FixtureRequest) -> TaskClient:
    """Return a `TaskClient` for the test's `xai_task_server`; it is closed when the test is over.

    For asynchronous tests. It polls every 20 ms, because made-up tasks are short.
    """
    item = request.node
    if pytest_asyncio is not None and not _too_old and pytest_asyncio.is_async_test(item):
        marker = item.get_closest_marker("asyncio")
        loop_scope = marker.kwargs.get("loop_scope") if marker is not None else None
        runner: str = loop_scope or request.config.getini("asyncio_default_test_loop_scope")
    elif "anyio_backend" in request.fixturenames:
        runner = "anyio"
    elif _too_old:
        pytest.fail(
            f"xai_task_client needs pytest-asyncio {_OLDEST} or later, but "
            f"{version('pytest-asyncio')} is installed: pip install --upgrade pytest-asyncio",
            pytrace=False,
        )
    else:
        pytest.fail(
            "xai_task_client is for asynchronous tests, run by pytest-asyncio or anyio, because a "
            "client belongs to one event loop. In a synchronous test, pass xai_task_server.url to "
            "a TaskClient made in the loop that uses it.",
            pytrace=False,
        )
    return cast("TaskClient", request.getfixturevalue(f"_xai_task_client_{runner}"))


def _client() -> Callable[[TaskServer], AsyncGenerator[TaskClient, None]]:
    async def client(xai_task_server: TaskServer) -> AsyncGenerator[TaskClient, None]:
        async with TaskClient("test", base_url=xai_task_server.url, poll=_POLL) as client:
            yield client

    # Each fixture needs its own function: pytest-asyncio stores the scope on it.
    return client


# A client must be closed in the loop that used it, and each plugin names that loop differently.
_anyio = pytest.fixture(name="_xai_task_client_anyio")(_client())
if pytest_asyncio is not None and not _too_old:
    _function, _class, _module, _package, _session = (
        pytest_asyncio.fixture(loop_scope=scope, name=f"_xai_task_client_{scope}")(_client())
        for scope in ("function", "class", "module", "package", "session")
    )
