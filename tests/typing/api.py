"""How users type things. Nobody runs this: mypy and pyright read it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

import aiohttp
import attrs
import tenacity

from xai_tasks import (
    ClientStats,
    Outcome,
    OutcomeStream,
    PollPolicy,
    RetryPolicy,
    TaskClient,
    TaskError,
    TaskResult,
    TaskStatus,
    WaitTimeoutError,
    XaiTasksError,
    wait_adaptive,
)
from xai_tasks.testing import Fault, TaskServer


@attrs.frozen
class Video:
    url: str


def to_video(result: Any) -> Video:
    return Video(result["videoUrl"])


async def vault() -> str:
    return "key"


TaskClient()
TaskClient("key")
TaskClient(lambda: "key")
TaskClient(vault)
TaskClient(api_key=vault, base_url="https://example.com", request_timeout=10, rate_limit=5, max_concurrency=8)
TaskClient(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
TaskClient("key", "https://example.com")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

RetryPolicy(stop=tenacity.stop_after_attempt(2) | tenacity.stop_after_delay(30), wait=tenacity.wait_fixed(1))
RetryPolicy(statuses={500, 503}, max_retry_after=5, budget=0)
RetryPolicy(wait=lambda state: state.attempt_number * 0.5)
PollPolicy(wait=tenacity.wait_exponential(max=10) + tenacity.wait_random(0, 1), timeout=None, max_outage=None)
PollPolicy(wait=wait_adaptive(interval=3) + tenacity.wait_random(0, 1))


async def look(client: TaskClient, session: aiohttp.ClientSession) -> None:
    task = await client.get("id")
    assert_type(task, TaskResult)
    assert_type(task.status, TaskStatus)
    assert_type(task.error_code, int | float | str | None)
    assert_type(task.result_as(to_video), Video)
    assert_type(task.raise_for_status(), TaskResult)
    assert_type(client.stats, ClientStats)
    async with TaskClient("key", session=session) as own:
        assert_type(own, TaskClient)


async def wait(client: TaskClient) -> None:
    assert_type(await client.wait("id", timeout=None, poll=PollPolicy(), check=False), TaskResult)
    assert_type(await client.wait_all(["a", "b"]), list[TaskResult])
    assert_type(await client.wait_all(("a", "b"), return_exceptions=False), list[TaskResult])
    assert_type(await client.wait_all(["a"], return_exceptions=True), list[TaskResult | XaiTasksError])
    async for task in client.watch("id", timeout=5):
        assert_type(task, TaskResult)
    try:
        await client.wait("id")
    except WaitTimeoutError as error:
        assert_type(error.last, TaskResult | None)
    except TaskError as error:
        assert_type(error.task, TaskResult)


async def bulk(client: TaskClient, ids: Iterator[str], more: AsyncIterator[str]) -> None:
    assert_type(client.as_completed(ids), OutcomeStream)
    async with client.as_completed(more, max_pending=5) as stream:
        assert_type(stream.pending, int)
        async for outcome in stream:
            assert_type(outcome, Outcome)
            assert_type(outcome.task, TaskResult | None)
            assert_type(outcome.error, XaiTasksError | None)
            assert_type(outcome.unwrap(), TaskResult)


async def serve() -> None:
    async with TaskServer(api_key="key") as server:
        server.add("a", [("pending", 0.1)], result={"videoUrl": "https://example.com"})
        server.fault(None, Fault.status(503), Fault.reset(at="headers"))
        assert_type(server.url, str)
