"""docs/examples/tenants.py against a real server that knows several keys."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from pathlib import Path

import aiohttp
import pytest
from tenacity import wait_fixed

from xai_tasks import AuthenticationError, ClientClosedError, PollPolicy, TaskClient
from xai_tasks.testing import Fault, TaskServer

FILE = Path(__file__).parents[2] / "docs" / "examples" / "tenants.py"
KEYS = {name: f"sk-{name}-4f1d5e0c8b7a" for name in ("acme", "globex", "initech")}


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("tenants", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["tenants"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["tenants"]


@pytest.fixture
async def server():
    async with TaskServer(api_key=KEYS.values()) as server:
        yield server


class Made:
    """Builds clients, and remembers them."""

    def __init__(self, server):
        self.server = server
        self.clients = []

    def __call__(self, tenant, session):
        policy = PollPolicy(wait=wait_fixed(0.02))
        self.clients.append(
            TaskClient(KEYS[tenant], base_url=self.server.url, session=session, poll=policy)
        )
        return self.clients[-1]


@pytest.fixture
def made(server):
    return Made(server)


def key_sent(request):
    return request.headers["Authorization"].removeprefix("Bearer ")


async def test_each_tenant_asks_with_its_own_key_over_one_session(recipe, server, made):
    async with recipe.Tenants(made) as tenants:
        for tenant in (*KEYS, *KEYS):
            server.add(tenant)
            await recipe.wait(tenants, tenant, tenant)

    assert [(request.task_id, key_sent(request)) for request in server.requests] == [
        *KEYS.items()
    ] * 2
    assert len(made.clients) == 3
    assert all(client.closed for client in made.clients)


async def test_no_cookie_of_one_tenant_is_sent_for_another(recipe, server, made):
    server.add("a")
    cookie = Fault.status(503, headers={"Set-Cookie": "session=acme; Path=/"})
    server.fault("a", cookie)
    async with recipe.Tenants(made) as tenants:
        await recipe.wait(tenants, "acme", "a")
        await recipe.wait(tenants, "globex", "a")

    assert server.faults_left == []
    assert not any("Cookie" in request.headers for request in server.requests)


async def test_the_one_not_used_for_longest_makes_room(recipe, server, made):
    server.add("a")
    async with recipe.Tenants(made, most=2) as tenants:
        for tenant in ("acme", "globex", "acme", "initech"):
            await recipe.wait(tenants, tenant, "a")

        assert [client.closed for client in made.clients] == [False, True, False]
        assert (await recipe.wait(tenants, "globex", "a")).succeeded  # with a new client

    assert len(made.clients) == 4


async def test_one_in_use_is_never_closed_to_make_room(recipe, server, made):
    server.add("a")
    server.add("long", "pending")
    async with recipe.Tenants(made, most=1) as tenants:
        long = asyncio.create_task(recipe.wait(tenants, "acme", "long"))
        await server.wait_for_requests(1)
        for tenant in ("globex", "initech"):
            await recipe.wait(tenants, tenant, "a")
        server.advance("long")

        assert (await long).succeeded
        assert [client.closed for client in made.clients] == [False, True, True]


async def test_a_refused_key_and_a_pause_are_one_tenants_own(recipe, server, made):
    server.add("a")
    server.fault("paused", Fault.status(429, headers={"Retry-After": "30"}))
    async with recipe.Tenants(made) as tenants:
        paused = asyncio.create_task(recipe.wait(tenants, "acme", "paused"))
        await server.wait_for_requests(1)
        server.api_key = [KEYS["acme"], KEYS["initech"]]
        with pytest.raises(AuthenticationError):
            await recipe.wait(tenants, "globex", "a")

        assert (await asyncio.wait_for(recipe.wait(tenants, "initech", "a"), 10)).succeeded

        paused.cancel()
        await asyncio.wait([paused])


async def test_closing_ends_the_waits_that_are_open(recipe, server, made):
    server.add("long", "pending")
    async with recipe.Tenants(made) as tenants:
        waiting = asyncio.create_task(recipe.wait(tenants, "acme", "long"))
        await server.wait_for_requests(1)

    with pytest.raises(ClientClosedError):
        await waiting


async def test_the_key_is_asked_for_again_when_it_is_refused(recipe, server, monkeypatch):
    server.add("a")
    server.api_key = ["sk-replaced-4f1d5e0c"]
    monkeypatch.setenv("MOUNTSEA_BASE_URL", server.url)
    monkeypatch.setenv("MOUNTSEA_API_KEY_ACME", KEYS["acme"])
    async with aiohttp.ClientSession() as session, recipe.make_client("acme", session) as client:
        with pytest.raises(AuthenticationError):
            await client.get("a")
        monkeypatch.setenv("MOUNTSEA_API_KEY_ACME", "sk-replaced-4f1d5e0c")

        assert (await client.get("a")).succeeded


async def test_runs_from_another_directory(server, tmp_path):
    server.add("a")
    server.add("b", failed=("the prompt was refused", 40001))
    env = {f"MOUNTSEA_API_KEY_{name.upper()}": key for name, key in KEYS.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", FILE, "acme=a", "globex=b"),
        cwd=tmp_path,
        env=os.environ | env | {"MOUNTSEA_BASE_URL": server.url},
        stdout=-1,
        stderr=-1,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)

    assert process.returncode == 0, err.decode()
    assert [line.partition("(")[0] for line in out.decode().splitlines()] == [
        "TaskResult",
        "TaskFailedError",
    ]
    assert sorted(map(key_sent, server.requests)) == [KEYS["acme"], KEYS["globex"]]
