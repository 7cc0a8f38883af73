from __future__ import annotations

import asyncio
import contextlib
import gc

import pytest
from fakes import (
    FakeTransport,
    assert_nothing_runs,
    client_over,
    malformed,
    now,
    run,
    says,
    settle,
    stalled,
    status,
)
from tenacity import wait_fixed

from xai_tasks import (
    AuthenticationError,
    ClientClosedError,
    InvalidTaskIdError,
    NotFoundError,
    Outcome,
    PermissionDeniedError,
    PollPolicy,
    RetryPolicy,
    ServerError,
    TaskFailedError,
    TaskStatus,
    WaitTimeoutError,
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
    return [outcome async for outcome in stream]


async def forever(task_id="task-{}"):
    number = 0
    while True:
        yield task_id.format(number)
        number += 1


class TestWatch:
    async def test_gives_the_first_look_each_change_and_last_the_ended_task(
        self, client, transport
    ):
        transport.add("a", ("pending", 2.5), ("processing", 3))

        seen = [(task.status, now() - 1000) async for task in client.watch("a")]

        assert [status for status, _ in seen] == ["pending", "processing", "completed"]
        assert transport.count("a") > 3  # polls that show no change give nothing

    async def test_raises_no_task_error(self, client, transport):
        transport.add("a", end="failed", errorMessage="boom")

        seen = [task async for task in client.watch("a")]

        assert [task.error_message for task in seen] == ["boom"]

    async def test_tells_unknown_statuses_apart(self, client, transport):
        transport.fault("a", says("queued"), says("running"), says("running"), says("completed"))

        assert [task.raw["status"] async for task in client.watch("a")] == [
            "queued",
            "running",
            "completed",
        ]

    async def test_a_failed_poll_is_no_change(self, transport):
        async with client_over(transport, retry=RetryPolicy(budget=0)) as client:
            transport.fault("a", status(503), says("pending"), status(503), says("pending"))
            transport.add("a")

            assert [task.status async for task in client.watch("a")] == ["pending", "completed"]

    async def test_may_be_iterated_by_hand(self, client, transport):
        transport.fault("a", says("pending"))
        transport.add("a")
        changes = aiter(client.watch("a"))

        assert (await anext(changes)).status == "pending"
        assert [task.status async for task in changes] == ["completed"]

    async def test_keeps_changes_for_a_slow_reader(self, client, transport):
        transport.add("a", ("pending", 2), ("assigned", 2), ("processing", 2))
        seen = []

        async for task in client.watch("a"):
            seen.append(task.status)
            await asyncio.sleep(20)

        assert seen == ["pending", "assigned", "processing", "completed"]

    async def test_one_who_joins_late_gets_the_last_look_at_once(self, client, transport):
        transport.add("a", ("pending", 10))
        wait = asyncio.create_task(client.wait("a"))
        await asyncio.sleep(3.5)
        before = transport.count()

        first = await anext(client.watch("a"))

        assert first.status is TaskStatus.PENDING
        assert transport.count() == before
        await wait

    async def test_ends_in_wait_timeout_error_after_the_changes_seen(self, client, transport):
        transport.add("a", ("pending", 100))
        seen = []

        with pytest.raises(WaitTimeoutError, match="'a'") as caught:
            async for task in client.watch("a", timeout=5):
                seen.append(task.status)

        assert seen == ["pending"]
        assert caught.value.last.status is TaskStatus.PENDING

    async def test_timeout_zero_makes_no_request(self, client, transport):
        with pytest.raises(WaitTimeoutError):
            await anext(client.watch("a", timeout=0))

        assert transport.count() == 0

    async def test_raises_the_servers_refusal(self, client):
        with pytest.raises(NotFoundError, match="'nobody'"):
            async for _ in client.watch("nobody"):
                pass

    async def test_break_gives_the_wait_up_though_a_variable_holds_the_watch(
        self, client, transport
    ):
        transport.add("a", ("pending", 100))
        watch = client.watch("a")

        async for _ in watch:
            break
        await settle()

        assert client.stats.waiting == 0
        assert [task async for task in watch] == []  # exhausted

    async def test_aclose_aborts_the_request_under_way(self, client, transport):
        transport.fault("a", stalled)
        watch = client.watch("a")
        first = asyncio.create_task(anext(watch))
        await asyncio.sleep(1)
        first.cancel()

        await watch.aclose()

        assert transport.aborted() == ["a"]
        await asyncio.wait([first])
        await assert_nothing_runs(client)

    async def test_checks_the_id_and_the_client_at_once(self, client):
        with pytest.raises(InvalidTaskIdError):
            client.watch("")
        with pytest.raises(TypeError, match="task_id"):
            client.watch(7)
        await client.close()
        with pytest.raises(ClientClosedError):
            client.watch("a")

    async def test_a_watch_never_iterated_leaves_nothing(self, client):
        client.watch("a")

        await assert_nothing_runs(client)


class TestAsCompleted:
    async def test_gives_outcomes_as_tasks_end_each_with_id_and_index(self, client, transport):
        transport.add("slow", ("processing", 9))
        transport.add("quick", ("processing", 1))
        transport.add("failed", ("processing", 4), end="failed", errorMessage="boom")

        outcomes = await collect(client.as_completed(["slow", "quick", "failed"]))

        assert [(o.task_id, o.index, o.ok) for o in outcomes] == [
            ("quick", 1, True),
            ("failed", 2, False),
            ("slow", 0, True),
        ]
        assert outcomes[1].task.error_message == "boom"
        assert isinstance(outcomes[1].error, TaskFailedError)
        with pytest.raises(TaskFailedError, match="boom"):
            outcomes[1].unwrap()
        assert outcomes[0].unwrap() is outcomes[0].task

    async def test_every_id_comes_out_once_also_one_asked_for_twice(self, client, transport):
        transport.add("a", ("processing", 3))

        outcomes = await collect(client.as_completed(["a", "a", "a"]))

        assert sorted(o.index for o in outcomes) == [0, 1, 2]
        assert transport.count("a") == 4  # one poll loop for the three

    async def test_an_invalid_id_is_an_outcome_and_the_stream_goes_on(self, client, transport):
        transport.add("a")

        outcomes = await collect(client.as_completed(["", 7, "a", None]))

        errors = {o.index: o for o in outcomes if not o.ok}
        assert sorted(errors) == [0, 1, 3]
        assert all(isinstance(o.error, InvalidTaskIdError) for o in errors.values())
        assert [errors[i].task_id for i in (0, 1, 3)] == ["''", "7", "None"]
        assert transport.count() == 1

    async def test_other_errors_are_outcomes_that_name_the_id(self, client, transport):
        transport.add("late", ("processing", 100))
        transport.add("a")

        outcomes = await collect(client.as_completed(["nobody", "late", "a"], timeout=10))

        by_id = {o.task_id: o for o in outcomes}
        assert isinstance(by_id["nobody"].error, NotFoundError)
        assert isinstance(by_id["late"].error, WaitTimeoutError)
        assert "'late'" in str(by_id["late"].error)
        assert by_id["a"].ok

    async def test_timeout_counts_from_when_an_id_is_pulled(self, client, transport):
        transport.add("first", ("processing", 1000))
        transport.add("second", ("processing", 1000))

        async def source():
            yield "first"
            await asyncio.sleep(30)
            yield "second"

        ended = [(o.task_id, now() - 1000) async for o in client.as_completed(source(), timeout=50)]

        assert ended == [
            ("first", pytest.approx(50, abs=0.1)),
            ("second", pytest.approx(80, abs=0.1)),
        ]

    async def test_counters_move_as_outcomes_are_taken(self, client, transport):
        transport.add("a")
        transport.add("b", end="failed")
        stream = client.as_completed(["a", "b"])
        assert (stream.pulled, stream.pending, stream.succeeded, stream.failed) == (0, 0, 0, 0)

        await anext(stream)
        await asyncio.sleep(5)  # the second has ended, and is not taken

        assert (stream.pulled, stream.pending, stream.succeeded + stream.failed) == (2, 1, 1)
        await anext(stream)
        assert (stream.pulled, stream.pending, stream.succeeded, stream.failed) == (2, 0, 1, 1)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    async def test_pulls_no_faster_than_the_server_serves(self, transport):
        limit, tokens, last = 10, 10.0, 0.0

        def bucket(task_id):
            nonlocal tokens, last
            tokens, last = min(10.0, tokens + (now() - last) * limit), now()
            if tokens < 1:
                return status(429, retry_after=1)
            tokens -= 1
            return None

        transport.weather = bucket
        transport.default = "completed"
        waiting = []
        async with client_over(transport) as client:
            ids = [f"task-{n}" for n in range(12_000)]
            async for outcome in client.as_completed(ids):
                assert outcome.ok
                waiting.append(client.stats.waiting)

        assert max(waiting) <= 5_000
        assert max(waiting[6_000:]) < 700

    async def test_pulls_no_more_than_a_given_rate_can_ask_for(self, transport):
        transport.default = "processing"
        async with client_over(transport, rate_limit=2) as client:
            stream = client.as_completed((f"task-{n}" for n in range(1000)), timeout=100)
            reader = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(50)

            assert client.stats.waiting == 20
            reader.cancel()
            await asyncio.wait([reader])
            await stream.aclose()

    async def test_a_second_stream_gets_its_turn(self, transport):
        transport.default = "processing"
        transport.add("b")
        async with client_over(transport, rate_limit=2) as client:
            first = client.as_completed((f"task-{n}" for n in range(1000)), timeout=100)
            reader = asyncio.ensure_future(anext(first))
            await asyncio.sleep(20)

            async for outcome in client.as_completed(["b"], timeout=100):
                assert outcome.ok

            reader.cancel()
            await asyncio.wait([reader])
            await first.aclose()

    @pytest.mark.parametrize("kind", ["sync", "async"])
    async def test_pulls_no_more_than_max_pending(self, client, transport, kind):
        transport.default = "processing"
        pulled = []

        def ids():
            for number in range(10_000):
                pulled.append(number)
                yield f"task-{number}"

        async def async_ids():
            for task_id in ids():
                yield task_id

        stream = client.as_completed(
            ids() if kind == "sync" else async_ids(), max_pending=250, timeout=None
        )
        first = asyncio.create_task(anext(stream))
        await asyncio.sleep(60)

        assert len(pulled) == stream.pulled == stream.pending == client.stats.waiting == 250
        first.cancel()
        await stream.aclose()

    async def test_a_slow_reader_stops_the_pulling(self, client, transport):
        transport.default = "completed"
        stream = client.as_completed(forever(), max_pending=10)

        for taken in range(1, 6):
            await anext(stream)
            await asyncio.sleep(60)
            assert stream.pulled == 10 + taken
        await stream.aclose()

    async def test_a_source_that_never_ends_is_fine(self, client, transport):
        transport.default = "completed"

        async for outcome in client.as_completed(forever(), max_pending=100):
            if outcome.index > 5_000:
                break

        await settle()
        await assert_nothing_runs(client)

    async def test_a_long_sync_source_does_not_hold_up_the_loop(self, client, transport):
        transport.default = "processing"
        stream = client.as_completed((f"task-{n}" for n in range(5_000)), timeout=None)
        first = asyncio.create_task(anext(stream))
        turns = 0
        while stream.pulled < 5_000:
            await asyncio.sleep(0)
            turns += 1

        assert turns >= 40
        first.cancel()
        await stream.aclose()

    async def test_a_source_that_raises_ends_the_stream_after_the_outcomes_earned(
        self, client, transport
    ):
        transport.add("a")
        transport.add("endless", ("processing", 1000))
        transport.add("b", end="failed")
        outcomes = []

        def source():
            yield from ("a", "endless", "b")
            raise LookupError("the cursor is gone")

        with pytest.raises(LookupError, match="cursor"):
            async for outcome in client.as_completed(source(), timeout=None):
                outcomes.append(outcome.task_id)

        assert outcomes == ["a", "b"]  # ended at their first look; the third had its look too
        assert transport.count() == 3
        await assert_nothing_runs(client)

    async def test_a_source_that_raises_at_once_leaves_only_its_error(self, client):
        async def source():
            raise LookupError("no cursor")
            yield "a"

        stream = client.as_completed(source())

        with pytest.raises(LookupError):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    @pytest.mark.parametrize("kind", ["sync", "async"])
    async def test_a_source_that_meets_a_cancellation_of_others_ends_the_stream_with_it(
        self, client, transport, kind
    ):
        transport.add("a")
        outcomes = []
        other = asyncio.get_running_loop().create_future()
        other.cancel()

        def source():
            yield "a"
            other.result()

        async def async_source():
            yield "a"
            await other

        with pytest.raises(asyncio.CancelledError):
            async for outcome in client.as_completed(
                source() if kind == "sync" else async_source()
            ):
                outcomes.append(outcome.task_id)

        assert outcomes == ["a"]
        await assert_nothing_runs(client)

    async def test_cancelling_what_pulls_does_not_leave_the_reader_waiting(self, client, transport):
        transport.default = "processing"
        stream = client.as_completed(forever(), max_pending=5)
        reader = asyncio.create_task(collect(stream))
        await asyncio.sleep(3)

        stream._bulk._source._task.cancel()

        await asyncio.wait([reader])
        assert reader.cancelled()
        await assert_nothing_runs(client)

    async def test_a_failed_first_poll_counts_as_a_look(self, transport):
        async with client_over(transport, retry=RetryPolicy(budget=0)) as client:
            transport.fault("a", status(503))

            async def source():
                yield "a"
                raise LookupError

            with pytest.raises(LookupError):
                await collect(client.as_completed(source()))
            assert transport.count() == 1

    async def test_a_refused_key_is_raised_out_of_the_stream_after_the_outcomes_earned(
        self, client, transport
    ):
        transport.add("a")
        transport.add("b", ("processing", 5))
        transport.fault("b", says("processing"), status(401))
        outcomes = []

        with pytest.raises(AuthenticationError, match="'b'"):
            async for outcome in client.as_completed(["a", "b", *(["endless"] * 10)]):
                outcomes.append(outcome.task_id)
                transport.add("endless", ("processing", 1000))

        assert "a" in outcomes
        await assert_nothing_runs(client)

    async def test_an_id_answered_403_is_an_outcome_and_the_others_go_on(self, client, transport):
        ids = transport.add_many(50, 3)
        transport.fault("task-7", status(403))

        outcomes = await collect(client.as_completed(ids))

        failed = [outcome for outcome in outcomes if not outcome.ok]
        assert [(o.task_id, type(o.error)) for o in failed] == [("task-7", PermissionDeniedError)]
        assert len(outcomes) == 50

    async def test_ten_ids_answered_403_and_none_well_end_the_stream(self, client, transport):
        transport.weather = lambda task_id: status(403)
        outcomes = []

        with pytest.raises(PermissionDeniedError):
            async for outcome in client.as_completed(f"task-{n}" for n in range(1000)):
                outcomes.append(outcome)

        assert len(outcomes) >= 10
        assert {type(outcome.error) for outcome in outcomes} == {PermissionDeniedError}
        assert transport.count() <= 64 + 10
        await assert_nothing_runs(client)

    @pytest.mark.parametrize("number", [1, 9])
    async def test_fewer_ids_that_are_all_answered_403_end_the_stream(
        self, client, transport, number
    ):
        transport.weather = lambda task_id: status(403)
        outcomes = []

        with pytest.raises(PermissionDeniedError):
            async for outcome in client.as_completed(f"task-{n}" for n in range(number)):
                outcomes.append(outcome)

        assert len(outcomes) == number

    async def test_after_one_good_answer_any_number_may_be_answered_403(self, client, transport):
        transport.add("good", ("processing", 1000))
        transport.weather = lambda task_id: None if task_id == "good" else status(403)
        ids = [f"task-{n}" for n in range(100)]

        outcomes = await collect(client.as_completed(["good", *ids], timeout=60))

        assert len(outcomes) == 101
        assert sum(type(o.error) is PermissionDeniedError for o in outcomes) == 100

    async def test_in_wait_all_a_403_is_each_ids_own(self, client, transport):
        transport.weather = lambda task_id: status(403)

        errors = await client.wait_all(map(str, range(20)), return_exceptions=True)

        assert [type(error) for error in errors] == [PermissionDeniedError] * 20

    async def test_of_many_refusals_one_is_raised_and_the_rest_is_silent(self, client, transport):
        transport.weather = lambda task_id: status(401)

        with pytest.raises(AuthenticationError):
            await collect(client.as_completed(f"task-{n}" for n in range(1000)))

        assert transport.count() <= 64
        await assert_nothing_runs(client)

    async def test_a_key_function_that_fails_ends_the_stream_with_its_error(self, transport):
        def key():
            raise LookupError("vault is sealed")

        async with client_over(transport, api_key=key) as client:
            with pytest.raises(LookupError, match="vault"):
                await collect(client.as_completed(["a", "b"]))
            await assert_nothing_runs(client)

    async def test_closing_the_client_ends_each_with_client_closed_error(self, client, transport):
        transport.default = "processing"
        stream = client.as_completed(["a", "b"])
        reader = asyncio.create_task(collect(stream))
        await asyncio.sleep(3)

        await client.close()

        assert [type(o.error) for o in await reader] == [ClientClosedError] * 2

    async def test_closing_the_client_makes_each_outcome_when_it_is_read(self, client, transport):
        def outcomes_in_memory():
            return sum(type(each) is Outcome for each in gc.get_objects())

        transport.default = "processing"
        ids = [f"task-{n}" for n in range(500)]
        before = outcomes_in_memory()
        stream = client.as_completed(ids)
        readers = [asyncio.create_task(anext(stream)) for _ in range(3)]
        await asyncio.sleep(3)

        await client.close()
        assert outcomes_in_memory() - before < 100  # of those in flight, and one for each reader
        outcomes = [await reader for reader in readers] + await collect(stream)

        assert sorted(o.index for o in outcomes) == list(range(500))
        assert all(o.task_id == ids[o.index] for o in outcomes)
        assert {type(o.error) for o in outcomes} == {ClientClosedError}
        assert "task-499" in str(max(outcomes, key=lambda o: o.index).error)
        assert stream.pending == 0

    async def test_leaving_a_stream_drops_what_the_end_of_the_client_has_ended(
        self, client, transport
    ):
        transport.default = "processing"
        stream = client.as_completed([f"task-{n}" for n in range(500)])
        reader = asyncio.create_task(anext(stream))
        await asyncio.sleep(3)
        await client.close()
        await reader

        await stream.aclose()

        assert await collect(stream) == []
        await assert_nothing_runs(client)

    async def test_closing_the_client_ends_a_stream_that_is_still_pulling_with_its_error(
        self, client, transport
    ):
        transport.default = "processing"
        stream = client.as_completed(forever(), max_pending=5)
        reader = asyncio.create_task(collect(stream))
        await asyncio.sleep(3)

        await client.close()

        with pytest.raises(ClientClosedError):
            await reader

    async def test_deadlines_in_bulk_set_no_timer_per_id(self, client, transport):
        transport.default = "processing"
        loop = asyncio.get_running_loop()
        stream = client.as_completed((f"task-{n}" for n in range(5_000)), timeout=500)
        first = asyncio.create_task(anext(stream))
        await settle(200)

        assert stream.pulled == 5_000
        assert (
            len(loop.timers_left()) <= 2 * 64 + 10
        )  # those of requests in flight, and the queue's one
        first.cancel()
        await stream.aclose()

    async def test_times_out_by_its_own_start_what_another_wait_began(self, client, transport):
        transport.default = "processing"
        wait = asyncio.create_task(client.wait("a", timeout=100))
        await asyncio.sleep(7)
        reader = asyncio.create_task(collect(client.as_completed(["a"], timeout=20)))
        await asyncio.sleep(4)

        wait.cancel()
        [outcome] = await reader

        assert isinstance(outcome.error, WaitTimeoutError)
        assert now() == pytest.approx(1027, abs=0.1)

    async def test_a_long_line_of_ids_ends_on_time(self, transport):
        transport.weather = lambda task_id: stalled
        async with client_over(transport, max_concurrency=4) as client:
            ended = [
                now()
                async for _ in client.as_completed((f"task-{n}" for n in range(500)), timeout=10)
            ]

        assert len(ended) == 500
        assert max(ended) == pytest.approx(1010, abs=0.1)


class TestLeavingEarly:
    @pytest.fixture(autouse=True)
    def endless(self, transport):
        transport.default = "processing"
        transport.fault("a", says("completed"))

    def ids(self):
        yield "a"
        yield from (f"task-{n}" for n in range(100))

    async def test_by_break(self, client):
        async for _ in client.as_completed(self.ids()):
            break

        await assert_nothing_runs(client)

    async def test_by_break_though_a_variable_holds_the_stream(self, client):
        stream = client.as_completed(self.ids())

        async for _ in stream:
            break

        await assert_nothing_runs(client)
        assert stream.pending == 0
        assert await collect(stream) == []

    async def test_by_cancellation_though_its_traceback_is_kept(self, client):
        watch = client.watch("b")
        reader = asyncio.create_task(collect(watch))
        await asyncio.sleep(5)

        reader.cancel()
        await asyncio.wait([reader])
        with pytest.raises(asyncio.CancelledError) as kept:
            await reader

        assert kept.tb is not None
        await assert_nothing_runs(client)

    async def test_of_very_many_ids_gives_others_their_turns(self, transport):
        turns = 0

        async def others():
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        async with client_over(transport) as client:
            stream = client.as_completed((f"task-{n}" for n in range(10_000)), max_pending=10_000)
            reader = asyncio.create_task(collect(stream))
            while stream.pulled < 10_000:
                await asyncio.sleep(0.01)
            other = asyncio.create_task(others())

            await stream.aclose()

            other.cancel()
            await asyncio.wait([reader, other])
            assert 10 <= turns < 100
            await assert_nothing_runs(client)

    async def test_by_an_exception(self, client):
        with pytest.raises(ZeroDivisionError):
            async for _ in client.as_completed(self.ids()):
                raise ZeroDivisionError

        await assert_nothing_runs(client)

    async def test_by_cancellation(self, client):
        reader = asyncio.create_task(collect(client.as_completed(self.ids())))
        await asyncio.sleep(5.05)  # requests are in flight

        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader

        del reader
        await assert_nothing_runs(client)

    async def test_by_leaving_its_context(self, client):
        async with client.as_completed(self.ids()) as stream:
            assert (await anext(stream)).ok

        assert client.stats.waiting == client.stats.in_flight == 0

    async def test_by_aclose_twice(self, client):
        stream = client.as_completed(self.ids())
        await anext(stream)

        await stream.aclose()
        await stream.aclose()

        assert client.stats.waiting == client.stats.in_flight == 0
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    async def test_by_aclose_while_another_waits_for_the_next(self, client):
        stream = client.as_completed(["endless"])
        other = asyncio.create_task(anext(stream, "exhausted"))
        await asyncio.sleep(3)

        await stream.aclose()

        assert await other == "exhausted"

    async def test_by_aclose_before_the_first(self, client):
        stream = client.as_completed(self.ids())

        await stream.aclose()

        assert await collect(stream) == []

    async def test_by_dropping_a_stream_that_was_read_by_hand(self, client):
        stream = client.as_completed(self.ids())
        await anext(stream)

        del stream
        await assert_nothing_runs(client)

    async def test_closes_an_async_generator_that_is_its_source(self, client):
        closed = []

        async def source():
            try:
                for task_id in self.ids():
                    yield task_id
                await asyncio.sleep(1000)
            finally:
                closed.append(True)

        async for _ in client.as_completed(source()):
            break

        await assert_nothing_runs(client)
        assert closed == [True]

    async def test_pulls_no_more_from_a_source_that_swallows_its_cancellation(self, client):
        async def source():
            for task_id in self.ids():
                yield task_id
            number = 0
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(1000)
                number += 1
                yield f"more-{number}"

        async with client.as_completed(source()) as stream:
            await anext(stream)
            await asyncio.sleep(5)

        assert stream.pulled == 101
        await assert_nothing_runs(client)

    async def test_a_source_that_fails_to_end_says_nothing(self, client):
        async def source():
            try:
                for task_id in self.ids():
                    yield task_id
                await asyncio.sleep(1000)
            finally:
                raise LookupError("the connection was closed already")

        async for _ in client.as_completed(source()):
            break

        await assert_nothing_runs(client)

    async def test_by_aclose_of_two_at_once_until_the_last_request_is_aborted(
        self, client, transport
    ):
        async def fetch(task_id, fetch=transport.fetch):
            try:
                return await fetch(task_id)
            finally:
                await asyncio.sleep(int(task_id[-1]))  # a connection that takes its time to close

        transport.fetch = fetch
        streams = [client.as_completed([f"{name}-{n}" for n in range(10)]) for name in "xy"]
        readers = [asyncio.create_task(anext(stream, None)) for stream in streams]
        await asyncio.sleep(0.05)
        assert transport.in_flight == 20

        start = now()
        await asyncio.gather(*(stream.aclose() for stream in streams))

        assert now() == start + 9
        assert client.stats.in_flight == 0
        await asyncio.wait(readers)
        await assert_nothing_runs(client)

    async def test_takes_an_async_iterator_that_has_no_aclose(self, client):
        class Source:
            def __init__(self, ids):
                self.ids = iter(ids)

            def __aiter__(self):
                return self

            async def __anext__(self):
                for task_id in self.ids:
                    return task_id
                raise StopAsyncIteration

        assert [o.task_id async for o in client.as_completed(Source(["a"]))] == ["a"]

    async def test_leaves_the_waits_of_others_alone(self, client, transport):
        transport.add("shared", ("processing", 10))
        other = asyncio.create_task(client.wait("shared"))
        await asyncio.sleep(1)

        async for _ in client.as_completed(["shared", "a"]):
            break

        assert (await other).succeeded

    def test_by_the_end_of_a_program_that_closes_nothing(self, transport):
        async def main():
            client = client_over(transport)
            readers = [
                asyncio.create_task(collect(client.as_completed(self.ids()))) for _ in range(2)
            ]
            readers += [asyncio.create_task(client.wait(f"task-{n}")) for n in range(5)]
            await asyncio.wait(readers, timeout=3)

        run(main())

        assert transport.in_flight == 0

    def test_after_the_loop_is_closed_says_nothing(self):
        async def begin():
            transport = FakeTransport()
            transport.add("a")
            transport.default = "processing"
            stream = client_over(transport).as_completed(["a", "b"])
            await anext(stream)
            return stream

        stream = run(begin())

        del stream
        gc.collect()


class TestWaitAll:
    async def test_gives_results_in_input_order(self, client, transport):
        transport.add("a", ("processing", 5))
        transport.add("b")

        assert [task.task_id for task in await client.wait_all(["a", "b", "a"])] == ["a", "b", "a"]

    async def test_takes_async_sources_and_none_at_all(self, client, transport):
        transport.add("a")

        async def source():
            yield "a"

        assert [task.task_id for task in await client.wait_all(source())] == ["a"]
        assert await client.wait_all([]) == []

    async def test_raises_the_first_error_and_gives_up_the_other_waits(self, client, transport):
        transport.add("a", ("processing", 3), end="failed")
        transport.add("b", ("processing", 1000))

        with pytest.raises(TaskFailedError):
            await client.wait_all(["b", "a"])

        assert now() < 1006
        await assert_nothing_runs(client)

    async def test_errors_stand_in_the_list_with_return_exceptions(self, client, transport):
        transport.add("a")
        transport.add("failed", end="failed")
        transport.fault("refused", status(401))

        results = await client.wait_all(
            ["failed", "nobody", "a", "refused"], return_exceptions=True
        )

        assert [type(result).__name__ for result in results] == [
            "TaskFailedError",
            "NotFoundError",
            "TaskResult",
            "AuthenticationError",
        ]

    async def test_without_check_a_failed_task_is_a_result(self, client, transport):
        transport.add("failed", end="failed")

        (task,) = await client.wait_all(["failed"], check=False)
        assert task.status is TaskStatus.FAILED
        (task,) = await client.wait_all(["failed"], check=False, return_exceptions=True)
        assert task.status is TaskStatus.FAILED

    @pytest.mark.parametrize("bad", ["", 7, None])
    async def test_an_invalid_id_raises_before_any_request(self, client, transport, bad):
        transport.add("a")

        with pytest.raises(InvalidTaskIdError):
            await client.wait_all(["a", bad])

        assert transport.count() == 0

    @pytest.mark.parametrize("bad", ["", 7, None])
    async def test_an_invalid_id_stands_in_the_list_with_return_exceptions(
        self, client, transport, bad
    ):
        transport.add("a")

        invalid, task = await client.wait_all([bad, "a"], return_exceptions=True)

        assert isinstance(invalid, InvalidTaskIdError)
        assert task.succeeded

    async def test_cancelling_it_gives_up_every_wait(self, client, transport):
        transport.default = "processing"
        wait = asyncio.create_task(client.wait_all([f"task-{n}" for n in range(100)]))
        await asyncio.sleep(3)

        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait

        await assert_nothing_runs(client)

    async def test_passing_faults_do_not_end_it(self, client, transport):
        transport.add("a")
        transport.fault("a", malformed, status(503), status(500))

        (task,) = await client.wait_all(["a"])

        assert task.succeeded

    async def test_an_outage_that_lasts_ends_each_with_its_own_error(self, transport):
        transport.weather = lambda task_id: status(503)
        policy = PollPolicy(wait=wait_fixed(1), max_outage=20)
        async with client_over(transport, poll=policy) as client:
            results = await client.wait_all(
                [f"task-{n}" for n in range(50)], return_exceptions=True
            )

        assert all(isinstance(result, ServerError) for result in results)
        assert [result.task_id for result in results] == [f"task-{n}" for n in range(50)]


class TestBadInput:
    @pytest.mark.parametrize("verb", ["as_completed", "wait_all"])
    @pytest.mark.parametrize(
        "ids, message", [("abc", "single string"), (b"abc", "single string"), (7, "iterable")]
    )
    async def test_what_is_no_list_of_ids_is_a_type_error(self, client, verb, ids, message):
        with pytest.raises(TypeError, match=message):
            answer = getattr(client, verb)(ids)
            await answer

    @pytest.mark.parametrize(
        "options, error, message",
        [
            ({"max_pending": 0}, ValueError, "max_pending"),
            ({"max_pending": 1.5}, TypeError, "max_pending"),
            ({"timeout": -1}, ValueError, "timeout"),
            ({"timeout": float("nan")}, ValueError, "timeout"),
            ({"timeout": "5"}, TypeError, "timeout"),
            ({"poll": wait_fixed(1)}, TypeError, "PollPolicy"),
        ],
    )
    async def test_as_completed_checks_its_arguments_at_once(self, client, options, error, message):
        with pytest.raises(error, match=message):
            client.as_completed(["a"], **options)

    async def test_as_completed_of_a_closed_client_raises_at_once(self, client):
        await client.close()

        with pytest.raises(ClientClosedError):
            client.as_completed(["a"])

    def test_a_stream_from_another_loop_raises_when_it_is_read(self):
        transport = FakeTransport()

        async def use():
            transport.add("a")
            await client.get("a")

        client = client_over(transport)
        run(use())
        stream = client.as_completed(["a"])

        with pytest.raises(RuntimeError, match="another"):
            run(anext(stream))
