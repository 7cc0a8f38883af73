"""Nobody waits for somebody else's trouble, and no wait is left without an end."""

from __future__ import annotations

import asyncio
import statistics

import pytest
import tenacity
from fakes import (
    FakeTransport,
    assert_nothing_runs,
    client_over,
    later,
    malformed,
    now,
    refused,
    run,
    says,
    settle,
    stalled,
    status,
)
from tenacity import wait_fixed

from xai_tasks import (
    APIResponseValidationError,
    ClientClosedError,
    NotFoundError,
    PollPolicy,
    RateLimitError,
    RetryPolicy,
    ServerError,
    WaitTimeoutError,
    wait_adaptive,
)
from xai_tasks._limits.outage import Outage
from xai_tasks._polling.bulk import Source
from xai_tasks._polling.outage_ends import OutageEnds
from xai_tasks._polling.packed import PackedEntries
from xai_tasks._polling.rotation import Rotation

pytestmark = pytest.mark.fake_clock

NO_RETRIES = RetryPolicy(stop=tenacity.stop_after_attempt(1))


@pytest.fixture
def transport():
    return FakeTransport()


@pytest.fixture
async def client(transport):
    async with client_over(transport, retry=NO_RETRIES, poll=every(1)) as client:
        yield client


def every(seconds, **options):
    return PollPolicy(wait=wait_fixed(seconds), **options)


async def collect(stream):
    return [outcome async for outcome in stream]


class TestIdsThatAlwaysFail:
    @pytest.mark.parametrize("fault", [status(500), status(502), refused, malformed])
    async def test_of_twenty_beside_two_hundred_none_makes_a_healthy_one_late(self, fault):
        async def run(number_failing):
            transport = FakeTransport()
            healthy = transport.add_many(200, 30)
            failing = [f"bad-{n}" for n in range(number_failing)]
            transport.weather = lambda task_id: fault if task_id.startswith("bad") else None
            begin = now()
            async with client_over(transport, poll=every(5)) as client:
                bad = asyncio.ensure_future(
                    client.wait_all(failing, timeout=100, return_exceptions=True)
                )
                ends = []
                async for outcome in client.as_completed(healthy):
                    assert outcome.ok
                    ends.append(now() - begin - 30)
                errors = await bad
            return ends, errors

        alone, _ = await run(0)
        beside, errors = await run(20)

        assert max(beside) <= max(alone) + 6  # an interval, and a retry's sleep
        assert statistics.mean(beside) <= statistics.mean(alone) + 1
        assert [type(error) for error in errors] == [WaitTimeoutError] * 20

    async def test_each_ends_with_its_own_error(self, client, transport):
        ids = [f"bad-{n}" for n in range(5)]
        transport.weather = lambda task_id: status(500, message=f"no {task_id}")

        errors = await client.wait_all(
            ids, poll=every(1, max_outage=30), timeout=None, return_exceptions=True
        )

        assert [type(error) for error in errors] == [ServerError] * 5
        assert [error.message for error in errors] == [f"no {task_id}" for task_id in ids]

    async def test_malformed_answers_of_any_number_are_no_outage(self, client, transport):
        transport.weather = lambda task_id: malformed if task_id.startswith("bad") else None
        transport.add("good", ("processing", 25))
        waits = [
            asyncio.ensure_future(client.wait(f"bad-{n}", timeout=20, check=False))
            for n in range(30)
        ]

        assert (await client.wait("good")).succeeded

        assert now() < 1000 + 27
        ends = await asyncio.gather(*waits, return_exceptions=True)
        assert {type(end.last_error) for end in ends} == {APIResponseValidationError}


class TestNeverAsked:
    async def test_no_wait_times_out_before_its_id_was_asked_for(self, transport):
        async with client_over(transport, rate_limit=10, poll=every(5)) as client:
            transport.latency = 0.01
            ids = transport.add_many(300, 0)

            tasks = await asyncio.gather(*(client.wait(i, timeout=5.05) for i in ids))

            assert all(task.succeeded for task in tasks)
            assert now() == pytest.approx(1000 + 30, abs=1.5)
            assert {sent.task_id for sent in transport.requests} == set(ids)
            await assert_nothing_runs(client)

    async def test_nor_does_an_id_of_a_stream(self, transport):
        async with client_over(transport, rate_limit=10, poll=every(5)) as client:
            transport.latency = 0.01
            ids = transport.add_many(300, 0)

            outcomes = await collect(client.as_completed(ids, timeout=5.05))

            assert [outcome for outcome in outcomes if not outcome.ok] == []

    async def test_the_answer_is_the_last_word_if_the_task_runs_on(self, transport):
        async with client_over(transport, rate_limit=1, poll=every(5)) as client:
            transport.default = "processing"
            ids = [f"task-{n}" for n in range(10)]

            ends = await asyncio.gather(
                *(client.wait(task_id, timeout=2) for task_id in ids), return_exceptions=True
            )

            assert [type(end) for end in ends] == [WaitTimeoutError] * 10
            assert all(end.last is not None for end in ends)
            assert transport.count() == 10

    async def test_in_a_pause_it_times_out_on_time(self, client, transport):
        transport.fault("first", status(429, retry_after=50))
        transport.default = "processing"
        first = asyncio.ensure_future(client.wait("first", timeout=100))
        await asyncio.sleep(1)
        begin = now()

        with pytest.raises(WaitTimeoutError):
            await client.wait("late", timeout=5)

        assert now() == pytest.approx(begin + 5)
        first.cancel()

    async def test_in_an_outage_it_times_out_on_time(self, client, transport):
        transport.weather = lambda task_id: refused
        others = [asyncio.ensure_future(client.wait(f"task-{n}")) for n in range(20)]
        await asyncio.sleep(10)
        begin = now()

        with pytest.raises(WaitTimeoutError):
            await client.wait("late", timeout=0.5)

        assert now() == pytest.approx(begin + 0.5)
        for other in others:
            other.cancel()

    async def test_an_overdue_wait_whose_request_is_silent_ends_ten_seconds_after_it(
        self, transport
    ):
        async with client_over(transport, rate_limit=1, poll=every(5)) as client:
            transport.add("first")
            transport.fault("late", stalled)
            first = asyncio.ensure_future(client.wait("first"))
            await settle()

            with pytest.raises(WaitTimeoutError):
                await client.wait("late", timeout=0.5)

            assert now() == pytest.approx(1000 + 1 + 10, abs=1.5)
            await first

    async def test_a_pause_that_begins_while_it_is_overdue_ends_it(self, transport):
        async with client_over(transport, rate_limit=1, poll=every(5)) as client:
            transport.default = "processing"
            transport.fault("b", status(429, retry_after=60))
            ids = "abcdef"

            ends = await asyncio.gather(
                *(client.wait(task_id, timeout=1.5) for task_id in ids), return_exceptions=True
            )

            assert [type(end) for end in ends] == [WaitTimeoutError] * 6
            assert now() < 1000 + 5

    async def test_with_no_time_at_all_a_stream_asks_for_nothing(self, client, transport):
        outcomes = await collect(client.as_completed(["a", "b"], timeout=0))

        assert [type(outcome.error) for outcome in outcomes] == [WaitTimeoutError] * 2
        assert transport.count() == 0


def stop_process(seconds):
    """Make the clock jump as it does over a SIGSTOP."""
    asyncio.get_running_loop()._clock.now += seconds


class TestStoppedProcess:
    async def test_each_id_is_asked_for_once_more(self, client, transport):
        ids = transport.add_many(50, 100)
        waits = [asyncio.ensure_future(client.wait(i, timeout=60)) for i in ids[:25]]
        reader = asyncio.ensure_future(collect(client.as_completed(ids[25:], timeout=60)))
        await asyncio.sleep(10.5)

        stop_process(3600)

        assert all(task.succeeded for task in await asyncio.gather(*waits))
        assert all(outcome.ok for outcome in await reader)
        assert now() < 1000 + 3600 + 15
        await assert_nothing_runs(client)

    @pytest.mark.parametrize("seconds", [3600, 52.5])  # the latter ends just after the deadline
    async def test_what_was_in_flight_is_asked_for_again(self, client, transport, seconds):
        transport.add("a", ("processing", 30))
        transport.latency = 5
        wait = asyncio.ensure_future(client.wait("a", timeout=60))
        await asyncio.sleep(8)  # the second request is in flight
        transport._state = lambda task_id, state=transport._state: (
            says("processing")(task_id) if transport.count() == 2 else state(task_id)
        )

        stop_process(seconds)

        assert (await wait).succeeded
        assert transport.count() == 3

    async def test_an_id_that_still_runs_times_out(self, client, transport):
        transport.default = "processing"
        wait = asyncio.ensure_future(client.wait("a", timeout=60))
        await asyncio.sleep(10.5)
        asked = transport.count()

        stop_process(3600)

        with pytest.raises(WaitTimeoutError):
            await wait
        assert transport.count() == asked + 1


class TestLater:
    """429s, and 503s while others are answered, mean: later."""

    async def test_a_429_never_counts_toward_max_outage(self, transport):
        async with client_over(transport, poll=every(1, max_outage=30)) as client:
            transport.fault("a", *[status(429, retry_after=50)] * 20)
            transport.add("a")

            assert (await client.wait("a", timeout=1200)).succeeded
            assert now() > 1000 + 500

    async def test_timeout_bounds_it(self, transport):
        async with client_over(transport, poll=every(1)) as client:
            transport.weather = lambda task_id: status(429, retry_after=5)

            with pytest.raises(WaitTimeoutError) as caught:
                await client.wait("a", timeout=60)

            assert isinstance(caught.value.last_error, RateLimitError)
            assert now() == pytest.approx(1060, abs=1)

    async def test_a_503_does_not_count_while_others_are_answered(self, client, transport):
        transport.add("a")
        transport.fault("a", *[status(503)] * 60)
        transport.default = "processing"
        others = [asyncio.ensure_future(client.wait(f"other-{n}")) for n in range(20)]

        assert (await client.wait("a", poll=every(1, max_outage=10))).succeeded

        for other in others:
            other.cancel()

    async def test_a_503_counts_while_nobody_is_answered(self, client, transport):
        transport.weather = lambda task_id: status(503)

        with pytest.raises(ServerError):
            await client.wait("a", poll=every(1, max_outage=10))

        assert now() < 1000 + 60


class TestNotFoundGrace:
    async def test_a_404_of_a_task_just_submitted_is_outlived(self, client, transport):
        transport.fault("a", status(404), status(404), status(404))
        transport.add("a", ("processing", 10))

        assert (await client.wait("a")).succeeded

    async def test_an_id_that_stays_unknown_ends_after_the_grace(self, client, transport):
        with pytest.raises(NotFoundError):
            await client.wait("nobody", poll=every(2))

        assert now() == pytest.approx(1000 + 5.2, abs=0.2)

    async def test_the_last_poll_comes_at_the_end_of_the_grace(self, client, transport):
        with pytest.raises(NotFoundError):
            await client.wait("nobody", poll=every(100, not_found_grace=7))

        assert now() == pytest.approx(1000 + 7.2)
        assert transport.count() == 2

    async def test_with_a_grace_of_zero_the_first_404_ends_it(self, client, transport):
        with pytest.raises(NotFoundError):
            await client.wait("nobody", poll=every(1, not_found_grace=0))

        assert transport.count() == 1

    async def test_a_good_answer_in_between_begins_it_again(self, client, transport):
        transport.fault("a", *[status(404)] * 4, says("processing"), *[status(404)] * 4)
        transport.add("a")

        assert (await client.wait("a", poll=every(1))).succeeded

    async def test_it_does_not_count_toward_max_outage(self, client, transport):
        transport.fault("a", *[status(404)] * 5, status(500))
        transport.add("a")

        assert (await client.wait("a", poll=every(1, max_outage=3, not_found_grace=60))).succeeded

    async def test_a_500_after_it_is_polled_at_the_strategys_time(self, client, transport):
        transport.fault("a", status(404), *[status(500)] * 5)
        transport.add("a")

        await client.wait("a", poll=every(3))

        times = transport.times()
        assert times[6] - times[2] == pytest.approx(4 * 3.1)

    async def test_in_a_stream_it_is_the_ids_own(self, client, transport):
        ids = [*transport.add_many(20, 3), "nobody"]

        outcomes = await collect(client.as_completed(ids))

        assert [o.task_id for o in outcomes if not o.ok] == ["nobody"]

    async def test_get_raises_at_once(self, client, transport):
        with pytest.raises(NotFoundError):
            await client.get("nobody")

        assert now() == pytest.approx(1000.1)


class TestWhateverUserCodeRaises:
    @pytest.mark.parametrize("error", [LookupError("bug"), asyncio.CancelledError("bug")])
    @pytest.mark.parametrize("where", ["wait", "observe"])
    async def test_ends_the_waits_concerned_at_once(self, client, transport, error, where):
        class Strategy(wait_adaptive):
            def __call__(self, retry_state):
                if where == "wait":
                    raise error
                return 1.0

            def observe(self, task, **kwargs):
                raise error

        transport.add("a", ("processing", 1.5))
        transport.add("good", ("processing", 5))
        good = asyncio.ensure_future(client.wait("good"))
        policy = PollPolicy(wait=Strategy())

        with pytest.raises(type(error), match="bug"):
            await client.wait("a", poll=policy)
        with pytest.raises(type(error), match="bug"):
            await collect(client.as_completed(["b", "a"], poll=policy))

        assert now() < 1000 + 6
        assert (await good).succeeded
        await assert_nothing_runs(client)

    def test_what_must_stop_the_program_does_and_ends_the_wait(self, transport):
        def wait(state):
            raise SystemExit

        async def main():
            transport.default = "processing"
            async with client_over(transport) as client:
                task = asyncio.ensure_future(client.wait("a", poll=PollPolicy(wait=wait)))
                await asyncio.sleep(0.05)
                (worker,) = client._parts.poller._workers.tasks
                try:
                    await asyncio.sleep(5)
                finally:
                    ended.append(client.stats.waiting)
                    assert isinstance(worker.exception(), SystemExit)
                    assert isinstance(task.exception(), SystemExit)

        ended = []
        with pytest.raises(SystemExit):
            run(main())
        assert ended == [0]

    async def test_a_key_function_that_raises_cancelled_error_ends_the_wait(self, transport):
        calls = 0

        def key():
            nonlocal calls
            calls += 1
            raise asyncio.CancelledError("vault")

        async with client_over(transport, api_key=key) as client:
            with pytest.raises(asyncio.CancelledError, match="vault"):
                await client.wait("a", timeout=60)

            assert calls <= 2
            assert now() == pytest.approx(1000)


class TestClose:
    @pytest.mark.parametrize("times", [1, 2, 5])
    async def test_cancelled_it_still_closes_the_session_and_ends_the_waits(self, transport, times):
        client = client_over(transport)
        transport.weather = lambda task_id: stalled
        waits = [asyncio.ensure_future(client.wait(f"task-{n}")) for n in range(100)]
        await asyncio.sleep(1)

        closing = asyncio.ensure_future(client.close())
        await asyncio.sleep(0)
        for _ in range(times):
            closing.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(closing, return_exceptions=True)
        ends = await asyncio.gather(*waits, return_exceptions=True)

        assert transport.closed
        assert {type(end) for end in ends} == {ClientClosedError}
        await assert_nothing_runs()

    async def test_ends_many_ids_in_slices(self, client, transport):
        transport.default = "processing"
        reader = asyncio.ensure_future(
            collect(client.as_completed(f"task-{n}" for n in range(5000)))
        )
        waits = [asyncio.ensure_future(client.wait(f"wait-{n}")) for n in range(2500)]
        await asyncio.sleep(20)
        assert client.stats.waiting == 7500

        await client.close()

        ends = await asyncio.gather(*waits, return_exceptions=True)
        assert {type(end) for end in ends} == {ClientClosedError}
        assert {type(outcome.error) for outcome in await reader} == {ClientClosedError}
        assert client.stats.waiting == 0

    async def test_a_stream_that_pulls_from_a_slow_source_gets_an_outcome_for_each(
        self, client, transport
    ):
        async def source():
            for n in range(3):
                yield f"task-{n}"
                await asyncio.sleep(1)

        transport.default = "processing"
        outcomes = []

        async def read():
            async for outcome in client.as_completed(source()):
                outcomes.append(outcome)

        reader = asyncio.ensure_future(read())
        await asyncio.sleep(1.5)

        await client.close()

        with pytest.raises(ClientClosedError):
            await reader
        assert [type(outcome.error) for outcome in outcomes] == [ClientClosedError] * 3


async def test_waits_work_under_a_task_factory_of_the_old_form(client, transport):
    loop = asyncio.get_running_loop()
    loop.set_task_factory(lambda loop, coro: asyncio.Task(coro, loop=loop))
    try:
        transport.add("a", ("processing", 3))

        assert (await client.wait("a")).succeeded
        assert [o.ok for o in await collect(client.as_completed(["a"]))] == [True]
    finally:
        loop.set_task_factory(None)


class TestProbes:
    async def test_ids_never_polled_go_first(self, client, transport):
        transport.weather = lambda task_id: refused
        old = [asyncio.ensure_future(client.wait(f"old-{n}", timeout=None)) for n in range(20)]
        await asyncio.sleep(20)
        new = [asyncio.ensure_future(client.wait(f"new-{n}", timeout=None)) for n in range(3)]
        before = transport.count()

        await asyncio.sleep(60)

        probes = [sent.task_id for sent in transport.requests[before:]]
        assert probes[:3] == ["new-0", "new-1", "new-2"]
        assert len(probes) > 3
        for task in old + new:
            task.cancel()

    async def test_the_probe_that_is_cancelled_from_outside_is_replaced(self, client, transport):
        down = True
        transport.weather = lambda task_id: (stalled if now() > 1005 else refused) if down else None
        ids = transport.add_many(20, 0)
        waits = [asyncio.ensure_future(client.wait(task_id)) for task_id in ids]
        await asyncio.sleep(12)  # a probe stalls
        (worker,) = client._parts.poller._workers.tasks

        down = False
        worker.cancel()

        assert all(task.succeeded for task in await asyncio.gather(*waits))
        assert now() < 1030

    async def test_an_id_whose_waiters_left_is_no_probe_for_ever(self, client, transport):
        transport.weather = lambda task_id: stalled if now() > 1005 else refused
        waits = [asyncio.ensure_future(client.wait(f"task-{n}")) for n in range(20)]
        await asyncio.sleep(12)
        probing = transport.requests[-1].task_id
        leaving = waits.pop(int(probing.removeprefix("task-")))

        leaving.cancel()
        transport.weather = lambda task_id: says("completed")

        assert all(task.succeeded for task in await asyncio.gather(*waits))
        assert now() < 1030

    async def test_one_that_was_aborted_is_followed_as_soon_as_the_one_before(
        self, client, transport
    ):
        transport.weather = lambda task_id: stalled if now() > 1003 else refused
        waits = [asyncio.ensure_future(client.wait(f"task-{n}", timeout=None)) for n in range(20)]
        await asyncio.sleep(5)  # the third probe stalls, two seconds after the second
        probing = transport.requests[-1].task_id
        sent = transport.count()

        waits[int(probing.removeprefix("task-"))].cancel()
        await asyncio.sleep(10)

        assert transport.requests[sent].time == pytest.approx(1005 + 2)
        for task in waits:
            task.cancel()


class TestSingleFlightWithStreams:
    async def test_a_wait_joins_an_id_that_a_stream_waits_for(self, client, transport):
        transport.add("a", ("processing", 3.5))
        reader = asyncio.ensure_future(collect(client.as_completed(["a", "b"], timeout=60)))
        transport.add("b", ("processing", 10))
        await asyncio.sleep(1.5)

        seen = [task.status async for task in client.watch("a")]
        await later(0, lambda: None)

        assert seen == ["processing", "completed"]
        assert transport.count("a") == 5
        assert all(outcome.ok for outcome in await reader)

    async def test_two_streams_and_a_duplicate_share_an_id(self, client, transport):
        transport.add("a", ("processing", 3.5))

        one, two = await asyncio.gather(
            collect(client.as_completed(["a", "a"])), collect(client.as_completed(["a"]))
        )

        assert [(o.index, o.ok) for o in one] == [(0, True), (1, True)]
        assert [o.ok for o in two] == [True]
        assert transport.count("a") == 5

    async def test_streams_under_different_policies_poll_apart(self, client, transport):
        transport.add("a", ("processing", 10))

        one, two = await asyncio.gather(
            collect(client.as_completed(["a"], poll=every(1))),
            collect(client.as_completed(["a"], poll=every(3))),
        )

        assert [o.ok for o in one + two] == [True, True]
        assert 12 <= transport.count("a") <= 16
        await assert_nothing_runs(client)

    async def test_one_stream_that_is_left_takes_nothing_from_another(self, client, transport):
        transport.add("a", ("processing", 5))
        stream = client.as_completed(["a"])
        first = asyncio.ensure_future(anext(stream))
        other = asyncio.ensure_future(collect(client.as_completed(["a"])))
        await asyncio.sleep(2)

        await stream.aclose()

        assert [outcome.ok for outcome in await other] == [True]
        with pytest.raises(StopAsyncIteration):
            await first

    async def test_ids_of_one_stream_time_out_each_on_its_own(self, client, transport):
        transport.default = "processing"

        async def source():
            for n in range(3):
                yield f"task-{n}"
                await asyncio.sleep(4)

        ends = []
        async for outcome in client.as_completed(source(), timeout=10):
            assert isinstance(outcome.error, WaitTimeoutError)
            assert outcome.error.last is not None
            ends.append(now() - 1000)

        assert ends == pytest.approx([10, 14, 18], abs=0.1)


class TestCostOfOthers:
    """Counted in steps of the poller, not in seconds."""

    async def test_leaving_one_of_many_reads_no_others(self, client, transport, monkeypatch):
        transport.default = "processing"
        reader = asyncio.ensure_future(
            collect(client.as_completed((f"task-{n}" for n in range(3000)), timeout=None))
        )
        await asyncio.sleep(30)
        found = []
        rotation = type(client._parts.poller._rotation)
        monkeypatch.setattr(
            rotation,
            "find",
            lambda self, *args, find=rotation.find: (found.append(args), find(self, *args))[1],
        )
        transport.add("one")

        await client.wait_all(["one"])
        stream = client.as_completed(["other"])
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(1)
        await stream.aclose()

        assert len(found) < 10
        reader.cancel()
        await asyncio.gather(reader, first, return_exceptions=True)

    @pytest.mark.parametrize("how", ["leave", "close"])
    async def test_the_end_of_a_stream_unpacks_no_id(self, client, transport, monkeypatch, how):
        transport.default = "processing"
        stream = client.as_completed((f"task-{n}" for n in range(3000)), poll=every(1000))
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(100)  # in which each is polled
        unpacked = []
        take = PackedEntries.take
        monkeypatch.setattr(
            PackedEntries, "take", lambda self, *args: (unpacked.append(args), take(self, *args))[1]
        )

        await (stream.aclose() if how == "leave" else client.close())

        assert client.stats.waiting == 0
        assert unpacked == []
        await asyncio.gather(first, return_exceptions=True)

    async def test_a_new_policy_reads_no_other_policies(self, client, transport, monkeypatch):
        transport.default = "processing"
        waits = [
            asyncio.ensure_future(client.wait(f"task-{n}", poll=every(100))) for n in range(500)
        ]
        await asyncio.sleep(5)
        read = []
        rotation = type(client._parts.poller._rotation)
        groups = rotation.groups.fget
        monkeypatch.setattr(
            rotation, "groups", property(lambda self: (read.append(1), groups(self))[1])
        )

        waits.append(asyncio.ensure_future(client.wait("one", poll=every(100))))
        await asyncio.sleep(5)

        assert read == []
        for wait in waits:
            wait.cancel()


async def test_thousands_time_out_at_the_same_moment_in_slices(client, transport):
    transport.default = "processing"
    begin = now()

    ends = await asyncio.gather(
        *(client.wait(f"task-{n}", timeout=5) for n in range(2500)), return_exceptions=True
    )

    assert {type(end) for end in ends} == {WaitTimeoutError}
    assert now() == pytest.approx(begin + 5, abs=0.1)


async def test_an_outage_that_is_over_while_waits_are_ended_ends_no_more():
    outage, rotation, ended = Outage(), Rotation(), []

    def end(group, task_id, error):
        ended.append(task_id)
        if len(ended) == 10:
            outage.answered()

    ends = OutageEnds(outage, rotation, end)
    group = rotation.add_group(PollPolicy(max_outage=20))
    for n in range(30):
        rotation.add(f"task-{n}", group, now())
    outage.since = now()
    await asyncio.sleep(20)

    ends.run(now())

    assert ended == [f"task-{n}" for n in range(10)]


async def test_an_outage_that_changes_after_the_close_changes_nothing(client, transport):
    transport.default = "processing"
    wait = asyncio.ensure_future(client.wait("a"))
    await asyncio.sleep(1)
    poller = client._parts.poller
    await client.close()

    poller._on_outage_change()
    poller._after_outage_change()

    with pytest.raises(ClientClosedError):
        await wait
    await assert_nothing_runs(client)


async def test_an_id_that_has_ended_is_neither_left_nor_timed_out(client, transport):
    transport.default = "processing"
    stream = client.as_completed(["a", "b"])
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(2)
    poller, bulk = client._parts.poller, stream._bulk

    poller.leave_bulk("gone", bulk, 7)
    poller.expire_bulk("gone", bulk, 7, now())
    poller._end_id(bulk.group, "gone", ClientClosedError("closed"))
    poller.leave_bulk("a", bulk, 1)  # "a" has the index 0

    assert client.stats.waiting == 2
    await stream.aclose()
    await asyncio.gather(first, return_exceptions=True)


def test_a_source_that_was_never_started_can_be_cancelled():
    source = Source([])

    source.cancel()

    assert source.ended
