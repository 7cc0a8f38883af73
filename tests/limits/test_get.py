"""`get` as a whole: its timeout, and which errors end it at once."""

from __future__ import annotations

import asyncio

import pytest
import tenacity
from fakes import FakeTransport, client_over, now, refused, stalled, status

from xai_tasks import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APITimeoutError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RetryPolicy,
    ServerError,
)
from xai_tasks._errors import mark_transient

pytestmark = pytest.mark.fake_clock

RETRY = RetryPolicy(stop=tenacity.stop_after_attempt(4), wait=tenacity.wait_fixed(1))


def client_of(*faults, latency=0.0, default="pending", retry=RETRY, **options):
    transport = FakeTransport(latency)
    transport.default = default
    transport.fault("a", *faults)
    return client_over(transport, retry=retry, **options), transport


async def error_of(client, **arguments):
    """Return what `get` raises, and the seconds until then."""
    began = now()
    with pytest.raises(APIError) as caught:
        await client.get("a", **arguments)
    return caught.value, now() - began


# The timeout.


@pytest.mark.parametrize("timeout", [None, 0.5, 1e300])
async def test_an_answer_within_the_timeout_is_returned(timeout):
    client, _ = client_of(latency=0.1)

    assert (await client.get("a", timeout=timeout)).status == "pending"


async def test_the_timeout_cuts_a_request():
    client, transport = client_of(stalled)

    error, seconds = await error_of(client, timeout=7)

    assert type(error) is APITimeoutError
    assert str(error) == "task 'a': no good answer within 7 s, the timeout of the call"
    assert error.__context__ is error.__cause__ is None
    assert seconds == pytest.approx(7)
    assert transport.aborted() == ["a"]


async def test_timeout_counts_retries_and_tells_last_error():
    client, transport = client_of(*[status(500)] * 4, latency=1.0)

    error, seconds = await error_of(client, timeout=2.5)

    assert type(error) is APITimeoutError
    assert str(error).endswith("; last error: HTTP 500")
    assert seconds == pytest.approx(2.5)
    assert transport.count() == 2


async def test_error_before_timeout_is_raised():
    client, _ = client_of(*[status(500)] * 4)

    error, seconds = await error_of(client, timeout=60)

    assert type(error) is ServerError
    assert seconds == pytest.approx(3)


async def test_request_timeout_before_timeout_is_its_own():
    late = [lambda task_id: APITimeoutError("no whole answer within 3 s", task_id=task_id)] * 4
    client, _ = client_of(*late)

    error, _ = await error_of(client, timeout=60)

    assert "no whole answer within 3 s" in str(error)


async def test_no_time_at_all_ends_before_any_answer():
    client, _ = client_of(latency=0.1)

    error, seconds = await error_of(client, timeout=0)

    assert type(error) is APITimeoutError
    assert seconds == 0


@pytest.mark.parametrize(("retry_after", "fails"), [(4, False), (6, True), (59, True)])
@pytest.mark.parametrize("code", [429, 503])
async def test_a_retry_after_beyond_the_timeout_fails_now(code, retry_after, fails):
    client, _ = client_of(status(code, retry_after))

    if fails:
        error, seconds = await error_of(client, timeout=5)
        assert (error.status_code, seconds) == (code, 0)
    else:
        await client.get("a", timeout=5)


async def test_the_timeout_counts_the_time_in_the_queue():
    client, transport = client_of(stalled, max_concurrency=1)
    first = asyncio.create_task(client.get("a"))
    await asyncio.sleep(0)

    with pytest.raises(APITimeoutError):
        await client.get("b", timeout=3)

    first.cancel()
    await asyncio.wait([first])
    assert transport.count("b") == 0
    assert client.stats.in_flight == 0


async def test_key_functions_timeout_error_propagates():
    def source():
        raise TimeoutError("the vault is slow")

    client, _ = client_of(api_key=source)

    with pytest.raises(TimeoutError, match="the vault is slow"):
        await client.get("a", timeout=5)


async def test_cancelling_a_get_with_a_timeout_cancels_it():
    client, _ = client_of(stalled)
    get = asyncio.create_task(client.get("a", timeout=5))
    await asyncio.sleep(1)
    get.cancel()

    await asyncio.wait([get])

    assert get.cancelled()
    assert client.stats.in_flight == 0


@pytest.mark.parametrize(
    ("timeout", "error"),
    [
        (-1, ValueError),
        (float("nan"), ValueError),
        (10**400, ValueError),
        ("5", TypeError),
        (True, TypeError),
    ],
)
async def test_invalid_timeout_is_refused(timeout, error):
    client, transport = client_of()

    with pytest.raises(error, match="^timeout must be "):
        await client.get("a", timeout=timeout)
    assert transport.count() == 0


# Marked errors.


def foreign(code):
    return lambda task_id: mark_transient(status(code)(task_id), True)


def too_large(task_id):
    error = APIResponseValidationError("too large", task_id=task_id, status_code=200, body="")
    return mark_transient(error, False)


def untrusted(task_id):
    return mark_transient(refused(task_id), False)


@pytest.mark.parametrize(("code", "cls"), [(403, PermissionDeniedError), (404, NotFoundError)])
async def test_a_foreign_error_page_is_retried(code, cls):
    client, transport = client_of(foreign(code))
    assert (await client.get("a")).status == "pending"
    assert transport.count() == 2

    client, transport = client_of(*[foreign(code)] * 4)
    error, _ = await error_of(client)
    assert type(error) is cls
    assert transport.count() == 4


@pytest.mark.parametrize("statuses", [(), (403, 404)])
async def test_foreign_error_page_is_retried_whatever_statuses(statuses):
    retry = RetryPolicy(statuses=statuses, wait=tenacity.wait_none())
    client, _ = client_of(foreign(403), foreign(404), retry=retry)

    assert (await client.get("a")).status == "pending"


@pytest.mark.parametrize(
    ("fault", "cls"),
    [(too_large, APIResponseValidationError), (untrusted, APIConnectionError)],
)
@pytest.mark.parametrize("verb", ["get", "wait"])
async def test_lasting_faults_are_not_repeated(fault, cls, verb):
    client, transport = client_of(*[fault] * 4)

    with pytest.raises(cls) as caught:
        await getattr(client, verb)("a")

    assert type(caught.value) is cls
    assert transport.count() == 1


async def test_too_long_retry_after_fails_now():
    client, transport = client_of(status(429, 3600))

    error, _ = await error_of(client, timeout=None)

    assert type(error) is RateLimitError
    assert transport.count() == 1
