"""Files saved as tasks end: `as_completed(download_to=...)` over real sockets."""

from __future__ import annotations

import asyncio
import errno

import pytest
import tenacity
from raw_server import RawServer, response, silence

from xai_tasks import (
    ClientClosedError,
    DownloadError,
    DownloadExpiredError,
    PollPolicy,
    RetryPolicy,
    TaskClient,
    TaskFailedError,
    _downloads,
)
from xai_tasks.testing import Fault, TaskServer, constant

DATA = bytes(range(256)) * 64


@pytest.fixture
async def server():
    async with TaskServer() as server:
        yield server


@pytest.fixture
async def raw():
    async with RawServer() as raw:
        yield raw


@pytest.fixture
async def client(server):
    async with TaskClient(
        "test",
        base_url=server.url,
        retry=RetryPolicy(wait=tenacity.wait_none()),
        poll=PollPolicy(wait=tenacity.wait_fixed(0.01), timeout=None),
    ) as client:
        yield client


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def full(fd, data):
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_outcomes_come_with_their_files(server, client, tmp_path):
    ids = server.add_many(50, duration=constant(0.02))

    outcomes = [o async for o in client.as_completed(ids, download_to=tmp_path / "videos")]

    assert all(outcome.ok for outcome in outcomes)
    for outcome in outcomes:
        assert outcome.files == (tmp_path / "videos" / f"{outcome.task_id}.mp4",)
        assert b"ftyp" in outcome.files[0].read_bytes()[:12]
    assert len(names(tmp_path / "videos")) == 50


async def test_without_a_directory_nothing_is_fetched(server, client):
    ids = server.add_many(3, duration=constant(0.0))

    outcomes = [outcome async for outcome in client.as_completed(ids)]

    assert [outcome.files for outcome in outcomes] == [()] * 3
    assert server.count() == 3


async def test_task_asked_for_twice_is_fetched_once(server, client, tmp_path):
    server.add("a", result={"url": server.file("a.mp4", DATA)})

    outcomes = [o async for o in client.as_completed(["a", "a"], download_to=tmp_path)]

    assert [outcome.files for outcome in outcomes] == [(tmp_path / "a.mp4",)] * 2
    assert [record.path for record in server.requests].count("/files/a.mp4") == 1


async def test_task_that_failed_or_has_no_files_is_an_outcome_as_ever(server, client, tmp_path):
    server.add("failed", failed="no GPU")
    server.add("empty", result={"text": "no URL"})

    stream = client.as_completed(["failed", "empty", 7], download_to=tmp_path / "none")
    outcomes = {outcome.index: outcome async for outcome in stream}

    assert isinstance(outcomes[0].error, TaskFailedError)
    assert (outcomes[1].ok, outcomes[1].files) == (True, ())
    assert not outcomes[2].ok
    assert not (tmp_path / "none").exists()
    assert (stream.succeeded, stream.failed) == (1, 2)


async def test_failed_download_is_the_outcomes_error_beside_its_task(server, client, tmp_path):
    urls = [server.file("1.mp4", DATA), f"{server.url}/files/expired.mp4"]
    server.add("a", result=urls)

    (outcome,) = [o async for o in client.as_completed(["a"], download_to=tmp_path)]

    assert isinstance(outcome.error, DownloadExpiredError)
    assert not outcome.ok
    assert outcome.task.succeeded
    assert outcome.files == (tmp_path / "a~1.mp4",)
    assert server.count("a") == 1  # what it costs to poll is not spent again
    with pytest.raises(DownloadError):
        outcome.unwrap()


async def test_faults_of_files_do_not_touch_polls(server, client, tmp_path):
    ids = server.add_many(20, duration=constant(0.05))
    for task_id in ids:
        faults = (Fault.truncate(), Fault.status(503), Fault.reset())
        server.fault(f"GET /files/{task_id}.mp4", *faults)

    outcomes = [o async for o in client.as_completed(ids, download_to=tmp_path)]

    assert all(outcome.ok for outcome in outcomes)
    assert not server.faults_left
    assert len(names(tmp_path)) == 20


async def test_full_disk_is_raised_out_of_the_loop(server, client, tmp_path, monkeypatch):
    ids = server.add_many(20, duration=constant(0.01))
    monkeypatch.setattr(_downloads.os, "writev", full)

    stream = client.as_completed(ids, download_to=tmp_path)
    with pytest.raises(OSError, match="No space left.*free space") as caught:
        async for _ in stream:
            pass

    assert caught.value.errno == errno.ENOSPC
    assert stream.pending == 0
    assert client.stats.waiting == 0
    assert not [name for name in names(tmp_path) if name.endswith(".mp4")]
    assert [o async for o in stream] == []


async def test_what_a_strategy_raises_is_raised_out_of_the_loop(server, tmp_path):
    def wait(state):
        raise LookupError("mine")

    server.add("a", result=f"{server.url}/files/none")
    async with TaskClient("test", base_url=server.url, retry=RetryPolicy(wait=wait)) as client:
        with pytest.raises(LookupError, match="mine"):
            async for _ in client.as_completed(["a"], download_to=tmp_path):
                pass


async def test_slow_files_hold_up_pulling_but_no_polls(server, raw, client, tmp_path):
    raw.default = silence
    for n in range(40):
        server.add(f"done-{n}", result=f"{raw.url}/x")
    server.add("waits", [("processing", None)])
    ids = ["waits", *(f"done-{n}" for n in range(40))]

    async with client.as_completed(ids, download_to=tmp_path, max_pending=20) as stream:
        first = asyncio.ensure_future(anext(stream))
        await raw.arrived.wait()
        polls = server.count("waits")
        await server.wait_for_requests(polls + 20, "waits")

        assert stream.pulled == stream.pending == 20
        assert len(raw.requests) == 8
        server.advance("waits")
        assert (await first).task_id == "waits"


@pytest.mark.parametrize("how", ["aclose", "break", "cancel"])
async def test_leaving_early_leaves_no_download_running(server, raw, client, tmp_path, how):
    async def half(reader, writer):
        writer.write(response(200, b"x" * 1000)[:-500])
        await silence(reader, writer)

    raw.default = half
    server.add("a", result={})
    for n in range(20):
        server.add(f"done-{n}", result=f"{raw.url}/x")
    stream = client.as_completed(["a", *(f"done-{n}" for n in range(20))], download_to=tmp_path)

    async def read():
        async for _ in stream:
            await raw.arrived.wait()
            if how == "break":
                break
            if how == "aclose":
                await stream.aclose()

    reading = asyncio.ensure_future(read())
    await raw.arrived.wait()
    if how == "cancel":
        reading.cancel()
    await asyncio.wait([reading])
    await stream.aclose()

    assert not any(t for t in asyncio.all_tasks() if "work" in repr(t.get_coro()))
    assert names(tmp_path) == []
    count = len(raw.requests)
    await asyncio.sleep(0.05)
    assert len(raw.requests) == count


async def test_closing_the_client_makes_outcomes_of_open_downloads(server, raw, client, tmp_path):
    raw.default = silence
    for n in range(20):
        server.add(f"done-{n}", result=f"{raw.url}/x")
    stream = client.as_completed([f"done-{n}" for n in range(20)], download_to=tmp_path)

    async def read():
        return [outcome async for outcome in stream]

    reading = asyncio.ensure_future(read())
    await server.wait_for_requests(20)
    await raw.arrived.wait()
    await client.close()
    outcomes = await reading

    assert len(outcomes) == 20
    assert all(isinstance(outcome.error, ClientClosedError) for outcome in outcomes)
    saved = [outcome for outcome in outcomes if outcome.task is not None]
    assert all(outcome.task.succeeded for outcome in saved)
    assert len(saved) >= 8


@pytest.mark.parametrize("directory", [7, b"videos"])
async def test_directory_must_be_a_path(client, directory):
    with pytest.raises(TypeError, match="download_to must be a path"):
        client.as_completed(["a"], download_to=directory)
