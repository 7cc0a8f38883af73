"""Prometheus metrics of a program's clients, from their `stats`.

In a clone of xai_tasks:    pip install . prometheus-client
Beside this file:           python observability_prometheus.py TASK-ID...

MOUNTSEA_API_KEY holds the key. MOUNTSEA_BASE_URL, if set, is the API's URL. The metrics are at
http://127.0.0.1:9100/metrics, or on the port METRICS_PORT, while it waits.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import REGISTRY, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from xai_tasks import TaskClient

COUNTERS = {
    "requests": "Attempts made: HTTP requests sent.",
    "retries": "Attempts after a first one.",
    "polls": "Looks made for waits.",
    "rate_limited": "Answers with HTTP 429.",
}
GAUGES = {"waiting": "Ids in rotation.", "in_flight": "Requests under way."}


class ClientCollector(Collector):
    """Reads the `stats` of clients when Prometheus scrapes, and costs nothing in between."""

    def __init__(self, clients: Mapping[str, TaskClient]) -> None:
        """Collect from `clients`, by their label `client`. The mapping may change later."""
        self._clients = clients

    def collect(self) -> Iterator[Metric]:
        stats = {name: client.stats for name, client in list(self._clients.items())}
        for kinds, family in ((COUNTERS, CounterMetricFamily), (GAUGES, GaugeMetricFamily)):
            for field, what in kinds.items():
                metric = family(f"xai_tasks_{field}", what, labels=["client"])
                for name, values in stats.items():
                    metric.add_metric([name], getattr(values, field))
                yield metric


async def main(task_ids: Iterable[str]) -> None:
    async with TaskClient() as client:
        collector = ClientCollector({"main": client})
        REGISTRY.register(collector)
        try:
            async for outcome in client.as_completed(task_ids):
                print(outcome)
        finally:
            REGISTRY.unregister(collector)


if __name__ == "__main__":
    start_http_server(int(os.environ.get("METRICS_PORT", "9100")), "127.0.0.1")
    asyncio.run(main(sys.argv[1:]))
