"""docs/examples/observability_prometheus.py against a real server."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import sys
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from xai_tasks import TaskClient
from xai_tasks.testing import Fault, TaskServer

FILE = Path(__file__).parents[2] / "docs" / "examples" / "observability_prometheus.py"
KEY = "sk-4f1d5e0c8b7a4c0b"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("observability_prometheus", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def server():
    async with TaskServer(api_key=KEY) as server:
        yield server


def samples(text):
    """Return each sample's value by its name and its client."""
    return {
        (sample.name, sample.labels["client"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_every_field_of_the_stats_is_scraped(recipe, server):
    registry = CollectorRegistry()
    clients = {}
    registry.register(recipe.ClientCollector(clients))
    server.add("a")
    server.fault("a", Fault.status(429, headers={"Retry-After": "0.05"}))
    server.add("long", "pending")
    async with (
        TaskClient(KEY, base_url=server.url) as client,
        TaskClient(KEY, base_url=server.url) as idle,
    ):
        clients.update({"busy": client, "idle": idle})
        await client.wait("a")
        waiting = asyncio.create_task(client.wait("long"))
        await server.wait_for_requests(3)

        text = generate_latest(registry).decode()

        found = samples(text)
        stats = client.stats
        assert found == {
            (f"xai_tasks_{name}{suffix}", label): getattr(each.stats, name)
            for label, each in clients.items()
            for names, suffix in ((recipe.COUNTERS, "_total"), (recipe.GAUGES, ""))
            for name in names
        }
        assert found["xai_tasks_rate_limited_total", "busy"] == stats.rate_limited == 1
        assert found["xai_tasks_waiting", "busy"] == 1
        assert KEY not in text
        waiting.cancel()


async def test_a_client_that_is_taken_out_is_scraped_no_more(recipe):
    registry = CollectorRegistry()
    clients = {"a": TaskClient(KEY), "b": TaskClient(KEY)}
    registry.register(recipe.ClientCollector(clients))

    del clients["a"]

    assert {client for _, client in samples(generate_latest(registry).decode())} == {"b"}


async def test_runs_from_another_directory(server, tmp_path):
    server.add("a")
    server.latency = 2.0
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    env = {"MOUNTSEA_API_KEY": KEY, "MOUNTSEA_BASE_URL": server.url, "METRICS_PORT": port}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        FILE,
        "a",
        cwd=tmp_path,
        env=os.environ | env,
        stdout=-1,
        stderr=-1,
    )
    await asyncio.wait_for(server.wait_for_requests(1), 60)

    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/metrics") as answer,
    ):
        text = await answer.text()
    out, err = await asyncio.wait_for(process.communicate(), 60)

    assert process.returncode == 0, err.decode()
    assert "status='completed'" in out.decode()
    assert 'xai_tasks_waiting{client="main"} 1.0' in text
