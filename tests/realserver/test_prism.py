"""Prism, which mocks the API from its own description: with the answers of the
description, and with random ones.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter

import aiohttp
import pytest
from real_servers import HERE, find_node_module, folder, free_port, running
from tenacity import wait_fixed

from xai_tasks import (
    AuthenticationError,
    BadRequestError,
    PollPolicy,
    TaskClient,
    TaskError,
    TaskResult,
    TaskStatus,
    WaitTimeoutError,
)

pytestmark = pytest.mark.realserver

LOOKS = 500


def serve(*options):
    command = find_node_module("prism")
    port = free_port()
    with folder() as path:
        shutil.copy(HERE.parent / "openapi.yaml", path)
        arguments = ["mock", *options, "-h", "127.0.0.1", "-p", str(port), "openapi.yaml"]
        with running([*command, *arguments], path, port):
            yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def static():
    yield from serve()


@pytest.fixture(scope="module")
def dynamic():
    yield from serve("-d")


def client_of(url, **options):
    return TaskClient(
        "made-up-key",
        base_url=url,
        max_concurrency=8,
        poll=PollPolicy(wait=wait_fixed(0.01)),
        **options,
    )


async def test_get_reads_what_the_description_says(static):
    async with client_of(static) as client:
        tasks = await asyncio.gather(*(client.get(f"id {n} & more/#") for n in range(LOOKS // 2)))
        assert client.stats.requests == LOOKS // 2

    assert {task.status for task in tasks} == {TaskStatus.PENDING}
    assert all(set(task.raw) >= {"taskId", "status"} for task in tasks)


async def test_wait_for_a_task_that_never_ends_runs_out_of_time(static):
    async with client_of(static) as client:
        while client.stats.requests < LOOKS // 2:
            waits = [client.wait(f"id-{n}", timeout=0.5) for n in range(20)]
            for error in await asyncio.gather(*waits, return_exceptions=True):
                assert type(error) is WaitTimeoutError
                assert error.last is None or error.last.status is TaskStatus.PENDING


async def test_get_reads_whatever_the_description_allows(dynamic):
    async with client_of(dynamic) as client:
        tasks = await asyncio.gather(*(client.get(f"id-{n}") for n in range(LOOKS // 2)))
        assert client.stats.requests == LOOKS // 2

    assert {task.status for task in tasks} == set(TaskStatus) - {TaskStatus.UNKNOWN}
    assert {type(task.error_code) for task in tasks} <= {float, int, type(None)}
    assert {type(task.result) for task in tasks} == {dict, type(None)}
    # Optional fields come and go, and dates lie decades back: what is there is read.
    assert all((task.finished_at is None) == ("finishedAt" not in task.raw) for task in tasks)
    assert any(task.finished_at for task in tasks)


async def test_wait_ends_with_whatever_end_the_description_allows(dynamic):
    ends = Counter()
    async with client_of(dynamic) as client:
        while client.stats.requests < LOOKS // 2:
            waits = [client.wait(f"id-{n}", timeout=30) for n in range(20)]
            for end in await asyncio.gather(*waits, return_exceptions=True):
                assert isinstance(end, (TaskResult, TaskError)), end
                ends[(end.task if isinstance(end, TaskError) else end).status] += 1

    assert set(ends) == {
        TaskStatus.COMPLETED,
        TaskStatus.FAILED,
        TaskStatus.CANCELLED,
        TaskStatus.TIMEOUT,
    }


async def without_key(request, handler):
    del request.headers["Authorization"]
    return await handler(request)


async def without_id(request, handler):
    request.url = request.url.with_query(None)
    return await handler(request)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (without_key, AuthenticationError, "security"),
        (without_id, BadRequestError, "request is not valid"),
    ],
)
async def test_a_refusal_in_problem_json_is_raised_with_its_words(static, spoil, error, words):
    async with (
        aiohttp.ClientSession(middlewares=(spoil,)) as session,
        client_of(static, session=session) as client,
    ):
        for verb in (client.get, client.wait):
            with pytest.raises(error) as caught:
                await verb("id")
            assert words in caught.value.message
        assert client.stats.requests == 2
