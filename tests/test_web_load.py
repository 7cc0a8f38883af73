"""Many long polls in one web app share the polls of few ids, and leave
nothing behind when they hang up.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from aiohttp import web
from tenacity import wait_fixed

from xai_tasks import PollPolicy, TaskClient
from xai_tasks.testing import TaskServer

pytestmark = pytest.mark.slow

IDS = [f"task-{number}" for number in range(20)]


class App:
    """A web app over one client, on a port of its own."""

    def __init__(self, server):
        self.client = TaskClient("test", base_url=server.url, poll=PollPolicy(wait=wait_fixed(0.1)))
        self.open = 0

    async def wait(self, request):
        self.open += 1
        try:
            return web.json_response(
                {"status": (await self.client.wait(request.match_info["task_id"])).status}
            )
        finally:
            self.open -= 1

    async def ping(self, request):
        return web.Response()

    async def __aenter__(self):
        app = web.Application()
        app.add_routes([web.get("/tasks/{task_id}/wait", self.wait), web.get("/ping", self.ping)])
        self.runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0, backlog=1000).start()
        self.port = self.runner.addresses[0][1]
        return self

    async def __aexit__(self, *exc_info):
        await self.runner.cleanup()
        await self.client.close()

    async def ask(self, path):
        """Send a request; give the connection, whose answer is still to come."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n".encode())
        return reader, writer

    async def long_polls(self, count):
        connections = [
            await self.ask(f"/tasks/{IDS[number % len(IDS)]}/wait") for number in range(count)
        ]
        await until(lambda: self.open == count)
        return connections


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def sockets():
    files = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum(file.startswith("socket:") for file in files)


@pytest.fixture
async def server():
    async with TaskServer() as server:
        yield server


@pytest.fixture
async def app(server):
    async with App(server) as app:
        yield app


async def test_400_long_polls_ask_the_api_no_more_than_20(server, app):
    for task_id in IDS:
        server.add(task_id, "pending")
    began = time.monotonic()
    connections = await app.long_polls(400)
    await server.wait_for_requests(server.count() + 100)

    assert app.client.stats.waiting == 20
    for task_id in IDS:
        server.advance(task_id)
    answers = await asyncio.gather(*(reader.read() for reader, _ in connections))

    assert all(answer.endswith(b'{"status": "completed"}') for answer in answers)
    for task_id in IDS:
        assert server.count(task_id) <= 2 + (time.monotonic() - began) / 0.1
    for _, writer in connections:
        writer.close()


async def test_another_endpoint_answers_while_they_wait(server, app):
    for task_id in IDS:
        server.add(task_id, "pending")
    connections = await app.long_polls(400)

    for _ in range(20):
        reader, writer = await app.ask("/ping")
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200 ")
        writer.close()

    assert app.open == 400
    for _, writer in connections:
        writer.transport.abort()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open sockets by /proc")
async def test_those_that_hang_up_leave_nothing_behind(server, app):
    for task_id in IDS:
        server.add(task_id, "pending")
    tasks, open_sockets = len(asyncio.all_tasks()), sockets()
    connections = await app.long_polls(400)

    # The half of each of the first ten ids' waiters, then the other half, then everybody.
    for number, (_, writer) in enumerate(connections):
        if number % 20 < 10 and number < 200:
            writer.transport.abort()
    await until(lambda: app.open == 300)
    assert app.client.stats.waiting == 20
    for number, (_, writer) in enumerate(connections):
        if number % 20 < 10:
            writer.transport.abort()
    await until(lambda: app.client.stats.waiting == 10)
    assert app.open == 200
    for _, writer in connections:
        writer.transport.abort()

    await until(lambda: app.open == app.client.stats.waiting == app.client.stats.in_flight == 0)
    asked = app.client.stats.requests
    await asyncio.sleep(0.3)
    assert app.client.stats.requests == asked
    # Connections to the API rest for another 15 s; with the client they are gone.
    await app.client.close()
    await until(lambda: len(asyncio.all_tasks()) <= tasks and sockets() <= open_sockets)
