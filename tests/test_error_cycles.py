"""Errors are freed as soon as the caller drops them, without the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
import tenacity
from raw_server import RawServer

from xai_tasks import (
    PollPolicy,
    RetryPolicy,
    TaskClient,
    TaskResult,
    TaskStatus,
    VideoRequest,
)
from xai_tasks.testing import Fault, TaskServer

CAT = VideoRequest("a cat")
RETRY = RetryPolicy(wait=tenacity.wait_none(), stop=tenacity.stop_after_attempt(3))
POLL = PollPolicy(wait=tenacity.wait_fixed(0.01), timeout=0.1, not_found_grace=0, max_outage=0)


@pytest.fixture
async def server():
    async with TaskServer() as server:
        server.add("failed", failed="no GPU")
        server.add("pending", "pending")
        yield server


@pytest.fixture
async def client(server):
    async with TaskClient("test", base_url=server.url, retry=RETRY, poll=POLL) as client:
        yield client


@pytest.fixture
async def unreachable():
    async with RawServer() as server:
        url = server.url
    async with TaskClient("test", base_url=url, retry=RETRY, poll=POLL) as client:
        yield client


async def assert_freed(call, *args):
    """Assert that nothing holds the error that a call raises, once the caller has dropped it."""
    gc.disable()
    try:
        try:
            await call(*args)
        except Exception as error:  # noqa: BLE001 -- whatever it is
            gone = weakref.ref(error)
        else:
            pytest.fail("it raised nothing")
        for _ in range(5):
            await asyncio.sleep(0)
        assert gone() is None, [type(each) for each in gc.get_referrers(gone())]
    finally:
        gc.enable()


async def read(stream):
    async for _ in stream:
        pass


async def first_error(stream):
    """Raise the first outcome's error without holding the outcome."""
    async for outcome in stream:
        error, outcome = outcome.error, None
        try:
            raise error
        finally:
            del error


class OwnError(Exception):
    """The user's own; errors that are built in can't be referred to weakly."""


def raising():
    yield "pending"
    raise OwnError


TASK_CALLS = {
    "get": lambda client: client.get("a"),
    "get, timeout": lambda client: client.get("a", timeout=5),
    "wait": lambda client: client.wait("a"),
    "wait_all": lambda client: client.wait_all(["a", "pending"]),
    "as_completed": lambda client: first_error(client.as_completed(["a"])),
    "watch": lambda client: read(client.watch("a")),
}
SUBMISSIONS = {
    "submit": lambda client: client.submit(CAT),
    "run": lambda client: client.run(CAT),
    "run, timeout": lambda client: client.run(CAT, timeout=5),
    "as_completed": lambda client: first_error(client.as_completed([CAT])),
}
OTHERS = {
    "a failed task": lambda client: client.wait("failed"),
    "a failed task of many": lambda client: client.wait_all(["failed", "pending"]),
    "a timeout": lambda client: client.wait("pending"),
    "a timeout of many": lambda client: client.wait_all(["pending"]),
    "a timeout of watch": lambda client: read(client.watch("pending")),
    "a source that raises": lambda client: read(client.as_completed(raising())),
    "a source that raises, watch_all": lambda client: read(client.watch_all(raising())),
    "an id": lambda client: client.get(""),
}


def each(calls):
    return pytest.mark.parametrize("call", calls.values(), ids=calls)


@each(TASK_CALLS)
@pytest.mark.parametrize("fault", [Fault.status(404), Fault.status(503), Fault.reset()], ids=repr)
async def test_error_of_a_request_is_freed(server, client, call, fault):
    server.fault("a", *[fault] * 3)
    await assert_freed(call, client)


@each(TASK_CALLS)
async def test_refused_key_is_freed(server, client, call):
    server.api_key = "another"
    await assert_freed(call, client)


@each(TASK_CALLS)
async def test_refused_connection_is_freed(unreachable, call):
    await assert_freed(call, unreachable)


@each(SUBMISSIONS)
@pytest.mark.parametrize(
    "fault",
    [Fault.status(400), Fault.status(401), Fault.status(503), Fault.reset()],
    ids=repr,
)
async def test_error_of_a_submission_is_freed(server, client, call, fault):
    server.fault("POST", fault)
    await assert_freed(call, client)


@each({name: call for name, call in SUBMISSIONS.items() if name != "as_completed"})
async def test_long_pause_of_submissions_is_freed(server, client, call):
    server.fault("POST", Fault.status(429, {"Retry-After": "100"}))
    await assert_freed(call, client)
    await assert_freed(call, client)


@each(SUBMISSIONS)
async def test_submission_that_could_not_be_sent_is_freed(unreachable, call):
    await assert_freed(call, unreachable)


async def test_what_on_send_raised_is_freed(client):
    def on_send():
        raise OwnError

    await assert_freed(lambda: client.submit(CAT, on_send=on_send))


@each(OTHERS)
async def test_other_error_is_freed(client, call):
    await assert_freed(call, client)


async def test_timeout_of_run_is_freed(server, client):
    server.accept("pending")
    await assert_freed(client.run, CAT)


@pytest.mark.parametrize("status", [404, 500])
async def test_failed_download_is_freed(server, client, tmp_path, status):
    url = server.file("a.mp4", b"x")
    server.fault("GET /files/a.mp4", *[Fault.status(status)] * 3)
    task = TaskResult("a", TaskStatus.COMPLETED, url)
    await assert_freed(client.download, task, tmp_path)


async def test_error_of_the_users_own_is_freed(server, tmp_path):
    def wait(state):
        raise OwnError

    server.fault("GET /files/a.mp4", Fault.status(500))
    server.fault("POST", Fault.status(429))
    server.fault("a", Fault.status(500))
    task = TaskResult("a", TaskStatus.COMPLETED, server.file("a.mp4", b"x"))
    async with TaskClient(
        "test", base_url=server.url, retry=RetryPolicy(wait=wait), poll=PollPolicy(wait=wait)
    ) as client:
        await assert_freed(client.download, task, tmp_path)
        await assert_freed(client.submit, CAT)
        await assert_freed(client.get, "a")
        await assert_freed(client.wait, "pending")
        await assert_freed(client.wait_all, ["pending"])
        await assert_freed(read, client.as_completed(["pending"]))
        await assert_freed(read, client.watch_all(["pending"]))


async def test_error_of_a_key_function_is_freed(server):
    def key():
        raise OwnError

    async with TaskClient(key, base_url=server.url) as client:
        await assert_freed(client.submit, CAT)
        await assert_freed(client.get, "pending")
        await assert_freed(client.wait, "pending")
        await assert_freed(read, client.as_completed([CAT]))


async def test_error_of_a_closed_client_is_freed(client):
    async def close_during_a_wait():
        closing = asyncio.ensure_future(client.close())
        try:
            await client.wait("pending", timeout=None)
        finally:
            await closing

    await assert_freed(close_during_a_wait)
    await assert_freed(client.get, "a")
