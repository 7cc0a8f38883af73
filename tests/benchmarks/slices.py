"""For how long very many ids hold the loop when they enter, wait, leave, and are closed, in CPU.

The loop's callbacks are timed by the process's own CPU, so that other work on the machine does not
count. One bulk stream of 100,000 ids, and one of 1,000,000: `entering` until all are in rotation;
`waiting` for some seconds at 2,000 polls a second; `collection`, a full garbage collection then;
`leaving`, the stream's `aclose()`. `closing`: the client's `close()` while another such stream
waits, all of whose outcomes are errors that nobody takes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from unittest import mock

import harness

from xai_tasks import PollPolicy, TaskClient, wait_adaptive

_POLL = PollPolicy(wait=wait_adaptive(interval=600, maximum=1200), timeout=86400)
_RATE = 2000
_PHASES = ("entering", "waiting", "leaving", "closing")


class Watch:
    """The longest callback of the running loop in each phase, in milliseconds of CPU."""

    def __init__(self) -> None:
        self.phase = ""
        self.longest: dict[str, float] = {}

    async def begin(self, phase: str) -> None:
        """Begin a phase, in a turn of its own."""
        await asyncio.sleep(0)
        self.phase = phase
        await asyncio.sleep(0)

    def timed(self, run: Callable[[asyncio.Handle], None], handle: asyncio.Handle) -> None:
        phase, begun = self.phase, time.process_time()
        run(handle)
        spent = (time.process_time() - begun) * 1000
        self.longest[phase] = max(spent, self.longest.get(phase, 0.0))


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    watch = Watch()
    run = asyncio.Handle._run  # type: ignore[attr-defined]
    with mock.patch.object(asyncio.Handle, "_run", lambda handle: watch.timed(run, handle)):
        yield watch


async def blocks(url: str, count: int, seconds: float) -> dict[str, float]:
    """Return the longest callback of each phase, and of full collections."""
    figures = {"before": _collection()}
    with watched() as watch:
        for last in ("leaving", "closing"):
            client = TaskClient("made-up-key", base_url=url, rate_limit=_RATE, poll=_POLL)
            await client.get("first")
            await watch.begin("entering")
            stream = client.as_completed(map(harness.task_id, range(count)), max_pending=count)
            reader = asyncio.ensure_future(anext(stream, None))
            while client.stats.waiting < count:
                await asyncio.sleep(0)
            await watch.begin("waiting")
            await asyncio.sleep(seconds)
            await watch.begin("collection")
            figures["collection"] = _collection()
            await watch.begin(last)
            await (stream.aclose() if last == "leaving" else client.close())
            await watch.begin("end")
            await asyncio.wait([reader])
            await stream.aclose()
            await client.close()
    return figures | watch.longest


def _collection() -> float:
    begun = time.process_time()
    gc.collect()
    return (time.process_time() - begun) * 1000


def run(options: argparse.Namespace, report: harness.Report) -> None:
    """Measure and fill the report; the million once in five rounds."""
    scale = 10 if options.quick else 1
    with harness.serve(polls=None) as server:
        for count, rounds, longest in (
            (100_000 // scale, options.rounds, 25),
            (1_000_000 // scale, (options.rounds + 4) // 5, 60),
        ):
            results = []
            for number in range(rounds):
                harness.progress(f"{count:,} ids, round {number + 1} of {rounds}")
                results.append(harness.measure("blocks", url=server.url, count=count, seconds=5))
            for phase in _PHASES:
                values = [each[phase] for each in results]
                report.add(
                    f"longest callback, {count:,} ids {phase}", "ms CPU", values, at_most=longest
                )
            at_most = 20 if count == 100_000 else None
            values = [each["collection"] for each in results]
            what = f"a full collection, {count:,} ids waiting"
            report.add(what, "ms CPU", values, at_most=at_most)
            values = [each["before"] for each in results]
            report.add("a full collection before there are ids", "ms CPU", values)


if __name__ == "__main__":
    harness.main(__doc__, run, {"blocks": blocks})
