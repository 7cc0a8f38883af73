"""What the client logs, and that docs/how-to/observability.md lists all of it."""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import re
from pathlib import Path

import aiohttp
import pytest
from tenacity import wait_fixed

import xai_tasks
from xai_tasks import PollPolicy, TaskClient
from xai_tasks._http import lean
from xai_tasks.testing import Fault, TaskServer

pytestmark = pytest.mark.fake_clock

KEY = "sk-4f1d5e0c8b7a4c0b"
NEW_KEY = "sk-0a9b8c7d6e5f4a3b"
PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "observability.md"
ROW = re.compile(
    r"^\| (DEBUG|INFO|WARNING|ERROR) \| `([^`]+)` \| ((?:`\w+`(?:, )?)+) \|", re.MULTILINE
)
TABLE = {
    message: (level, fields)
    for level, message, fields in ROW.findall(PAGE.read_text(encoding="utf-8"))
}
"""Level and fields of each record, by its message before arguments are put in."""


class Keeper(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.format(record)
        self.records.append(record)


@pytest.fixture
def records():
    """Every record that a test causes; none has the key, and each is as the page says."""
    keeper, logger = Keeper(), logging.getLogger("xai_tasks")
    logger.addHandler(keeper)
    logger.setLevel(logging.DEBUG)
    yield keeper.records
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(keeper)
    assert keeper.records
    for record in keeper.records:
        assert record.name == "xai_tasks"
        level, fields = TABLE[record.msg]
        assert record.levelname == level
        assert ", ".join(f"`{name}`" for name in extra(record)) == fields
        shown = logging.Formatter().format(record) + repr(vars(record))
        assert KEY not in shown
        assert NEW_KEY not in shown


@pytest.fixture
async def server():
    async with TaskServer(api_key=KEY) as server:
        yield server


@pytest.fixture
async def client(server):
    async with TaskClient(KEY, base_url=server.url, poll=PollPolicy(wait=wait_fixed(5))) as client:
        yield client


STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime"}


def extra(record):
    """Return the fields that a record has beyond those that every one has."""
    return {name: value for name, value in vars(record).items() if name not in STANDARD}


def said(records, level=logging.INFO):
    return [(record.message, extra(record)) for record in records if record.levelno >= level]


def echo(status):
    return Fault.status(status, body=json.dumps({"message": f"no such key: {KEY}"}).encode())


async def test_a_retry(server, client, records):
    server.add("a")
    server.fault("a", echo(500), Fault.reset(at="accept"), Fault.reset(at="accept"))

    await client.get("a")

    (first, facts), (second, more) = said(records)
    assert re.fullmatch(r"retrying in [\d.e-]+ s: task 'a': HTTP 500: no such key: \[key\]", first)
    assert facts == {
        "task_id": "a",
        "error": "ServerError",
        "attempt": 1,
        "seconds": facts["seconds"],
    }
    assert 0 <= facts["seconds"] <= 0.5
    assert re.fullmatch(
        r"retrying in [\d.e-]+ s: task 'a': (ServerDisconnected|ClientOS)Error.*", second
    )
    assert more == {
        "task_id": "a",
        "error": "APIConnectionError",
        "attempt": 2,
        "seconds": more["seconds"],
    }


async def test_a_retry_with_a_renewed_key(server, records):
    server.add("a")
    server.api_key = NEW_KEY
    keys = iter([KEY, NEW_KEY])

    async with TaskClient(lambda: next(keys), base_url=server.url) as client:
        await client.get("a")

    ((message, facts),) = said(records)
    assert message.startswith("asking again with a renewed key: task 'a': HTTP 401")
    assert facts == {"task_id": "a", "error": "AuthenticationError"}


async def test_a_pause(server, client, records):
    server.add("a")
    server.fault("a", Fault.status(429, headers={"Retry-After": "3"}))

    await client.wait("a")

    pause, retry = said(records)
    assert pause == ("the server asks for a pause of 3 s", {"seconds": 3.0})
    assert retry[0].startswith("retrying in 3 s: task 'a': HTTP 429")
    assert retry[1] == {"task_id": "a", "error": "RateLimitError", "attempt": 1, "seconds": 3.0}


async def test_an_outage_as_it_begins_and_as_it_is_over(server, client, records):
    ids = [server.add(f"task-{number}") for number in range(20)]
    server.disturb(1.0, echo(503))

    waits = asyncio.gather(*map(client.wait, ids))
    await asyncio.sleep(60)
    server.disturb(0.0)
    await waits

    (begun, facts), (over, more) = said(records, logging.WARNING)
    assert begun == (
        "an outage has begun: polls stop but for one probe at a time; last error: "
        f"task {facts['task_id']!r}: HTTP 503: no such key: [key]"
    )
    assert facts == {"task_id": facts["task_id"], "error": "ServerError"}
    assert facts["task_id"] in ids
    assert re.fullmatch(
        r"the outage is over: the server answers again, [\d.]+ s after it began", over
    )
    assert 60 <= more["seconds"] <= 60 + 15


async def test_an_unknown_status(server, client, records):
    server.add("a", [("queued", 7)])

    await client.wait("a")
    await client.wait("a")

    assert said(records) == [
        (
            "task 'a' has the status 'queued', which this version does not know",
            {"task_id": "a", "status": "queued"},
        )
    ]


async def test_an_answer_that_tells_of_another_task(server, client, records):
    # The second time on a connection that was used before, so it is asked again on a new one.
    server.fault("a", *[Fault.body(b'{"taskId": "b", "status": "completed"}')] * 3)

    await client.get("a")
    await client.get("a")

    assert said(records) == [
        (
            "asked for task 'a', the server told of 'b'; further such answers are not logged",
            {"task_id": "a"},
        )
    ]
    assert said(records, logging.DEBUG)[1:] == [
        (
            "an answer for task 'b' came in place of that for 'a': asking again",
            {"task_id": "a"},
        )
    ]


async def test_an_aiohttp_that_the_lean_classes_do_not_fit(server, client, records, monkeypatch):
    monkeypatch.setattr(lean, "_verdict", None)
    monkeypatch.setattr(lean.Wire, "request", lambda wire, query: b"GET / HTTP/1.1\r\n\r\n")
    server.add("a")

    await client.get("a")

    assert said(records, logging.DEBUG) == [
        (
            f"aiohttp {aiohttp.__version__}: sending ordinary requests",
            {"aiohttp": aiohttp.__version__},
        )
    ]


async def test_a_long_wait_says_nothing_above_debug(server, client, records):
    server.add("a", [("pending", 100), ("processing", 400)])

    await client.wait("a")

    assert said(records) == []
    assert server.count("a") == 101
    polls = said(records, logging.DEBUG)
    assert len(polls) == 100
    assert polls[0] == (
        "polled task 'a': pending; next poll in 5 s",
        {"task_id": "a", "seconds": 5.0},
    )
    assert polls[-1] == (
        "polled task 'a': processing; next poll in 5 s",
        {"task_id": "a", "seconds": 5.0},
    )


async def test_a_failed_poll_says_why_at_debug(server, client, records):
    server.add("a")
    server.fault("a", *[echo(501)])

    await client.wait("a")

    assert said(records) == []
    assert said(records, logging.DEBUG) == [
        (
            "polled task 'a': task 'a': HTTP 501: no such key: [key]; next poll in 5 s",
            {"task_id": "a", "seconds": 5.0},
        )
    ]


async def test_ids_can_forge_no_line(server, client, records):
    task_id = server.add("a\nWARNING all is lost", [("queued", 1)])

    await client.wait(task_id)

    assert len(said(records)) == 1
    assert not any("\n" in record.message for record in records)


def test_the_page_lists_every_record():
    listed = {message: level for message, (level, _) in TABLE.items()}

    assert listed == dict(calls_of_the_logger())


def calls_of_the_logger():
    for path in Path(xai_tasks.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("logger."):
                level = node.func.attr.upper()
                if level in ("DEBUG", "INFO", "WARNING", "ERROR"):
                    yield ast.literal_eval(node.args[0]), level
