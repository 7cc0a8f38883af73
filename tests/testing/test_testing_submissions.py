"""Submissions to TaskServer: what is accepted, and what becomes of it."""

from __future__ import annotations

import asyncio

import pytest
from raw_peer import connected

from xai_tasks.testing import Fault, TaskServer, constant

CAT = {"prompt": "a cat", "model": "grok-imagine-video"}


@pytest.fixture
async def server():
    async with TaskServer() as server:
        yield server


@pytest.fixture
async def peer(server):
    async with connected(server) as peer:
        yield peer


async def submitted(peer, job=CAT, path="/xai/videos"):
    peer.post(job, path)
    return await peer.json()


async def task(peer, task_id):
    peer.ask(task_id)
    return (await peer.json())[1]


@pytest.mark.parametrize(
    ("path", "field"), [("/xai/videos", "videoUrl"), ("/xai/images", "imageUrls")]
)
async def test_submission_makes_a_task_that_completes(server, peer, path, field):
    status, answer = await submitted(peer, path=path)

    assert (status, answer) == (200, {"taskId": "submitted-1"})
    assert (await task(peer, "submitted-1"))["status"] == "pending"
    server.advance("submitted-1")
    server.advance("submitted-1")
    ended = await task(peer, "submitted-1")
    assert ended["status"] == "completed"
    assert list(ended["result"]) == [field]


async def test_accept_scripts_the_tasks_to_come(server, peer):
    server.accept("processing", result={"videoUrl": "u"})
    await submitted(peer)
    server.accept(failed=("bad prompt", 40001))
    await submitted(peer)

    assert (await task(peer, "submitted-1"))["status"] == "processing"
    server.advance("submitted-1")
    assert (await task(peer, "submitted-1"))["result"] == {"videoUrl": "u"}
    assert (await task(peer, "submitted-2"))["errorMessage"] == "bad prompt"


async def test_accept_takes_a_duration(server, peer):
    server.accept(constant(1e6))
    await submitted(peer)

    assert (await task(peer, "submitted-1"))["status"] == "pending"
    assert server.ends_at("submitted-1") > asyncio.get_running_loop().time() + 9e5


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"steps": [("pending", -1)]}, ValueError),
        ({"result": {}, "failed": True}, ValueError),
        ({"result": object()}, TypeError),
    ],
)
async def test_accept_refuses_bad_arguments(server, arguments, error):
    with pytest.raises(error):
        server.accept(**arguments)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (b"{", "Expecting"),
        (b"[]", "an object was expected"),
        ({"model": "m"}, "prompt is required"),
        ({"prompt": "a"}, "model is required"),
        ({**CAT, "prompt": ""}, "prompt should not be empty"),
        ({**CAT, "prompt": 7}, "prompt must be a string"),
        ({**CAT, "duration": True}, "duration must be a number"),
        ({**CAT, "images": "http://a"}, "images must be an array"),
        ({**CAT, "images": [7]}, "each value in images must be a string"),
    ],
)
async def test_malformed_submission_is_refused(server, peer, job, message):
    status, answer = await submitted(peer, job)

    assert status == 400
    assert message in str(answer["message"])
    assert server.submissions == []


async def test_unknown_values_and_fields_are_accepted(server, peer):
    job = {**CAT, "model": "next", "duration": 7.5, "images": ["https://a/1.png"], "seed": 1}

    assert (await submitted(peer, job))[0] == 200
    assert server.submissions == [job]


async def test_body_of_megabytes_is_accepted(server, peer):
    job = {**CAT, "images": ["data:image/png;base64," + "A" * 3_000_000]}

    assert (await submitted(peer, job))[0] == 200


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/xai/videos", 405),
        ("POST", "/xai/tasks?taskId=a", 405),
        ("POST", "/xai/audio", 404),
    ],
)
async def test_wrong_method_or_path(server, peer, method, target, status):
    peer.send(target, method=method)

    assert (await peer.json())[0] == status


async def test_submission_needs_the_key(server, peer):
    server.api_key = "other"

    assert (await submitted(peer))[0] == 401
    assert server.submissions == []


async def test_each_route_has_its_own_limit(server, peer):
    server.limit(0.001)
    server.add("a")

    statuses = []
    for path in ("/xai/videos", "/xai/videos", "/xai/images"):
        statuses.append((await submitted(peer, path=path))[0])
    peer.ask()
    statuses.append((await peer.json())[0])

    assert statuses == [200, 429, 200, 200]
    assert len(server.submissions) == 2


async def test_faults_reach_submissions_by_method_or_route(server, peer):
    server.add("a")
    server.fault(None, Fault.status(500))
    server.fault("POST", Fault.status(501))
    server.fault("POST /xai/images", Fault.status(502))

    statuses = []
    for path in ("/xai/images", "/xai/images", "/xai/videos"):
        peer.post(CAT, path)
        statuses.append(int((await peer.answer())[0].split()[1]))
    peer.ask()
    statuses.append(int((await peer.answer())[0].split()[1]))

    assert statuses == [502, 501, 200, 500]
    assert len(server.submissions) == 3


async def test_a_spoiled_answer_still_makes_a_task(server):
    server.fault("POST", Fault.reset(at="headers"))
    async with connected(server) as peer:
        peer.post(CAT)
        assert (await peer.rest())[1] == "reset"

    assert server.submissions == [CAT]
    assert server.ends_at("submitted-1") is not None


async def test_a_body_cut_off_is_no_submission(server):
    async with connected(server) as peer:
        more = "Content-Type: application/json\r\nContent-Length: 100\r\n"
        peer.send("/xai/videos", method="POST", more=more)
        peer.writer.write(b'{"prompt": "a')
        await asyncio.sleep(0)
    async with connected(server) as peer:
        await submitted(peer)

    assert server.submissions == [CAT]
    assert server.count() == 1


async def test_requests_have_method_and_path(server, peer):
    await submitted(peer)
    await task(peer, "submitted-1")

    seen = [(record.method, record.path, record.task_id) for record in server.requests]
    assert seen == [("POST", "/xai/videos", None), ("GET", "/xai/tasks", "submitted-1")]


async def test_reset_removes_submissions(server, peer):
    server.accept(failed=True)
    await submitted(peer)

    server.reset()

    assert server.submissions == []
    assert (await submitted(peer))[1] == {"taskId": "submitted-1"}
    assert (await task(peer, "submitted-1"))["status"] == "pending"
