"""The app that `web_load.py` puts under load: long polls over one client, beside
an endpoint that does nothing.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import aiohttp
import harness
from aiohttp import web
from tenacity import wait_fixed

from xai_tasks import PollPolicy, TaskClient

INTERVAL = 1.0
"""Seconds between two polls of an id."""
KEEPALIVE = 2.0
"""Seconds that a connection to the API may rest: short, so that soon none
is left which no wait needs.
"""


class App:
    """The handlers, and what there is to see of them."""

    def __init__(self, client: TaskClient) -> None:
        """Wait with `client`."""
        self.client = client
        self.open = 0

    async def wait(self, request: web.Request) -> web.Response:
        """Answer when the task has ended; a client that hangs up has this cancelled."""
        self.open += 1
        try:
            task = await self.client.wait(request.match_info["task_id"], timeout=300)
        finally:
            self.open -= 1
        return web.json_response({"status": task.status})

    async def ping(self, request: web.Request) -> web.Response:
        """Answer at once."""
        return web.json_response({"pong": True})

    async def state(self, request: web.Request) -> web.Response:
        """Return what the process has open."""
        files = [
            str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()
        ]
        return web.json_response(
            {
                "polls": self.open,
                "ids": self.client.stats.waiting,
                "tasks": len(asyncio.all_tasks()),
                "sockets": sum(name.startswith("socket:") for name in files),
            }
        )


async def main(url: str) -> None:
    """Serve until stdin is closed, and tell the port on stdout."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE)
    )
    poll = PollPolicy(wait=wait_fixed(INTERVAL))
    async with (
        session,
        TaskClient("made-up-key", base_url=url, session=session, poll=poll) as client,
    ):
        app, handlers = web.Application(), App(client)
        app.add_routes(
            [
                web.get("/tasks/{task_id}/wait", handlers.wait),
                web.get("/ping", handlers.ping),
                web.get("/state", handlers.state),
            ]
        )
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await runner.cleanup()


if __name__ == "__main__":
    os.sched_setaffinity(0, [harness.CLIENT_CORE])
    asyncio.run(main(sys.argv[1]))
