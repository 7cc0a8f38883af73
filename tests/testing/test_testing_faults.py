"""Each fault as a raw socket sees it, with no HTTP client to hide anything."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import time

import pytest
import trustme
from multidict import CIMultiDict
from raw_peer import connected

from xai_tasks.testing import Fault, TaskServer, odd_answers


@pytest.fixture
async def server():
    async with TaskServer() as server:
        server.add("a", result={"videoUrl": "https://videos.invalid/a.mp4"})
        yield server


@pytest.fixture
async def peer(server):
    async with connected(server) as peer:
        yield peer


@pytest.fixture
async def good(server):
    """Return the answer due, as it is without a fault."""
    async with connected(server) as peer:
        peer.ask()
        head, body = await peer.answer()
    return head.encode() + body


async def test_status_sends_all_and_keeps_connection(server, peer):
    server.fault(
        "a", Fault.status(503, {"Retry-After": "7", "content-type": "text/plain"}, b"busy")
    )

    peer.ask()
    head, body = await peer.answer()

    assert head.startswith("HTTP/1.1 503 Service Unavailable\r\n")
    assert "Retry-After: 7\r\n" in head
    assert head.lower().count("content-type") == 1
    assert body == b"busy"
    peer.ask()
    assert (await peer.answer())[0].startswith("HTTP/1.1 200 ")


async def test_status_repeats_headers(server, peer):
    server.fault("a", Fault.status(429, CIMultiDict([("Retry-After", "1"), ("Retry-After", "2")])))

    peer.ask()
    head, _ = await peer.answer()

    assert head.count("Retry-After: ") == 2


@pytest.mark.parametrize("code", [204, 304])
async def test_bodiless_status_sends_no_length(server, peer, code):
    server.fault("a", Fault.status(code, body=b"not sent"))

    peer.ask()
    peer.ask()
    head, _ = await peer.answer()
    following, _ = await peer.answer()

    assert head.startswith(f"HTTP/1.1 {code} ")
    assert "Content-Length" not in head
    assert following.startswith("HTTP/1.1 200 ")


async def test_unknown_status_has_no_phrase(server, peer):
    server.fault("a", Fault.status(599))

    peer.ask()

    assert (await peer.answer())[0].startswith("HTTP/1.1 599 \r\n")


async def test_reset_at_accept_sends_no_byte(server, peer):
    server.fault("a", Fault.reset())

    peer.ask()

    assert await peer.rest() == (b"", "reset")


async def test_reset_at_headers_cuts_them(server, peer, good):
    server.fault("a", Fault.reset(at="headers"))

    peer.ask()
    data, end = await peer.rest()

    assert end == "reset"
    assert data
    assert good.startswith(data)
    assert b"\r\n\r\n" not in data


async def test_reset_at_body_cuts_it(server, peer, good):
    server.fault("a", Fault.reset(at="body"))

    peer.ask()
    data, end = await peer.rest()

    assert end == "reset"
    assert good.startswith(data)
    head, _, body = data.partition(b"\r\n\r\n")
    assert 0 < len(body) < len(good) - len(head) - 4


async def test_reset_refuses_other_moments():
    with pytest.raises(ValueError, match="at must be"):
        Fault.reset(at="nowhere")


async def test_truncate_sends_less_than_promised(server, peer, good):
    server.fault("a", Fault.truncate())

    peer.ask()
    data, end = await peer.rest()

    assert end == "closed"
    assert good.startswith(data)
    assert len(data) < len(good)


async def test_bad_chunking_has_invalid_size(server, peer):
    server.fault("a", Fault.bad_chunking())

    peer.ask()
    data, end = await peer.rest()

    assert end == "closed"
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert b"Content-Length" not in head
    size, _, after = body.partition(b"\r\n")
    second_size = after[int(size, 16) + 2 :].partition(b"\r\n")[0]
    with pytest.raises(ValueError, match="invalid literal"):
        int(second_size, 16)


async def test_stall_sends_the_answer_late(server, peer, good):
    server.fault("a", Fault.stall(0.2))

    before = time.monotonic()
    peer.ask()
    head, body = await peer.answer()

    assert head.encode() + body == good
    assert time.monotonic() - before >= 0.19


async def test_stall_lasts_until_server_closes(server, peer):
    server.fault("a", Fault.stall())

    peer.ask()
    rest = asyncio.ensure_future(peer.rest())
    await server.wait_for_requests(1)
    await asyncio.sleep(0.1)

    assert not rest.done()
    await server.aclose()
    assert (await rest)[0] == b""


async def test_stall_ends_when_client_disconnects(server):
    before = asyncio.all_tasks()
    server.fault("a", Fault.stall())
    async with connected(server) as peer:
        peer.ask()
        await server.wait_for_requests(1)
        assert asyncio.all_tasks() > before

    async with asyncio.timeout(5):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.01)


async def test_drip_sends_the_whole_answer(server, peer, good):
    server.fault("a", Fault.drip(0.001))

    before = time.monotonic()
    peer.ask()
    head, body = await peer.answer()

    assert head.encode() + body == good
    assert time.monotonic() - before >= 0.001 * len(good)


async def test_drip_arrives_in_single_bytes(server, peer):
    server.fault("a", Fault.drip(0.05))

    peer.ask()

    assert [await peer.reader.read(100) for _ in range(4)] == [b"H", b"T", b"T", b"P"]


async def test_garbage_is_not_http(server, peer):
    server.fault("a", Fault.garbage())

    peer.ask()
    data, end = await peer.rest()

    assert end == "closed"
    assert data
    assert b"HTTP/" not in data


async def test_body_sends_bytes_unchanged(server, peer):
    server.fault(
        "a", Fault.body(b"\xff<html>", content_type="text/html"), Fault.body(b"", content_type=None)
    )

    peer.ask()
    head, body = await peer.answer()
    assert (body, "Content-Type: text/html\r\n" in head) == (b"\xff<html>", True)
    peer.ask()
    head, body = await peer.answer()
    assert (body, "Content-Type" in head) == (b"", False)
    assert head.startswith("HTTP/1.1 200 OK\r\n")


async def test_gzip_bomb_unpacks_to_its_size(server, peer):
    size = 3_000_001
    server.fault("a", Fault.gzip_bomb(size), Fault.close_after())

    peer.ask()
    peer.ask()
    data, _ = await peer.rest()
    head, _, chunks = data.partition(b"\r\n\r\n")
    packed, after = dechunked(chunks)

    assert b"Content-Encoding: gzip" in head
    assert len(packed) < size / 100
    assert json.loads(gzip.decompress(packed)) == {
        "taskId": "a",
        "status": "completed",
        "result": "x" * size,
    }
    assert after.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_endless_does_not_block_others(server, peer):
    server.fault("a", Fault.endless())

    peer.ask()
    seen = 0
    while seen < 20_000_000:
        seen += len(await peer.reader.read(2**20))

    async with connected(server) as other, asyncio.timeout(5):
        other.ask()
        assert (await other.answer())[0].startswith("HTTP/1.1 200 ")


async def test_redirect_sends_location(server, peer):
    server.fault("a", Fault.redirect("http://evil.invalid/x"), Fault.redirect("/elsewhere", 308))

    peer.ask()
    first, _ = await peer.answer()
    peer.ask()
    second, _ = await peer.answer()

    assert first.startswith("HTTP/1.1 302 Found\r\n")
    assert "Location: http://evil.invalid/x\r\n" in first
    assert second.startswith("HTTP/1.1 308 Permanent Redirect\r\n")
    assert "Location: /elsewhere\r\n" in second


async def test_oversized_headers_exceed_64_kib(server):
    async with connected(server, limit=2**20) as peer:
        server.fault("a", Fault.oversized_headers())
        peer.ask()
        head, body = await peer.answer()

    assert max(map(len, head.split("\r\n"))) > 2**16
    assert json.loads(body)["status"] == "completed"


async def test_close_after_does_not_announce_it(server, peer, good):
    server.fault("a", Fault.close_after())

    peer.ask()

    assert await peer.rest() == (good, "closed")
    assert b"close" not in good


async def test_faults_work_over_tls(server):
    authority = trustme.CA()
    inside, outside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(inside)
    authority.configure_trust(outside)
    async with TaskServer(ssl_context=inside) as server:
        server.add("a")
        server.fault("a", Fault.reset(at="body"))
        async with connected(server, ssl=outside) as peer:
            peer.ask()
            data, end = await peer.rest()

    assert server.url.startswith("https://")
    assert b"\r\n\r\n{" in data
    assert end == "reset"


async def test_faults_of_an_id_go_first(server, peer):
    server.add("b")
    server.fault(None, Fault.status(500), Fault.status(501))
    server.fault("b", Fault.status(502))

    seen = []
    for task_id in ("b", "a", "b", "b"):
        peer.ask(task_id)
        seen.append(int((await peer.answer())[0].split()[1]))

    assert seen == [502, 500, 501, 200]


async def test_faults_left_and_fired(server, peer):
    faults = [Fault.status(503), Fault.body(b"x"), Fault.status(500)]
    server.fault("a", *faults)

    for _ in range(2):
        peer.ask()
        await peer.answer()

    assert server.faults_fired == faults[:2]
    assert server.faults_left == faults[2:]


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault.status(418), 418),
        (Fault.reset(), None),
        (Fault.reset(at="headers"), None),
        (Fault.reset(at="body"), 200),
        (Fault.truncate(), 200),
        (Fault.bad_chunking(), 200),
        (Fault.stall(), None),
        (Fault.stall(0), 200),
        (Fault.garbage(), None),
        (Fault.endless(), 200),
        (Fault.redirect("/"), 302),
    ],
    ids=repr,
)
async def test_log_has_status_sent(server, peer, fault, status):
    server.fault(None, fault)

    peer.ask()
    await server.wait_for_requests(1)

    assert [record.status for record in server.requests] == [status]


async def test_fault_plays_on_the_answer_due(server, peer):
    server.fault(None, Fault.close_after())

    peer.ask("nobody")
    data, _ = await peer.rest()

    assert data.startswith(b"HTTP/1.1 404 ")
    assert server.requests[0].status == 404


async def test_disturb_until_stopped(server, peer):
    async def statuses(n):
        seen = []
        for _ in range(n):
            peer.ask()
            seen.append(int((await peer.answer())[0].split()[1]))
        return seen

    server.disturb(0.5, Fault.status(500), Fault.status(502), seed=1)
    drawn = await statuses(100)
    server.disturb(1.0, Fault.status(503))
    outage = await statuses(10)
    server.disturb(0)
    fair = await statuses(10)

    assert {200, 500, 502} == set(drawn)
    assert 30 < drawn.count(200) < 70
    assert outage == [503] * 10
    assert fair == [200] * 10
    assert len(server.faults_fired) == 110 - drawn.count(200)
    assert server.faults_left == []


async def test_disturb_is_seeded(server, peer):
    drawn = []
    for _ in range(2):
        server.reset()
        server.disturb(0.5, Fault.status(500), Fault.status(502), seed=7)
        for _ in range(20):
            peer.ask()
            await peer.answer()
        drawn.append(server.faults_fired)

    assert drawn[0] == drawn[1] != []


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
async def test_disturb_refuses_bad_share(server, share):
    with pytest.raises(ValueError, match="within 0 and 1"):
        server.disturb(share, Fault.garbage())


async def test_disturb_needs_faults(server):
    with pytest.raises(ValueError, match="name the faults"):
        server.disturb(0.5)


def test_fault_is_a_value_with_repr():
    assert Fault.status(503) == Fault.status(503)
    assert Fault.status(503) != Fault.status(503, {"Retry-After": "1"})
    assert len({Fault.drip(1), Fault.drip(1), Fault.drip(2)}) == 2
    assert repr(Fault.reset(at="body")) == "Fault.reset(at='body')"
    assert repr(Fault.garbage()) == "Fault.garbage()"
    assert (
        repr(Fault.body(b"x" * 100))
        == "Fault.body(data=<100 bytes>, content_type='application/json')"
    )


@pytest.mark.parametrize("name", odd_answers("a"))
async def test_odd_answers_have_status_200(server, peer, name):
    server.fault("a", odd_answers("a")[name])

    peer.ask()
    head, body = await peer.answer()

    assert head.startswith("HTTP/1.1 200 OK\r\n")
    oddity = {
        "html": lambda: body.startswith(b"<!doctype"),
        "empty": lambda: body == b"",
        "null": lambda: json.loads(body) is None,
        "cut short": lambda: body.startswith(b'{"taskId": "a"') and not body.endswith(b"}}"),
        "not UTF-8": lambda: b"\xff\xfe" in body,
        "BOM": lambda: body.startswith(b"\xef\xbb\xbf{"),
        "UTF-16": lambda: json.loads(body.decode("utf-16"))["taskId"] == "a",
        "deep nesting": lambda: b"[" * 100_000 in body,
        "huge integer": lambda: b"9" * 5_000 in body,
        "NaN": lambda: json.loads(body)["result"] != json.loads(body)["result"],
        "wrong content type": lambda: (
            "Content-Type: text/plain" in head and json.loads(body)["taskId"] == "a"
        ),
        "no content type": lambda: "Content-Type" not in head and json.loads(body)["taskId"] == "a",
        "wrong id": lambda: json.loads(body)["taskId"] != "a",
        "no status": lambda: json.loads(body) == {"taskId": "a"},
    }
    assert oddity[name]()


@pytest.mark.parametrize("at", ["accept", "headers", "body"])
def test_resets_work_on_uvloop(at):
    uvloop = pytest.importorskip("uvloop")

    async def seen():
        async with TaskServer() as server:
            server.add("a")
            server.fault("a", Fault.reset(at=at))
            async with connected(server) as peer:
                peer.ask()
                return await peer.rest()

    with asyncio.Runner() as runner:
        expected = runner.run(seen())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        data, end = runner.run(seen())

    assert (len(data), end) == (len(expected[0]), expected[1])
    assert end == "reset"


def dechunked(data):
    """Split data into the chunked body at its front, decoded, and what follows."""
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        body, data = body + data[: int(size, 16)], data[int(size, 16) + 2 :]
        if not int(size, 16):
            return body, data
