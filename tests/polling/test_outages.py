"""The server is gone, for a while or for good; or it is in such a state
that every fifth answer is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections import Counter
from datetime import UTC, datetime

import aiohttp
import pytest
from fakes import assert_nothing_runs, now
from tenacity import wait_fixed

from xai_tasks import (
    APIConnectionError,
    APITimeoutError,
    PollPolicy,
    ServerError,
    TaskClient,
    TaskFailedError,
    TaskResult,
    WaitTimeoutError,
)
from xai_tasks.testing import Fault, TaskServer, constant, odd_answers, uniform

CONCURRENCY = 64
LATENCY = 0.05
UNTIL_OUTAGE = 10
"""Failures in a row with which an outage begins."""
LONGEST_DISTANCE = 15.0
"""Seconds between two probes at most."""

pytestmark = pytest.mark.fake_clock


@pytest.fixture
async def server():
    async with TaskServer() as server:
        yield server


def client_for(server, **options):
    return TaskClient("test", base_url=server.url, max_concurrency=CONCURRENCY, **options)


async def outcomes_of(client, ids):
    return [outcome async for outcome in client.as_completed(ids)]


def most_in_flight(times):
    """Return how many requests, each `LATENCY` seconds long, were under
    way at the same time at most.
    """
    changes = sorted([(at, 1) for at in times] + [(at + LATENCY, -1) for at in times])
    return max(itertools.accumulate(change for _, change in changes))


class Minute:
    """A minute of 503s with thousands of ids in rotation, and what came of it."""

    IDS = 5_000
    POLL = PollPolicy(wait=wait_fixed(20.0), timeout=None)

    async def run(self, server):
        loop = asyncio.get_running_loop()
        server.latency = LATENCY
        ids = server.add_many(self.IDS, duration=constant(15.0))
        async with client_for(server, poll=self.POLL) as client:
            reader = asyncio.ensure_future(outcomes_of(client, ids))
            # All have been looked at once and none has ended when the server goes.
            await server.wait_for_requests(self.IDS)
            server.disturb(1.0, Fault.status(503))
            await server.wait_for_requests(self.IDS + 1)
            self.gone = now()
            await asyncio.sleep(2)
            self.settled, timers, cpu = now(), loop.timers, time.process_time()
            await asyncio.sleep(58)
            self.timers, self.cpu = loop.timers - timers, time.process_time() - cpu
            server.disturb(0.0)
            self.back = now()
            self.outcomes = await reader
            self.done = now()
            self.requests = server.requests
            self.stats = client.stats
        await assert_nothing_runs(client)
        return self

    def times(self, begin, end):
        return [record.time for record in self.requests if begin <= record.time < end]


@pytest.fixture
async def minute(server):
    return await Minute().run(server)


@pytest.mark.slow
async def test_a_minute_of_503s_with_thousands_of_ids_in_rotation(minute):
    # While it lasts, the server sees what was in flight, what took the places of the
    # first to fail, and the probes.
    outage = minute.times(minute.gone, minute.back)
    assert len(outage) <= CONCURRENCY + (UNTIL_OUTAGE - 1) + 8
    probes = minute.times(minute.settled, minute.back)
    assert (
        4 <= len(probes) <= 6
    )  # about 3.5, 7.5, 15.5, 30.5, 45.5 and perhaps 60.5 s after its beginning
    assert all(later - earlier > 3.9 for earlier, later in itertools.pairwise(probes))

    # Nothing spins: few timers, some of them the server's, and next to no CPU.
    assert minute.timers < 10 * 58
    assert minute.cpu < 0.05 * 58

    # Everybody gets an answer, once, and none was asked for in vain.
    assert sorted(outcome.index for outcome in minute.outcomes) == list(range(Minute.IDS))
    assert all(outcome.ok for outcome in minute.outcomes)
    assert len(minute.requests) <= 2 * Minute.IDS + len(outage)
    assert minute.done - minute.back <= LONGEST_DISTANCE + 3 * Minute.IDS * LATENCY / CONCURRENCY

    # Nobody storms the server that has just come back: from one on, a round trip doubles what is in
    # flight at most, and time adds one each 0.05 s.
    first = minute.times(minute.back, minute.done)[0]
    for trips in range(5):
        until = first + (trips + 1) * LATENCY
        assert most_in_flight(minute.times(first, until)) <= 2 ** (trips + 1) - 1 + trips
    assert most_in_flight(minute.times(first, minute.done)) <= CONCURRENCY


async def test_an_outage_longer_than_max_outage_ends_each_wait_with_its_error(server):
    ids = server.add_many(1_000, duration=constant(1_000.0))
    server.disturb(1.0, Fault.status(503, body=b'{"message": "closed for repair"}'))
    began = now()

    async with client_for(server, poll=PollPolicy(max_outage=60.0)) as client:
        alone = asyncio.gather(*map(client.wait, ids[:10]), return_exceptions=True)
        outcomes = await outcomes_of(client, ids)
        errors = [outcome.error for outcome in outcomes] + await alone
        ended, requests = now(), server.count()

    assert {type(error) for error in errors} == {ServerError}
    # The server's words only where the id itself was asked for.
    asked = {record.task_id for record in server.requests}
    for error in errors:
        assert error.message == ("closed for repair" if error.task_id in asked else None)
    assert all(outcome.error.task_id == outcome.task_id for outcome in outcomes)
    assert Counter(outcome.index for outcome in outcomes) == Counter(range(1_000))
    assert 60.0 <= ended - began <= 62.0
    assert requests <= CONCURRENCY + (UNTIL_OUTAGE - 1) + 8
    await assert_nothing_runs()


async def test_after_an_outage_that_nobody_has_outlived_a_new_wait_is_the_probe(server, caplog):
    server.add("a", result={})
    server.disturb(1.0, Fault.status(503))

    async with client_for(server, poll=PollPolicy(max_outage=60.0)) as client:
        await client.wait_all(map(str, range(50)), return_exceptions=True)
        await asyncio.sleep(3600)
        asked = server.count()
        with pytest.raises(ServerError):
            await client.wait("a")
        assert 1 <= server.count() - asked <= 4  # one poll
        server.disturb(0.0)
        assert (await client.wait("a")).succeeded

    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 2
    assert said[0].startswith("an outage has begun")
    assert said[1].startswith("the outage is over")


class _Book(aiohttp.abc.AbstractResolver):
    """A resolver that knows the hosts in its book."""

    def __init__(self):
        self.hosts = {}

    async def resolve(self, host, port=0, family=socket.AF_INET):
        if host not in self.hosts:
            raise OSError(None, "Name or service not known")
        return [
            aiohttp.abc.ResolveResult(
                hostname=host,
                host=self.hosts[host],
                port=port,
                family=socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self):
        pass


class Gone:
    """A server that can't be reached: `server` stands where it would be, `url`
    is what the client is given.
    """

    error = APIConnectionError

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = TaskServer(port=self.port)
        self.session = None

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc_info):
        await self.server.aclose()

    async def come_back(self):
        await self.server.start()


class RefusedPort(Gone):
    """Nobody listens."""


class WrongHost(Gone):
    """The host's name can't be resolved."""

    async def __aenter__(self):
        self.url = f"http://api.example:{self.port}"
        self.book = _Book()
        connector = aiohttp.TCPConnector(resolver=self.book, use_dns_cache=False, limit=0)
        self.session = aiohttp.ClientSession(connector=connector)
        await self.server.start()
        return self

    async def __aexit__(self, *exc_info):
        await self.session.close()
        await super().__aexit__(*exc_info)

    async def come_back(self):
        self.book.hosts["api.example"] = "127.0.0.1"


class DroppedPackets(Gone):
    """A firewall swallows each SYN; here it is the kernel, which does so
    while a socket's backlog is full.
    """

    error = APITimeoutError

    async def __aenter__(self):
        self.sockets = contextlib.ExitStack()
        listener = self.sockets.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(0)
        for _ in range(4):
            filler = self.sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self.port))
        with socket.socket() as one_more:
            one_more.settimeout(0.2)
            with pytest.raises(TimeoutError):
                one_more.connect(("127.0.0.1", self.port))
        return self

    async def __aexit__(self, *exc_info):
        self.sockets.close()
        await super().__aexit__(*exc_info)

    async def come_back(self):
        self.sockets.close()
        await self.server.start()


@pytest.fixture(params=[RefusedPort, WrongHost, DroppedPackets], ids=lambda cls: cls.__name__)
async def gone(request):
    async with request.param() as gone:
        yield gone


def client_of(gone, **options):
    return TaskClient(
        "test",
        base_url=gone.url,
        session=gone.session,
        request_timeout=5.0,
        max_concurrency=CONCURRENCY,
        allow_insecure_http=True,
        **options,
    )


async def test_get_of_a_server_that_can_not_be_reached_says_so_after_four_attempts(gone):
    began = now()

    async with client_of(gone) as client:
        with pytest.raises(APIConnectionError) as caught:
            await client.get("a")
        assert client.stats.requests == 4

    assert type(caught.value) is gone.error
    assert now() - began <= 4 * 5.0 + 0.5 + 1 + 2 + 0.1


async def test_waits_outlive_a_minute_in_which_the_server_can_not_be_reached(gone):
    ids = [f"task-{n}" for n in range(500)]

    async with client_of(gone) as client:
        reader = asyncio.ensure_future(outcomes_of(client, ids))
        await asyncio.sleep(60)
        asked = client.stats.requests
        await gone.come_back()
        for task_id in ids:
            gone.server.add(task_id, result={})
        outcomes = await reader

    assert asked <= CONCURRENCY + (UNTIL_OUTAGE - 1) + 8
    assert Counter(outcome.task_id for outcome in outcomes) == Counter(ids)
    assert all(outcome.ok for outcome in outcomes)


async def test_waits_for_a_server_gone_for_good_end_after_max_outage(gone):
    ids = [f"task-{n}" for n in range(500)]
    began = now()

    async with client_of(gone, poll=PollPolicy(max_outage=60.0)) as client:
        outcomes = await outcomes_of(client, ids)

    assert {type(outcome.error) for outcome in outcomes} == {gone.error}
    assert 60.0 <= now() - began <= 60.0 + 5.0 + 1.0  # the outage begins with the first to fail
    assert Counter(outcome.task_id for outcome in outcomes) == Counter(ids)


@pytest.mark.slow
async def test_of_thousands_of_ids_with_every_fifth_answer_spoiled_each_comes_once(server):
    odd = odd_answers("nobody")
    server.disturb(
        0.2,
        Fault.reset(),
        Fault.reset("headers"),
        Fault.reset("body"),
        Fault.truncate(),
        Fault.bad_chunking(),
        Fault.garbage(),
        Fault.close_after(),
        Fault.stall(),
        Fault.status(500),
        Fault.status(502, {"Content-Type": "text/html"}, b"<html>Bad Gateway</html>"),
        Fault.status(503, {"Retry-After": "0"}),
        Fault.status(504),
        odd["html"],
        odd["empty"],
        odd["cut short"],
        seed=4,
    )
    ids = server.add_many(4_000, duration=uniform(0.0, 30.0), failed=0.02)

    async with client_for(server, request_timeout=5.0) as client:
        outcomes = await outcomes_of(client, ids)

    assert Counter(outcome.index for outcome in outcomes) == Counter(range(len(ids)))
    assert all(outcome.task_id == ids[outcome.index] for outcome in outcomes)
    assert {type(outcome.error) for outcome in outcomes} == {type(None), TaskFailedError}
    failed = sum(not outcome.ok for outcome in outcomes)
    assert 0.01 < failed / len(ids) < 0.03
    assert 0.15 < len(server.faults_fired) / server.count() < 0.25


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_system_clock_that_jumps_changes_nothing(hours, server, monkeypatch):
    pause = Fault.status(
        503,
        {"Date": "Mon, 02 Mar 2026 10:00:00 GMT", "Retry-After": "Mon, 02 Mar 2026 10:00:30 GMT"},
    )
    loop = asyncio.get_running_loop()
    jumped = datetime(2026, 3, 2, 10, tzinfo=UTC).timestamp() - loop.time()
    # Up to the jumps this clock goes as the loop's does, so that only they can make a difference.
    monkeypatch.setattr(time, "time", lambda: loop.time() + jumped)

    async def run(jump):
        nonlocal jumped
        server.reset()
        began = now()
        server.add("a", [("pending", 60), ("processing", 60)], result={})
        server.add("b", "processing")
        server.fault("a", pause)
        async with client_for(
            server, poll=PollPolicy(wait=wait_fixed(4.0), timeout=150.0)
        ) as client:
            waits = asyncio.gather(client.wait("a"), client.wait("b"), return_exceptions=True)
            await asyncio.sleep(20)  # in the pause
            jumped += jump
            await asyncio.sleep(60)  # between polls
            jumped += jump
            ends = [type(answer) for answer in await waits]
        requests = [(record.task_id, round(record.time - began, 6)) for record in server.requests]
        return ends, requests, round(now() - began, 6)

    quiet = await run(0.0)

    assert await run(hours * 3600.0) == quiet
    assert quiet[0] == [TaskResult, WaitTimeoutError]
    assert 30.0 <= quiet[1][2][1] <= 45.0
