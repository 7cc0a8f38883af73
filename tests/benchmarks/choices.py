"""What pays, and how much: parts of a request and of a wait, done the obvious way
and the way that was chosen.

Two parts. `calls`: CPU of each alone, in a tight loop, thousands of times. `leaving`: the longest
block of the loop while a stream of 100,000 ids is closed, all at once and in slices.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import harness
import latency
import tenacity
import waiting_cost
from multidict import CIMultiDict
from yarl import URL

import xai_tasks._polling.poller
from xai_tasks import TaskClient
from xai_tasks._http.request_timeout import Deadlines
from xai_tasks._models import _json, parse_json

_BASE = "http://127.0.0.1:8000/xai/tasks"
_BODY = harness._ENDED % (harness.task_id(0).encode(),)
_HEADERS = {
    "Accept": "application/json",
    "Authorization": "Bearer made-up-key",
    "User-Agent": "made-up",
}


async def _answer() -> int:
    return 200


async def _hold(deadlines: Deadlines) -> None:
    """Be a request under way, as there are others whenever cost matters."""
    deadlines.start()
    await asyncio.sleep(3600)


def _pairs(
    deadlines: Deadlines,
) -> dict[str, tuple[Callable[[], Awaitable[Any]], Callable[[], Awaitable[Any]]]]:
    """Give, by what they are for, the obvious way and the chosen one."""
    numbers = itertools.count()  # another id each time, as yarl remembers the last ones
    build = partial(
        URL.build, scheme="http", authority="127.0.0.1:8000", path="/xai/tasks", encoded=True
    )
    headers = CIMultiDict(_HEADERS)
    always = tenacity.retry_if_result(lambda _: True)
    strategy = tenacity.wait_fixed(5)
    retrying = tenacity.AsyncRetrying(stop=tenacity.stop_after_attempt(4))
    polling = tenacity.Retrying(wait=strategy, retry=always)

    async def parse_url() -> URL:
        return URL(f"{_BASE}?taskId={harness.task_id(next(numbers))}")

    async def build_url() -> URL:
        return build(query_string=f"taskId={harness.task_id(next(numbers))}")

    async def own_timeout() -> None:
        async with asyncio.timeout(30):
            pass

    async def shared_timer() -> None:
        deadlines.stop(deadlines.start())

    async def convert_headers() -> CIMultiDict[str]:
        return CIMultiDict(_HEADERS)

    async def copy_headers() -> CIMultiDict[str]:
        return CIMultiDict(headers)

    async def attempt_inside() -> int:
        return await retrying.copy()(_answer)

    async def iterate() -> Any:
        polling.begin()
        state = tenacity.RetryCallState(polling, None, (), {})
        state.set_result(None)
        return polling.iter(state)

    async def ask_strategy() -> float:
        return strategy(tenacity.RetryCallState(polling, None, (), {}))

    async def task_each() -> int:
        return await asyncio.create_task(_answer())

    async def parse() -> Any:
        return _json.decode(_BODY.decode())

    async def parse_fast() -> Any:
        return parse_json(_BODY)

    return {
        "the URL: parsed whole, built of encoded parts": (parse_url, build_url),
        "the deadline: `asyncio.timeout`, one timer for all": (own_timeout, shared_timer),
        "the headers: a dict, what aiohttp makes of it": (convert_headers, copy_headers),
        "the first attempt: inside tenacity, outside": (attempt_inside, _answer),
        "the poll's decision: `BaseRetrying.iter`, the wait strategy alone": (
            iterate,
            ask_strategy,
        ),
        "a coroutine: in a task of its own, in the worker's": (task_each, _answer),
        "the JSON: the standard library, orjson where its result is the same": (parse, parse_fast),
    }


async def calls(count: int) -> dict[str, Any]:
    """Return the microseconds of CPU that each way takes."""
    deadlines = Deadlines(30)
    other = asyncio.create_task(_hold(deadlines))
    await asyncio.sleep(0)
    costs = {
        what: [await _cost(way, count) for way in ways] for what, ways in _pairs(deadlines).items()
    }
    other.cancel()
    return costs


async def _cost(way: Callable[[], Awaitable[Any]], count: int) -> float:
    for _ in range(count // 100):
        await way()
    started = time.process_time()
    for _ in range(count):
        await way()
    return (time.process_time() - started) / count * 1e6


async def leaving(url: str, count: int, at_once: bool) -> dict[str, Any]:
    """Return the longest block of the loop, in milliseconds, while a
    stream of `count` ids is closed.
    """
    if at_once:
        xai_tasks._polling.poller._SLICE = count
    # A limit keeps polls out of it.
    async with TaskClient(
        "made-up-key", base_url=url, rate_limit=1, poll=waiting_cost.LONG
    ) as client:
        stream = client.as_completed(harness.task_ids(count), max_pending=count)
        taker = asyncio.ensure_future(anext(stream))
        while client.stats.waiting < count:
            await asyncio.sleep(0)
        taker.cancel()
        await asyncio.wait([taker])
        async with latency.watched() as late:
            await asyncio.sleep(0.01)
            await stream.aclose()
            await asyncio.sleep(0.01)
    return {"longest": max(late) * 1000}


def run(options: argparse.Namespace, report: harness.Report) -> None:
    """Measure both parts and fill the report."""
    scale = 10 if options.quick else 1
    if options.only in "calls":
        _run_calls(options.rounds, 20_000 // scale, report)
    if options.only in "leaving":
        _run_leaving(options.rounds, 100_000 // scale, report)


def _run_calls(rounds: int, count: int, report: harness.Report) -> None:
    results = []
    for number in range(rounds):
        harness.progress(f"calls, round {number + 1} of {rounds}")
        results.append(harness.measure("calls", count=count))
    for what in results[0]:
        part, _, ways = what.partition(": ")
        for place, way in enumerate(ways.split(", ")):
            report.add(f"{part}: {way}", "us CPU", [result[what][place] for result in results])


def _run_leaving(rounds: int, count: int, report: harness.Report) -> None:
    results: dict[bool, list[float]] = {True: [], False: []}
    with harness.serve(polls=None) as server:
        for number, at_once in itertools.product(range(rounds), results):
            harness.progress(f"leaving, round {number + 1} of {rounds}")
            result = harness.measure("leaving", url=server.url, count=count, at_once=at_once)
            results[at_once].append(result["longest"])
    for at_once, milliseconds in results.items():
        how = "at once" if at_once else "in slices of 1,000"
        report.add(
            f"longest block of the loop, a stream of {count:,} ids left {how}", "ms", milliseconds
        )


if __name__ == "__main__":
    harness.main(__doc__, run, {"calls": calls, "leaving": leaving})
