"""The app that submits in a handler: each outcome, and a browser that hangs up."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from example_apps import KEY, load

from xai_tasks.testing import Fault, TaskServer


@pytest.fixture
async def server(monkeypatch):
    async with TaskServer(api_key=KEY) as server:
        monkeypatch.setenv("MOUNTSEA_API_KEY", KEY)
        monkeypatch.setenv("MOUNTSEA_BASE_URL", server.url)
        yield server


@pytest.fixture
async def app(server):
    return load("submit")


@pytest.fixture
async def browser(app):
    async with app.app.router.lifespan_context(app.app) as state:

        async def with_state(scope, receive, send):
            await app.app({**scope, "state": dict(state)}, receive, send)

        transport = httpx.ASGITransport(with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as browser:
            yield browser


async def post(browser, prompt="a cat", **fields):
    answer = await browser.post("/videos", json={"prompt": prompt, **fields})
    return answer.status_code, answer.json()


async def test_accepted(server, browser):
    assert await post(browser, duration=10) == (202, {"taskId": "submitted-1"})
    assert server.submissions == [
        {"prompt": "a cat", "model": "grok-imagine-video", "duration": 10}
    ]


async def test_empty_prompt(server, browser):
    assert await post(browser, "") == (422, {"detail": "prompt is empty"})
    assert server.submissions == []


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (Fault.status(400, body=b'{"message": "no cats"}'), 422, "no cats"),
        (Fault.reset(), 502, "may have been submitted"),
        (Fault.status(402), 503, "not submitted"),
        (Fault.status(429, {"Retry-After": "90"}), 503, "not submitted"),
    ],
    ids=repr,
)
async def test_not_accepted(server, browser, fault, status, words):
    server.fault("POST", fault)

    code, body = await post(browser)

    assert code == status
    assert words in body["detail"]
    assert server.count() == 1


async def test_browser_that_hangs_up_loses_no_id(server, app, browser, monkeypatch):
    kept = []
    monkeypatch.setattr(app, "keep", lambda task_id, video: kept.append(task_id))
    server.fault("POST", Fault.stall(0.2))
    asking = asyncio.ensure_future(post(browser))
    await server.wait_for_requests(1)

    asking.cancel()
    async with asyncio.timeout(10):
        while not kept:
            await asyncio.sleep(0.01)

    assert kept == ["submitted-1"]
