"""Draw docs/_static/live-page.png: the example's live page in headless Chromium, on a TaskServer.

python docs/scripts/live_page_picture.py    (needs the extra `test`, chromium and chromedriver)
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

from aiohttp import web
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from xai_tasks import TaskResult
from xai_tasks.testing import TaskServer

DOCS = Path(__file__).parent.parent
PICTURE = DOCS / "_static" / "live-page.png"
sys.path.insert(0, str(DOCS / "examples"))

from aiohttp_app import POLLING, make_app  # noqa: E402 -- a file of the examples

HOST = "https://cdn.example.com"
IDS = [f"{n * 0x9E3779B1 % 2**32:08x}-grok" for n in range(1, 13)]


def add_tasks(server: TaskServer) -> None:
    """Add tasks at every stage."""
    for n, task_id in enumerate(IDS[:5]):
        name = "videoUrl" if n % 2 else "imageUrls"
        url = (
            f"{HOST}/videos/{task_id}.mp4"
            if n % 2
            else [f"{HOST}/images/{task_id}-{part}.png" for part in (1, 2)]
        )
        server.add(task_id, result={name: url})
    server.add(IDS[5], failed=("The prompt was refused by moderation", 40001))
    for task_id in IDS[6:9]:
        server.add(task_id, "processing", result={})
    for task_id in IDS[9:11]:
        server.add(task_id, "pending", result={})
    # The last id is unknown to the server.


def learn() -> None:
    """Teach the page how long tasks take, so that it can estimate the time left."""
    created = datetime.now(UTC)
    for seconds in range(50, 70):
        finished = created + timedelta(seconds=seconds)
        POLLING.observe(TaskResult("x", "completed", created_at=created, finished_at=finished))


def take(url: str) -> None:
    """Open the page in a new Chromium, wait until each task has a status, and take a picture."""
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or "chromium"
        for flag in (
            "headless",
            "no-sandbox",
            "disable-gpu",
            "hide-scrollbars",
            "force-prefers-reduced-motion",
        ):
            options.add_argument(f"--{flag}")
        options.add_argument(f"--user-data-dir={profile}")
        options.add_argument("--window-size=980,900")
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        browser = webdriver.Chrome(options, service)
        try:
            # So that each run draws the same picture.
            clock = "Date.prototype.toLocaleTimeString = () => '14:03:22'"
            browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": clock})
            browser.get(url)
            WebDriverWait(browser, 20).until(
                lambda _: "requested" not in browser.find_element("id", "rows").text
            )
            browser.set_window_size(
                980, browser.execute_script("return document.body.scrollHeight") + 110
            )
            browser.save_screenshot(str(PICTURE))
        finally:
            browser.quit()


async def main() -> None:
    async with TaskServer() as server:
        learn()
        add_tasks(server)
        os.environ.update(MOUNTSEA_API_KEY="test", MOUNTSEA_BASE_URL=server.url)
        runner = web.AppRunner(make_app(), handler_cancellation=True)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            port = runner.addresses[0][1]
            ids = urlencode([("id", task_id) for task_id in IDS])
            await asyncio.to_thread(take, f"http://127.0.0.1:{port}/#{ids}")
        finally:
            await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
