"""The limits that NestJS servers have: both throttlers, named or not, and express-rate-limit."""

from __future__ import annotations

import asyncio
import time

import pytest
from real_servers import find_nest, folder, free_port, running

from xai_tasks import RateLimitError, RetryPolicy, TaskClient

pytestmark = pytest.mark.realserver

LIMIT, SECONDS = 100, 2
WINDOW = f"{LIMIT}:{SECONDS * 1000}"


@pytest.fixture
def start():
    """Start the server with settings; it ends with the test."""
    command = find_nest()
    with folder() as path:
        running_now = []

        def start(**settings):
            port = free_port()
            context = running(command, path, port, PORT=str(port), **settings)
            context.__enter__()
            running_now.append(context)
            return f"http://127.0.0.1:{port}"

        yield start
        for context in running_now:
            context.__exit__(None, None, None)


def ended_ids(number):
    """Make ids of tasks that have ended: the server reads a task's life from its id."""
    return [f"completed.{int(time.time() * 1000) - 60_000}.1000.{n}" for n in range(number)]


async def wait_for(url, ids):
    """Wait for all ids; return how many requests were refused, and the seconds it took."""
    begun = time.monotonic()
    async with TaskClient("made-up-key", base_url=url) as client:
        outcomes = [outcome async for outcome in client.as_completed(ids, timeout=120)]
        refused = client.stats.rate_limited
    assert len(outcomes) == len(ids)
    assert all(outcome.ok for outcome in outcomes)
    return refused, time.monotonic() - begun


# At most how many requests are refused, of which the first shows how long a window without
# a readable reset is. Others may have left by then.
SETTINGS = {
    "throttler 6": ({"THROTTLE": WINDOW}, 20),
    "throttler 6 on Fastify": ({"THROTTLE": WINDOW, "ADAPTER": "fastify"}, 20),
    "throttler 6, named": ({"THROTTLE": f"long:{WINDOW}"}, 20),
    "throttler 6, two windows": ({"THROTTLE": f"short:80:1000,long:{WINDOW}"}, 40),
    "throttler 6, fixed windows": ({"THROTTLE": WINDOW, "STORAGE": "fixed", "BLOCK": "window"}, 40),
    "throttler 5": ({"THROTTLE": WINDOW, "THROTTLER": "5"}, 60),
    "draft 6": ({"ERL": f"draft-6:{WINDOW}"}, 4),
    "draft 7": ({"ERL": f"draft-7:{WINDOW}"}, 4),
    "draft 8": ({"ERL": f"draft-8:{WINDOW}"}, 4),
    "legacy": ({"ERL": f"legacy:{WINDOW}"}, 60),
}


@pytest.mark.parametrize("name", SETTINGS)
async def test_no_id_is_lost_and_few_requests_are_refused(start, name):
    settings, most = SETTINGS[name]
    url = start(**settings)

    refused, seconds = await wait_for(url, ended_ids(3 * LIMIT))

    assert refused <= most
    # The third window's worth can't begin sooner; a block costs one more window.
    assert seconds >= 2 * SECONDS - 1
    assert seconds < 20


async def test_clients_that_share_a_window_each_get_a_part(start):
    url = start(ERL=f"draft-7:{WINDOW}")
    served = [0, 0, 0]

    async def run(number):
        async with TaskClient("made-up-key", base_url=url) as client:
            async for outcome in client.as_completed(ended_ids(10_000), timeout=None):
                served[number] += outcome.ok
                if sum(served) >= 5 * LIMIT:
                    return

    await asyncio.gather(*(run(number) for number in range(3)))

    assert min(served) > 0.5 * LIMIT


async def test_get_tells_the_pause_of_a_named_throttler(start):
    url = start(THROTTLE="short:1:5000")
    retry = RetryPolicy(max_retry_after=1)

    async with TaskClient("made-up-key", base_url=url, retry=retry) as client:
        (task_id,) = ended_ids(1)
        await client.get(task_id)
        with pytest.raises(RateLimitError) as caught:
            await client.get(task_id)

    assert caught.value.retry_after == 5
    assert caught.value.message == "ThrottlerException: Too Many Requests"
