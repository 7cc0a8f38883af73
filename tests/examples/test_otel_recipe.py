"""docs/examples/observability_otel.py against a real server, with
OpenTelemetry's SDK and without.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import sys
import textwrap
from pathlib import Path

import pytest
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, get_current_span
from tenacity import wait_fixed

from xai_tasks import PollPolicy, RetryPolicy, TaskClient, TaskFailedError, WaitTimeoutError
from xai_tasks.testing import Fault, TaskServer

FILE = Path(__file__).parents[2] / "docs" / "examples" / "observability_otel.py"
KEY = "sk-4f1d5e0c8b7a4c0b"


def load():
    spec = importlib.util.spec_from_file_location("observability_otel", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class World:
    """A server, a client whose session the recipe made, and what an exporter got of both."""

    def __init__(self, server):
        self.server = server
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])
        self.telemetry = load().Telemetry(self.tracers, self.meters)

    def client(self, session):
        return TaskClient(
            KEY,
            base_url=self.server.url,
            session=session,
            poll=PollPolicy(wait=wait_fixed(0.02)),
            retry=RetryPolicy(wait=wait_fixed(0.01)),
        )

    async def wait(self, task_id, **options):
        return await self.telemetry.wait(self.one, task_id, **options)

    def spans(self, name):
        """Return the spans of that name, in the order they began."""
        spans = self.exporter.get_finished_spans()
        assert KEY not in "".join(span.to_json() for span in spans)
        return sorted(
            (span for span in spans if span.name == name), key=lambda span: span.start_time
        )

    def children(self, parent):
        return [
            span
            for span in self.spans("GET")
            if span.parent and span.parent.span_id == parent.context.span_id
        ]

    def metrics(self):
        """Return the newest data points, by the metric's name."""
        found = {}
        for resource in self.reader.get_metrics_data().resource_metrics:
            for scope in resource.scope_metrics:
                found.update(
                    {metric.name: list(metric.data.data_points) for metric in scope.metrics}
                )
        assert KEY not in repr(found)
        return found


@pytest.fixture
async def world():
    async with TaskServer(api_key=KEY) as server:
        world = World(server)
        async with world.telemetry.session() as session, world.client(session) as world.one:
            yield world
            assert world.telemetry._contexts == {}
        world.tracers.shutdown()
        world.meters.shutdown()


async def test_a_wait_is_a_span_and_its_requests_are_its_children(world):
    world.server.add("a", [("pending", 0.1)])

    task = await world.wait("a")

    assert task.succeeded
    (wait,) = world.spans("xai_tasks.wait")
    assert wait.parent is None
    assert wait.status.status_code is StatusCode.UNSET
    assert dict(wait.attributes) == {"xai_tasks.task_id": "a", "xai_tasks.status": "completed"}
    requests = world.spans("GET")
    assert len(requests) == world.server.count("a") > 2
    assert world.children(wait) == requests
    assert all(span.attributes["http.status_code"] == 200 for span in requests)


async def test_the_server_is_told_of_the_trace(world):
    world.server.add("a")

    await world.wait("a")

    (wait,) = world.spans("xai_tasks.wait")
    (request,) = world.server.requests
    (span,) = world.spans("GET")
    expected = f"00-{wait.context.trace_id:032x}-{span.context.span_id:016x}-"
    assert request.headers["traceparent"].startswith(expected)


async def test_a_wait_is_under_the_span_it_is_made_in(world):
    world.server.add("a")

    with world.tracers.get_tracer("app").start_as_current_span("job") as job:
        await world.wait("a")

    (wait,) = world.spans("xai_tasks.wait")
    assert wait.parent.span_id == job.get_span_context().span_id


async def test_waits_at_the_same_time_keep_their_requests_apart(world):
    ids = [world.server.add(f"task-{number} & co", [("pending", 0.05)]) for number in range(30)]

    await asyncio.gather(*map(world.wait, ids))

    waits = world.spans("xai_tasks.wait")
    assert len(waits) == 30
    for wait in waits:
        assert len(world.children(wait)) == world.server.count(wait.attributes["xai_tasks.task_id"])
    assert len(world.spans("GET")) == world.server.count()


async def test_waits_for_one_id_share_its_requests_and_point_to_the_oldest(world):
    world.server.add("a", "pending")
    first = asyncio.create_task(world.wait("a"))
    await world.server.wait_for_requests(2)
    second = asyncio.create_task(world.wait("a"))
    await world.server.wait_for_requests(5)
    first.cancel()
    await asyncio.wait([first])
    await world.server.wait_for_requests(8)
    world.server.advance("a")

    await second

    one, two = world.spans("xai_tasks.wait")
    assert not one.links
    assert [link.context.span_id for link in two.links] == [one.context.span_id]
    assert len(world.children(one)) >= 4
    assert len(world.children(two)) >= 2  # those after the first wait was given up
    assert len(world.children(one)) + len(world.children(two)) == world.server.count("a")


async def test_a_failed_task_is_an_error_of_its_wait(world):
    world.server.add("a", failed=("the prompt was refused", 40001))

    with pytest.raises(TaskFailedError):
        await world.wait("a")

    (wait,) = world.spans("xai_tasks.wait")
    assert wait.status.status_code is StatusCode.ERROR
    assert wait.attributes["error.type"] == "TaskFailedError"
    assert wait.attributes["xai_tasks.status"] == "failed"
    (event,) = wait.events
    assert "the prompt was refused" in event.attributes["exception.message"]


async def test_a_wait_that_runs_out_of_time_is_an_error(world):
    world.server.add("a", "pending")

    with pytest.raises(WaitTimeoutError):
        await world.wait("a", timeout=0.1)

    (wait,) = world.spans("xai_tasks.wait")
    assert wait.status.status_code is StatusCode.ERROR
    assert wait.attributes["error.type"] == "WaitTimeoutError"


async def test_faults_are_errors_of_the_requests_alone(world):
    world.server.add("a")
    world.server.fault("a", Fault.status(503), Fault.garbage())

    await world.wait("a")

    (wait,) = world.spans("xai_tasks.wait")
    assert wait.status.status_code is StatusCode.UNSET
    kinds = [
        (span.status.status_code, span.attributes.get("http.status_code"))
        for span in world.children(wait)
    ]
    assert kinds == [(StatusCode.ERROR, 503), (StatusCode.ERROR, None), (StatusCode.UNSET, 200)]


async def test_a_request_that_is_timed_out_ends_with_its_wait(world):
    world.server.add("a")
    world.server.fault("a", Fault.stall())
    task = asyncio.create_task(world.wait("a"))
    await world.server.wait_for_requests(1)

    task.cancel()
    await asyncio.wait([task])
    async with asyncio.timeout(10):
        while not world.spans("GET"):
            await asyncio.sleep(0.005)

    (wait,) = world.spans("xai_tasks.wait")
    (request,) = world.children(wait)
    assert request.status.description == "CancelledError"
    assert wait.status.status_code is StatusCode.UNSET
    assert dict(wait.attributes) == {"xai_tasks.task_id": "a"}


async def test_a_look_is_under_its_callers_span_and_leaves_no_context_behind(world):
    world.server.add("a", "pending")
    waiting = asyncio.create_task(world.wait("a"))
    await world.server.wait_for_requests(1)

    with world.tracers.get_tracer("app").start_as_current_span("get") as span:
        await world.one.get("a")
    await world.one.get("a")  # without a span, it counts as one of the wait's

    assert not get_current_span().get_span_context().is_valid
    waiting.cancel()
    await asyncio.wait([waiting])
    (parent,) = world.spans("get")
    assert len(world.children(parent)) == 1
    assert span.get_span_context() == parent.context


async def test_waits_that_nobody_traces_are_under_no_ones_span(world):
    world.server.add("a", [("pending", 0.1)])
    world.server.add("b", [("pending", 0.1)])

    await asyncio.gather(world.wait("a"), world.one.wait("b"))

    orphans = [span for span in world.spans("GET") if span.parent is None]
    assert len(orphans) == world.server.count("b")


async def test_metrics_say_what_the_client_did(world):
    world.telemetry.observe(world.one, tenant="x")
    world.server.add("a", [("pending", 0.15)])
    world.server.fault("a", Fault.status(503), Fault.status(429, headers={"Retry-After": "0.05"}))
    world.server.add("long", "pending")
    long = asyncio.create_task(world.wait("long"))
    also = asyncio.create_task(world.wait("long"))

    await world.wait("a")

    points = world.metrics()
    values = {name: point.value for name, (point, *_) in points.items() if hasattr(point, "value")}
    assert values["xai_tasks.waits"] == 2
    assert values["xai_tasks.waiting"] == 1
    assert values["xai_tasks.rate_limited"] == 1
    assert values["xai_tasks.retries"] >= 2
    assert values["xai_tasks.polls"] > 2
    under_way = (
        values["xai_tasks.requests"] - values["xai_tasks.retries"] - values["xai_tasks.polls"]
    )
    assert 0 <= under_way <= 1
    assert dict(points["xai_tasks.polls"][0].attributes) == {"tenant": "x"}
    (noticed,) = points["xai_tasks.noticed_after"]
    assert noticed.count == 1
    assert 0 <= noticed.sum < 5
    for task in (long, also):
        task.cancel()
    await asyncio.wait([long, also])
    assert world.metrics()["xai_tasks.waits"][0].value == 0


async def test_tasks_that_had_ended_before_anybody_asked_are_not_timed(world):
    world.server.add("a")
    await asyncio.sleep(0.05)

    await world.wait("a")

    assert "xai_tasks.noticed_after" not in world.metrics()


async def test_requests_have_one_span_each_where_all_sessions_are_instrumented(world):
    instrumentor = AioHttpClientInstrumentor()
    instrumentor.instrument(tracer_provider=world.tracers, meter_provider=world.meters)
    try:
        world.server.add("a", [("pending", 0.05)])
        async with world.telemetry.session() as session, world.client(session) as client:
            await world.telemetry.wait(client, "a")
    finally:
        instrumentor.uninstrument()

    assert len(world.spans("GET")) == world.server.count("a")


async def test_without_an_sdk_it_only_waits(world):
    telemetry = load().Telemetry()
    world.server.add("a", [("pending", 0.05)])
    world.server.add("b", failed=True)

    async with telemetry.session() as session, world.client(session) as client:
        telemetry.observe(client)
        assert (await telemetry.wait(client, "a")).succeeded
        with pytest.raises(TaskFailedError):
            await telemetry.wait(client, "b")

    assert world.exporter.get_finished_spans() == ()


async def test_the_block_on_the_page_runs(world, monkeypatch):
    page = FILE.parents[1] / "how-to" / "observability.md"
    block = (
        page.read_text(encoding="utf-8")
        .partition("<!-- skip: next -->\n\n```python\n")[2]
        .partition("```")[0]
    )
    monkeypatch.setenv("MOUNTSEA_API_KEY", KEY)
    monkeypatch.setenv("MOUNTSEA_BASE_URL", world.server.url)
    world.server.add("task-id")
    namespace = {"Telemetry": lambda: world.telemetry, "TaskClient": TaskClient}

    exec("async def app():\n" + textwrap.indent(block + "return task", "    "), namespace)

    assert (await namespace["app"]()).succeeded
    assert len(world.spans("xai_tasks.wait")) == 1


WITHOUT = f"""
import asyncio, sys
sys.modules[sys.argv[1]] = None
sys.path.insert(0, {str(FILE.parent)!r})
import observability_otel
asyncio.run(observability_otel.main(["a", "no-such-task"]))
"""


@pytest.mark.parametrize(
    ("arguments", "spans"),
    [
        (["-c", WITHOUT, "opentelemetry"], []),
        (["-c", WITHOUT, "opentelemetry.instrumentation"], []),
        ([str(FILE), "a", "no-such-task"], ["GET", "xai_tasks.wait"]),
    ],
    ids=["without-otel", "with-its-api-alone", "as-a-program"],
)
async def test_runs_from_another_directory(world, arguments, spans, tmp_path):
    world.server.add("a")
    env = {**os.environ, "MOUNTSEA_API_KEY": KEY, "MOUNTSEA_BASE_URL": world.server.url}

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", *arguments, cwd=tmp_path, env=env, stdout=-1, stderr=-1
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)

    assert process.returncode == 0, err.decode()
    assert b"TaskResult(task_id='a', status='completed'" in out
    assert b"no such task" in out
    assert KEY.encode() not in out + err
    # How often the unknown id is asked for depends on the jitter.
    assert sorted(set(re.findall(r'^    "name": "(.*)"', out.decode(), re.MULTILINE))) == spans
