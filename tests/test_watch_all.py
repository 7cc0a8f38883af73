from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from fakes import (
    FakeTransport,
    assert_nothing_runs,
    client_over,
    now,
    run,
    says,
    settle,
    stalled,
    status,
)
from hypothesis import given
from hypothesis import strategies as st
from tenacity import wait_fixed

from xai_tasks import (
    AuthenticationError,
    ClientClosedError,
    InvalidTaskIdError,
    NotFoundError,
    PaymentRequiredError,
    PollPolicy,
    RetryPolicy,
    TaskStatus,
    WaitTimeoutError,
    WatchAll,
)

pytestmark = pytest.mark.fake_clock


@pytest.fixture
def transport():
    return FakeTransport()


@pytest.fixture
async def client(transport):
    async with client_over(transport, poll=PollPolicy(wait=wait_fixed(1))) as client:
        yield client


async def collect(stream):
    return [update async for update in stream]


def words(updates, task_id):
    return [update.task.status.value for update in updates if update.task_id == task_id]


async def test_yields_first_answers_changes_and_ends(client, transport):
    transport.add("a", ("pending", 2.5), ("processing", 3))
    transport.add("b", ("processing", 1.5), end="failed", errorMessage="no")

    updates = await collect(client.watch_all(["a", "b"]))

    assert words(updates, "a") == ["pending", "processing", "completed"]
    assert words(updates, "b") == ["processing", "failed"]
    assert [update.final for update in updates if update.task_id == "a"] == [False, False, True]
    assert {update.error for update in updates} == {None}
    assert {(update.task_id, update.index) for update in updates} == {("a", 0), ("b", 1)}


async def test_slow_reader_gets_the_latest_of_each_and_every_end(client, transport):
    for number in range(50):
        transport.add(f"a{number}", ("pending", 2), ("assigned", 2), ("processing", 2))

    updates = []
    async with client.watch_all(f"a{number}" for number in range(50)) as stream:
        updates.append(await anext(stream))
        await asyncio.sleep(3.5)
        assert len(stream._producer.items) == len(stream._producer._latest) <= 50
        updates += [await anext(stream) for _ in range(50)]
        await asyncio.sleep(60)
        updates += await collect(stream)

    assert {update.task.status for update in updates[1:51]} == {TaskStatus.ASSIGNED}
    assert [update.task.status for update in updates[51:]] == [TaskStatus.COMPLETED] * 50
    assert sum(update.final for update in updates) == 50


@given(
    steps=st.lists(st.lists(st.floats(0.5, 5), max_size=3), min_size=1, max_size=8),
    pauses=st.lists(st.floats(0, 10), max_size=30),
)
def test_each_id_ends_once_with_nothing_after_it(steps, pauses):
    async def main():
        transport = FakeTransport()
        ids = [
            transport.add(f"a{number}", *((f"step-{n}", t) for n, t in enumerate(times)))
            or f"a{number}"
            for number, times in enumerate(steps)
        ]
        updates, rests = [], iter(pauses)
        async with client_over(transport, poll=PollPolicy(wait=wait_fixed(1))) as client:
            async for update in client.watch_all(ids):
                updates.append(update)
                await asyncio.sleep(next(rests, 0))
            await assert_nothing_runs(client)
        return updates

    updates = run(main())

    for index in range(len(steps)):
        own = [update for update in updates if update.index == index]
        assert [update.final for update in own] == [False] * (len(own) - 1) + [True]
        seen = [update.task.raw["status"] for update in own]
        assert len(set(seen)) == len(seen)


async def test_error_ends_its_own_id_only(client, transport):
    transport.add("a", ("pending", 2))

    updates = await collect(client.watch_all(["nobody", "a", ""]))

    final = {update.task_id: update for update in updates if update.final}
    assert isinstance(final["nobody"].error, NotFoundError)
    assert isinstance(final["''"].error, InvalidTaskIdError)
    assert final["nobody"].task is None
    assert final["a"].task.status is TaskStatus.COMPLETED


async def test_refused_key_is_raised(transport):
    async with client_over(transport, retry=RetryPolicy(budget=0)) as client:
        transport.add("a", ("pending", 100))
        transport.fault("b", says("pending"), status(401))
        updates = []

        with pytest.raises(AuthenticationError):
            async for update in client.watch_all(["a", "b"]):
                updates.append(update)

        assert {update.task_id for update in updates} == {"a", "b"}
        assert client.stats.waiting == 0


async def test_timeout_holds_the_last_task(client, transport):
    transport.add("a", ("pending", 100))

    *_, last = await collect(client.watch_all(["a"], timeout=5))

    assert isinstance(last.error, WaitTimeoutError)
    assert last.task.status is TaskStatus.PENDING
    assert last.final


@pytest.mark.parametrize("how", ["error", "close"])
async def test_end_with_an_error_holds_the_last_task(client, transport, how):
    transport.add("a", ("pending", 100))
    transport.fault("a", says("pending"), status(402))
    stream = client.watch_all(["a"])
    await anext(stream)
    if how == "close":
        await client.close()

    (last,) = await collect(stream)

    assert isinstance(last.error, ClientClosedError if how == "close" else PaymentRequiredError)
    assert last.task.status is TaskStatus.PENDING
    assert last.final


async def test_timeout_zero_makes_no_request(client, transport):
    (update,) = await collect(client.watch_all(["a"], timeout=0))

    assert isinstance(update.error, WaitTimeoutError)
    assert transport.count() == 0


async def test_added_ids_are_watched(client, transport):
    for task_id in ("a", "b", "c"):
        transport.add(task_id, ("pending", 5))
    updates = []

    stream = client.watch_all(["a"])
    async for update in stream:
        updates.append(update)
        if len(updates) == 1:
            stream.add("b")
        if update.final and update.task_id == "b":
            stream.add("c")

    assert [update.task_id for update in updates if update.final] == ["a", "b", "c"]
    assert [update.index for update in updates if update.final] == [0, 1, 2]


async def test_added_ids_need_no_room(client, transport):
    transport.add("a", ("pending", 5))
    transport.add("b")

    async with client.watch_all(["a"], max_pending=1) as stream:
        await anext(stream)
        stream.add("b")

        assert (await anext(stream)).task_id == "b"


async def test_add_starts_the_stream(client, transport):
    transport.add("a")

    stream = client.watch_all([])
    stream.add("a")

    assert words(await collect(stream), "a") == ["completed"]


async def test_add_checks_the_id(client):
    stream = client.watch_all([])

    with pytest.raises(InvalidTaskIdError):
        stream.add("")
    with pytest.raises(TypeError, match="task_id"):
        stream.add(7)


@pytest.mark.parametrize("end", ["read", "closed"])
async def test_add_to_an_ended_stream_is_an_error(client, transport, end):
    transport.add("a")
    stream = client.watch_all(["a"])
    await (collect(stream) if end == "read" else stream.aclose())

    with pytest.raises(RuntimeError, match="has ended"):
        stream.add("b")


async def test_add_after_close_is_an_error(client, transport):
    transport.add("a", ("pending", 5))
    stream = client.watch_all(["a"])
    await anext(stream)
    await client.close()

    stream.add("b")

    updates = await collect(stream)
    assert [(update.task_id, type(update.error)) for update in updates] == [
        ("a", ClientClosedError),
        ("b", ClientClosedError),
    ]


async def test_ids_are_pulled_as_there_is_room(client, transport):
    pulled = []

    async def source():
        for number in range(1000):
            pulled.append(number)
            transport.add(f"a{number}", ("pending", 1.5))
            yield f"a{number}"

    async with client.watch_all(source(), max_pending=10) as stream:
        ends = 0
        while ends < 25:
            ends += (await anext(stream)).final
            assert len(pulled) <= ends + 10


async def test_open_source_keeps_the_stream_open(client, transport):
    more = asyncio.Queue()

    async def source():
        while (task_id := await more.get()) is not None:
            yield task_id

    stream = client.watch_all(source())
    reading = asyncio.create_task(collect(stream))
    for task_id in ("a", "b"):
        transport.add(task_id)
        more.put_nowait(task_id)
        await asyncio.sleep(100)
        assert not reading.done()
    more.put_nowait(None)

    assert [update.task_id for update in await reading] == ["a", "b"]


async def test_source_error_comes_after_its_tasks(client, transport):
    def source():
        transport.add("a", ("pending", 5))
        yield "a"
        raise LookupError("line 2")

    updates = []
    with pytest.raises(LookupError, match="line 2"):
        async for update in client.watch_all(source()):
            updates.append(update)

    assert words(updates, "a") == ["pending", "completed"]


async def test_shared_entry_yields_the_last_answer_at_once(client, transport):
    transport.add("a", ("pending", 10))
    wait = asyncio.create_task(client.wait("a"))
    await asyncio.sleep(3.5)
    before = transport.count()

    async with client.watch_all(["a", "a"]) as stream:
        first = [await anext(stream), await anext(stream)]

    assert [update.index for update in first] == [0, 1]
    assert transport.count() == before
    await wait


async def test_failing_wait_strategy_is_raised(transport):
    def wait(state):
        raise ZeroDivisionError("of the strategy")

    transport.add("a", ("pending", 10))
    async with client_over(transport) as client:
        with pytest.raises(ZeroDivisionError):
            await collect(client.watch_all(["a"], poll=PollPolicy(wait=wait)))


@pytest.mark.parametrize("how", ["break", "aclose", "cancel", "collected"])
async def test_leaving_stops_the_waits(client, transport, how):
    ids = [transport.add(f"a{number}", ("pending", 100)) or f"a{number}" for number in range(300)]
    stream = client.watch_all(ids)
    if how == "break":
        async for _ in stream:
            break
    elif how == "aclose":
        await anext(stream)
        await stream.aclose()
        assert await collect(stream) == []
    elif how == "cancel":
        reading = asyncio.create_task(collect(stream))
        await asyncio.sleep(1)
        reading.cancel()
        await asyncio.wait([reading])
    else:
        await anext(stream)
        gone = weakref.ref(stream)
        del stream
        gc.collect()
        assert gone() is None
    await settle()

    assert client.stats.waiting == 0
    await assert_nothing_runs(client)


async def test_aclose_aborts_requests_in_flight(client, transport):
    transport.fault("a", stalled)
    stream = client.watch_all(["a"])
    first = asyncio.create_task(anext(stream))
    await asyncio.sleep(1)
    first.cancel()

    await stream.aclose()

    assert transport.aborted() == ["a"]
    await asyncio.wait([first])
    await assert_nothing_runs(client)


async def test_end_after_leaving_is_ignored(client, transport):
    transport.add("a", ("pending", 5))
    stream = client.watch_all(["a"])
    await anext(stream)
    producer = stream._producer
    (watched,) = producer._waiting.values()

    producer.stop()
    producer.on_end(watched, None, WaitTimeoutError("a", 1.0))

    assert await collect(stream) == []


async def test_many_updates_leave_room_for_others(client, transport):
    for number in range(500):
        transport.add(f"a{number}")
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with client.watch_all(f"a{number}" for number in range(500)) as stream:
        await anext(stream)
        await asyncio.sleep(30)
        other = asyncio.create_task(others())
        for _ in range(499):
            await anext(stream)
        other.cancel()

    assert turns >= 4


async def test_wrong_arguments_are_refused_at_once(client):
    with pytest.raises(TypeError, match="single string"):
        client.watch_all("a")
    with pytest.raises(TypeError, match="iterable"):
        client.watch_all(7)
    with pytest.raises(ValueError, match="max_pending"):
        client.watch_all([], max_pending=0)
    with pytest.raises(ValueError, match="timeout"):
        client.watch_all([], timeout=-1)
    assert isinstance(client.watch_all([]), WatchAll)
    await client.close()
    with pytest.raises(ClientClosedError):
        client.watch_all([])


async def test_empty_input_ends_at_once(client):
    began = now()

    assert await collect(client.watch_all([])) == []
    assert now() == began
