from __future__ import annotations

import asyncio
import itertools
import pickle
import time
from unittest import mock

import pytest
from fakes import (
    FakeTransport,
    assert_nothing_runs,
    client_over,
    later,
    now,
    run,
    says,
    stalled,
    status,
)
from tenacity import wait_fixed

from xai_tasks import (
    AuthenticationError,
    BadRequestError,
    ClientClosedError,
    ClientStats,
    ConfigurationError,
    InvalidTaskIdError,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    PollPolicy,
    RetryPolicy,
    ServerError,
    TaskCancelledError,
    TaskClient,
    TaskError,
    TaskFailedError,
    TaskResult,
    TaskStatus,
    TaskTimedOutError,
    WaitTimeoutError,
)
from xai_tasks.testing import Fault, TaskServer

KEY = "made-up-key"
QUICK = PollPolicy(wait=wait_fixed(0.1))


@pytest.fixture
async def server():
    async with TaskServer(api_key=KEY) as server:
        yield server


@pytest.fixture
async def client(server):
    async with TaskClient(KEY, base_url=server.url, poll=QUICK) as client:
        yield client


@pytest.fixture
def transport():
    return FakeTransport()


class TestConstructor:
    """Wrong arguments raise in the constructor, and name themselves."""

    @pytest.mark.parametrize(
        "options, error, message",
        [
            ({"request_timeout": 0}, ValueError, "request_timeout"),
            ({"request_timeout": -1}, ValueError, "request_timeout"),
            ({"request_timeout": None}, TypeError, "request_timeout"),
            ({"max_concurrency": 0}, ValueError, "max_concurrency"),
            ({"max_concurrency": 2.5}, TypeError, "max_concurrency"),
            ({"max_concurrency": True}, TypeError, "max_concurrency"),
            ({"rate_limit": 0}, ValueError, "rate_limit"),
            ({"rate_limit": float("inf")}, ValueError, "rate_limit"),
            ({"max_response_bytes": 0}, ValueError, "max_response_bytes"),
            ({"retry": PollPolicy()}, TypeError, "retry must be a RetryPolicy"),
            ({"poll": RetryPolicy()}, TypeError, "poll must be a PollPolicy"),
            ({"session": object()}, TypeError, "session"),
            ({"base_url": "api.mountsea.ai"}, ConfigurationError, "base_url"),
            ({"base_url": "http://api.mountsea.ai"}, ConfigurationError, "allow_insecure_http"),
            ({"base_url": "https://me:secret@api.mountsea.ai"}, ConfigurationError, "base_url"),
            ({"base_url": 7}, TypeError, "base_url"),
            ({"user_agent": "a\nb"}, ValueError, "user_agent"),
        ],
    )
    def test_refuses_what_is_out_of_range(self, options, error, message):
        with pytest.raises(error, match=message):
            TaskClient(KEY, **options)

    @pytest.mark.parametrize("key", ["", "  ", "line\n", "käse", "\x00key"])
    def test_refuses_a_malformed_key(self, key):
        with pytest.raises(ConfigurationError, match="api_key"):
            TaskClient(key)

    def test_takes_key_and_base_url_from_the_environment(self, monkeypatch):
        monkeypatch.setenv("MOUNTSEA_API_KEY", KEY)
        monkeypatch.setenv("MOUNTSEA_BASE_URL", "https://example.com/gateway/")

        assert "https://example.com/gateway " in repr(TaskClient())

    def test_a_bad_base_url_in_the_environment_is_called_by_its_name_there(self, monkeypatch):
        monkeypatch.setenv("MOUNTSEA_BASE_URL", "example.com")

        with pytest.raises(ConfigurationError, match="^MOUNTSEA_BASE_URL must be like"):
            TaskClient("test-key")

    def test_asks_the_api_by_default(self, monkeypatch):
        monkeypatch.delenv("MOUNTSEA_BASE_URL", raising=False)

        assert "https://api.mountsea.ai " in repr(TaskClient(KEY))

    def test_without_any_key_says_where_to_put_one(self, monkeypatch):
        monkeypatch.delenv("MOUNTSEA_API_KEY", raising=False)
        monkeypatch.setenv("XAI_API_KEY", "another vendor's")

        with pytest.raises(ConfigurationError, match="MOUNTSEA_API_KEY"):
            TaskClient()

    def test_plain_http_beyond_loopback_is_the_users_own_choice(self):
        TaskClient(KEY, base_url="http://gateway.internal", allow_insecure_http=True)

    def test_two_clients_have_a_poll_policy_each_unless_given_one(self):
        shared = PollPolicy()

        assert TaskClient(KEY)._poll.wait is not TaskClient(KEY)._poll.wait
        assert TaskClient(KEY, poll=shared)._poll.wait is TaskClient(KEY, poll=shared)._poll.wait


class TestGet:
    async def test_is_one_look(self, client, server):
        server.add("a", [("pending", 60)])

        task = await client.get("a")

        assert (task.task_id, task.status, task.done) == ("a", TaskStatus.PENDING, False)
        assert server.count() == 1

    @pytest.mark.parametrize("end", ["failed", "cancelled", "timeout"])
    async def test_never_raises_for_how_a_task_ended(self, client, server, end):
        server.add("a", **{end: ("boom", 42)})

        task = await client.get("a")

        assert (task.status.value, task.error_message, task.error_code) == (end, "boom", 42)

    async def test_retries_passing_faults(self, client, server):
        server.add("a", result={"videoUrl": "https://example.com"})
        server.fault("a", Fault.status(503), Fault.truncate())

        assert (await client.get("a")).result == {"videoUrl": "https://example.com"}
        assert not server.faults_left
        assert client.stats.retries == 2

    @pytest.mark.parametrize(
        "code, error",
        [
            (400, BadRequestError),
            (401, AuthenticationError),
            (402, PaymentRequiredError),
            (403, PermissionDeniedError),
            (404, NotFoundError),
            (422, BadRequestError),
        ],
    )
    async def test_raises_a_refusal_at_once(self, client, server, code, error):
        server.add("a")
        server.fault("a", Fault.status(code, body=b'{"message": "no, sorry", "traceId": "t-1"}'))

        with pytest.raises(error, match="'a'.*no, sorry.*t-1") as caught:
            await client.get("a")

        assert caught.value.status_code == code
        assert caught.value.trace_id == "t-1"
        assert server.count() == 1

    async def test_checks_the_id_before_any_request(self, client, server):
        with pytest.raises(InvalidTaskIdError, match="task_id"):
            await client.get("")
        with pytest.raises(TypeError, match="task_id"):
            await client.get(7)

        assert server.count() == 0


class TestWait:
    async def test_polls_until_the_task_has_ended(self, client, server):
        server.add(
            "a", [("pending", 0.1), ("ready", 0.1), ("processing", 0.2)], result={"imageUrls": []}
        )

        task = await client.wait("a", timeout=30)

        assert task.succeeded
        assert task.result == {"imageUrls": []}
        assert server.count() >= 3

    @pytest.mark.parametrize(
        "end, error",
        [
            ("failed", TaskFailedError),
            ("cancelled", TaskCancelledError),
            ("timeout", TaskTimedOutError),
        ],
    )
    async def test_raises_how_the_task_ended_unless_told_not_to(self, client, server, end, error):
        server.add("a", **{end: ("boom", 42)})

        with pytest.raises(error, match=r"'a'.*boom.*42.*trace id") as caught:
            await client.wait("a")
        assert caught.value.task == await client.wait("a", check=False)

    @pytest.mark.fake_clock
    async def test_an_unknown_status_with_an_end_date_is_an_end_and_a_task_error_itself(
        self, transport
    ):
        transport.fault(
            "a", says("evaporated"), says("evaporated", finishedAt="2026-01-01T00:00:00Z")
        )
        async with client_over(transport) as client:
            with pytest.raises(TaskError, match="evaporated") as caught:
                await client.wait("a")

        assert type(caught.value) is TaskError

    async def test_a_thousand_waits_on_ten_ids_ask_as_often_as_one_wait_on_each(
        self, server, client
    ):
        ids = [server.add(f"task-{n}", [("processing", 0.45)]) for n in range(10)]

        await asyncio.gather(*(client.wait(ids[n % 10]) for n in range(1000)))

        polls = 5 + 1  # while it runs, and the one that sees the end
        assert client.stats.polls == server.count() <= 10 * polls
        for task_id in ids:
            times = [request.time for request in server.requests if request.task_id == task_id]
            assert all(later - earlier > 0.09 for earlier, later in itertools.pairwise(times))

    async def test_ends_in_time_on_a_stalled_server_holding_the_last_result(self, server):
        server.add("a", [("processing", 60)])
        async with TaskClient(KEY, base_url=server.url, poll=QUICK) as client:
            wait = asyncio.create_task(client.wait("a", timeout=2))
            await server.wait_for_requests(2)
            server.disturb(1.0, Fault.stall())
            began = time.monotonic()

            with pytest.raises(WaitTimeoutError) as caught:
                await wait

            assert time.monotonic() - began < 3
        assert caught.value.last.status is TaskStatus.PROCESSING
        assert caught.value.timeout == 2

    @pytest.mark.fake_clock
    async def test_a_minutes_wait_outlives_twenty_seconds_of_503(self, transport):
        async with client_over(transport, poll=PollPolicy(wait=wait_fixed(1))) as client:
            transport.add("a", ("processing", 55))
            begin = now()
            transport.weather = lambda task_id: status(503) if 10 < now() - begin < 30 else None

            task = await client.wait("a", timeout=60)

        assert task.succeeded
        assert now() - begin < 57

    @pytest.mark.fake_clock
    async def test_timeout_none_waits_without_limit_and_the_default_is_the_policys(self, transport):
        async with client_over(
            transport, poll=PollPolicy(wait=wait_fixed(100), timeout=600)
        ) as client:
            transport.add("a", ("processing", 100_000))
            with pytest.raises(WaitTimeoutError, match="600 s"):
                await client.wait("a")

            assert (await client.wait("a", timeout=None)).succeeded

    @pytest.mark.fake_clock
    async def test_the_error_of_a_timeout_holds_the_last_error_met(self, transport):
        transport.weather = lambda task_id: status(503)
        async with client_over(transport) as client:
            with pytest.raises(WaitTimeoutError, match="last error: .*503") as caught:
                await client.wait("a", timeout=3)

        assert isinstance(caught.value.last_error, ServerError)
        assert caught.value.last is None

    @pytest.mark.fake_clock
    async def test_the_last_waiter_to_leave_aborts_the_request(self, transport):
        transport.fault("a", stalled)
        async with client_over(transport) as client:
            first, second = (asyncio.create_task(client.wait("a")) for _ in range(2))
            await asyncio.sleep(1)

            first.cancel()
            await asyncio.sleep(1)
            assert transport.aborted() == []
            second.cancel()
            await asyncio.wait([first, second])
            assert transport.aborted() == ["a"]
            assert first.cancelled() and second.cancelled()

            await assert_nothing_runs(client)

    @pytest.mark.fake_clock
    async def test_waits_under_different_policies_poll_apart(self, transport):
        async with client_over(transport) as client:
            transport.add("a", ("processing", 9.5))
            await asyncio.gather(
                client.wait("a", poll=PollPolicy(wait=wait_fixed(1))),
                client.wait("a", poll=PollPolicy(wait=wait_fixed(5))),
            )

        assert transport.count("a") == (1 + 9) + (1 + 2)

    @pytest.mark.fake_clock
    async def test_equal_policies_share_a_poll_loop(self, transport):
        every_second = wait_fixed(1)
        async with client_over(transport) as client:
            transport.add("a", ("processing", 9.5))
            await asyncio.gather(
                *(
                    client.wait("a", poll=PollPolicy(wait=every_second), timeout=50 + n)
                    for n in range(5)
                )
            )

        assert transport.count("a") == 10

    @pytest.mark.fake_clock
    async def test_one_who_joins_with_less_time_leaves_in_time(self, transport):
        async with client_over(transport, poll=PollPolicy(wait=wait_fixed(30))) as client:
            transport.add("a", ("processing", 100))
            patient = asyncio.create_task(client.wait("a"))
            await asyncio.sleep(1)
            joined = now()

            with pytest.raises(WaitTimeoutError):
                await client.wait("a", timeout=5)

            assert now() - joined == pytest.approx(5)
            assert (await patient).succeeded

    @pytest.mark.fake_clock
    async def test_an_expired_key_is_renewed_once_for_all(self, transport):
        keys = iter(["first-key", "second-key", "third-key"])
        asked = []

        async def key():
            asked.append(now())
            await asyncio.sleep(0.5)
            return next(keys)

        async with client_over(
            transport, api_key=key, poll=PollPolicy(wait=wait_fixed(1))
        ) as client:
            transport.add_many(40, 5)
            begin = now()
            transport.fault(None, *[says("processing")] * 40, *[status(401)] * 40)

            tasks = await client.wait_all([f"task-{n}" for n in range(40)])

        assert all(task.succeeded for task in tasks)
        assert len(asked) == 2
        assert now() - begin < 10

    @pytest.mark.fake_clock
    async def test_a_key_refused_anew_ends_the_wait(self, transport):
        transport.weather = lambda task_id: status(401)
        async with client_over(transport, api_key=lambda: "a-key") as client:
            with pytest.raises(AuthenticationError):
                await client.wait("a")

        assert transport.count() == 2

    @pytest.mark.parametrize(
        "options, error, message",
        [
            ({"timeout": -0.1}, ValueError, "timeout"),
            ({"timeout": float("inf")}, ValueError, "None means no limit"),
            ({"timeout": True}, TypeError, "timeout"),
            ({"poll": object()}, TypeError, "PollPolicy"),
        ],
    )
    async def test_checks_its_arguments(self, client, server, options, error, message):
        with pytest.raises(error, match=message):
            await client.wait("a", **options)
        assert server.count() == 0

    async def test_checks_the_id_before_any_request(self, client, server):
        with pytest.raises(InvalidTaskIdError):
            await client.wait("")
        with pytest.raises(TypeError):
            await client.wait(None)
        assert server.count() == 0


class TestStats:
    @pytest.mark.fake_clock
    async def test_counts_requests_retries_polls_429s_and_what_is_under_way(self, transport):
        async with client_over(transport, poll=PollPolicy(wait=wait_fixed(1))) as client:
            assert client.stats == ClientStats()
            transport.add("a", ("processing", 1.5))
            transport.fault("a", status(429, retry_after=1), status(503))
            wait = asyncio.create_task(client.wait("a"))
            await asyncio.sleep(0.05)

            assert client.stats == ClientStats(requests=1, waiting=1, in_flight=1)
            await wait
            await client.get("a")

        stats = client.stats
        assert stats.requests == transport.count()
        assert (stats.retries, stats.rate_limited, stats.waiting, stats.in_flight) == (2, 1, 0, 0)
        assert stats.polls == transport.count() - 2 - 1  # without the retries, and the look


class TestClose:
    async def test_ends_every_open_wait_and_closes_the_session(self, server):
        server.add("a", [("processing", 60)])
        client = TaskClient(KEY, base_url=server.url, poll=QUICK)
        waits = [asyncio.create_task(client.wait("a")) for _ in range(3)]
        await server.wait_for_requests(2)

        await client.close()

        assert client.closed
        results = await asyncio.gather(*waits, return_exceptions=True)
        assert [type(result) for result in results] == [ClientClosedError] * 3
        assert len({id(result) for result in results}) == 3
        assert client._parts.transport._sessions._session.closed

    async def test_twice_is_fine_and_never_used_is_too(self, server):
        client = TaskClient(KEY, base_url=server.url)

        await client.close()
        await client.close()

        for verb in (client.get, client.wait):
            with pytest.raises(ClientClosedError):
                await verb("a")
        with pytest.raises(ClientClosedError):
            async with client:
                pass

    async def test_ends_a_get_under_way(self, server):
        server.add("a")
        server.fault("a", Fault.stall())
        client = TaskClient(KEY, base_url=server.url)
        get = asyncio.create_task(client.get("a"))
        await server.wait_for_requests(1)

        await client.close()

        with pytest.raises(ClientClosedError):
            await asyncio.wait_for(get, 10)

    @pytest.mark.fake_clock
    async def test_ends_a_get_in_a_queue_and_one_between_two_attempts(self, transport):
        client = client_over(
            transport, max_concurrency=1, retry=RetryPolicy(wait=wait_fixed(50), statuses={503})
        )
        transport.fault("between", status(503))
        transport.fault("stalled", stalled)
        between = asyncio.create_task(client.get("between"))
        await asyncio.sleep(1)
        others = [asyncio.create_task(client.get(task_id)) for task_id in ("stalled", "queued")]
        await asyncio.sleep(1)

        began = now()
        await client.close()
        results = await asyncio.gather(between, *others, return_exceptions=True)

        assert [type(result) for result in results] == [ClientClosedError] * 3
        assert now() == began
        await assert_nothing_runs(client)

    @pytest.mark.fake_clock
    async def test_in_the_same_breath_as_a_wait_is_cancelled_leaves_it_cancelled(self, transport):
        client = client_over(transport)
        transport.fault("a", stalled)
        wait = asyncio.create_task(client.wait("a"))
        await asyncio.sleep(1)

        wait.cancel()
        await client.close()

        await asyncio.wait([wait])
        assert wait.cancelled()
        await assert_nothing_runs(client)

    @pytest.mark.fake_clock
    async def test_cancelled_half_way_can_be_done_again(self, transport):
        client = client_over(transport)
        transport.fault("a", stalled)
        wait = asyncio.create_task(client.wait("a"))
        await asyncio.sleep(1)
        closing = asyncio.create_task(client.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])

        await client.close()

        with pytest.raises(ClientClosedError):
            await wait
        await assert_nothing_runs(client)


class TestLoops:
    def test_may_be_built_outside_a_loop(self):
        transport = FakeTransport()
        client = client_over(transport)

        async def use():
            transport.add("a")
            async with client:
                return await client.wait("a")

        assert run(use()).succeeded

    def test_in_a_second_loop_says_so(self):
        transport = FakeTransport()
        client = client_over(transport)

        async def use():
            transport.add("a")
            return await client.get("a")

        run(use())
        for verb in (client.get, client.wait):
            with pytest.raises(RuntimeError, match="another"):
                run(verb("a"))
        with pytest.raises(RuntimeError, match="another"):
            run(client.close())

    @pytest.mark.fake_clock
    async def test_a_system_clock_that_jumps_changes_nothing(self, transport, monkeypatch):
        async with client_over(transport, poll=PollPolicy(wait=wait_fixed(1))) as client:
            transport.add("a", ("processing", 10))
            begin = now()
            real = time.time
            _, task = await asyncio.gather(
                later(5, monkeypatch.setattr, time, "time", lambda: real() + 3600), client.wait("a")
            )

        assert task.succeeded
        assert now() - begin < 12
        assert transport.count() == 10  # a second's sleep and a request of a tenth each


async def test_methods_can_be_patched():
    task = TaskResult("a", "completed")
    async with TaskClient("key") as client:
        with mock.patch.object(client, "wait", return_value=task) as wait:
            assert await client.wait("a") is task
        wait.assert_awaited_once_with("a")

        assert client.wait.__self__ is client


def test_refuses_to_be_pickled():
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(TaskClient(KEY))


def test_repr_tells_the_url_and_how_it_is():
    client = TaskClient(KEY, base_url="https://example.com")

    assert repr(client) == "<TaskClient https://example.com 0 waiting>"
    run(client.close())
    assert repr(client) == "<TaskClient https://example.com closed>"


def test_the_default_of_timeout_reads_as_the_policys():
    assert repr(TaskClient.wait.__kwdefaults__["timeout"]) == "<policy>"
