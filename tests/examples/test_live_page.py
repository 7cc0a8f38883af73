"""The live page of the aiohttp example: its stream of many tasks, and
the page itself in Chromium.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import aiohttp
import pytest
from example_apps import INTERVAL, KEY, NAMES, read_events, serving, until
from selenium import webdriver

from xai_tasks import TaskResult
from xai_tasks.testing import TaskServer


@pytest.fixture
async def server(monkeypatch):
    async with TaskServer(KEY) as server:
        monkeypatch.setenv("MOUNTSEA_API_KEY", KEY)
        monkeypatch.setenv("MOUNTSEA_BASE_URL", server.url)
        yield server


@pytest.fixture
async def app(request, server):
    async with serving(getattr(request, "param", "aiohttp")) as app:
        yield app


def address(app, ids, at="/events?"):
    return f"{app.url}{at}{urlencode([('id', task_id) for task_id in ids])}"


async def test_one_stream_tells_of_many_tasks_each_on_its_own(server, app):
    server.add("a", [("processing", 0.2)], result={"videoUrl": "https://example.com/a.mp4"})
    server.add("b?&=/", "pending", failed="the prompt was refused")

    async with aiohttp.ClientSession() as session:
        async with session.get(address(app, ["a", "b?&=/", "unknown", "a"])) as answer:
            seen = []
            async for name, data in read_events(answer):
                task = data["task"] or {"status": data["problem"]}
                seen.append((data["taskId"], task["status"], data["final"]))
                if task["status"] == "completed":
                    server.advance("b?&=/")

    assert sorted(seen) == [
        ("a", "completed", True),
        ("a", "processing", False),
        ("b?&=/", "failed", True),
        ("b?&=/", "pending", False),
        ("unknown", "there is no such task", True),
    ]


async def test_leaving_a_stream_of_many_gives_up_its_waits_and_only_those(server, app):
    for task_id in ("a", "b", "c"):
        server.add(task_id, "processing", result=1)
    async with aiohttp.ClientSession() as session:
        leaver = await session.get(address(app, ["a", "b"]))
        stayer = await session.get(address(app, ["b", "c"]))
        await until(lambda: app.client.stats.waiting == 3)

        leaver.close()
        await until(lambda: app.client.stats.waiting == 2)
        polled = server.count("a")
        await server.wait_for_requests(server.count("b") + 5, "b")

        assert server.count("a") == polled
        stayer.close()
        await until(lambda: app.client.stats.waiting == 0)


class Chromium:
    """A browser with the page open. Selenium blocks, so it works in threads."""

    def __init__(self, driver):
        self._driver = driver

    async def open(self, url):
        await asyncio.to_thread(self._driver.get, url)

    async def run(self, script):
        return await asyncio.to_thread(self._driver.execute_script, script)

    async def rows(self):
        """Return the table as the reader sees it: id to status and result."""
        cells = await self.run(
            "return [...document.querySelectorAll('#rows tr')]"
            ".map(r => [...r.cells].map(c => c.innerText))"
        )
        return {task_id: (status, result) for task_id, status, _, result in cells}

    async def emulate(self, width, scheme):
        """Set the window's width, and whether the reader prefers light or dark."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        for command, arguments in (
            ("Emulation.setDeviceMetricsOverride", size),
            ("Emulation.setEmulatedMedia", media),
        ):
            await asyncio.to_thread(self._driver.execute_cdp_cmd, command, arguments)

    async def text(self, name):
        return await self.run(f"return document.getElementById('{name}').innerText")

    async def complaints(self):
        """Return the console's errors, except those of a server that is away."""
        log = await asyncio.to_thread(self._driver.get_log, "browser")
        return [
            entry
            for entry in log
            if entry["level"] == "SEVERE" and "net::ERR_" not in entry["message"]
        ]

    async def until(self, reached, timeout=20.0):
        """Wait until `await reached()` is true."""
        async with asyncio.timeout(timeout):
            while not await reached():
                await asyncio.sleep(0.05)

    async def statuses(self, *expected):
        """Wait until the tasks have these statuses and no others."""

        async def reached():
            return {status for status, _ in (await self.rows()).values()} == set(expected)

        await self.until(reached)


@pytest.fixture
async def chromium():
    """Start browsers, each with a profile of its own; they end with the test."""
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        pytest.skip(
            "chromium or chromedriver is missing: "
            "tests/realserver/install.sh installs them, as root on Debian"
        )

    def start(profile):
        options = webdriver.ChromeOptions()
        options.binary_location = programs[0]
        for flag in (
            "headless",
            "no-sandbox",
            "disable-gpu",
            "disable-quic",
            "disable-dev-shm-usage",
            "disable-background-networking",
            "disable-component-update",
            "disable-sync",
            "no-first-run",
            f"user-data-dir={profile}",
        ):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        return webdriver.Chrome(
            options, webdriver.ChromeService(programs[1], log_output=os.devnull)
        )

    async with contextlib.AsyncExitStack() as stack:

        async def browser():
            profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            driver = await asyncio.to_thread(start, profile)
            stack.push_async_callback(asyncio.to_thread, driver.quit)
            browsers.append(Chromium(driver))
            return browsers[-1]

        browsers = []
        yield browser
        assert [await browser.complaints() for browser in browsers] == [[]] * len(browsers)


@pytest.mark.realserver
async def test_the_page_shows_each_status_as_it_changes_and_how_tasks_ended(server, app, chromium):
    server.add(
        "done",
        ["pending", "processing"],
        result={"videos": [{"url": "https://example.com/v.mp4?sig=1"}]},
    )
    server.add("bad", "pending", failed=("the prompt was refused", 40001))
    server.add("plain", "pending", result={"text": "no link"})
    browser = await chromium()
    await browser.open(app.url)
    await browser.run(
        "document.getElementById('ids').value = 'done, bad\\n\\nplain;unknown  done';"
        "document.querySelector('button').click()"
    )

    await browser.statuses("pending", "no answer")
    assert await browser.text("link") == "live"
    server.advance("done")
    await browser.statuses("pending", "processing", "no answer")
    for task_id in ("done", "bad", "plain"):
        server.advance(task_id)
    await browser.statuses("completed", "failed", "no answer")

    assert await browser.rows() == {
        "done": ("completed", "example.com/v.mp4"),
        "bad": ("failed", "the prompt was refused (40001)"),
        "plain": ("completed", '{"text":"no link"}'),
        "unknown": ("no answer", "there is no such task"),
    }
    assert (
        await browser.text("totals")
    ).split() == "4 tasks 2 completed 2 failed 0 running 0 pending".split()
    assert (
        await browser.run("return document.querySelector('#rows a').href")
        == "https://example.com/v.mp4?sig=1"
    )
    assert await browser.text("link") == "all ended"
    assert app.client.stats.waiting == 0

    seen = server.count()
    await asyncio.sleep(3)
    assert server.count() == seen, "the page asked again for tasks that have ended"


@pytest.mark.realserver
async def test_two_browsers_on_the_same_twenty_ids_cause_the_polls_of_one(server, app, chromium):
    ids = [
        server.add(f"task {n}", "processing", result={"videoUrl": f"https://example.com/{n}"})
        for n in range(20)
    ]
    first, second = await chromium(), await chromium()

    async def polls_in_two_seconds():
        before = server.count()
        await asyncio.sleep(2)
        return server.count() - before

    await first.open(address(app, ids, "/#"))
    await first.statuses("processing")
    of_one = await polls_in_two_seconds()
    await second.open(address(app, ids, "/#"))
    await second.statuses("processing")
    of_two = await polls_in_two_seconds()

    assert app.client.stats.waiting == 20
    assert of_one > 100
    assert of_two < 1.4 * of_one
    for task_id in ids:
        times = [request.time for request in server.requests if request.task_id == task_id]
        assert min(b - a for a, b in zip(times, times[1:], strict=False)) > INTERVAL / 2
        server.advance(task_id)
    for browser in (first, second):
        await browser.statuses("completed")
        assert (await browser.rows())["task 7"] == ("completed", "example.com/7")


@pytest.mark.realserver
async def test_the_page_reconnects_after_its_server_was_restarted(server, chromium):
    server.add("before", "processing", result={})
    server.add("during", "processing", result={})
    server.add("after", "processing", result={})
    browser = await chromium()
    async with serving("aiohttp") as app:
        await browser.open(address(app, ["before", "during", "after"], "/#"))
        await browser.statuses("processing")
        server.advance("before")
        await browser.statuses("completed", "processing")

    async def lost():
        return await browser.text("link") == "reconnecting"

    await browser.until(lost)
    server.advance("during")
    polls = server.count("before")
    port = int(app.url.rpartition(":")[2])
    async with serving("aiohttp", port) as app:

        async def caught_up():
            return (await browser.rows())["during"][0] == "completed"

        await browser.until(caught_up)
        assert await browser.text("link") == "live"
        server.advance("after")
        await browser.statuses("completed")

    assert server.count("before") == polls, "a task that had ended was asked for again"


@pytest.mark.realserver
async def test_the_page_takes_nothing_it_shows_for_html_or_script(server, app, chromium):
    attack = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
    server.add(
        attack,
        result={
            "url": "javascript:document.title='owned'",
            "html": attack,
            "at": "data:text/html,x",
        },
    )
    server.add("failed" + attack, failed=(attack, attack))
    server.add("unknown status" + attack, attack, result={})
    server.add("link", result=[f"https://example.com/{attack}"])
    ids = [attack, "failed" + attack, "unknown status" + attack, "link", "unknown" + attack]
    browser = await chromium()

    await browser.open(address(app, ids, "/#"))
    await browser.statuses("completed", "failed", attack, "no answer")

    assert list(await browser.rows()) == ids
    assert await browser.run("return document.title") == "Tasks"
    assert (
        await browser.run("return document.querySelectorAll('#rows img, #rows script').length") == 0
    )
    links = await browser.run(
        "return [...document.querySelectorAll('#rows a')].map(a => [a.protocol, a.rel, a.target])"
    )
    assert links == [["https:", "noopener noreferrer", "_blank"]]


@pytest.mark.realserver
@pytest.mark.parametrize("app", NAMES, indirect=True)
async def test_the_page_fits_every_window(server, app, chromium):
    long = "x" * 200
    server.add(long, result={"videoUrl": f"https://example.com/{long}.mp4"})
    server.add("b" + long, failed=(long, 40001))
    server.add("c", "processing", result={"text": long})
    browser = await chromium()
    await browser.open(address(app, [long, "b" + long, "c"], "/#"))
    await browser.statuses("completed", "failed", "processing")
    layouts = {}

    for width in (360, 768, 1440):
        for scheme in ("light", "dark"):
            await browser.emulate(width, scheme)
            page = await browser.run("return [document.documentElement.scrollWidth, innerWidth]")
            assert page[0] <= width
            row = "document.querySelector('#rows tr')"
            layouts[width] = await browser.run(f"return getComputedStyle({row}).display")
            background = await browser.run("return getComputedStyle(document.body).backgroundColor")
            assert background == {"light": "rgb(244, 245, 248)", "dark": "rgb(20, 23, 29)"}[scheme]

    assert layouts == {360: "block", 768: "table-row", 1440: "table-row"}


@pytest.mark.realserver
async def test_the_page_shows_the_time_left(server, app, chromium):
    created = datetime.now(UTC)
    server.add("a", "processing", result=1)
    browser = await chromium()
    times = "return [...document.querySelectorAll('#rows tr')].map(row => row.cells[2].innerText)"
    await browser.open(address(app, ["a", "b"], "/#"))
    await browser.statuses("processing", "no answer")
    assert (await browser.run(times))[0] == ""

    for _ in range(10):
        finished = created + timedelta(seconds=60)
        task = TaskResult("x", "completed", created_at=created, finished_at=finished)
        app.module.POLLING.observe(task)
    server.add("c", "processing", result=1)
    await browser.run(
        "document.getElementById('ids').value = 'c'; document.querySelector('button').click()"
    )

    async def told():
        return (await browser.run(times))[2].startswith("about ")

    await browser.until(told)
    assert (await browser.run(times))[2] in ("about 50 s", "about 60 s")


@pytest.mark.realserver
async def test_previews_load_from_allowed_hosts_only(server, app, chromium):
    allowed = f"{server.url}/files/allowed.mp4"
    server.add("allowed", result={"videoUrl": allowed})
    for name, url in {
        "other host": "https://example.com/v.mp4",
        "other scheme": "http://cdn.mountsea.ai/v.mp4",
        "a host's end": "https://evilmountsea.ai/v.mp4",
        "no media": "https://cdn.mountsea.ai/v.html",
    }.items():
        server.add(name, result={"videoUrl": url})
    ids = ["allowed", "other host", "other scheme", "a host's end", "no media"]
    browser = await chromium()

    await browser.open(address(app, ids, "/#"))
    await browser.statuses("completed")

    sources = await browser.run(
        "return [...document.querySelectorAll('#rows video, #rows img')].map(media => media.src)"
    )
    assert sources == [allowed]
