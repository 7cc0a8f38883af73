"""Long work in slices, so that others on the loop get a turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

SLICE = 1000
"""Items handled without a pause: 5 ms or so."""


def in_slices(items: Iterator[T], action: Callable[[T], None]) -> asyncio.Future[None]:
    """Call `action` with each item: the first slice at once, then one in each turn of the loop.

    Returns:
        a future that is done once all have been handled. It does not have to be awaited.

    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def go_on() -> None:
        count = 0
        for item in islice(items, SLICE):
            count += 1
            action(item)
        if count == SLICE:
            loop.call_soon(go_on)
        else:
            done.set_result(None)

    go_on()
    return done
