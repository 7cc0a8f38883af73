"""mountebank: answers in sequence, with resets, 429s and random bytes among
them, from an HTTP stack in Node.
"""

from __future__ import annotations

import json

import pytest
from real_servers import find_node_module, folder, free_port, running
from tenacity import wait_fixed

from xai_tasks import APIConnectionError, PollPolicy, TaskClient

pytestmark = pytest.mark.realserver

RESET = {"fault": "CONNECTION_RESET_BY_PEER"}
GARBAGE = {"fault": "RANDOM_DATA_THEN_CLOSE"}


def says(task_id, status, **more):
    body = {"taskId": task_id, "status": status, "result": {"by": "mountebank"}}
    return {
        "is": {"statusCode": 200, "headers": {"Content-Type": "application/json"}, "body": body},
        **more,
    }


def refuses(status, **headers):
    return {
        "is": {"statusCode": status, "headers": headers, "body": {"error": {"message": "later"}}}
    }


SEQUENCES = {
    "whole-story": [
        says("whole-story", "pending", repeat=2),
        refuses(429, **{"Retry-After": "1"}),
        RESET,
        says("whole-story", "processing"),
        GARBAGE,
        refuses(503),
        RESET,
        RESET,
        says("whole-story", "completed", behaviors=[{"wait": 300}]),
    ],
    "reset-once": [RESET, says("reset-once", "completed")],
    "garbage": [GARBAGE],
    "resets": [RESET],
}


@pytest.fixture(scope="module")
def url():
    command = find_node_module("mb")
    admin, port = free_port(), free_port()
    stubs = [
        {"predicates": [{"equals": {"query": {"taskId": task_id}}}], "responses": responses}
        for task_id, responses in SEQUENCES.items()
    ]
    imposters = {
        "imposters": [{"protocol": "http", "port": port, "host": "127.0.0.1", "stubs": stubs}]
    }
    with folder() as path:
        (path / "imposters.json").write_text(json.dumps(imposters))
        arguments = f"start --host 127.0.0.1 --port {admin} --configfile imposters.json --nologfile"
        with running([*command, *arguments.split()], path, port):
            yield f"http://127.0.0.1:{port}"


async def test_wait_outlives_whatever_comes_between(url):
    async with TaskClient(
        "made-up-key", base_url=url, poll=PollPolicy(wait=wait_fixed(0.05))
    ) as client:
        task = await client.wait("whole-story", timeout=30)
        assert client.stats.rate_limited == 1
        # aiohttp itself sends a GET again after a reset, so mountebank has
        # seen more than these attempts.
        assert 7 <= client.stats.requests <= 10

    assert task.result == {"by": "mountebank"}


async def test_get_of_a_connection_reset_once_takes_one_attempt(url):
    async with TaskClient("made-up-key", base_url=url) as client:
        assert (await client.get("reset-once")).succeeded
        assert client.stats.requests == 1


@pytest.mark.parametrize("task_id", ["garbage", "resets"])
async def test_get_raises_what_four_attempts_have_met(url, task_id):
    async with TaskClient("made-up-key", base_url=url) as client:
        with pytest.raises(APIConnectionError) as caught:
            await client.get(task_id)
        assert client.stats.requests == 4

    assert type(caught.value) is APIConnectionError
