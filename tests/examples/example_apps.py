"""Loads the example apps, serves them in this process, and reads what they stream."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import sys
from pathlib import Path

import uvicorn
from aiohttp import web
from django.conf import empty, settings
from django.urls import clear_url_caches
from tenacity import stop_after_attempt, wait_fixed

from xai_tasks import PollPolicy, RetryPolicy, TaskClient

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NAMES = ("aiohttp", "django", "fastapi", "litestar", "starlette")
KEY = "made-up-key"
INTERVAL = 0.05
"""Seconds between polls, where the examples themselves begin with 5."""


class App:
    """An example app, and the clients it made."""

    def __init__(self, name, module, url):
        self.name = name
        self.module = module
        self.url = url
        self.clients = []

    @property
    def client(self):
        """The one client that it has."""
        (client,) = self.clients
        return client


def load(name):
    """Import an example again, so that no test meets another's app."""
    spec = importlib.util.spec_from_file_location(f"{name}_app", EXAMPLES / f"{name}_app.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where Litestar finds its annotations
    if name == "django":  # its settings and routes are the process's
        settings._wrapped = empty
        clear_url_caches()
    spec.loader.exec_module(module)
    return module


@contextlib.asynccontextmanager
async def serving(name, port=0, max_outage=300.0):
    """Serve an example, its client's base URL and key from the environment; polls are
    frequent, and requests are not retried.
    """
    module = load(name)
    app = App(name, module, None)

    def client(**options):
        app.clients.append(
            TaskClient(
                poll=PollPolicy(wait=wait_fixed(INTERVAL), max_outage=max_outage),
                retry=RetryPolicy(stop=stop_after_attempt(1)),
                request_timeout=1.0,
            )
        )
        return app.clients[-1]

    module.TaskClient = client
    serve = _aiohttp if name == "aiohttp" else _uvicorn
    async with serve(module, port) as port:
        app.url = f"http://127.0.0.1:{port}"
        yield app


@contextlib.asynccontextmanager
async def _aiohttp(module, port):
    runner = web.AppRunner(module.make_app(), handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def _uvicorn(module, port):
    config = uvicorn.Config(
        module.application if hasattr(module, "application") else module.app,
        port=port,
        ws="none",
        lifespan="on",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            assert not serving.done(), "uvicorn did not start"
            await asyncio.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def read_events(response):
    """Yield the events of a stream, as pairs of name and data; a comment is
    a pair of None and its text.
    """
    name, data = None, None
    async for line in response.content:
        field, _, value = line.decode().rstrip("\r\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data = json.loads(value)
        elif field == "" and value:
            yield None, value
        elif field == "" and data is not None:
            yield name, data
            name, data = None, None


async def until(reached, timeout=10.0):
    """Wait until `reached()` is true."""
    async with asyncio.timeout(timeout):
        while not reached():
            await asyncio.sleep(0.01)
