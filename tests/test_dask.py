"""The stream over a cluster: mostly with workers in this process, at the end with processes."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import cloudpickle
import pytest
from distributed import Client, KilledWorker, LocalCluster
from tenacity import wait_fixed

import xai_tasks.dask
from xai_tasks import (
    AuthenticationError,
    ConfigurationError,
    PollPolicy,
    TaskClient,
    VideoRequest,
    WaitTimeoutError,
)
from xai_tasks.dask import as_completed
from xai_tasks.testing import Fault, TaskServer

pytestmark = [
    pytest.mark.slow,
    # Dask warns so on a busy machine.
    pytest.mark.filterwarnings("ignore:Port [0-9]+ is already in use:UserWarning"),
]

KEY = "sk-of-the-cluster-0123456789"
OFTEN = PollPolicy(wait=wait_fixed(0.05))


# Workers in this process.


@pytest.fixture
async def server():
    async with TaskServer(api_key=KEY) as server:
        yield server


@contextlib.asynccontextmanager
async def cluster_of(workers, **options):
    options = {"processes": False, "threads_per_worker": 1} | options
    anywhere = "127.0.0.1:0"
    addresses = {
        "host": "127.0.0.1",
        "dashboard_address": anywhere,
        "worker_dashboard_address": anywhere,
    }
    async with (
        LocalCluster(
            n_workers=workers, protocol="tcp", asynchronous=True, **addresses, **options
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        client.local = cluster
        yield client


@pytest.fixture
async def dask():
    async with cluster_of(2) as client:
        yield client


@pytest.fixture
def stream(dask, server):
    """Return a function that makes a stream of the ids it is given."""

    def make(ids, **options):
        return as_completed(
            ids, client=dask, **{"api_key": KEY, "base_url": server.url, "poll": OFTEN, **options}
        )

    return make


@pytest.fixture
def clients(monkeypatch):
    """Collect the clients that are made on the workers."""
    made = []

    class Client(TaskClient):
        def __init__(self, key, **options):
            super().__init__(key, **options)
            if inspect.currentframe().f_back.f_code.co_name == "_wait":
                made.append(self)
                self.limits = {
                    name: options.get(name) for name in ("rate_limit", "max_concurrency")
                }

    monkeypatch.setattr(xai_tasks.dask, "TaskClient", Client)
    return made


async def collect(stream):
    return [outcome async for outcome in stream]


def workers_of(client):
    return [worker for worker in client.local.workers.values() if worker.status.name == "running"]


def plugins(client):
    """Return the workers' plugins of all streams."""
    found = [worker.plugins.values() for worker in workers_of(client)]
    return [
        plugin for each in found for plugin in each if type(plugin).__module__ == "xai_tasks.dask"
    ]


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def quiet(server):
    """Wait until no request has come for a quarter of a second."""
    async with asyncio.timeout(20):
        while True:
            before = server.count()
            await asyncio.sleep(0.25)
            if server.count() == before:
                return


def add(server, count, *steps):
    return [
        server.add(f"task-{number}", steps, result={"number": number}) for number in range(count)
    ]


async def test_outcomes_equal_those_of_the_local_stream(server, stream):
    ids = [
        *add(server, 30),
        "",
        "unknown",
        None,
        7,
        server.add("bad", failed=("no", 40001)),
        "\ud800",
    ]
    async with TaskClient(KEY, base_url=server.url, poll=OFTEN) as local:
        expected = [outcome async for outcome in local.as_completed(ids)]

    outcomes = await collect(stream(ids, chunk_size=5))

    def said(outcome):
        return outcome.index, outcome.task_id, outcome.task, type(outcome.error), str(outcome.error)

    def key(outcome):
        return outcome.index

    assert [said(outcome) for outcome in sorted(outcomes, key=key)] == [
        said(outcome) for outcome in sorted(expected, key=key)
    ]


def nested(depth):
    value = 1
    for _ in range(depth):
        value = {"a": value}
    return value


async def test_deeply_nested_results_pass(server, stream):
    ids = [
        server.add("done", result=nested(900)),
        server.add("failed", failed=("no", 1)),
        server.add("running", [("processing", None)]),
    ]
    server.fault("failed", Fault.body(of_task("failed", "failed", nested(900))))
    server.fault("running", Fault.body(of_task("running", "processing", nested(900))))
    policy = PollPolicy(wait=wait_fixed(5), timeout=0.5)

    outcomes = {outcome.task_id: outcome for outcome in await collect(stream(ids, poll=policy))}

    assert outcomes["done"].task.result == nested(900)
    assert outcomes["failed"].error.task.result == nested(900)
    assert outcomes["failed"].task is outcomes["failed"].error.task
    assert outcomes["running"].error.last.result == nested(900)


def of_task(task_id, status, result):
    return json.dumps({"taskId": task_id, "status": status, "result": result}).encode()


async def test_numbers_and_text_pass_unchanged(server, stream):
    body = b'{"taskId":"a","status":"completed","result":[1e999,%s,"\\ud800",1.5]}' % (b"9" * 30)
    server.fault("a", Fault.body(body))

    (outcome,) = await collect(stream(["a"]))

    assert outcome.task.result == [float("inf"), int("9" * 30), "\ud800", 1.5]


async def test_requests_are_refused(server, stream):
    outcomes = []
    with pytest.raises(TypeError, match="submit"):
        async for outcome in stream([*add(server, 1), VideoRequest("a cat")]):
            outcomes.append(outcome.task_id)
    assert outcomes == ["task-0"]


async def test_empty_source_ends_at_once(stream):
    assert await collect(stream([])) == []


async def test_outcomes_do_not_wait_for_their_chunk(server, stream):
    slow, quick = server.add("slow", [("processing", None)]), server.add("quick")

    async with stream([slow, quick]) as outcomes:
        first = await anext(outcomes)
        server.advance(slow)
        second = await anext(outcomes)

    assert [first.task_id, second.task_id] == ["quick", "slow"]


async def test_slow_task_delays_no_other(server, stream):
    ids = [server.add("slow", [("processing", None)]), *add(server, 100)]

    async with stream(ids, chunk_size=5) as outcomes:
        rest = [await anext(outcomes) for _ in range(100)]

    assert {outcome.task_id for outcome in rest} == set(ids[1:])


async def test_ids_are_pulled_as_there_is_room(server, stream):
    pulled = []

    def endless():
        for number in range(10**9):
            pulled.append(number)
            yield server.add(f"task-{number}")

    async with stream(endless(), chunk_size=3) as outcomes:
        taken = [await anext(outcomes) for _ in range(50)]
        await quiet(server)

        # Ten chunks on each of two workers, as many ready, and what a worker had ended
        # when the reader fell behind.
        assert len(taken) <= len(pulled) <= len(taken) + 3 * 30 + 2 * 3


async def test_slow_source_is_handed_out_as_it_comes(server, stream):
    ids = add(server, 3)
    seen = asyncio.Queue()

    async def source():
        for task_id in ids:
            yield task_id
            assert await seen.get() == task_id

    async with stream(source()) as outcomes:
        async for outcome in outcomes:
            seen.put_nowait(outcome.task_id)

    assert seen.empty()


async def test_source_error_comes_after_its_ids(server, stream):
    ids = add(server, 3, ("processing", 0.5))

    def source():
        yield from ids
        raise LookupError("line 4")

    outcomes = []
    with pytest.raises(LookupError, match="line 4"):
        async for outcome in stream(source()):
            outcomes.append(outcome.task_id)
    assert sorted(outcomes) == ids


async def test_cancelled_source_ends_the_stream(server, stream):
    async def source():
        yield server.add("a")
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await collect(stream(source()))


async def test_refused_key_is_raised(server, stream):
    with pytest.raises(AuthenticationError):
        await collect(stream(add(server, 50), api_key="another-key"))
    await quiet(server)


async def test_outcomes_before_a_refused_key_are_yielded(server, stream):
    async def source():
        yield server.add("a")
        await server.wait_for_requests(1, "a")
        server.fault("b", *[Fault.status(401)] * 2)
        yield server.add("b")

    outcomes = stream(source())
    assert (await anext(outcomes)).task_id == "a"
    with pytest.raises(AuthenticationError):
        await anext(outcomes)
    assert await collect(outcomes) == []


async def test_workers_environment_provides_key_and_url(server, stream, monkeypatch):
    monkeypatch.setenv("MOUNTSEA_API_KEY", KEY)
    monkeypatch.setenv("MOUNTSEA_BASE_URL", server.url)
    outcomes = await collect(stream(add(server, 3), api_key=None, base_url=None))
    assert [outcome.ok for outcome in outcomes] == [True] * 3


async def test_worker_without_key_is_an_error(server, stream, monkeypatch):
    monkeypatch.delenv("MOUNTSEA_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="MOUNTSEA_API_KEY"):
        await collect(stream(add(server, 3), api_key=None))


async def test_key_function(server, stream):
    key = KEY  # closed over: such a function is pickled by value
    outcomes = await collect(stream(add(server, 3), api_key=lambda: key))
    assert [outcome.ok for outcome in outcomes] == [True] * 3


async def test_key_functions_oserror_is_raised(server, stream):
    def vault():
        raise OSError("the vault is sealed")

    with pytest.raises(OSError, match="the vault is sealed"):
        await collect(stream(add(server, 3), api_key=vault))


@pytest.mark.parametrize("error", [asyncio.CancelledError, BaseException])
async def test_whatever_a_key_function_raises_ends_the_stream(server, stream, error):
    def vault():
        raise error("the vault is sealed")

    async with asyncio.timeout(20):
        with pytest.raises(error):
            await collect(stream(add(server, 3), api_key=vault))


async def test_policys_timeout_ends_a_wait(server, stream):
    ids = [server.add("slow", [("processing", None)]), *add(server, 3)]
    policy = PollPolicy(wait=wait_fixed(0.05), timeout=0.5)
    outcomes = {outcome.task_id: outcome for outcome in await collect(stream(ids, poll=policy))}
    assert outcomes["task-0"].ok
    assert isinstance(outcomes["slow"].error, WaitTimeoutError)


# Ends.


async def test_break_stops_the_workers(dask, server, stream):
    ids = [server.add("a"), *add(server, 100, ("processing", None))]
    outcomes = stream(ids)

    async for outcome in outcomes:
        assert outcome.task_id == "a"
        break

    await until(lambda: not plugins(dask))
    await quiet(server)
    assert await collect(outcomes) == []


async def test_closed_stream_is_exhausted(dask, server, stream):
    outcomes = stream([server.add("a"), *add(server, 10, ("processing", None))])
    await anext(outcomes)
    assert plugins(dask)

    await outcomes.aclose()
    await outcomes.aclose()

    assert not plugins(dask)
    with pytest.raises(StopAsyncIteration):
        await anext(outcomes)


async def test_stream_that_is_not_iterated_does_nothing(dask, stream):
    async with stream(["a"]):
        pass
    assert not plugins(dask)


async def test_cancelled_reader_stops_the_workers(dask, server, stream):
    reader = asyncio.create_task(collect(stream(add(server, 10, ("processing", None)))))
    await server.wait_for_requests(10)

    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader

    await until(lambda: not plugins(dask))
    await quiet(server)


async def test_leaving_does_not_break_the_dask_client(dask, server, stream, monkeypatch):
    # Its gathers share a task: one that is cancelled before it has begun makes all later ones fail.
    real_gather, begun, cancelled = dask._gather, asyncio.Event(), []

    async def gather(*args, **options):
        begun.set()
        try:
            await asyncio.sleep(0.1)
            return await real_gather(*args, **options)
        except asyncio.CancelledError:
            cancelled.append(args)
            raise

    monkeypatch.setattr(dask, "_gather", gather)
    reader = asyncio.create_task(collect(stream(add(server, 10, ("processing", None)))))
    await begun.wait()

    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader

    assert cancelled == []
    assert await dask.submit(int, pure=False) == 0


async def test_lost_scheduler_ends_the_stream(server):
    async with cluster_of(1) as client:
        outcomes = as_completed(
            add(server, 3, ("processing", None)), client=client, api_key=KEY, base_url=server.url
        )
        reading = asyncio.create_task(anext(outcomes))
        await server.wait_for_requests(3)
        await client.local.close()
        with pytest.raises(OSError):
            await reading


# Workers that come, go and forget.


async def test_closed_workers_ids_go_to_others(dask, server, stream):
    ids = add(server, 40, ("processing", 3.0))

    async with stream(ids, chunk_size=5) as outcomes:
        reading = asyncio.create_task(collect(outcomes))
        await server.wait_for_requests(40)
        await workers_of(dask)[0].close()
        found = [outcome.index for outcome in await reading]

    assert sorted(found) == list(range(40))


async def test_ids_wait_for_the_first_worker(server):
    async with cluster_of(0) as client:
        outcomes = as_completed(add(server, 3), client=client, api_key=KEY, base_url=server.url)
        reading = asyncio.create_task(collect(outcomes))
        await asyncio.sleep(0.2)
        client.local.scale(1)
        assert len(await reading) == 3


@pytest.mark.parametrize("source", ["list", "slow"])
async def test_cluster_scales_from_zero(server, source):
    async with cluster_of(0) as client:
        client.local.adapt(minimum=0, maximum=2, interval="200 ms", wait_count=3)
        ids = add(server, 5, ("processing", 1.5))

        async def slow():
            for task_id in ids:
                await asyncio.sleep(0.1)
                yield task_id

        outcomes = as_completed(
            ids if source == "list" else slow(),
            client=client,
            api_key=KEY,
            base_url=server.url,
            poll=OFTEN,
        )
        async with asyncio.timeout(20):
            found = sorted(outcome.index for outcome in await collect(outcomes))

    assert found == list(range(5))


async def test_waiting_for_a_worker_can_be_left(server):
    async with cluster_of(0) as client:
        outcomes = as_completed(add(server, 3), client=client, api_key=KEY, base_url=server.url)
        reading = asyncio.create_task(collect(outcomes))
        await until(lambda: client.futures)

        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

        await until(lambda: not client.futures)


async def test_stopped_plugin_starts_again(dask, server, stream):
    ids = [server.add("a"), *add(server, 20, ("processing", None))]

    async with stream(ids, chunk_size=5) as outcomes:
        found = [(await anext(outcomes)).index]
        for plugin in plugins(dask):
            plugin._waiting.cancel()
        for task_id in ids[1:]:
            server.advance(task_id)
        found += [outcome.index async for outcome in outcomes]

    assert sorted(found) == list(range(21))


async def test_busy_workers_ids_go_to_others(dask, server, stream, clients, monkeypatch, tmp_path):
    monkeypatch.setattr(xai_tasks.dask, "_LEASE", 1.0)
    ids = add(server, 20, ("processing", None))
    stop = tmp_path / "stop"

    async def hog():
        while not stop.exists():
            await asyncio.sleep(0.05)

    async with stream(ids, chunk_size=5) as outcomes:
        reading = asyncio.create_task(collect(outcomes))
        await server.wait_for_requests(20)
        busy = dask.submit(hog, workers=[workers_of(dask)[0].address])
        await until(lambda: 20 in [client.stats.waiting for client in clients if not client.closed])
        for task_id in ids:
            server.advance(task_id)
        assert sorted(outcome.index for outcome in await reading) == list(range(20))

        stop.touch()
        await busy


async def test_cancelled_turn_is_repeated(dask, server, stream):
    ids = add(server, 10, ("processing", 1.0))

    async with stream(ids) as outcomes:
        reading = asyncio.create_task(collect(outcomes))
        await server.wait_for_requests(10)
        await dask.cancel(list(dask.futures))
        assert len(await reading) == 10


async def test_killed_turn_is_repeated(dask, server, stream, monkeypatch):
    real_submit, turns = dask.submit, []

    def die():
        raise KilledWorker("a turn", SimpleNamespace(address="tcp://127.0.0.1:1"), 0)

    def submit(function, *args, **options):
        turns.append(function)
        return (
            real_submit(die, pure=False)
            if len(turns) == 1
            else real_submit(function, *args, **options)
        )

    monkeypatch.setattr(dask, "submit", submit)
    assert len(await collect(stream(add(server, 10)))) == 10


async def test_broken_turn_ends_the_stream(server, stream, monkeypatch):
    async def turn(name, number, ids):
        raise AttributeError("of another version")

    monkeypatch.setattr(xai_tasks.dask, "_turn", turn)
    with pytest.raises(AttributeError, match="another version"):
        await collect(stream(add(server, 10)))


async def test_cluster_without_the_package_ends_the_stream(dask, stream, monkeypatch):
    async def register(plugin, **options):
        raise ModuleNotFoundError("No module named 'xai_tasks'")

    monkeypatch.setattr(dask, "register_plugin", register)
    with pytest.raises(ModuleNotFoundError):
        await collect(stream(["a"]))


async def test_worker_lost_during_registration_is_not_an_error(dask, server, stream, monkeypatch):
    real_register = dask.register_plugin

    async def register(plugin, **options):
        await real_register(plugin, **options)
        raise OSError("connection to a worker lost")

    monkeypatch.setattr(dask, "register_plugin", register)
    assert len(await collect(stream(add(server, 10)))) == 10


@pytest.fixture
async def part(server):
    """Return a started worker plugin, without a worker."""
    key = xai_tasks.dask._Key(KEY)
    part = xai_tasks.dask._WaitPlugin(key, {"base_url": server.url, "poll": OFTEN}, chunk_size=2)
    part.setup(None)
    assert await part.turn(0, {}) == ([], None)
    yield part
    await part.teardown(None)


async def test_plugin_without_turns_stops(server, part, monkeypatch):
    monkeypatch.setattr(xai_tasks.dask, "_LEASE", 0.5)
    server.add("slow", [("processing", None)])

    assert await part.turn(1, {0: "slow"}) == ([], None)
    await server.wait_for_requests(1)
    await until(part._waiting.done)
    await quiet(server)

    assert await part.turn(2, {}) is None


async def test_repeated_turn_is_refused(part):
    assert await part.turn(1, {}) == ([], None)
    assert await part.turn(1, {}) is None


async def test_new_plugin_knows_no_turns(part):
    assert await part.turn(7, {}) is None


async def test_turn_returns_at_most_a_chunk(server, part):
    ids = dict(enumerate(add(server, 5)))
    begun, _ = await part.turn(1, ids)
    assert begun == []  # more ids may be there: it brought a full chunk
    await until(lambda: len(part._outcomes) == 5)

    answers = [await part.turn(number, {}) for number in (2, 3, 4)]

    assert [len(outcomes) for outcomes, _ in answers] == [2, 2, 1]


# Limits.


def limits(clients, name):
    return sorted(client.limits[name] for client in clients if not client.closed)


async def test_limits_are_divided_again_when_workers_change(dask, server, stream, clients):
    ids = add(server, 200, ("processing", None))

    async with stream(ids, chunk_size=10, rate_limit=90, max_concurrency=7) as outcomes:
        reading = asyncio.create_task(collect(outcomes))
        await until(lambda: limits(clients, "rate_limit") == [45, 45])
        assert limits(clients, "max_concurrency") == [3, 3]

        dask.local.scale(3)
        await until(lambda: limits(clients, "rate_limit") == [30, 30, 30])
        assert limits(clients, "max_concurrency") == [2, 2, 2]

        await workers_of(dask)[0].close()
        await until(lambda: limits(clients, "rate_limit") == [45, 45])

        for task_id in ids:
            server.advance(task_id)
        assert sorted(outcome.index for outcome in await reading) == list(range(200))


async def test_late_worker_gets_its_part_of_the_ids(dask, server, stream, clients):
    ids = add(server, 200, ("processing", None))

    async with stream(ids, chunk_size=10, rate_limit=9000, poll=PollPolicy()) as outcomes:
        reading = asyncio.create_task(collect(outcomes))
        await until(lambda: sum(client.stats.waiting for client in clients) == 200)

        dask.local.scale(3)

        await until(lambda: limits(clients, "rate_limit") == [3000, 3000, 3000])
        open_ones = [client for client in clients if not client.closed]
        await until(lambda: sum(client.stats.waiting for client in open_ones) == 200)
        assert min(client.stats.waiting for client in open_ones) >= 200 // 3 - 2 * 10
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading


async def test_max_concurrency_bounds_the_workers(server, stream, clients):
    assert len(await collect(stream(add(server, 40), chunk_size=5, max_concurrency=1))) == 40
    used = [client for client in clients if client.stats.requests]
    assert [client.limits["max_concurrency"] for client in used] == [1]


# Arguments.


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"chunk_size": 0}, ValueError),
        ({"chunk_size": True}, ValueError),
        ({"chunk_size": 1.5}, ValueError),
        ({"rate_limit": 0}, ValueError),
        ({"api_key": "two\nlines"}, ConfigurationError),
        ({"api_key": ""}, ConfigurationError),
        ({"api_key": 7}, TypeError),
        ({"poll": "often"}, TypeError),
        ({"session": "a session"}, TypeError),
        ({"retries": 3}, TypeError),
        ({"max_pending": 5}, TypeError),
        ({"task_ids": "task-id"}, TypeError),
        ({"task_ids": 7}, TypeError),
    ],
    ids=str,
)
async def test_wrong_arguments_are_refused(dask, options, error):
    with pytest.raises(error):
        as_completed(**{"task_ids": ["a"], "client": dask, "api_key": KEY} | options)


async def test_synchronous_client_is_refused():
    class Synchronous:
        asynchronous = False

    with pytest.raises(TypeError, match="asynchronous"):
        as_completed(["a"], client=Synchronous())


# Workers of their own processes, and a server of its own.

SERVER = """
import asyncio, json, sys
from xai_tasks.testing import TaskServer, uniform

async def main(key, count, shortest, longest):
    loop = asyncio.get_running_loop()
    async with TaskServer(key, log_limit=0) as server:
        print(server.url, flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            if line.startswith("add"):
                _, prefix, count, shortest, longest = line.split()
                duration = uniform(float(shortest), float(longest))
                server.add_many(int(count), duration=duration, prefix=prefix)
            print(json.dumps([loop.time(), server.count()]), flush=True)

asyncio.run(main(sys.argv[1], 0, 0, 0))
"""


class ServerProcess:
    def __init__(self, process):
        self._process = process
        self.url = process.stdout.readline().strip()

    async def _ask(self, line):
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = await asyncio.get_running_loop().run_in_executor(
            None, self._process.stdout.readline
        )
        return json.loads(answer)

    async def add(self, prefix, count, shortest=0.0, longest=0.0):
        await self._ask(f"add {prefix} {count} {shortest} {longest}")
        return [f"{prefix}-{number}" for number in range(count)]

    async def seen(self):
        """Return the server's time, and how many requests it has seen."""
        return await self._ask("seen")


@pytest.fixture
def server_process(monkeypatch):
    # What workers do is covered above; measured, they would be several times slower.
    for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-c", SERVER, KEY]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield ServerProcess(process)
        process.stdin.close()


async def parts_on(client):
    """Return how many workers have a plugin of a stream."""

    def count(dask_worker):
        return sum(name.startswith("xai-tasks") for name in dask_worker.plugins)

    return sum((await client.run(count)).values())


@pytest.mark.parametrize("workers", [2, 4])
async def test_each_id_comes_once_when_a_worker_is_killed(workers, server_process):
    async with cluster_of(workers, processes=True) as client:
        ids = await server_process.add("first", 1_000)
        outcomes = as_completed(ids, client=client, api_key=KEY, base_url=server_process.url)
        places = [outcome.index async for outcome in outcomes if outcome.ok]
        assert sorted(places) == list(range(1_000))

        victim = next(iter((await client.run(os.getpid)).values()))
        ids = await server_process.add("second", 4_000)
        places = []
        async for outcome in as_completed(
            ids, client=client, api_key=KEY, base_url=server_process.url
        ):
            assert outcome.task_id == ids[outcome.index]
            assert outcome.ok
            places.append(outcome.index)
            if len(places) == 1_000:
                client.local.scale(workers + 1)
                os.kill(victim, signal.SIGKILL)
        assert sorted(places) == list(range(4_000))


async def test_cluster_holds_the_rate_until_break(server_process):
    async with cluster_of(2, processes=True) as client:
        ids = await server_process.add("long", 20_000, 3600.0, 3600.0)
        ended = await server_process.add("ended", 1)
        (begun, before) = await server_process.seen()
        outcomes = as_completed(
            ended + ids, client=client, api_key=KEY, base_url=server_process.url, rate_limit=100
        )
        async for outcome in outcomes:
            assert outcome.task_id == "ended-0"

            async def window(seconds):
                (start, first) = await server_process.seen()
                await asyncio.sleep(seconds)
                (end, last) = await server_process.seen()
                return (last - first) / (end - start)

            await asyncio.sleep(1.5)  # the bucket's first second
            assert await window(3) == pytest.approx(100, rel=0.1)

            client.local.scale(3)
            async with asyncio.timeout(20):
                while await parts_on(client) < 3:
                    await asyncio.sleep(0.1)
            await asyncio.sleep(
                4
            )  # the time until this is seen, the pause, and the buckets' first second
            assert await window(3) == pytest.approx(100, rel=0.1)

            (now, seen) = await server_process.seen()
            assert seen - before <= 100 * 1.1 * (now - begun)
            break

        async with asyncio.timeout(10):
            while await parts_on(client):
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)  # gone from the list, a part may still be closing
        (_, last) = await server_process.seen()
        await asyncio.sleep(1)
        assert (await server_process.seen())[1] == last


async def test_key_is_in_no_dask_state(server_process):
    async with cluster_of(2, processes=True) as client:
        ids = await server_process.add("long", 100, 3600.0, 3600.0)
        ended = await server_process.add("ended", 1)
        outcomes = as_completed(
            ended + ids, client=client, api_key=KEY, base_url=server_process.url
        )
        async with outcomes:
            await anext(outcomes)

            def of_the_scheduler(dask_scheduler):
                tasks = [
                    (task.key, task.run_spec, repr(task)) for task in dask_scheduler.tasks.values()
                ]
                return cloudpickle.dumps(tasks), repr(dask_scheduler.transition_log), len(tasks)

            graph, log, tasks = await client.run_on_scheduler(of_the_scheduler)
            state = await client.run_on_scheduler(
                lambda dask_scheduler: repr(dask_scheduler._to_dict())
            )
            on_workers = await client.run(lambda dask_worker: repr(dask_worker._to_dict()))
            logs = repr([await client.get_worker_logs(), await client.get_scheduler_logs()])
            events = repr(await client.get_events())
            reprs = repr([outcomes, *inside(outcomes)])

        assert tasks
        assert "xai-tasks" in logs
        for text in (graph.decode("latin-1"), log, state, repr(on_workers), logs, events, reprs):
            assert KEY not in text


def inside(outcomes):
    """Return what a traceback with locals would show of a stream."""
    work = outcomes._outcomes.ag_frame.f_locals["self"]
    plugin = xai_tasks.dask._WaitPlugin(work._key, work._options, 1)
    return work, plugin, vars(plugin)
