"""Many tenants in one process, each with its own key: a client for each, over one session.

In a clone of xai_tasks:    pip install .
Beside this file:           python tenants.py acme=TASK-ID globex=TASK-ID...

MOUNTSEA_API_KEY_ACME holds the key of the tenant acme, and so on. MOUNTSEA_BASE_URL, if set, is the
API's URL.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Self

import aiohttp

from xai_tasks import TaskClient, TaskResult


@dataclass
class Slot:
    """A tenant's client, and the number of its users now."""

    client: TaskClient
    users: int = 0


class Tenants:
    """The clients of the most recent tenants. The least recently used idle one is closed first."""

    def __init__(
        self, make: Callable[[str, aiohttp.ClientSession], TaskClient], most: int = 100
    ) -> None:
        """Keep at most `most` clients, 1 or more; `make` builds one from a tenant and a session."""
        self._make = make
        self._most = most
        self._slots: OrderedDict[str, Slot] = OrderedDict()

    async def __aenter__(self) -> Self:
        # A shared cookie would be sent with another tenant's key. No limit, because the time in
        # the pool's queue would count towards the request timeout.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for slot in self._slots.values():
            await slot.client.close()
        await self._session.close()

    @asynccontextmanager
    async def client(self, tenant: str) -> AsyncIterator[TaskClient]:
        """Lend a tenant's client. It is not closed to make room for others while it is lent."""
        slot = self._slots.get(tenant)
        if slot is None:
            slot = self._slots[tenant] = Slot(self._make(tenant, self._session))
        self._slots.move_to_end(tenant)
        slot.users += 1
        try:
            yield slot.client
        finally:
            slot.users -= 1
            await self._make_room()

    async def _make_room(self) -> None:
        unused = [tenant for tenant, slot in self._slots.items() if not slot.users]
        for tenant in unused[: max(0, len(self._slots) - self._most)]:
            await self._slots.pop(tenant).client.close()


def key_of(tenant: str) -> str:
    """Return a tenant's key. Called on first use, and again after a 401."""
    return os.environ[f"MOUNTSEA_API_KEY_{tenant.upper()}"]


def make_client(tenant: str, session: aiohttp.ClientSession) -> TaskClient:
    """Build a client with a fair part of the process; `rate_limit` could come from a plan."""
    return TaskClient(partial(key_of, tenant), session=session, max_concurrency=8, rate_limit=20)


async def wait(tenants: Tenants, tenant: str, task_id: str) -> TaskResult:
    async with tenants.client(tenant) as client:
        return await client.wait(task_id)


async def main(arguments: Iterable[str]) -> None:
    async with Tenants(make_client) as tenants:
        waits = (wait(tenants, *argument.split("=", 1)) for argument in arguments)
        for outcome in await asyncio.gather(*waits, return_exceptions=True):
            print(repr(outcome))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
