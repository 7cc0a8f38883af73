"""The streams of the example apps through nginx as it comes: it buffers, and cuts
silent lines, here after a second.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp
import pytest
from example_apps import KEY, NAMES, read_events, serving, until

from xai_tasks.testing import TaskServer

sys.path.append(str(Path(__file__).parents[1] / "realserver"))

from real_servers import find_nginx, folder, free_port, running  # noqa: E402 -- it lies among the other real servers

pytestmark = pytest.mark.realserver

CONFIG = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn;
events { worker_connections 256; }
http {
  access_log off;
  client_body_temp_path tmp/b; proxy_temp_path tmp/p; fastcgi_temp_path tmp/f;
  uwsgi_temp_path tmp/u;
  scgi_temp_path tmp/s;
  server {
    listen 127.0.0.1:%(port)s;
    gzip on;
    location / { proxy_pass %(app)s; proxy_http_version 1.1; proxy_read_timeout 1s; }
  }
}
"""


@pytest.fixture
async def server(monkeypatch):
    async with TaskServer(KEY) as server:
        monkeypatch.setenv("MOUNTSEA_API_KEY", KEY)
        monkeypatch.setenv("MOUNTSEA_BASE_URL", server.url)
        yield server


@pytest.fixture(params=NAMES)
async def app(request, server, monkeypatch):
    async with serving(request.param) as app:
        if app.name == "fastapi":
            monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.3)
        else:
            monkeypatch.setattr(app.module, "HEARTBEAT", 0.3)
        yield app


@pytest.fixture
async def browser(app):
    nginx, port = find_nginx(), free_port()
    with folder() as path:
        (path / "tmp").mkdir()
        (path / "tmp").chmod(0o777)
        (path / "nginx.conf").write_text(CONFIG % {"port": port, "app": app.url})
        # Starting and stopping block this loop for some tens of milliseconds:
        # nobody asks anything meanwhile.
        with running([nginx, "-p", f"{path}/", "-c", "nginx.conf", "-e", "stderr"], path, port):
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
                yield session


async def test_events_come_at_once_and_silence_does_not_cut_the_stream(server, browser):
    server.add("a", ["pending", "processing"], result=1)

    statuses, comments = [], 0
    async with asyncio.timeout(20), browser.get("/events?id=a") as answer:
        async for name, data in read_events(answer):
            if name is not None:
                statuses.append(data["task"]["status"])
                continue
            comments += 1
            # Two seconds of silence, then a change; it is seen before the next one is made.
            if comments in (6, 9):
                server.advance("a")

    assert statuses == ["pending", "processing", "completed"]


async def test_a_client_that_hangs_up_on_nginx_gives_up_its_wait(server, app, browser):
    server.add("a", "pending", result=1)
    server.add("b", "pending", result=1)
    stream = await browser.get("/events?id=a")
    poll = asyncio.create_task(browser.get("/tasks/b/wait?timeout=30"))
    await until(lambda: app.client.stats.waiting == 2)

    stream.close()
    poll.cancel()

    await until(lambda: app.client.stats.waiting == 0, 3.0)
