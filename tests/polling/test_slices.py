from __future__ import annotations

import asyncio

import pytest

from xai_tasks._polling.slices import SLICE, in_slices

pytestmark = pytest.mark.fake_clock


@pytest.mark.parametrize("number", [0, 1, SLICE - 1, SLICE, SLICE + 1, 3 * SLICE + 7])
async def test_each_item_is_handled_once_in_order(number):
    handled = []

    await in_slices(iter(range(number)), handled.append)

    assert handled == list(range(number))


async def test_others_get_a_turn_between_slices():
    handled = []
    done = in_slices(iter(range(3 * SLICE)), handled.append)
    seen = []

    while not done.done():
        seen.append(len(handled))
        await asyncio.sleep(0)

    assert seen[:3] == [SLICE, 2 * SLICE, 3 * SLICE]
