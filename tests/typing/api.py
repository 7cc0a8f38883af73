"""How users type things. Nobody runs this: mypy and pyright read it, and
fail where a type has changed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict, assert_type

import aiohttp
import tenacity
from tenacity import (
    stop_after_attempt,
    stop_after_delay,
    wait_chain,
    wait_exponential,
    wait_fixed,
    wait_random,
)

from xai_tasks import (
    APIError,
    APIResponseValidationError,
    APIStatusError,
    ClientStats,
    ImageRequest,
    Outcome,
    OutcomeStream,
    PollPolicy,
    RateLimitError,
    RetryPolicy,
    TaskClient,
    TaskError,
    TaskFailedError,
    TaskResult,
    TaskStatus,
    VideoRequest,
    WaitTimeoutError,
    XaiTasksError,
    __version__,
    wait_adaptive,
)


class Image(TypedDict):
    """What a user's own model of a result may look like."""

    imageUrls: list[str]


def to_image(result: Any) -> Image:
    """Stand in for a converter of cattrs, msgspec or pydantic."""
    return Image(imageUrls=list(result["imageUrls"]))


# The constructor.


async def key_from_a_vault() -> str:
    """Return a key, some time."""
    return "sk"


def clients(
    session: aiohttp.ClientSession, key: str | Callable[[], str | Awaitable[str]] | None
) -> None:
    """Build clients in every documented way."""
    TaskClient()
    TaskClient("sk")
    TaskClient(lambda: "sk")
    TaskClient(key_from_a_vault)
    TaskClient(key)
    TaskClient(
        api_key=None,
        base_url=None,
        session=session,
        request_timeout=30,
        retry=RetryPolicy(),
        poll=PollPolicy(),
        max_concurrency=64,
        rate_limit=20,
        max_response_bytes=2**20,
        allow_insecure_http=True,
        user_agent="shop/1.0",
    )
    TaskClient(session=None, retry=None, poll=None, rate_limit=None, user_agent=None)
    TaskClient(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    TaskClient("sk", "https://host")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    TaskClient(max_concurrency=0.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Policies take tenacity's strategies, alone and put together, and plain functions.


def growing(state: tenacity.RetryCallState) -> float:
    """Wait as a user's own function says."""
    return state.attempt_number * 0.5


def never(state: tenacity.RetryCallState) -> bool:
    """Stop as a user's own function says."""
    return False


def policies() -> None:
    """Build policies in every documented way."""
    PollPolicy()
    PollPolicy(wait=wait_fixed(5))
    PollPolicy(wait=wait_exponential(multiplier=1, max=60) + wait_random(0, 1))
    PollPolicy(wait=wait_chain(wait_fixed(1), wait_adaptive()))
    PollPolicy(
        wait=wait_adaptive(interval=5, minimum=0.5, maximum=30), timeout=None, max_outage=None
    )
    PollPolicy(wait=growing, timeout=60, max_outage=0)
    RetryPolicy()
    RetryPolicy(stop=stop_after_attempt(3) | stop_after_delay(10), wait=wait_fixed(1))
    RetryPolicy(stop=never, wait=growing, statuses={503}, max_retry_after=10, budget=0)
    RetryPolicy(statuses=[429, 503])
    PollPolicy(wait=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    PollPolicy(timeout="60")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RetryPolicy(stop=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RetryPolicy().budget = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]

    assert_type(PollPolicy().timeout, float | None)
    assert_type(PollPolicy().max_outage, float | None)
    assert_type(RetryPolicy().statuses, frozenset[int])
    assert_type(RetryPolicy().wait, Callable[[tenacity.RetryCallState], float])
    assert_type(RetryPolicy().stop, Callable[[tenacity.RetryCallState], bool])


# Verbs.


async def verbs(client: TaskClient) -> None:
    """Call every verb."""
    async with TaskClient() as entered:
        assert_type(entered, TaskClient)

    assert_type(await client.get("a"), TaskResult)
    assert_type(await client.wait("a"), TaskResult)
    assert_type(await client.wait("a", timeout=None, poll=PollPolicy(), check=False), TaskResult)
    await client.wait("a", timeout=30)
    await client.wait("a", 30)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await client.wait("a", timeout="30")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    async for task in client.watch("a", timeout=30, poll=None):
        assert_type(task, TaskResult)
    async with client.watch("a") as changes:
        assert_type(await anext(changes), TaskResult)
        await changes.aclose()

    assert_type(client.stats, ClientStats)
    assert_type(client.stats.requests, int)
    assert_type(client.closed, bool)
    await client.close()


async def all_of_them(client: TaskClient, ids: AsyncIterator[str], whether: bool) -> None:
    """Call `wait_all` by each of its overloads."""
    assert_type(await client.wait_all(["a", "b"]), list[TaskResult])
    assert_type(await client.wait_all(ids, return_exceptions=False, check=False), list[TaskResult])
    both = await client.wait_all(("a", "b"), timeout=30, return_exceptions=True)
    assert_type(both, list[TaskResult | XaiTasksError])
    assert_type(
        await client.wait_all({"a"}, return_exceptions=whether), list[TaskResult | XaiTasksError]
    )
    for each in both:
        if isinstance(each, TaskResult):
            assert_type(each, TaskResult)
        else:
            assert_type(each, XaiTasksError)
    await client.wait_all([1, 2])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


async def as_they_complete(client: TaskClient, ids: AsyncIterator[str]) -> None:
    """Go over a stream, with and without `async with`."""
    request = VideoRequest("a cat", duration=10, images=["https://example.com/a.png"])
    assert_type(await client.submit(request), str)
    assert_type(await client.submit(ImageRequest("a cat"), on_send=lambda: None), str)
    assert_type(await client.run(request, timeout=None, poll=None, check=False), TaskResult)
    client.as_completed([request, "a", ImageRequest("a cat")])
    await client.submit("a cat")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    stream = client.as_completed(ids, timeout=None, poll=None, max_pending=100)
    assert_type(stream, OutcomeStream)
    client.as_completed(["a"], download_to="videos")
    client.as_completed(["a"], download_to=Path("videos"))
    assert_type(await client.download(await client.get("a"), "videos"), list[Path])
    await client.download("a", "videos")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async for outcome in stream:
        assert_type(outcome, Outcome)
    async with client.as_completed(f"task-{number}" for number in range(10)) as entered:
        assert_type(entered, OutcomeStream)
        assert_type(await anext(entered), Outcome)
        assert_type(
            (entered.pulled, entered.pending, entered.succeeded, entered.failed),
            tuple[int, int, int, int],
        )
        assert_type(await entered.aclose(), None)


# What comes back.


def outcomes(outcome: Outcome) -> None:
    """Look at an outcome."""
    assert_type(outcome.task_id, str)
    assert_type(outcome.index, int)
    assert_type(outcome.ok, bool)
    assert_type(outcome.files, tuple[Path, ...])
    assert_type(outcome.task, TaskResult | None)
    assert_type(outcome.error, XaiTasksError | None)
    assert_type(outcome.unwrap(), TaskResult)
    match outcome:
        case Outcome(error=WaitTimeoutError() as error):
            assert_type(error.last, TaskResult | None)
        case Outcome(error=TaskError(task=task)):
            assert_type(task, TaskResult)
        case _:
            pass


def tasks(task: TaskResult) -> None:
    """Look at a task."""
    assert_type(task.task_id, str)
    assert_type(task.status, TaskStatus)
    assert_type(task.result, Any)
    assert_type(task.error_message, str | None)
    assert_type(task.error_code, int | float | str | None)
    assert_type(task.created_at, datetime | None)
    assert_type(task.finished_at, datetime | None)
    assert_type(task.trace_id, str | None)
    assert_type(task.raw, Mapping[str, Any])
    assert_type(task.done, bool)
    assert_type(task.succeeded, bool)
    assert_type(task.elapsed, timedelta | None)
    assert_type(task.raise_for_status(), TaskResult)
    assert_type(task.result_as(to_image), Image)
    assert_type(task.result_as(lambda result: len(result["imageUrls"])), int)
    task.status = TaskStatus.FAILED  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    word: str = task.status
    assert word in TaskStatus.__members__.values()


class Picture(TaskResult):
    """A user's own kind of result."""


def own_kind(picture: Picture) -> None:
    """Keep one's own kind over `raise_for_status`."""
    assert_type(picture.raise_for_status(), Picture)


async def errors(client: TaskClient) -> None:
    """Catch errors and read their fields."""
    try:
        await client.wait("a")
    except TaskFailedError as error:
        assert_type(error.task, TaskResult)
        assert_type(error.task_id, str)
    except WaitTimeoutError as error:
        assert_type(error.timeout, float)
        assert_type(error.last_error, APIError | None)
    except RateLimitError as error:
        assert_type(error.retry_after, float | None)
    except APIStatusError as error:
        assert_type((error.status_code, error.body), tuple[int, str])
        assert_type((error.message, error.trace_id), tuple[str | None, str | None])
    except APIResponseValidationError as error:
        assert_type((error.status_code, error.body), tuple[int, str])
    except APIError as error:
        assert_type(error.task_id, str)


async def observing(task: TaskResult) -> None:
    """Use the learning strategy in a loop of one's own."""
    strategy = wait_adaptive()
    assert_type(strategy.observe(task), None)
    async for attempt in tenacity.AsyncRetrying(wait=strategy):
        with attempt:
            pass


version: str = __version__
