"""What pays, and how much: steps of a request, done the obvious way and the chosen one.

CPU of each alone, in a tight loop, thousands of times.
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
import tenacity
from multidict import CIMultiDict
from yarl import URL

from xai_tasks._http.request_timeout import RequestTimeout
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


async def _hold(request_timeout: RequestTimeout) -> None:
    """Be a request under way, as there are others whenever cost matters."""
    request_timeout.start()
    await asyncio.sleep(3600)


def _pairs(
    request_timeout: RequestTimeout,
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
        request_timeout.stop(request_timeout.start())

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
    request_timeout = RequestTimeout(30)
    other = asyncio.create_task(_hold(request_timeout))
    await asyncio.sleep(0)
    costs = {
        what: [await _cost(way, count) for way in ways]
        for what, ways in _pairs(request_timeout).items()
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


def run(options: argparse.Namespace, report: harness.Report) -> None:
    """Measure all choices and fill the report."""
    rounds, count = options.rounds, 2_000 if options.quick else 20_000
    results = []
    for number in range(rounds):
        harness.progress(f"calls, round {number + 1} of {rounds}")
        results.append(harness.measure("calls", count=count))
    for what in results[0]:
        part, _, ways = what.partition(": ")
        for place, way in enumerate(ways.split(", ")):
            report.add(f"{part}: {way}", "us CPU", [result[what][place] for result in results])


if __name__ == "__main__":
    harness.main(__doc__, run, {"calls": calls})
