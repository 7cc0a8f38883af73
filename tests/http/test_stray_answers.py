"""Answers for another task than the one that was asked for."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import unquote

import aiohttp
import pytest
from raw_server import RawServer, response

from xai_tasks import APIResponseValidationError, RetryPolicy, ServerError, TaskClient


def answer(task_id, status="pending"):
    body = json.dumps({"taskId": task_id, "status": status}).encode()
    return response(200, body).replace(b"Connection: close\r\n", b"")


class Connections:
    """Serves kept-alive connections; `play` says what to write for a request."""

    def __init__(self, play):
        self.play = play
        self.opened = 0
        self.asked = []

    async def __call__(self, reader, writer, *, head=None):
        self.opened += 1
        connection, turn = self.opened, 0
        while True:
            head = await reader.readuntil(b"\r\n\r\n") if turn else head
            turn += 1
            task_id = unquote(head.split(b" ")[1].decode().partition("taskId=")[2])
            self.asked.append((task_id, connection, turn))
            for part in self.play(task_id, connection, turn):
                if isinstance(part, bytes):
                    writer.write(part)
                else:
                    await part


@pytest.fixture
async def serve():
    """Start servers of kept-alive connections."""
    started = []

    async def serve(play):
        connections = Connections(play)
        server = RawServer()

        async def default(reader, writer):
            await connections(reader, writer, head=server.requests[-1])

        server.default = default
        started.append(await server.__aenter__())
        connections.url = server.url
        return connections

    yield serve
    for server in started:
        await server.__aexit__()


def shifted(late):
    """Answer each request on the first connection with `late`, and then as asked."""

    def play(task_id, connection, turn):
        if connection == 1 and turn > 1:
            return [answer(late)]
        return [answer(task_id)]

    return play


async def test_an_unasked_answer_shifts_no_later_one(serve, make):
    def play(task_id, connection, turn):
        extra = [answer("stray", "completed")] if (connection, turn) == (1, 1) else []
        return [answer(task_id), *extra]

    server = await serve(play)
    transport = make(server.url)
    await transport.fetch("first")
    await asyncio.sleep(0.01)  # the unasked answer arrives on the idle connection

    tasks = [(await transport.fetch(f"task-{n}")).task.task_id for n in range(20)]

    assert tasks == [f"task-{n}" for n in range(20)]


async def test_wrong_task_on_used_connection_is_asked_again(serve, make):
    server = await serve(shifted("other"))
    transport = make(server.url)

    ids = [(await transport.fetch(task_id)).task.task_id for task_id in ("a", "b", "c", "c")]

    assert ids == ["a", "b", "c", "c"]
    # The first connection was closed after its second answer, and the next one kept.
    assert server.asked[:3] == [("a", 1, 1), ("b", 1, 2), ("b", 2, 1)]
    assert {connection for _, connection, _ in server.asked[3:]} == {3}


async def test_a_new_connections_answer_is_taken_as_it_is(serve, make):
    server = await serve(lambda task_id, connection, turn: [answer(task_id.upper())])
    transport = make(server.url)

    ids = [(await transport.fetch(task_id)).task.task_id for task_id in ("a", "b")]

    assert ids == ["A", "B"]
    # "b" came on a used connection at first.
    assert server.asked == [("a", 1, 1), ("b", 1, 2), ("b", 2, 1)]


async def test_error_in_place_of_second_answer_is_raised(serve, make):
    def play(task_id, connection, turn):
        return [answer(task_id) if turn == 1 == connection else answer("other")]

    server = await serve(lambda *asked: [response(500)] if asked[1] > 1 else play(*asked))
    transport = make(server.url)
    await transport.fetch("a")

    with pytest.raises(ServerError, match="task 'b': HTTP 500"):
        await transport.fetch("b")


@pytest.mark.parametrize(
    ("answers", "asked", "taken"),
    [
        (["a"], 1, "a"),
        (["A", "A"], 2, "A"),
        (["stray", "a"], 2, "a"),
        (["stray", "astray"], 2, None),
    ],
)
async def test_a_borrowed_session_is_asked_again_once(serve, make, answers, asked, taken):
    waiting = iter(answers)
    server = await serve(lambda task_id, connection, turn: [answer(next(waiting))])
    async with aiohttp.ClientSession() as session:
        transport = make(server.url, session=session)
        if taken is None:
            with pytest.raises(APIResponseValidationError, match="for two other tasks"):
                await transport.fetch("a")
        else:
            assert (await transport.fetch("a")).task.task_id == taken

    assert len(server.asked) == asked


@pytest.mark.parametrize("own", [True, False])
async def test_asking_again_is_no_retry(serve, make, own, caplog):
    server = await serve(lambda task_id, connection, turn: [answer(task_id.upper())])
    async with aiohttp.ClientSession() as session:
        client = TaskClient(
            "key",
            base_url=server.url,
            session=None if own else session,
            retry=RetryPolicy(stop=lambda state: True, budget=0),
        )
        async with client:
            for _ in range(3):
                assert (await client.get("a")).task_id == "A"

            assert (client.stats.requests, client.stats.retries) == (3, 0)
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1


async def test_every_way_to_wait_gets_its_own_tasks(serve, make):
    """An unasked answer on each connection; nobody gets another task's."""

    def play(task_id, connection, turn):
        extra = [answer("stray", "completed")] if turn == 1 else []
        return [answer(task_id, "completed"), *extra]

    server = await serve(play)
    ids = [f"task-{n}" for n in range(40)]
    async with TaskClient("key", base_url=server.url, max_concurrency=4) as client:
        single = await asyncio.gather(*map(client.wait, ids))
        together = await client.wait_all(ids)
        streamed = [outcome async for outcome in client.as_completed(ids)]

    assert [task.task_id for task in single] == ids
    assert [task.task_id for task in together] == ids
    assert {o.task_id: o.task.task_id for o in streamed} == {i: i for i in ids}
