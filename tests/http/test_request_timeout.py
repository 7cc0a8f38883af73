from __future__ import annotations

import asyncio

import pytest

from xai_tasks._http.request_timeout import RequestTimeout

pytestmark = pytest.mark.fake_clock


@pytest.fixture
def deadlines():
    return RequestTimeout(10)


def now():
    return asyncio.get_running_loop().time()


async def request(deadlines, seconds):
    """Take `seconds`, and tell whether time ran out, and when."""
    task = deadlines.start()
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        if not deadlines.stop(task):
            raise
        return "late", now()
    return ("late" if deadlines.stop(task) else "in time"), now()


async def test_request_in_time_continues(deadlines):
    begun = now()

    assert await request(deadlines, 9.9) == ("in time", begun + 9.9)


async def test_each_request_is_cut_at_its_own_time(deadlines):
    begun = now()

    async def later(pause):
        await asyncio.sleep(pause)
        return await request(deadlines, 60)

    ends = await asyncio.gather(*(later(pause) for pause in (0, 3, 3, 9)))

    assert ends == [("late", begun + pause + 10) for pause in (0, 3, 3, 9)]


async def test_one_timer_serves_all(deadlines):
    loop = asyncio.get_running_loop()
    before = loop.timers

    requests = [asyncio.create_task(request(deadlines, 60)) for _ in range(1000)]
    await asyncio.sleep(0)

    assert loop.timers - before == 1000 + 1  # the sleeps have theirs
    await asyncio.wait(requests)


async def test_no_timer_is_left_when_nothing_is_under_way(deadlines):
    await asyncio.gather(*(request(deadlines, seconds) for seconds in (1, 2, 60)))

    assert asyncio.get_running_loop().timers_left() == []


async def test_task_continues_after_its_request_timed_out(deadlines):
    await request(deadlines, 60)

    assert asyncio.current_task().cancelling() == 0
    assert (await request(deadlines, 1))[0] == "in time"


async def test_foreign_cancel_is_not_a_timeout(deadlines):
    task = asyncio.create_task(request(deadlines, 60))
    await asyncio.sleep(9)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.get_running_loop().timers_left() == []


async def test_foreign_cancel_at_the_same_moment_wins(deadlines):
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(request(deadlines, 60))
    await asyncio.sleep(0)
    loop.call_at(now() + 10, task.cancel)

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_earlier_cancel_does_not_count(deadlines):
    async def stubborn():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return await request(deadlines, 60)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    task.cancel()

    assert (await task)[0] == "late"
