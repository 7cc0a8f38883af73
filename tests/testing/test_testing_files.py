"""The files that TaskServer serves, and faults on them."""

from __future__ import annotations

import shutil
import subprocess

import aiohttp
import pytest
from yarl import URL

from xai_tasks.testing import Fault, TaskServer

DATA = bytes(range(256)) * 4


@pytest.fixture
async def server():
    async with TaskServer() as server:
        yield server


@pytest.fixture
async def session():
    async with aiohttp.ClientSession() as session:
        yield session


async def fetch(session, url, **headers):
    names = {"range": "Range", "if_range": "If-Range"}
    async with session.get(
        url, headers={names[name]: text for name, text in headers.items()}
    ) as response:
        return response.status, response.headers, await response.read()


async def test_file_is_served_whole_without_key(server, session):
    url = server.file("a.mp4", DATA)

    status, headers, body = await fetch(session, f"{url}?signature=1")

    assert (status, body) == (200, DATA)
    assert url == f"{server.url}/files/a.mp4"
    assert headers["Content-Type"] == "video/mp4"
    assert headers["ETag"].startswith('"')


@pytest.mark.parametrize("path", ["/files/ü b/a.x", "ü b/a.x", "/ü b/a.x"])
async def test_path_is_made_fit_for_url(server, session, path):
    url = server.file(path, DATA)

    status, headers, body = await fetch(session, url)

    assert url == f"{server.url}/files/%C3%BC%20b/a.x"
    assert (status, body) == (200, DATA)
    assert headers["Content-Type"] == "application/octet-stream"


async def test_content_type_may_be_given(server, session):
    _, headers, _ = await fetch(session, server.file("a", DATA, content_type="image/webp"))

    assert headers["Content-Type"] == "image/webp"


@pytest.mark.parametrize(
    ("wanted", "body", "said"),
    [
        ("bytes=1000-", DATA[1000:], "bytes 1000-1023/1024"),
        ("bytes=0-9", DATA[:10], "bytes 0-9/1024"),
        ("bytes=1020-9999", DATA[1020:], "bytes 1020-1023/1024"),
        ("bytes=-4", DATA[-4:], "bytes 1020-1023/1024"),
    ],
)
async def test_range_is_served(server, session, wanted, body, said):
    status, headers, got = await fetch(session, server.file("a", DATA), range=wanted)

    assert (status, headers["Content-Range"], got) == (206, said, body)


@pytest.mark.parametrize("wanted", ["bytes=-", "bytes=a-b", "bytes=0-1,3-4", "lines=0-1"])
async def test_range_that_is_none_is_ignored(server, session, wanted):
    status, _, body = await fetch(session, server.file("a", DATA), range=wanted)

    assert (status, body) == (200, DATA)


async def test_range_beyond_end_is_refused(server, session):
    status, headers, body = await fetch(session, server.file("a", DATA), range="bytes=1024-")

    assert (status, headers["Content-Range"], body) == (416, "bytes */1024", b"")


async def test_if_range_holds_for_same_data_only(server, session):
    url = server.file("a", DATA)
    _, headers, _ = await fetch(session, url)

    same = await fetch(session, url, range="bytes=1-", if_range=headers["ETag"])
    server.file("a", DATA[::-1])
    changed = await fetch(session, url, range="bytes=1-", if_range=headers["ETag"])

    assert (same[0], changed[0]) == (206, 200)


async def test_head_has_no_body(server, session):
    async with session.head(server.file("a", DATA)) as response:
        assert (response.status, response.headers["Content-Length"]) == (200, "1024")
    async with session.head(server.file("empty", b"")) as response:
        assert (response.status, response.headers["Content-Length"]) == (200, "0")


async def test_file_takes_no_other_method(server, session):
    async with session.post(server.file("a", DATA)) as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


async def test_unknown_file_is_404_also_after_reset(server, session):
    url = server.file("a", DATA)
    server.reset()

    assert [(await fetch(session, u))[0] for u in (url, f"{server.url}/files/none.mp4")] == [
        404,
        404,
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extension", "kind"), [("mp4", b"MP4"), ("png", b"PNG image data, 64 x 64")]
)
async def test_each_task_has_small_real_files(server, session, tmp_path, extension, kind):
    server.add("a b", result={})
    made_up = server.add_many(1, duration=lambda random: 0.0)[0]

    answers = [
        await fetch(session, f"{server.url}/files/{i}.{extension}") for i in ("a%20b", made_up)
    ]

    assert [status for status, _, _ in answers] == [200, 200]
    path = tmp_path / "x"
    path.write_bytes(answers[0][2])
    if shutil.which("file"):
        assert kind in subprocess.run(["file", path], check=True, capture_output=True).stdout


async def test_made_up_results_point_to_files_that_are_there(server, session):
    task_id = server.add_many(1, duration=lambda random: 0.0)[0]
    async with session.get(
        f"{server.url}/xai/tasks?taskId={task_id}", headers={"Authorization": "Bearer test"}
    ) as response:
        url = (await response.json())["result"]["videoUrl"]

    status, headers, _ = await fetch(session, url)

    assert (status, headers["Content-Type"]) == (200, "video/mp4")


@pytest.mark.parametrize(
    "target", ["GET /files/a.mp4", "GET /files/...", "GET /files/a...", "GET", "GET ..."]
)
async def test_fault_meets_named_file(server, session, target):
    url = server.file("a.mp4", DATA)
    server.fault(target, Fault.status(503))

    assert [(await fetch(session, f"{url}?x"))[0] for _ in range(2)] == [503, 200]
    assert not server.faults_left


async def test_closest_target_goes_first(server, session):
    url = server.file("a.mp4", DATA)
    for code, target in enumerate(
        ["GET", "GET /...", "GET /files/a...", "GET /files/...", "GET /files/a.mp4"], 500
    ):
        server.fault(target, Fault.status(code))

    assert [(await fetch(session, url))[0] for _ in range(6)] == [504, 502, 503, 501, 500, 200]


@pytest.mark.parametrize("target", [None, "a", "POST", "GET /files/b...", "GET /files/b"])
async def test_fault_for_something_else_spares_file(server, session, target):
    url = server.file("a", DATA)
    server.fault(target, Fault.status(503))

    assert (await fetch(session, url))[0] == 200
    assert len(server.faults_left) == 1


async def test_truncated_file_promises_more_than_it_sends(server, session):
    url = server.file("a", DATA)
    server.fault("GET /files/a", Fault.truncate())

    with pytest.raises(aiohttp.ClientPayloadError):
        await fetch(session, url)


async def test_files_are_disturbed_too(server, session):
    url = server.file("a", DATA)
    server.disturb(1.0, Fault.status(500))

    assert (await fetch(session, url))[0] == 500


async def test_log_tells_method_path_and_query(server, session):
    await fetch(session, URL(server.file("a", DATA) + "?b=%2f&c=+", encoded=True))

    record = server.requests[-1]
    assert (record.method, record.path, record.query) == ("GET", "/files/a", "b=%2f&c=+")
