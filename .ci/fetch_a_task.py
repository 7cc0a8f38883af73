"""Run with nothing but the wheel installed: what it pulls in, and whether it works."""

from __future__ import annotations

import asyncio
import importlib.metadata
import re

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
own = importlib.metadata.distribution("xai-tasks")
assert own.version == __version__
assert "MIT License" in (own.read_text("licenses/docs/LICENSE") or "")
assert own.read_text("../xai_tasks/py.typed") is not None
description = own.metadata.json["description"]
broken = re.findall(r"\]\((?!https://)[^)]*\)", description)  # a package index has no files
assert description.startswith("# xai_tasks"), description[:100]
assert not broken, broken
print(f"xai_tasks {__version__} alone: imports, fetches, waits; beside it: {sorted(names)}")
