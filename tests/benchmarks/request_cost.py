"""What one request costs: CPU of the client's process, against bare aiohttp
and what else one would use.

Four parts; in the first three, all that is compared takes turns in one process, over 100
connections. `get`: one poll by `TaskClient.get`, with orjson and without, and a bare request in
tenacity. `bulk`: a poll in `as_completed`, and in gathered tenacity loops; of tasks that have ended
at the first poll, and of tasks that end at the tenth. `httpx`: `TaskClient.get`, httpx, and a
client generated from the API document.
`profile`: in whose code a poll's time goes, as cProfile sees it, for
tasks that end at the tenth poll.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import re
import tempfile
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any
from unittest import mock

import baselines
import harness

import xai_tasks._models
from xai_tasks import PollPolicy, TaskClient, wait_adaptive

_INTERVAL = 0.005
"""Seconds between two polls: far less than a round of polls at all ids takes (50 ms at 500 ids), so
that requests are always due.
"""
_HTTPX_SHARE = 10
"""httpx makes one request where the others make this many: it takes tens of times as long."""


def _client(url: str) -> TaskClient:
    policy = PollPolicy(
        wait=wait_adaptive(interval=_INTERVAL, minimum=_INTERVAL, maximum=2 * _INTERVAL)
    )
    return TaskClient(
        "made-up-key", base_url=url, max_concurrency=baselines.CONNECTIONS, poll=policy
    )


async def get(url: str, count: int, rounds: int) -> dict[str, Any]:
    """Return the cost of single polls."""
    ids = harness.task_ids(count)
    semaphore = asyncio.Semaphore(baselines.CONNECTIONS)
    async with _client(url) as client, baselines.session() as session:

        async def bare() -> int:
            await baselines.get_all(session, url, ids)
            return count

        async def ours() -> int:
            await baselines.get_each(client.get, ids)
            return count

        async def without_orjson() -> int:
            with mock.patch.object(xai_tasks._models, "orjson", None):
                return await ours()

        async def loop() -> int:
            wait = partial(baselines.wait, session, url, semaphore=semaphore, interval=_INTERVAL)
            await baselines.get_each(wait, ids)
            return count

        works = {"bare": bare, "without": without_orjson, "loop": loop}
        if xai_tasks._models.orjson is not None:
            works["ours"] = ours
        return await harness.by_turns(works, rounds)


async def bulk(url: str, count: int, polls: int, rounds: int) -> dict[str, Any]:
    """Return the cost of polls, `count` in all."""
    ids = harness.task_ids(count // polls)
    semaphore = asyncio.Semaphore(baselines.CONNECTIONS)
    async with _client(url) as client, baselines.session() as session:

        async def bare() -> int:
            for _ in range(polls):
                await baselines.get_all(session, url, ids)
            return polls * len(ids)

        async def ours() -> int:
            before = client.stats.requests
            async with client.as_completed(ids, max_pending=len(ids)) as stream:
                async for outcome in stream:
                    assert outcome.ok
            assert client.stats.requests - before == polls * len(ids)
            return polls * len(ids)

        async def loops() -> int:
            waits = (baselines.wait(session, url, task_id, semaphore, _INTERVAL) for task_id in ids)
            assert all(task.status == "completed" for task in await asyncio.gather(*waits))
            return polls * len(ids)

        return await harness.by_turns({"bare": bare, "ours": ours, "loops": loops}, rounds)


async def httpx(url: str, count: int, rounds: int, folder: str | None) -> dict[str, Any]:
    """Return the cost of single polls by other clients; `folder` holds a generated one."""
    import other_clients  # noqa: PLC0415 -- the other measurements are not to carry httpx along

    ids = harness.task_ids(count)
    few = ids[: count // _HTTPX_SHARE]
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(_client(url))
        session = await stack.enter_async_context(baselines.session())
        http = await stack.enter_async_context(other_clients.httpx_client(url))

        async def bare() -> int:
            await baselines.get_all(session, url, ids)
            return len(ids)

        async def ours() -> int:
            await baselines.get_each(client.get, ids)
            return len(ids)

        async def httpx_alone() -> int:
            await baselines.get_each(partial(other_clients.httpx_get, http), few)
            return len(few)

        works = {"bare": bare, "ours": ours, "httpx": httpx_alone}
        if folder is not None:
            generated, one = other_clients.generated_client(Path(folder), url)
            await stack.enter_async_context(generated)

            async def of_generated() -> int:
                await baselines.get_each(one, few)
                return len(few)

            works["generated"] = of_generated
        return await harness.by_turns(works, rounds)


async def profile(url: str, count: int, polls: int) -> dict[str, Any]:
    """Return the share of each package, or of each module of ours, in the time
    of polls in bulk, in per cent.
    """
    ids = harness.task_ids(count // polls)
    profiler = cProfile.Profile(time.process_time)
    async with _client(url) as client:
        await client.wait_all(ids)
        profiler.enable()
        await client.wait_all(ids)
        profiler.disable()
    shares: defaultdict[str, float] = defaultdict(float)
    for entry in profiler.getstats():
        shares[_whose(entry.code)] += entry.inlinetime
    most = sorted(shares, key=shares.__getitem__, reverse=True)
    return {name: 100 * shares[name] / sum(shares.values()) for name in most}


def _whose(code: CodeType | str) -> str:
    """Return whose code a function is; one that is written in C is known by its name alone."""
    path, name = (Path(), code) if isinstance(code, str) else (Path(code.co_filename), "")
    if path.is_relative_to(Path(xai_tasks.__file__).parent):
        return f"`{path.stem}`"
    if {"aiohttp", "multidict", "yarl"} & set(path.parts) or re.search(
        r"aiohttp|multidict|yarl", name
    ):
        return "aiohttp, multidict, yarl"
    if (
        "asyncio" in path.parts
        or path.stem == "selectors"
        or re.search(r"socket|epoll|asyncio", name)
    ):
        return "asyncio and sockets"
    return "all other"


def run(options: argparse.Namespace, report: harness.Report) -> None:
    """Measure each part and fill the report; many short turns, as a
    machine's speed drifts by the second.
    """
    scale = 10 if options.quick else 1
    more = 1 if options.quick else 10
    if options.only in "get":
        _run_get(more * options.rounds, 2_000 // scale, report)
    if options.only in "bulk":
        for polls, when, bare, loops in ((1, "first", 0.88, 0.65), (10, "tenth", 0.85, 0.5)):
            targets = {"bare": bare, "loops": loops}
            rounds = (more + 1) // 2 * options.rounds
            _run_bulk(rounds, 5_000 // scale, polls, when, targets, report)
    if options.only in "httpx":
        _run_httpx(options.rounds, 10_000 // scale, report)
    if options.only in "profile":
        _run_profile(options.rounds, 10_000 // scale, report)


def _run_get(rounds: int, count: int, report: harness.Report) -> None:
    harness.progress(f"get, {rounds} rounds")
    with harness.serve(polls=1) as server:
        figures = harness.measure("get", url=server.url, count=count, rounds=rounds)
    add = partial(_add, report, figures)
    add("bare aiohttp", "bare")
    if "ours" in figures:
        add("`get`", "ours")
        add("`get` against bare", "ours", "bare", at_most=0.7)
    else:
        report.notes.append(
            "No figures of `get` with orjson, which is not installed: `pip install orjson`."
        )
    add("`get` without orjson", "without")
    add("`get` without orjson against bare", "without", "bare", at_most=0.75)
    add("a bare request in tenacity", "loop")
    add("a bare request in tenacity against bare", "loop", "bare")
    add(
        "`get` against a bare request in tenacity",
        "ours" if "ours" in figures else "without",
        "loop",
    )


def _run_bulk(
    rounds: int,
    count: int,
    polls: int,
    when: str,
    targets: dict[str, float],
    report: harness.Report,
) -> None:
    harness.progress(f"bulk, tasks ended at the {when} poll, {rounds} rounds")
    with harness.serve(polls=polls) as server:
        figures = harness.measure("bulk", url=server.url, count=count, polls=polls, rounds=rounds)
    add = partial(_add, report, figures)
    end = f", ended at the {when} poll"
    add(f"bare aiohttp{end}", "bare")
    add(f"a poll in bulk{end}", "ours")
    add(f"a poll in bulk against bare{end}", "ours", "bare", at_most=targets["bare"])
    add(f"a poll in gathered tenacity loops{end}", "loops")
    add(
        f"a poll in bulk against one in such a loop{end}",
        "ours",
        "loops",
        at_most=targets["loops"],
    )


def _run_httpx(rounds: int, count: int, report: harness.Report) -> None:
    import other_clients  # noqa: PLC0415 -- as above

    harness.progress(f"httpx, {rounds} rounds")
    with tempfile.TemporaryDirectory() as folder, harness.serve(polls=1) as server:
        missing = other_clients.generate(Path(folder))
        arguments = {"url": server.url, "count": count, "rounds": rounds}
        figures = harness.measure("httpx", **arguments, folder=None if missing else folder)
    add = partial(_add, report, figures)
    add("httpx, 100 connections", "httpx")
    add("httpx against bare aiohttp", "httpx", "bare")
    add("`get` against httpx", "ours", "httpx", at_most=0.05)
    if missing:
        report.notes.append(f"No figures of a generated client: {missing}.")
        return
    add("a generated client", "generated")
    add("a generated client against bare aiohttp", "generated", "bare")
    add("`get` against a generated client", "ours", "generated")


def _run_profile(rounds: int, count: int, report: harness.Report) -> None:
    harness.progress(f"profile, {rounds} rounds")
    with harness.serve(polls=10) as server:
        results = [
            harness.measure("profile", url=server.url, count=count, polls=10) for _ in range(rounds)
        ]
    for name in results[0]:
        shares = [result.get(name, 0.0) for result in results]
        if max(shares) >= 1:
            report.add(f"of a poll in bulk, {name}", "%", shares)


def _add(
    report: harness.Report,
    figures: dict[str, list[float]],
    what: str,
    one: str,
    other: str | None = None,
    *,
    at_most: float | None = None,
) -> None:
    """Add the CPU of `one`, or its ratio to that of `other`, taken within each round."""
    if other is None:
        report.add(what, "us CPU", figures[one])
    else:
        ratios = [a / b for a, b in zip(figures[one], figures[other], strict=True)]
        report.add(what, "x", ratios, at_most=at_most)


if __name__ == "__main__":
    measurements = {"get": get, "bulk": bulk, "httpx": httpx, "profile": profile}
    harness.main(__doc__, run, measurements, also=("httpx", "openapi-python-client"))
