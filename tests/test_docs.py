"""Every Python block of README and docs runs as it stands, a page at
a time, against a TaskServer.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pages import starts_in_file
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

from xai_tasks.testing import TaskServer

ROOT = Path(__file__).parent.parent
PARSERS = [PythonCodeBlockParser(), SkipParser()]


def blocks(page):
    """Return the Python blocks of a page, but for whole files, which have tests of their own."""
    document = Sybil(parsers=PARSERS).parse(page)
    document.namespace["__name__"] = "page"
    return [
        example
        for example in document.examples()
        if not starts_in_file(document.text, example.region.start)
    ]


PAGES = sorted(
    page
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    if "_build" not in page.parts and any(example.region.parsed for example in blocks(page))
)

# The ids that pages use, so that copying a block needs nothing around it.
IDS = ("task-id", "a", "b", "c")


@pytest.fixture(autouse=True)
def loggers_stay_as_they_were():
    """Undo what pages do to loggers: a level that stays lets later tests see other records."""
    loggers = [logging.getLogger(name) for name in (None, "xai_tasks")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run_as_printed(page, monkeypatch, tmp_path):
    with TaskServer.in_thread(api_key="made-up-key") as server:
        for task_id in IDS:
            server.add(task_id, [], result={"imageUrls": ["https://example.com/1.png"]})
        server.accept()
        monkeypatch.setenv("MOUNTSEA_API_KEY", "made-up-key")
        monkeypatch.setenv("MOUNTSEA_BASE_URL", server.url)
        monkeypatch.chdir(tmp_path)
        examples = blocks(page)
        # In a thread, as pages call asyncio.run, and the main thread's loop is the plugin's.
        with ThreadPoolExecutor(1) as thread:
            for example in examples:
                thread.submit(example.evaluate).result()
