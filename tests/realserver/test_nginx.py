"""nginx, as a gateway between the client and a TaskServer: TLS, a rate limit, short
keep-alive, gzip, 502 and 504.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
from collections import Counter

import aiohttp
import pytest
import trustme
from real_servers import find_nginx, folder, free_port, running
from tenacity import stop_after_attempt, wait_fixed

from xai_tasks import (
    APIConnectionError,
    PollPolicy,
    RateLimitError,
    RetryPolicy,
    ServerError,
    TaskClient,
)
from xai_tasks.testing import Fault, TaskServer, uniform

pytestmark = pytest.mark.realserver

READ_TIMEOUT = 1
"""Seconds after which nginx answers 504 for a backend that is silent."""

CONFIG = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn;
events { worker_connections 1024; }
http {
  log_format seen '$status $ssl_protocol $sent_http_content_encoding $connection_requests $pid';
  access_log access.log seen;
  client_body_temp_path tmp/b; proxy_temp_path tmp/p; fastcgi_temp_path tmp/f;
  uwsgi_temp_path tmp/u;
  scgi_temp_path tmp/s;
  map $status $retry_after { 429 "1"; }
  limit_req_zone $http_authorization zone=key:1m rate=%(rate)sr/s;
  upstream backend { server 127.0.0.1:%(backend)s; keepalive 32; }
  server {
    listen 127.0.0.1:%(port)s ssl backlog=1024; ssl_certificate srv.pem;
    ssl_certificate_key srv.key;
    keepalive_timeout 1s; keepalive_requests 50; gzip on; gzip_min_length 0;
    gzip_types application/json;
    location / {
      limit_req zone=key burst=%(burst)s nodelay; limit_req_status 429;
      add_header Retry-After $retry_after always;
      proxy_http_version 1.1; proxy_set_header Connection ""; proxy_read_timeout %(read_timeout)ss;
      proxy_pass http://backend;
    }
  }
}
"""


class Gateway:
    """nginx, in front of a TaskServer."""

    def __init__(self, program, path, context):
        self._program = program
        self._path = path
        self._context = context
        self.url = f"https://localhost:{program.port}"

    def reload(self):
        self._program.signal(signal.SIGHUP)

    def seen(self):
        """Return a line per request: status, TLS version, content encoding,
        place on its connection, worker.
        """
        return [line.split() for line in (self._path / "access.log").read_text().splitlines()]

    @contextlib.asynccontextmanager
    async def client(self, **options):
        # What a user with a private CA does: the client has no setting for TLS.
        connector = aiohttp.TCPConnector(ssl=self._context, limit=0)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            TaskClient("made-up-key", base_url=self.url, session=session, **options) as client,
        ):
            yield client
            # TLS transports need a turn of the loop or two to be gone.
            await asyncio.sleep(0)


@pytest.fixture
async def server():
    async with TaskServer("made-up-key") as server:
        yield server


@pytest.fixture
def start(server):
    """Start nginx in front of `server`; it ends with the test."""
    nginx = find_nginx()
    with contextlib.ExitStack() as stack:

        def start(rate=10_000, burst=1_000):
            path = stack.enter_context(folder())
            (path / "tmp").mkdir()
            (path / "tmp").chmod(0o777)
            authority = trustme.CA()
            certificate = authority.issue_cert("localhost", "127.0.0.1")
            certificate.private_key_pem.write_to_path(path / "srv.key")
            for part in certificate.cert_chain_pems:
                part.write_to_path(path / "srv.pem", append=True)
            context = ssl.create_default_context()
            authority.configure_trust(context)
            port = free_port()
            backend = server.url.rpartition(":")[2]
            config = CONFIG % {
                "port": port,
                "backend": backend,
                "rate": rate,
                "burst": burst,
                "read_timeout": READ_TIMEOUT,
            }
            (path / "nginx.conf").write_text(config)
            command = [nginx, "-p", f"{path}/", "-c", "nginx.conf", "-e", "stderr"]
            return Gateway(stack.enter_context(running(command, path, port)), path, context)

        yield start


async def test_get_and_wait_over_tls_with_a_private_ca_and_gzip(server, start):
    gateway = start()
    server.add("a", [("processing", 0.3)], result={"prompt": "a lighthouse " * 1000})

    async with gateway.client(poll=PollPolicy(wait=wait_fixed(0.1))) as client:
        task = await client.wait("a")

    assert task.result == {"prompt": "a lighthouse " * 1000}
    assert {(status, encoding) for status, _, encoding, *_ in gateway.seen()} == {("200", "gzip")}
    assert all(protocol.startswith("TLSv1.") for _, protocol, *_ in gateway.seen())


async def test_a_certificate_of_an_unknown_ca_is_refused_before_the_key_is_sent(server, start):
    gateway = start()

    async with TaskClient("made-up-key", base_url=gateway.url) as client:
        with pytest.raises(APIConnectionError, match=r"(?i)certificate"):
            await client.get("a")

    assert server.count() == 0


async def test_connections_that_nginx_closes_after_50_requests_or_a_second_cost_no_attempt(
    server, start
):
    gateway = start()
    server.add("a", result={})

    async with gateway.client(max_concurrency=4) as client:
        await asyncio.gather(*(client.get("a") for _ in range(400)))
        await asyncio.sleep(1.5)
        await client.get("a")
        assert client.stats.requests == 401
        assert client.stats.retries == 0

    assert max(int(place) for *_, place, _ in gateway.seen()) == 50


async def test_429_with_html_is_a_rate_limit_error_that_knows_when_to_come_back(server, start):
    gateway = start(rate=20, burst=5)
    server.add("a", result={})

    async with gateway.client(retry=RetryPolicy(stop=stop_after_attempt(1))) as client:
        answers = await asyncio.gather(
            *(client.get("a") for _ in range(40)), return_exceptions=True
        )

    errors = [answer for answer in answers if isinstance(answer, Exception)]
    assert errors
    assert {type(error) for error in errors} == {RateLimitError}
    assert {error.retry_after for error in errors} == {1.0}
    assert all("<html>" in error.body for error in errors)


async def test_502_of_a_backend_that_is_gone_is_retried_and_outlived(server, start):
    gateway = start()
    server.add("a", result={})
    await server.aclose()

    async with gateway.client(poll=PollPolicy(wait=wait_fixed(0.1))) as client:
        with pytest.raises(ServerError, match="HTTP 502") as caught:
            await client.get("a")
        wait = asyncio.ensure_future(client.wait("a"))
        await asyncio.sleep(0.5)
        await server.start()
        assert (await wait).succeeded

    assert "<html>" in caught.value.body
    assert ["502"] * 4 == [status for status, *_ in gateway.seen()][:4]


async def test_504_of_a_backend_that_is_slow_is_retried(server, start):
    gateway = start()
    server.add("a", result={})
    server.fault("a", Fault.stall())

    async with gateway.client() as client:
        task = await client.get("a")
        assert client.stats.retries == 1

    assert task.succeeded
    assert [status for status, *_ in gateway.seen()] == ["504", "200"]


async def test_of_two_thousand_ids_none_is_lost_to_a_rate_limit_a_reload_and_a_restart(
    server, start
):
    gateway = start(rate=500, burst=20)
    ids = server.add_many(2_000, duration=uniform(0.0, 4.0), failed=0.05)
    outcomes = []

    async def read(stream):
        async for outcome in stream:
            outcomes.append(outcome)

    async def trouble():
        while len(outcomes) < 400:
            await asyncio.sleep(0.05)
        gateway.reload()
        while len(outcomes) < 1_000:
            await asyncio.sleep(0.05)
        await server.aclose()
        await asyncio.sleep(1.0)
        assert len(outcomes) < 2_000
        await server.start()

    async with gateway.client(poll=PollPolicy(wait=wait_fixed(2.0))) as client:
        await asyncio.gather(read(client.as_completed(ids)), trouble())
        assert client.stats.rate_limited > 0

    assert Counter(outcome.index for outcome in outcomes) == Counter(range(2_000))
    assert all(outcome.task is not None and outcome.task.done for outcome in outcomes)
    assert {"200", "429", "502"} <= {status for status, *_ in gateway.seen()}
    assert len({worker for *_, worker in gateway.seen()}) == 2
