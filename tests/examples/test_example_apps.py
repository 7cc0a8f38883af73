"""The example apps, each served for real, in front of a TaskServer."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urlencode

import aiohttp
import pytest
from example_apps import EXAMPLES, INTERVAL, KEY, NAMES, read_events, serving, until
from yarl import URL

from xai_tasks import TaskResult
from xai_tasks.testing import Fault, TaskServer

MINUTE = timedelta(minutes=1)
PAGE = EXAMPLES / "live_page.html"

# Django does not close the body of a request that the server cancels as it stops.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Unclosed file <tempfile.SpooledTemporaryFile:ResourceWarning"
)


@pytest.fixture
async def server(monkeypatch):
    async with TaskServer(KEY) as server:
        monkeypatch.setenv("MOUNTSEA_API_KEY", KEY)
        monkeypatch.setenv("MOUNTSEA_BASE_URL", server.url)
        yield server


@pytest.fixture(params=NAMES)
async def app(request, server):
    before = asyncio.all_tasks()
    async with serving(request.param) as app:
        yield app
    assert app.client.closed
    # Connections that were just closed have tasks of their own for a turn or two.
    await until(
        lambda: (
            not {
                task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()
            }
        )
    )


@pytest.fixture
async def browser(app):
    async with aiohttp.ClientSession(app.url, timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


def path(task_id, rest=""):
    return URL(f"/tasks/{quote(task_id, safe='')}{rest}", encoded=True)


def events_of(*ids):
    query = urlencode([("id", task_id) for task_id in ids])
    return URL(f"/events?{query}", encoded=True)


async def get(browser, url):
    async with browser.get(url) as answer:
        return answer.status, await answer.json()


async def test_one_look_tells_how_the_task_stands(server, browser):
    server.add("a", "processing", result={"videoUrl": "https://example.com/a.mp4"})

    status, task = await get(browser, path("a"))

    assert status == 200
    assert (task["taskId"], task["status"]) == ("a", "processing")
    assert server.count() == 1


IDS = ["a b", "a%2Fb", "ä?#&=+;", "{x}", "a:b,c", "%", "..a", "'\"<b>", "wait", "events", "🎬"]


async def test_ids_may_hold_any_character(server, browser):
    for task_id in IDS:
        server.add(task_id, result=f"of {task_id}")

    got = [(await get(browser, path(task_id)))[1] for task_id in IDS]
    waits = [(await get(browser, path(task_id, "/wait")))[1] for task_id in IDS]
    async with browser.get(events_of(*IDS)) as answer:
        streamed = [data["task"] async for _, data in read_events(answer)]

    streamed.sort(key=lambda task: IDS.index(task["taskId"]))
    for tasks in (got, waits, streamed):
        assert [task.get("taskId") for task in tasks] == IDS
        assert [task.get("result") for task in tasks] == [f"of {task_id}" for task_id in IDS]


async def test_ids_may_hold_a_slash_but_in_litestar(server, app, browser):
    server.add("a/b", result=[1])

    answers = [await get(browser, path("a/b", rest)) for rest in ("", "/wait")]

    expected = {"litestar": 404}.get(app.name, 200)
    assert [status for status, _ in answers] == [expected, expected]
    assert server.count("a/b") == (0 if expected == 404 else 2)


async def test_an_empty_id_is_refused_before_any_request(server, browser):
    async with browser.get(URL("/tasks/", encoded=True)) as answer:
        assert answer.status in (404, 422)

    assert server.count() == 0


async def test_a_long_poll_answers_as_the_task_ends(server, browser):
    server.add("a", [("processing", 0.3)], result={"videoUrl": "https://example.com/a.mp4"})

    status, task = await get(browser, path("a", "/wait?timeout=20"))

    assert (status, task["status"]) == (200, "completed")
    assert task["result"] == {"videoUrl": "https://example.com/a.mp4"}


async def test_a_long_poll_of_a_task_that_failed_tells_why(server, browser):
    server.add("a", [("processing", 0.1)], failed=("the prompt was refused", 40001))

    status, task = await get(browser, path("a", "/wait"))

    assert (status, task["status"]) == (200, "failed")
    assert (task["errorMessage"], task["errorCode"]) == ("the prompt was refused", 40001)


async def test_a_long_poll_whose_time_runs_out_tells_the_last_status(server, app, browser):
    server.add("a", "processing", result=1)

    status, task = await get(browser, path("a", "/wait?timeout=0.3"))

    assert (status, task["status"]) == (202, "processing")
    assert app.client.stats.waiting == 0


async def test_a_long_poll_that_saw_nothing_in_its_time_is_a_504(server, browser):
    server.add("a", "processing", result=1)
    server.fault("a", Fault.stall())

    status, answer = await get(browser, path("a", "/wait?timeout=0.3"))

    assert status == 504
    assert KEY not in str(answer)


async def test_a_timeout_out_of_range_is_refused(server, app, browser):
    server.add("a", result=1)
    timeouts = ["0", "-1", "61", "inf", "nan", "soon"]

    statuses = [
        (await get(browser, path("a", f"/wait?timeout={timeout}")))[0] for timeout in timeouts
    ]

    assert statuses == [400 if app.name == "litestar" else 422] * 6
    assert server.count() == 0


async def test_events_are_the_changes_of_status_up_to_the_end(server, browser):
    server.add("a", [("pending", 0.3), ("processing", 0.3)], result={"text": "line\nline\r\u2028"})

    async with browser.get(events_of("a")) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-cache"
        assert answer.headers["X-Accel-Buffering"] == "no"
        seen = [event async for event in read_events(answer)]

    assert [name for name, _ in seen] == ["update"] * 3
    tasks = [data["task"] for _, data in seen]
    assert [task["status"] for task in tasks] == ["pending", "processing", "completed"]
    assert [data["final"] for _, data in seen] == [False, False, True]
    assert tasks[-1]["result"] == {"text": "line\nline\r\u2028"}


async def test_events_come_while_the_task_goes_on(server, browser):
    server.add("a", ["pending", "processing"], result=1)

    async with browser.get(events_of("a")) as answer:
        events = read_events(answer)
        for status in ("pending", "processing", "completed"):
            assert (await anext(events))[1]["task"]["status"] == status
            if status != "completed":
                server.advance("a")
        assert await anext(events, None) is None


async def test_events_that_end_in_an_error_say_so_in_an_event(server, browser):
    async with browser.get(events_of("unknown")) as answer:
        assert answer.status == 200
        seen = [event async for event in read_events(answer)]

    assert seen == [("update", final("unknown", "there is no such task"))]


def final(task_id, problem):
    return {
        "taskId": task_id,
        "final": True,
        "task": None,
        "problem": problem,
        "remaining": {},
    }


async def test_a_refused_key_ends_the_stream_with_a_problem(server, browser):
    server.add("a", "processing", result=1)
    server.fault("a", Fault.status(401, body=SPEAKING))

    async with browser.get(events_of("a", "b")) as answer:
        seen = [event async for event in read_events(answer)]

    detail = "the task service cannot be used at the moment"
    assert seen[-1] == ("problem", {"detail": detail})


async def test_a_stream_names_one_to_a_hundred_ids(server, app, browser):
    for ids in ([], [""], ["a", ""], [f"a{n}" for n in range(101)]):
        async with browser.get(events_of(*ids)) as answer:
            assert answer.status == (400 if app.name == "litestar" else 422)

    assert server.count() == 0


async def test_events_estimate_the_time_left(server, app, browser):
    now = datetime.now(UTC)
    for _ in range(10):
        app.module.POLLING.observe(
            TaskResult("x", "completed", created_at=now, finished_at=now + MINUTE)
        )
    server.add("a", "processing", result=1)

    async with browser.get(events_of("a")) as answer:
        _, running = await anext(read_events(answer))
        server.advance("a")
        _, ended = await anext(read_events(answer))

    assert running["remaining"] == {"a": pytest.approx(60, abs=5)}
    assert ended["remaining"] == {}


async def test_every_app_serves_the_page(browser):
    async with browser.get("/") as answer:
        assert answer.content_type == "text/html"
        assert (
            "Content-Disposition" not in answer.headers
            or "inline" in answer.headers["Content-Disposition"]
        )
        assert await answer.text() == PAGE.read_text()


async def test_events_outlive_a_bad_moment_of_the_task_service(server, browser):
    server.add("a", [("processing", 0.3)], result=1)
    server.fault("a", Fault.status(503), Fault.garbage(), Fault.reset())

    async with browser.get(events_of("a")) as answer:
        seen = [data["task"]["status"] async for _, data in read_events(answer)]

    assert seen[-1] == "completed"
    assert server.faults_left == []


@pytest.mark.parametrize("name", NAMES)
async def test_events_end_once_the_task_service_has_been_away_for_too_long(server, name):
    server.add("a", "processing", result=1)
    server.fault("a", Fault.stall())
    async with serving(name, max_outage=0) as app, aiohttp.ClientSession(app.url) as browser:
        async with browser.get(events_of("a")) as answer:
            seen = [event async for event in read_events(answer)]

    detail = "the task service did not answer in time"
    assert seen == [("update", final("a", detail))]


async def test_a_silent_stream_sends_comments(server, app, browser, monkeypatch):
    if app.name == "fastapi":
        monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.1)
    else:
        monkeypatch.setattr(app.module, "HEARTBEAT", 0.1)
    server.add("a", "processing", result=1)

    statuses, comments = [], 0
    async with browser.get(events_of("a")) as answer:
        async for name, data in read_events(answer):
            if name is not None:
                statuses.append(data["task"]["status"])
                continue
            comments += 1
            if comments == 3:
                server.advance("a")

    assert statuses == ["processing", "completed"]
    assert comments >= 3


SPEAKING = b'{"message": "upstream words about the account"}'
STATUSES = {
    Fault.status(400, body=SPEAKING): 422,
    Fault.status(401, body=SPEAKING): 502,
    Fault.status(402, body=SPEAKING): 502,
    Fault.status(403, body=SPEAKING): 502,
    Fault.status(404, body=SPEAKING): 404,
    Fault.status(422, body=SPEAKING): 422,
    Fault.status(500, body=SPEAKING): 502,
    Fault.garbage(): 502,
    Fault.body(b"<html>"): 502,
    Fault.redirect("https://example.com/upstream"): 502,
    Fault.truncate(): 502,
    Fault.stall(): 504,
    # The last one, as it silences the client.
    Fault.status(429, {"Retry-After": "90"}, body=SPEAKING): 503,
}


async def test_an_error_becomes_a_status_that_tells_nothing_of_key_or_account(
    server, browser, caplog
):
    server.add("a", result=1)
    server.fault("a", *STATUSES)
    statuses = {}

    for fault in STATUSES:
        async with browser.get(path("a")) as answer:
            said = f"{await answer.text()} {answer.headers}"
        statuses[fault] = answer.status
        assert '{"detail":' in said
        assert answer.headers.get("Retry-After") == ("90" if answer.status == 503 else None)
        assert all(
            word not in said for word in (KEY, "upstream", "Traceback", "xai_tasks", server.url)
        )

    assert statuses == STATUSES
    assert KEY not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


async def test_fifty_long_polls_of_a_task_are_one_poll_loop(server, app, browser):
    server.add("a", "processing", result=1)

    polls = [asyncio.create_task(get(browser, path("a", "/wait?timeout=20"))) for _ in range(50)]
    await until(lambda: server.count("a") >= 20)
    times = [request.time for request in server.requests]
    server.advance("a")
    answers = await asyncio.gather(*polls)

    assert min(b - a for a, b in zip(times, times[1:], strict=False)) > INTERVAL / 2
    assert {(status, task["status"]) for status, task in answers} == {(200, "completed")}


async def test_who_hangs_up_gives_up_a_wait_and_only_its_own(server, app, browser):
    server.add("a", "processing", result=1)
    server.add("b", "processing", result=1)
    leaver, stayer, loner = (
        asyncio.create_task(get(browser, path(task_id, "/wait?timeout=20")))
        for task_id in ("a", "a", "b")
    )
    await until(lambda: app.client.stats.waiting == 2)

    leaver.cancel()
    loner.cancel()
    await until(lambda: app.client.stats.waiting == 1)
    polled = server.count("b")
    await server.wait_for_requests(server.count("a") + 5, "a")
    assert server.count("b") == polled
    server.advance("a")

    assert (await stayer)[1]["status"] == "completed"
    await until(lambda: app.client.stats.in_flight == 0)


async def test_who_leaves_a_stream_gives_up_a_wait_and_only_its_own(server, app, browser):
    server.add("a", "processing", result=1)
    server.add("b", "processing", result=1)
    streams = [await browser.get(events_of(task_id)) for task_id in ("a", "a", "b")]
    for stream in streams:
        await anext(read_events(stream))
    leaver, stayer, loner = streams

    leaver.close()
    loner.close()
    await until(lambda: app.client.stats.waiting == 1)
    polled = server.count("b")
    await server.wait_for_requests(server.count("a") + 5, "a")
    assert server.count("b") == polled
    server.advance("a")

    assert [data["task"]["status"] async for _, data in read_events(stayer)] == ["completed"]


async def test_a_hundred_clients_that_hang_up_at_once_leave_nothing(server, app, browser):
    ids = [server.add(f"a{n}", "processing", result=1) for n in range(10)]
    tasks = len(asyncio.all_tasks())
    polls = [asyncio.create_task(get(browser, path(i, "/wait?timeout=20"))) for i in ids * 5]
    streams = [await browser.get(events_of(i)) for i in ids * 5]
    await until(lambda: app.client.stats.waiting == 10)

    for poll in polls:
        poll.cancel()
    for stream in streams:
        stream.close()

    await until(lambda: app.client.stats.waiting == 0 and app.client.stats.in_flight == 0)
    # The TaskServer, in this loop too, has a task for each of the ten or so
    # connections that the client keeps.
    await until(lambda: len(asyncio.all_tasks()) < tasks + 40)


@pytest.mark.parametrize("name", NAMES)
async def test_an_app_that_stops_ends_open_streams_and_long_polls(server, name):
    server.add("a", "processing", result=1)
    async with aiohttp.ClientSession() as session:
        async with serving(name) as app:
            poll = asyncio.create_task(
                session.get(URL(app.url).join(path("a", "/wait?timeout=60")))
            )
            stream = await session.get(URL(app.url).join(events_of("a")))
            events = read_events(stream)
            await anext(events)
            await until(lambda: app.client.stats.waiting == 1)
            began = asyncio.get_running_loop().time()
        took = asyncio.get_running_loop().time() - began
        with contextlib.suppress(aiohttp.ClientError):
            assert await anext(events, None) is None
        stream.close()
        with contextlib.suppress(aiohttp.ClientError):
            assert (await poll).status in (500, 503)

    # aiohttp's default is to wait for a minute, uvicorn's to wait for as long as it takes.
    assert took < 10
    assert app.client.closed
