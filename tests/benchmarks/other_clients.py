"""What else asks an HTTP API from Python: httpx, and a client generated from the API
document, which is built on it.

Apart from `baselines`, so that only those who measure it import httpx.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import baselines
import httpx

_DOCUMENT = Path(__file__).parents[1] / "openapi.yaml"
_PACKAGE = "generated_client"

GENERATOR = "openapi-python-client"
INSTALL = f"pip install {GENERATOR}"


def generate(folder: Path) -> str | None:
    """Put a client made from the API document into `folder`; give why not, where
    the generator isn't installed.
    """
    # Beside the running interpreter, which need not be on the PATH; or wherever pipx has put it.
    path = str(Path(sys.executable).parent)
    generator = shutil.which(GENERATOR, path=path) or shutil.which(GENERATOR)
    if generator is None:
        return f"{GENERATOR} is not installed: `{INSTALL}`"
    subprocess.run(
        [
            generator,
            "generate",
            "--path",
            _DOCUMENT,
            "--meta",
            "none",
            "--output-path",
            folder / _PACKAGE,
        ],
        check=True,
        capture_output=True,
    )
    return None


def httpx_client(url: str) -> httpx.AsyncClient:
    """Return a client with as many connections as the others have, which it
    keeps while it is not its turn.
    """
    most = baselines.CONNECTIONS
    limits = httpx.Limits(
        max_connections=most, max_keepalive_connections=most, keepalive_expiry=None
    )
    return httpx.AsyncClient(
        base_url=url, limits=limits, timeout=None, headers={"Authorization": "Bearer made-up-key"}
    )


async def httpx_get(client: httpx.AsyncClient, task_id: str) -> baselines.Task:
    """Make one request, and decode it as the bare ones are."""
    response = await client.get("/xai/tasks", params={"taskId": task_id})
    response.raise_for_status()
    return baselines.decode(response.content)


def generated_client(folder: Path, url: str) -> tuple[Any, Callable[[str], Awaitable[Any]]]:
    """Return the client that `generate` made, with its defaults, and a function
    that makes one request with it.
    """
    sys.path.append(str(folder))
    (operation,) = (folder / _PACKAGE / "api").glob("*/*_get_task_result.py")
    module = importlib.import_module(f"{_PACKAGE}.api.{operation.parent.name}.{operation.stem}")
    client = importlib.import_module(_PACKAGE).AuthenticatedClient(
        base_url=url, token="made-up-key"
    )

    async def get(task_id: str) -> Any:
        task = await module.asyncio(client=client, task_id=task_id)
        assert task.task_id == task_id
        return task

    return client, get
