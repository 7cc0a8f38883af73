"""tinyproxy, between the client and a TaskServer: plain requests,
tunnels, logins, a proxy that dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import subprocess
import sys

import pytest
import trustme
from real_servers import find_tinyproxy, folder, free_port, running
from tenacity import stop_after_attempt, wait_fixed

from xai_tasks import APIConnectionError, APIStatusError, PollPolicy, RetryPolicy, TaskClient
from xai_tasks.testing import TaskServer

pytestmark = pytest.mark.realserver

PASSWORD = "S3CRETS3CRET"
ONCE = RetryPolicy(stop=stop_after_attempt(1))

CONFIG = """
Port %(port)s
Listen 127.0.0.1
Allow 127.0.0.1
Timeout 30
MaxClients 200
LogFile "%(log)s"
LogLevel Connect
%(more)s
"""


class RunningProxy:
    def __init__(self, program, log):
        self.program = program
        self.host = f"127.0.0.1:{program.port}"
        self.url = f"http://{self.host}"
        self._log = log

    @property
    def requests(self):
        """The request lines that it has seen."""
        lines = self._log.read_text(errors="replace").splitlines()
        return [line.partition("): ")[2] for line in lines if "Request (file" in line]


@contextlib.contextmanager
def tinyproxy(more=""):
    """Run a tinyproxy."""
    with folder() as path:
        port, log = free_port(), path / "proxy.log"
        (path / "proxy.conf").write_text(CONFIG % {"port": port, "log": log, "more": more})
        command = [find_tinyproxy(), "-d", "-c", path / "proxy.conf"]
        with running(command, path, port) as program:
            yield RunningProxy(program, log)


@pytest.fixture
async def server():
    async with TaskServer() as server:
        yield server


async def test_waits_go_through_a_plain_proxy(server):
    ids = [server.add(f"task-{n}", [("processing", 0.2)]) for n in range(50)]
    with tinyproxy() as proxy:
        poll = PollPolicy(wait=wait_fixed(0.1))
        async with TaskClient("test", base_url=server.url, proxy=proxy.url, poll=poll) as client:
            tasks = await client.wait_all(ids)
            assert (await client.get(ids[0])).succeeded

        assert [task.task_id for task in tasks] == ids
        assert len(proxy.requests) > 50
        assert all(line.startswith("GET http://127.0.0.1:") for line in proxy.requests)


async def test_a_login_is_sent(server):
    server.add("a")
    with tinyproxy(f"BasicAuth user {PASSWORD}") as proxy:
        url = f"http://user:{PASSWORD}@{proxy.host}"
        async with TaskClient("test", base_url=server.url, proxy=url, retry=ONCE) as client:
            assert (await client.get("a")).succeeded


@pytest.mark.parametrize("login", ["", f"user:not-{PASSWORD}@"])
@pytest.mark.parametrize("base_url", [None, "https://127.0.0.1:9"])
async def test_a_login_that_is_missing_or_wrong_is_told(server, login, base_url):
    with tinyproxy(f"BasicAuth user {PASSWORD}") as proxy:
        url = f"http://{login}{proxy.host}"
        async with TaskClient("test", base_url=base_url or server.url, proxy=url) as client:
            # tinyproxy answers a wrong login with 401, as if it were the API, and none with 407.
            with pytest.raises((APIStatusError, APIConnectionError)) as caught:
                await client.get("a", timeout=10)

        assert "HTTP 401" in str(caught.value) or f"the proxy {proxy.url}" in str(caught.value)
        assert PASSWORD not in str(caught.value)


async def test_a_proxy_that_dies_and_comes_back_costs_no_wait(server):
    ids = [server.add(f"task-{n}", [("processing", 2.0)]) for n in range(20)]
    poll = PollPolicy(wait=wait_fixed(0.1))
    with tinyproxy() as proxy:
        async with TaskClient("test", base_url=server.url, proxy=proxy.url, poll=poll) as client:
            waits = asyncio.create_task(client.wait_all(ids))
            await asyncio.sleep(0.5)
            proxy.program.signal(signal.SIGSTOP)
            await asyncio.sleep(0.5)
            proxy.program.signal(signal.SIGCONT)
            tasks = await asyncio.wait_for(waits, 60)

    assert all(task.succeeded for task in tasks)


async def test_an_api_that_is_gone_behind_the_proxy_is_told(server):
    with tinyproxy() as proxy:
        url = f"https://127.0.0.1:{free_port()}"
        async with TaskClient("test", base_url=url, proxy=proxy.url, retry=ONCE) as client:
            with pytest.raises(APIConnectionError, match=f"through the proxy {proxy.url}"):
                await client.get("a")


PROGRAM = """
import asyncio, sys
from tenacity import wait_fixed
from xai_tasks import PollPolicy, TaskClient

async def main():
    poll = PollPolicy(wait=wait_fixed(0.1))
    options = {"proxy": sys.argv[2]} if len(sys.argv) > 2 else {"trust_env": True}
    async with TaskClient("test", base_url=sys.argv[1], poll=poll, **options) as client:
        ids = [f"task-{n}" for n in range(20)]
        tasks = await client.wait_all(ids)
        assert [task.task_id for task in tasks] == ids
        print(sum(task.succeeded for task in tasks))

asyncio.run(main())
"""


@pytest.mark.parametrize("source", ["argument", "environment"])
async def test_waits_go_through_a_tunnel(source):
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with TaskServer(ssl_context=context) as server:
        server_ids = [server.add(f"task-{n}", [("processing", 0.2)]) for n in range(20)]
        with tinyproxy(f"BasicAuth user {PASSWORD}") as proxy, folder() as path:
            authority.cert_pem.write_to_path(path / "ca.pem")
            url = f"http://user:{PASSWORD}@{proxy.host}"
            environment = {**os.environ, "SSL_CERT_FILE": str(path / "ca.pem")}
            for name in ("NO_PROXY", "no_proxy", "https_proxy"):
                environment.pop(name, None)
            if source == "environment":
                environment["HTTPS_PROXY"] = url
            program = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                PROGRAM,
                server.url,
                *([url] if source == "argument" else []),
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            out, err = await asyncio.wait_for(program.communicate(), 60)

            assert (out, err) == (b"20\n", b"")
            assert proxy.requests
            assert all(line.startswith("CONNECT 127.0.0.1:") for line in proxy.requests)
        assert server.count(server_ids[0]) >= 1
