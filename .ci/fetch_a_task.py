"""Run with nothing but the wheel installed: what it pulls in, and whether it works."""

from __future__ import annotations

import asyncio
import importlib.metadata

from xai_tasks import TaskClient, TaskStatus, __version__
from xai_tasks.testing import TaskServer

NEEDED = {"aiohttp", "attrs", "tenacity"}
THEIRS = {
    "aiohappyeyeballs",
    "aiosignal",
    "frozenlist",
    "idna",
    "multidict",
    "propcache",
    "typing-extensions",
    "yarl",
}


async def main() -> None:
    async with TaskServer(api_key="made-up-key") as server:
        server.add("a", [("pending", 0.1)], result={"imageUrls": []})
        async with TaskClient("made-up-key", base_url=server.url) as client:
            assert (await client.get("a")).status is TaskStatus.PENDING
            assert (await client.wait("a", timeout=30)).result == {"imageUrls": []}


asyncio.run(main())
names = {
    str(dist.metadata["Name"]).lower().replace("_", "-")
    for dist in importlib.metadata.distributions()
}
strange = names - NEEDED - THEIRS - {"pip", "setuptools", "xai-tasks"}
assert not strange, strange
assert importlib.metadata.version("xai-tasks") == __version__
print(f"xai_tasks {__version__} alone: imports, fetches, waits; beside it: {sorted(names)}")
