"""TaskServer over real sockets; lifecycles on a fake clock, where time is exact."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, quote_plus

import pytest
from aiohttp import web
from fakes import FakeClockLoop
from hypothesis import given
from hypothesis import strategies as st
from raw_peer import connected

from xai_tasks.testing import Fault, TaskServer, constant, lognormal, uniform
from xai_tasks.testing._checks import requested_id


@pytest.fixture
async def server():
    async with TaskServer() as server:
        yield server


@pytest.fixture
async def peer(server):
    async with connected(server) as peer:
        yield peer


class FromZero(FakeClockLoop):
    def __init__(self):
        super().__init__()
        self._clock.now = 0.0


def in_fake_time(scenario):
    """Run `scenario(server, fetch)` on a clock that begins at 0 and jumps from timer to timer."""

    async def run():
        async with TaskServer() as server, connected(server) as peer:

            async def fetch(task_id="a"):
                peer.ask(task_id)
                return (await peer.json())[1]

            return await scenario(server, fetch)

    with asyncio.Runner(loop_factory=FromZero) as runner:
        return runner.run(run())


def test_task_goes_through_its_steps():
    async def scenario(server, fetch):
        server.add(
            "a", [("pending", 10), ("ready", 20), ("processing", 570)], result={"videoUrl": "u"}
        )
        seen = []
        for moment in (0, 9.9, 10, 29.9, 30, 599.9, 600, 10_000):
            await asyncio.sleep(moment - asyncio.get_running_loop().time())
            seen.append((await fetch())["status"])
        return seen

    before = time.monotonic()
    seen = in_fake_time(scenario)

    assert seen == ["pending"] * 2 + ["ready"] * 2 + ["processing"] * 2 + ["completed"] * 2
    assert time.monotonic() - before < 5


def test_dates_follow_the_loop_clock():
    async def scenario(server, fetch):
        await asyncio.sleep(100)
        server.add("a", [("processing", 3600)])
        await asyncio.sleep(5000)
        return await fetch()

    before = datetime.now(UTC)
    seen = in_fake_time(scenario)

    created, finished = (datetime.fromisoformat(seen[name]) for name in ("createdAt", "finishedAt"))
    assert finished - created == timedelta(hours=1)
    assert abs(created - before - timedelta(seconds=100)) < timedelta(seconds=30)
    assert seen["createdAt"].endswith("Z")


def test_running_task_shows_no_end():
    async def scenario(server, fetch):
        server.add("a", [("processing", 1)], result={"x": 1})
        return await fetch()

    assert in_fake_time(scenario).keys() == {"taskId", "status", "createdAt", "traceId"}


@pytest.mark.parametrize(
    ("end", "shown"),
    [
        ({}, {"status": "completed", "result": None}),
        (
            {"result": {"videoUrls": ["a", "b"]}},
            {"status": "completed", "result": {"videoUrls": ["a", "b"]}},
        ),
        ({"failed": True}, {"status": "failed"}),
        ({"failed": ""}, {"status": "failed", "errorMessage": ""}),
        ({"failed": "bad prompt"}, {"status": "failed", "errorMessage": "bad prompt"}),
        ({"failed": ("no", 40001)}, {"status": "failed", "errorMessage": "no", "errorCode": 40001}),
        ({"cancelled": True}, {"status": "cancelled"}),
        ({"timeout": "late"}, {"status": "timeout", "errorMessage": "late"}),
        ({"failed": False, "cancelled": None}, {"status": "completed", "result": None}),
    ],
)
async def test_task_ends_as_scripted(server, peer, end, shown):
    server.add("a", **end)

    peer.ask()
    status, seen = await peer.json()

    assert status == 200
    assert seen.pop("finishedAt") == seen.pop("createdAt")
    assert seen == {"taskId": "a", "traceId": "trace-a", **shown}


async def test_result_is_copied(server, peer):
    result = {"n": 1}
    server.add("a", result=result)
    result["n"] = 2

    peer.ask()

    assert (await peer.json())[1]["result"] == {"n": 1}


async def test_add_replaces_task(server, peer):
    server.add("a", "processing")
    assert server.add("a", failed=True) == "a"

    peer.ask()

    assert (await peer.json())[1]["status"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"task_id": ""}, ValueError),
        ({"task_id": "a", "steps": [("pending", -1)]}, ValueError),
        ({"task_id": "a", "steps": [("pending", float("nan"))]}, ValueError),
        ({"task_id": "a", "result": {}, "failed": True}, ValueError),
        ({"task_id": "a", "cancelled": True, "timeout": True}, ValueError),
        ({"task_id": "a", "result": object()}, TypeError),
    ],
)
async def test_add_refuses_bad_arguments(server, arguments, error):
    with pytest.raises(error):
        server.add(**arguments)


async def test_advance(server, peer):
    server.add("a", ["pending", ("processing", 3600), ("odd", None)], result={})
    seen = []
    for _ in range(4):
        peer.ask()
        seen.append((await peer.json())[1]["status"])
        if seen[-1] != "completed":
            server.advance("a")

    assert seen == ["pending", "processing", "odd", "completed"]
    with pytest.raises(ValueError, match="ended"):
        server.advance("a")
    with pytest.raises(KeyError):
        server.advance("nobody")


def test_timed_step_after_advance():
    async def scenario(server, fetch):
        server.add("a", ["pending", ("processing", 10)])
        await asyncio.sleep(100)
        server.advance("a")
        ends_at = server.ends_at("a")
        await asyncio.sleep(9.9)
        before = (await fetch())["status"]
        await asyncio.sleep(0.1)
        return ends_at, before, (await fetch())["status"]

    assert in_fake_time(scenario) == (110, "processing", "completed")


def test_ends_at_uses_the_loop_clock():
    async def scenario(server, _fetch):
        await asyncio.sleep(5)
        server.add("a", [("pending", 1), ("processing", 2)])
        server.add("b", [("pending", 1), "processing"])
        server.add("c")
        return [server.ends_at(task_id) for task_id in "abc"]

    assert in_fake_time(scenario) == [8, None, 5]


async def test_ends_at_of_unknown_task(server):
    with pytest.raises(KeyError):
        server.ends_at("task1-0")


def test_made_up_tasks_last_as_drawn():
    async def scenario(server, fetch):
        ids = server.add_many(300, duration=uniform(10, 20), failed=0.5)
        first = [(await fetch(task_id))["status"] for task_id in ids]
        ends = [server.ends_at(task_id) for task_id in ids]
        await asyncio.sleep(15)
        half_way = [(await fetch(task_id))["status"] for task_id in ids]
        await asyncio.sleep(5)
        return ids, first, ends, half_way, [await fetch(task_id) for task_id in ids]

    ids, first, ends, half_way, last = in_fake_time(scenario)

    assert set(first) == {"pending"}
    assert all(10 <= end <= 20 for end in ends)
    assert len(set(ends)) == 300
    assert [status == "processing" for status in half_way] == [end > 15 for end in ends]
    assert 100 < sum(seen["status"] == "failed" for seen in last) < 200
    for task_id, seen in zip(ids, last, strict=True):
        if seen["status"] == "failed":
            assert (seen["errorMessage"], seen["errorCode"]) == ("made-up failure", 500)
        else:
            assert seen["result"]["videoUrl"].endswith(f"/files/{task_id}.mp4")


async def test_made_up_tasks_are_a_sequence(server):
    ids = server.add_many(12, duration=constant(1))

    assert len(ids) == 12
    assert list(ids) == [f"task1-{number}" for number in range(12)]
    assert ids[-1] == "task1-11"
    assert ids[2:4] == ["task1-2", "task1-3"]
    assert repr(ids) == "<12 task ids from task1-0>"
    assert "task1-11" in ids
    for stranger in (
        "task1-12",
        "task1-012",
        "task1--1",
        "task1-",
        "task1-\u0661",
        "task2-1",
        "task1",
        7,
    ):
        assert stranger not in ids
    with pytest.raises(IndexError):
        ids[12]


async def test_add_many_twice(server, peer):
    first = server.add_many(2, duration=constant(0))
    second = server.add_many(2, duration=constant(60))
    named = server.add_many(2, duration=constant(0), prefix="mine-own", result={"ok": True})

    seen = []
    for task_id in (first[1], second[1], named[1]):
        peer.ask(task_id)
        seen.append((await peer.json())[1])

    assert [one["taskId"] for one in seen] == ["task1-1", "task2-1", "mine-own-1"]
    assert [one["status"] for one in seen] == ["completed", "pending", "completed"]
    assert seen[2]["result"] == {"ok": True}
    with pytest.raises(ValueError, match="mine-own"):
        server.add_many(1, duration=constant(0), prefix="mine-own")


@pytest.mark.parametrize("failed", [-0.1, 1.5, float("nan")])
async def test_add_many_refuses_bad_share(server, failed):
    with pytest.raises(ValueError, match="within 0 and 1"):
        server.add_many(1, duration=constant(0), failed=failed)


@pytest.mark.parametrize("options", [{"latency": -1}, {"latency": float("nan")}, {"log_limit": -1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        TaskServer(**options)


async def test_add_many_is_seeded(server):
    def ends(seed):
        ids = server.add_many(20, duration=lognormal(45, 0.5), failed=0.5, seed=seed)
        start = min(server.ends_at(task_id) for task_id in ids)
        return [round(server.ends_at(task_id) - start, 6) for task_id in ids]

    assert ends(1) == ends(1) != ends(2)


async def test_advance_made_up_task(server, peer):
    ids = server.add_many(2, duration=constant(3600))

    server.advance(ids[0])
    server.advance(ids[0])

    seen = []
    for task_id in ids:
        peer.ask(task_id)
        seen.append((await peer.json())[1]["status"])
    assert seen == ["completed", "pending"]


async def test_made_up_task_takes_less_than_32_bytes(server):
    tracemalloc.start()
    try:
        ids = server.add_many(100_000, duration=lognormal(45, 0.5))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held < 32 * len(ids)


@pytest.mark.parametrize(
    ("api_key", "authorization", "status"),
    [
        ("test", "Bearer test", 200),
        ("test", "bearer test", 200),
        ("test", "Bearer tes", 401),
        ("test", "Basic test", 401),
        ("test", "test", 401),
        ("test", None, 401),
        (["one", "two"], "Bearer two", 200),
        (["one", "two"], "Bearer test", 401),
        ([], "Bearer ", 401),
        (None, None, 200),
        (None, "Bearer anything", 200),
    ],
)
async def test_only_given_keys_are_accepted(api_key, authorization, status):
    async with TaskServer(api_key) as server, connected(server) as peer:
        server.add("a")

        peer.send("/xai/tasks?taskId=a", authorization=authorization)
        head, body = await peer.answer()

    assert head.startswith(f"HTTP/1.1 {status} ")
    if status == 401:
        assert "WWW-Authenticate: Bearer\r\n" in head
        assert json.loads(body)["statusCode"] == 401


async def test_key_can_be_changed(server, peer):
    server.add("a")
    server.api_key = {"fresh"}

    peer.ask()
    peer.send("/xai/tasks?taskId=a", authorization="Bearer fresh")

    assert [(await peer.json())[0] for _ in range(2)] == [401, 200]
    assert server.api_key == {"fresh"}


@pytest.mark.parametrize(
    ("method", "target", "status", "message"),
    [
        ("GET", "/xai/tasks?taskId=nobody", 404, "There is no task 'nobody'"),
        ("GET", "/xai/tasks?taskId=task1-0", 404, "There is no task 'task1-0'"),
        ("GET", "/xai/tasks", 422, "taskId is required"),
        ("GET", "/xai/tasks?taskId=", 404, "There is no task ''"),
        ("GET", "/xai/tasks?taskid=a", 422, "taskId is required"),
        ("GET", "/xai/task?taskId=a", 404, "Cannot GET /xai/task?taskId=a"),
        ("GET", "/", 404, "Cannot GET /"),
        ("POST", "/xai/tasks?taskId=a", 405, "Cannot POST /xai/tasks"),
    ],
)
async def test_error_is_a_json_object(server, peer, method, target, status, message):
    server.add("a")

    peer.send(target, method=method)
    head, body = await peer.answer()

    error = json.loads(body)
    assert head.startswith(f"HTTP/1.1 {status} {error['error']}\r\n")
    assert "Content-Type: application/json" in head
    assert (error["statusCode"], error["message"]) == (status, message)


async def test_wrong_method_lists_allowed(server, peer):
    peer.send("/xai/tasks", method="DELETE")

    assert "Allow: GET\r\n" in (await peer.answer())[0]


async def test_answer_to_head_has_no_body(server):
    async with connected(server) as peer:
        peer.send("/xai/tasks", method="HEAD", more="Connection: close\r\n")
        data, end = await peer.rest()

    assert data.startswith(b"HTTP/1.1 405 ")
    assert data.endswith(b"\r\n\r\n")
    assert end == "closed"


@pytest.mark.parametrize("fault", [None, Fault.drip(0), Fault.status(500)])
async def test_connection_close_is_honoured(server, peer, fault):
    server.add("a")
    if fault is not None:
        server.fault("a", fault)

    peer.send("/xai/tasks?taskId=a", more="Connection: close\r\n")
    async with asyncio.timeout(5):
        data, end = await peer.rest()

    assert data.startswith(b"HTTP/1.1 ")
    assert end == "closed"


def test_limit_allows_burst_then_rate():
    async def scenario(server, fetch):
        server.add("a")
        server.limit(2, burst=3)
        seen = []
        for pause in (0, 0, 0, 0, 0.5, 0, 10, 0, 0, 0):
            await asyncio.sleep(pause)
            seen.append("status" in await fetch())
        server.limit(None)
        return (
            seen,
            [record.status for record in server.requests],
            [(await fetch())["status"] for _ in range(9)],
        )

    seen, statuses, unlimited = in_fake_time(scenario)

    assert seen == [True, True, True, False, True, False, True, True, True, False]
    assert [status == 200 for status in statuses] == seen
    assert set(statuses) == {200, 429}
    assert unlimited == ["completed"] * 9


@pytest.mark.parametrize(
    ("options", "header"),
    [
        ({}, "Retry-After: 1\r\n"),
        ({"retry_after": 0.25}, "Retry-After: 0.25\r\n"),
        (
            {"retry_after": "Fri, 31 Dec 1999 23:59:59 GMT"},
            "Retry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n",
        ),
        ({"retry_after": None}, None),
    ],
)
async def test_limit_sends_retry_after(server, peer, options, header):
    server.add("a")
    server.limit(0.001, **options)

    peer.ask()
    await peer.answer()
    peer.ask()
    head, body = await peer.answer()

    assert head.startswith("HTTP/1.1 429 Too Many Requests\r\n")
    assert (header in head) if header else ("Retry-After" not in head)
    assert json.loads(body)["traceId"] == "trace-a"


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (float("nan"), 1), (1, 0)])
async def test_limit_refuses_bad_arguments(server, rate, burst):
    with pytest.raises(ValueError, match="need rate"):
        server.limit(rate, burst)


def test_latency_delays_the_answer_due():
    async def scenario(server, fetch):
        loop = asyncio.get_running_loop()
        server.add("a", [("processing", 1)])
        server.latency = 3
        seen = (await fetch())["status"], loop.time()
        server.latency = uniform(1, 2)
        await fetch()
        drawn = loop.time() - seen[1]
        server.latency = 0
        await fetch()
        return seen, drawn, loop.time() - seen[1] - drawn, server.latency

    seen, drawn, after, latency = in_fake_time(scenario)

    assert seen == ("processing", 3)
    assert 1 <= drawn <= 2
    assert after == latency == 0


async def test_disconnect_while_waiting_is_harmless(server):
    server.add("a")
    server.latency = 0.1
    async with connected(server) as peer:
        peer.ask()
        await server.wait_for_requests(1)
    server.latency = 0
    async with connected(server) as peer:
        peer.ask()
        assert (await peer.json())[0] == 200


def test_requests_are_logged():
    async def scenario(server, fetch):
        server.add("a")
        await fetch()
        await asyncio.sleep(2.5)
        await fetch("nobody")
        return server

    server = in_fake_time(scenario)
    first, second = server.requests

    assert (first.task_id, first.time, first.status) == ("a", 0, 200)
    assert (second.task_id, second.time, second.status) == ("nobody", 2.5, 404)
    assert first.headers["authorization"] == "Bearer test"
    assert "Bearer" not in repr(first)


async def test_count_by_id(server, peer):
    made_up = server.add_many(3, duration=constant(0))
    for target in ("a", "a", made_up[1], "nobody"):
        peer.ask(target)
        await peer.answer()
    peer.send("/nowhere")
    await peer.answer()

    assert [
        server.count(task_id) for task_id in ("a", made_up[1], made_up[0], "nobody", "else")
    ] == [
        2,
        1,
        0,
        1,
        0,
    ]
    assert server.count() == 5
    assert server.requests[-1].task_id is None


async def test_log_limit_keeps_the_newest():
    async with TaskServer(log_limit=2) as server, connected(server) as peer:
        for task_id in "abc":
            peer.ask(task_id)
            await peer.answer()

    assert [record.task_id for record in server.requests] == ["b", "c"]
    assert (server.count(), server.count("a")) == (3, 1)


async def test_wait_for_requests(server, peer):
    enough = asyncio.ensure_future(server.wait_for_requests(3))
    of_one = asyncio.ensure_future(server.wait_for_requests(2, "b"))
    given_up = asyncio.ensure_future(server.wait_for_requests(1))
    await asyncio.sleep(0)
    given_up.cancel()
    seen = []
    for task_id in "abcb":
        peer.ask(task_id)
        await peer.answer()
        await asyncio.sleep(0.01)
        seen.append((enough.done(), of_one.done()))

    assert seen == [(False, False), (False, False), (True, False), (True, True)]
    await server.wait_for_requests(4)


async def test_reset_removes_everything():
    async with TaskServer("first", latency=0) as server, connected(server) as peer:
        server.add("a")
        ids = server.add_many(3, duration=constant(0))
        server.limit(0.001)
        server.fault("a", Fault.garbage())
        server.disturb(1.0, Fault.reset())
        server.latency = 60
        server.api_key = "second"

        server.reset()
        server.add("b")
        for target in ("a", ids[0], "b"):
            peer.send(f"/xai/tasks?taskId={target}", authorization="Bearer first")

        assert [(await peer.json())[0] for _ in range(3)] == [404, 404, 200]
        assert server.faults_left == server.faults_fired == []
        assert server.count() == len(server.requests) == 3


async def test_restart_keeps_port_and_tasks(server):
    server.add("a", "processing", result={})
    url = server.url

    await server.aclose()
    with pytest.raises(ConnectionRefusedError):
        await connected(server).__aenter__()
    await server.start()

    assert server.url == url
    async with connected(server) as peer:
        peer.ask()
        assert (await peer.json())[1]["status"] == "processing"


async def test_close_twice_drops_connections(server, peer):
    await server.aclose()
    await server.aclose()

    assert (await peer.rest())[0] == b""


async def test_second_start_is_refused(server):
    with pytest.raises(RuntimeError, match="runs already"):
        await server.start()


async def test_start_that_fails_leaves_the_port_free(monkeypatch):
    async def fail(site):
        raise OSError("no more descriptors")

    server = TaskServer()
    with monkeypatch.context() as patch:
        patch.setattr(web.SockSite, "start", fail)
        with pytest.raises(OSError, match="no more descriptors"):
            await server.start()

    await server.start()
    await server.aclose()


async def test_taken_port_is_an_os_error(server):
    other = TaskServer(port=int(server.url.rpartition(":")[2]))

    with pytest.raises(OSError, match="(?i)address already in use"):
        await other.start()

    await other.aclose()


@pytest.mark.parametrize(
    "use",
    [lambda server: server.url, lambda server: server.add("a"), lambda server: server.limit(1)],
    ids=["url", "add", "limit"],
)
def test_server_must_be_started(use):
    with pytest.raises(RuntimeError, match="start the server first"):
        use(TaskServer())


@pytest.mark.parametrize("turns", range(6))
async def test_close_leaves_no_connection_that_came_just_before(turns):
    server = TaskServer()
    await server.start()
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
        client.settimeout(10)
        for _ in range(turns):
            await asyncio.sleep(0)

        await server.aclose()
        await asyncio.sleep(0)

        try:
            assert client.recv(1) == b""
        except ConnectionResetError:
            pass


def test_in_thread():
    async def talk(server):
        async with connected(server) as peer:
            peer.ask()
            return (await peer.json())[1]["status"]

    with TaskServer.in_thread(api_key="test") as server:
        server.add("a", "processing", result={})
        before = asyncio.run(talk(server))
        server.advance("a")
        after = asyncio.run(talk(server))
        assert [record.status for record in server.requests] == [200, 200]

    assert (before, after) == ("processing", "completed")
    assert "TaskServer" not in [thread.name for thread in threading.enumerate()]


async def test_in_thread_wakes_other_loops():
    with TaskServer.in_thread() as server:
        waiting = asyncio.ensure_future(server.wait_for_requests(50))
        async with connected(server) as peer:
            for _ in range(50):
                peer.ask()
            async with asyncio.timeout(10):
                await waiting


def test_in_thread_skips_closed_loops():
    with TaskServer.in_thread() as server:

        async def give_up():
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(server.wait_for_requests(1), 0.01)

        asyncio.run(give_up())

        async def talk():
            async with connected(server) as peer:
                peer.ask()
                return await peer.json()

        assert asyncio.run(talk())[0] == 404


def test_in_thread_raises_start_errors():
    with TaskServer.in_thread() as server:
        port = int(server.url.rpartition(":")[2])
        with (
            pytest.raises(OSError, match="(?i)address already in use"),
            TaskServer.in_thread(port=port),
        ):
            pytest.fail("it started")


def test_in_thread_ends_stalled_answers():
    with TaskServer.in_thread() as server:
        server.fault(None, Fault.stall())

        async def hang():
            async with connected(server) as peer:
                peer.ask()
                await server.wait_for_requests(1)

        asyncio.run(hang())


@given(
    st.text(min_size=1).filter(lambda text: not any("\ud800" <= char <= "\udfff" for char in text))
)
def test_requested_id_decodes_any_id(task_id):
    assert requested_id(f"/xai/tasks?taskId={quote(task_id, safe='')}") == task_id
    assert requested_id(f"/xai/tasks?a=b&taskId={quote_plus(task_id)}") == task_id


@pytest.mark.parametrize(
    ("target", "task_id"),
    [
        ("/xai/tasks?taskId=a&taskId=b", "a"),
        ("/xai/tasks?taskId=a%2Db", "a-b"),
        ("/xai/tasks?taskId=%FF", "\ufffd"),
        ("/xai/tasks?taskId=a=b", "a=b"),
        ("/xai/tasks?taskId", ""),
        ("/xai/tasks?other=a", None),
        ("/xai/tasks?", None),
    ],
)
def test_requested_id_reads_query_strings(target, task_id):
    assert requested_id(target) == task_id
