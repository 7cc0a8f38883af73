"""nginx's `limit_req` as it comes (503 without `Retry-After`) and with 429; burst or none."""

from __future__ import annotations

import contextlib
import time

import pytest
from real_servers import find_nginx, folder, free_port, running

from xai_tasks import TaskClient
from xai_tasks.testing import TaskServer, constant

pytestmark = pytest.mark.realserver

RATE = 50

CONFIG = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit; events {{}}
http {{
  access_log off;
  client_body_temp_path tmp/b; proxy_temp_path tmp/p; fastcgi_temp_path tmp/f;
  uwsgi_temp_path tmp/u; scgi_temp_path tmp/s;
  limit_req_zone $http_authorization zone=key:1m rate={rate}r/s;
  upstream backend {{ server 127.0.0.1:{backend}; keepalive 32; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      limit_req zone=key {burst}; limit_req_status {status};
      proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass http://backend;
    }}
  }}
}}
"""


@contextlib.contextmanager
def nginx(server, *, burst, status):
    """Run nginx in front of a `TaskServer`; give its URL."""
    with folder() as path:
        (path / "tmp").mkdir()
        (path / "tmp").chmod(0o777)
        port = free_port()
        config = CONFIG.format(
            port=port,
            backend=server.url.rpartition(":")[2],
            rate=RATE,
            burst=f"burst={burst} nodelay" if burst else "",
            status=status,
        )
        (path / "nginx.conf").write_text(config)
        command = [find_nginx(), "-p", f"{path}/", "-c", "nginx.conf", "-e", "stderr"]
        with running(command, path, port):
            yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("burst", [0, 5])
@pytest.mark.parametrize("status", [503, 429])
async def test_no_id_is_lost_and_few_requests_are_refused(status, burst):
    async with TaskServer("made-up-key") as server:
        ids = server.add_many(500, duration=constant(0))
        with nginx(server, burst=burst, status=status) as url:
            begun = time.monotonic()
            async with TaskClient("made-up-key", base_url=url) as client:
                outcomes = [outcome async for outcome in client.as_completed(ids)]
                requests = client.stats.requests
            seconds = time.monotonic() - begun

    assert len(outcomes) == 500
    assert all(outcome.ok for outcome in outcomes)
    # Of the 64 that leave before the limit is known nearly all are refused, later hardly any.
    assert requests - 500 < 64 + 100
    assert seconds < 3 * 500 / RATE


@pytest.mark.parametrize("burst", [0, 5])
async def test_a_given_rate_below_the_limit_leaves_evenly(burst):
    async with TaskServer("made-up-key") as server:
        ids = server.add_many(200, duration=constant(0))
        with nginx(server, burst=burst, status=429) as url:
            begun = time.monotonic()
            async with TaskClient("made-up-key", base_url=url, rate_limit=40) as client:
                outcomes = [outcome async for outcome in client.as_completed(ids)]
                refused = client.stats.rate_limited
            seconds = time.monotonic() - begun

    assert all(outcome.ok for outcome in outcomes)
    assert refused <= 10
    assert seconds < 3 * 200 / 40
