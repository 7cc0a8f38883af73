"""OpenTelemetry for a `TaskClient`: a span for each wait with those of its requests, and metrics.

In a clone of xai_tasks:    pip install '.[otel]' opentelemetry-sdk
                            pip install opentelemetry-instrumentation-aiohttp-client
Beside this file:           python observability_otel.py TASK-ID...

MOUNTSEA_API_KEY holds the key. MOUNTSEA_BASE_URL, if set, is the API's URL. Spans and metrics are
printed. Without an SDK, or without `opentelemetry-api`, a `Telemetry` only waits.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Iterable
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp

from xai_tasks import TaskClient, TaskError, TaskResult


def optional(module: str) -> Any:
    """Import an optional module; return None if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


context = optional("opentelemetry.context")
metrics = optional("opentelemetry.metrics")
trace = optional("opentelemetry.trace")
instrumentation = optional("opentelemetry.instrumentation.aiohttp_client")

COUNTERS = {
    "requests": "Attempts made: HTTP requests sent.",
    "retries": "Attempts after a first one.",
    "polls": "Looks made for waits.",
    "rate_limited": "Answers with HTTP 429.",
}
GAUGES = {"waiting": "Ids in rotation.", "in_flight": "Requests under way."}
SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

_attached: ContextVar[Token[Any] | None] = ContextVar("attached", default=None)


class Telemetry:
    """Traces and meters waits. One for a program, whatever the number of its clients."""

    def __init__(self, tracer_provider: Any = None, meter_provider: Any = None) -> None:
        """Use the given providers, or the program's own."""
        self._providers = {"tracer_provider": tracer_provider, "meter_provider": meter_provider}
        self._contexts: dict[str, list[Any]] = {}
        """The contexts of the waits for each id, the oldest first."""
        self._clients: WeakKeyDictionary[TaskClient, dict[str, str]] = WeakKeyDictionary()
        if trace is None:
            return
        self._tracer = trace.get_tracer("xai_tasks", tracer_provider=tracer_provider)
        meter = metrics.get_meter("xai_tasks", meter_provider=meter_provider)
        for name, what in COUNTERS.items():
            meter.create_observable_counter(
                f"xai_tasks.{name}", [self._reader(name)], description=what
            )
        for name, what in GAUGES.items():
            meter.create_observable_up_down_counter(
                f"xai_tasks.{name}", [self._reader(name)], description=what
            )
        self._waits = meter.create_up_down_counter(
            "xai_tasks.waits", description="Waits in progress."
        )
        self._noticed_after = meter.create_histogram(
            "xai_tasks.noticed_after",
            unit="s",
            description="From a task's finishedAt to its end being noticed.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )

    def session(self) -> aiohttp.ClientSession:
        """Build a session to lend to clients; its requests have spans below those of the waits."""
        configs = []
        if instrumentation is not None:
            # Between the two, or the instrumentation would find, and leave, the wrong context.
            enter, leave = aiohttp.TraceConfig(), aiohttp.TraceConfig()
            enter.on_request_start.append(self._enter)
            leave.on_request_end.append(self._leave)
            leave.on_request_exception.append(self._leave)
            configs = [enter, instrumentation.create_trace_config(**self._providers), leave]
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=configs,
        )
        if instrumentation is not None:
            # If all sessions are instrumented, each request gets a second span, without a parent.
            instrumentation.AioHttpClientInstrumentor.uninstrument_session(session)
        return session

    def observe(self, client: TaskClient, /, **attributes: str) -> None:
        """Report a client's `stats` as metrics, with `attributes` to tell clients apart."""
        self._clients[client] = attributes

    async def wait(self, client: TaskClient, task_id: str, **options: Any) -> TaskResult:
        """Wait as `TaskClient.wait` does, in a span."""
        if trace is None:
            return await client.wait(task_id, **options)
        began = datetime.now(UTC)
        contexts = self._contexts.setdefault(task_id, [])
        # Waits for one id share its requests: the oldest wait's span is their parent, and the
        # other waits link to it.
        links = [
            trace.Link(trace.get_current_span(oldest).get_span_context()) for oldest in contexts[:1]
        ]
        with self._tracer.start_as_current_span(
            "xai_tasks.wait", attributes={"xai_tasks.task_id": task_id}, links=links
        ) as span:
            here = context.get_current()
            contexts.append(here)
            self._waits.add(1)
            try:
                task = await client.wait(task_id, **options)
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                if isinstance(error, TaskError):
                    self._ended(span, error.task, began)
                raise
            else:
                self._ended(span, task, began)
                return task
            finally:
                self._waits.add(-1)
                contexts.remove(here)
                if not contexts and self._contexts.get(task_id) is contexts:
                    del self._contexts[task_id]

    def _ended(self, span: Any, task: TaskResult, began: datetime) -> None:
        span.set_attribute("xai_tasks.status", task.status.value)
        if task.finished_at is not None and task.finished_at >= began:  # it ended during this wait
            self._noticed_after.record((datetime.now(UTC) - task.finished_at).total_seconds())

    def _reader(self, name: str) -> Any:
        def read(_: object) -> Iterable[Any]:
            for client, attributes in list(self._clients.items()):
                yield metrics.Observation(getattr(client.stats, name), attributes)

        return read

    # Workers that serve all waits make the polls, in an empty context: find the context by the id.

    async def _enter(
        self, session: Any, request: Any, params: aiohttp.TraceRequestStartParams
    ) -> None:
        contexts = self._contexts.get(params.url.query.get("taskId", ""))
        if contexts and not trace.get_current_span().get_span_context().is_valid:
            _attached.set(context.attach(contexts[0]))

    async def _leave(self, session: Any, request: Any, params: object) -> None:
        token = _attached.get()
        if token is not None:
            _attached.set(None)
            context.detach(token)


async def main(task_ids: Iterable[str]) -> None:
    telemetry = Telemetry()
    async with telemetry.session() as session, TaskClient(session=session) as client:
        telemetry.observe(client)
        waits = (telemetry.wait(client, task_id) for task_id in task_ids)
        for outcome in await asyncio.gather(*waits, return_exceptions=True):
            print(outcome)


if __name__ == "__main__":
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import (
        ConsoleMetricExporter,
        PeriodicExportingMetricReader,
    )
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(
        MeterProvider([PeriodicExportingMetricReader(ConsoleMetricExporter())])
    )
    asyncio.run(main(sys.argv[1:]))
