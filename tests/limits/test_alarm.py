from __future__ import annotations

import asyncio
import math

import pytest
from fakes import now

from xai_tasks._limits.alarm import Alarm

pytestmark = pytest.mark.fake_clock


@pytest.fixture
def rung():
    return []


@pytest.fixture
def alarm(rung):
    alarm = Alarm(lambda: rung.append((now(), alarm.at)))
    return alarm


async def test_fires_once_at_the_earliest_of_its_times(alarm, rung):
    begin = now()
    for seconds in (5, 3, 8):
        alarm.set(begin + seconds)

    await asyncio.sleep(20)

    assert rung == [(begin + 3, begin + 3)]


async def test_may_be_set_again_once_it_has_fired(alarm, rung):
    begin = now()
    alarm.set(begin + 1)
    await asyncio.sleep(2)

    alarm.set(begin + 5)
    await asyncio.sleep(10)

    assert [time for time, _ in rung] == [begin + 1, begin + 5]


@pytest.mark.parametrize("how", ["cancel", "infinity"])
async def test_cancelled_it_leaves_no_timer(alarm, rung, how):
    alarm.set(now() + 1)

    if how == "cancel":
        alarm.cancel()
        alarm.cancel()
    else:
        alarm.set(math.inf)

    assert asyncio.get_running_loop().timers_left() == []
    await asyncio.sleep(5)
    assert rung == []


async def test_infinity_sets_nothing(alarm):
    alarm.set(math.inf)

    assert asyncio.get_running_loop().timers_left() == []


async def test_a_later_time_sets_no_second_timer(alarm):
    alarm.set(now() + 1)
    timers = asyncio.get_running_loop().timers

    alarm.set(now() + 2)

    assert asyncio.get_running_loop().timers == timers
