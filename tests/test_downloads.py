"""Downloads over real sockets: what is whole, what goes on where it broke, what is refused."""

from __future__ import annotations

import asyncio
import errno
import gzip
import itertools
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zlib
from pathlib import Path

import pytest
import tenacity
import trustme
from hypothesis import given
from hypothesis import strategies as st
from raw_server import RawServer, response, silence

from xai_tasks import (
    ClientClosedError,
    DownloadError,
    DownloadExpiredError,
    InvalidTaskIdError,
    RetryPolicy,
    TaskClient,
    TaskResult,
    TaskStatus,
    _downloads,
)
from xai_tasks._downloads import extension_of_type, extension_of_url, file_stem
from xai_tasks.testing import Fault, TaskServer

DATA = bytes(range(256)) * 1024
SECRET = "sig-0123456789"


def completed(*urls, task_id="a"):
    return TaskResult(task_id, TaskStatus.COMPLETED, {"urls": list(urls)})


@pytest.fixture
async def server():
    async with TaskServer() as server:
        yield server


@pytest.fixture
async def raw():
    async with RawServer() as raw:
        yield raw


def client_of(server, **options):
    options = {"retry": RetryPolicy(wait=tenacity.wait_none()), **options}
    return TaskClient("test", base_url=server.url, **options)


@pytest.fixture
async def client(server):
    async with client_of(server) as client:
        yield client


@pytest.fixture
async def raw_client(raw):
    async with client_of(raw) as client:
        yield client


@pytest.fixture
def read_only():
    """A directory that may be read alone: for root too, who is somebody else meanwhile."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield directory
    os.seteuid(user)
    directory.rmdir()


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def ranges(server):
    return [record.headers.get("Range") for record in server.requests]


def whole(data=DATA, etag='"v1"', **headers):
    return response(
        200, data, {"ETag": etag, **headers} if etag else headers, content_type="video/mp4"
    )


def part(start, data=DATA, etag='"v1"', content_range=None, **headers):
    said = content_range or f"bytes {start}-{len(data) - 1}/{len(data)}"
    headers = {"Content-Range": said, **({"ETag": etag} if etag else {}), **headers}
    return response(206, data[start:], headers, content_type="video/mp4")


def cut(answer, keep=10):
    """Play an answer without its last bytes: `keep` of its body come."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n" + body[:keep]


class TestNames:
    @pytest.mark.parametrize(
        ("task_id", "stem"),
        [
            ("task-1_a.B", "task-1_a.B"),
            ("a/b", "a%2Fb"),
            ("..", "%2E."),
            ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
            (".hidden", "%2Ehidden"),
            ("-rf", "%2Drf"),
            ("a~1", "a%7E1"),
            ("a\0b", "a%00b"),
            ("a b%20", "a%20b%2520"),
            ("ü", "%C3%BC"),
            ("\ud800", "%ED%A0%80"),
            ("C:\\a", "C%3A%5Ca"),
            ("a" * 220, "a" * 220),
        ],
    )
    def test_encode_all_but_the_harmless(self, task_id, stem):
        assert file_stem(task_id, None) == stem
        assert file_stem(task_id, 2) == f"{stem}~2"

    @given(st.text(min_size=1), st.text(min_size=1), st.sampled_from([None, 1, 2]))
    def test_are_shared_by_no_two_ids(self, one, other, number):
        assert (file_stem(one, number) == file_stem(other, number)) == (one == other)
        assert file_stem(one, None) != file_stem(other, 1)

    @given(st.text(min_size=1, max_size=400, alphabet=st.characters()))
    def test_stay_in_their_directory_and_fit_a_file_system(self, task_id):
        name = f"{file_stem(task_id, 99999)}.abcdefgh.part"

        assert len(name.encode()) <= 255
        assert Path(name).name == name
        assert name.isascii() and name.isprintable() and name[0] not in ".-"

    def test_too_long_differ_behind_the_cut(self):
        one, other = file_stem("猫" * 300, None), file_stem("猫" * 299 + "犬", None)

        assert one != other
        assert one[:180] == other[:180]

    @pytest.mark.parametrize(
        ("content_type", "extension"),
        [
            ("video/mp4", "mp4"),
            ("Image/JPEG; quality=1", "jpg"),
            ("video/x-flv", "flv"),
            ("image/avif", "avif"),
            ("application/json;charset=utf-8", "json"),
            ("application/octet-stream", None),
            ("binary/octet-stream", None),
            ("image/../../x", None),
            ("video/part", None),
            ("video/averylongone", None),
            ("video", None),
            ("", None),
        ],
    )
    def test_extension_comes_from_content_type(self, content_type, extension):
        assert extension_of_type(content_type) == extension

    @pytest.mark.parametrize(
        ("url", "extension"),
        [
            ("https://a/b.mp4", "mp4"),
            ("https://a/b.PNG?x=y.gif#z.jpg", "png"),
            ("https://a/b.tar.gz", "gz"),
            ("https://a/b%2Emov", "mov"),
            ("https://a.com", None),
            ("https://a.com/", None),
            ("https://a.com?x=/b.mp4", None),
            ("https://a/b.mp4/", "mp4"),
            ("https://a/.mp4", None),
            ("https://a/b.", None),
            ("https://a/b.m/p4", None),
            ("https://a/b.part", None),
            ("https://a/b.ä", None),
            ("https://a/b.averylongone", None),
        ],
    )
    def test_extension_comes_from_url(self, url, extension):
        assert extension_of_url(url) == extension


class TestSaving:
    async def test_puts_whole_file_under_the_tasks_name(self, server, client, tmp_path):
        server.add("a", result={"videoUrl": server.file("x.mp4", DATA)})

        files = await client.download(await client.wait("a"), tmp_path / "new" / "videos")

        assert files == [tmp_path / "new" / "videos" / "a.mp4"]
        assert files[0].read_bytes() == DATA
        assert names(files[0].parent) == ["a.mp4"]

    async def test_numbers_several_files(self, server, client, tmp_path):
        urls = [server.file(f"{n}.png", bytes([n]) * n) for n in range(12)]

        files = await client.download(completed(*urls), str(tmp_path))

        assert files == [tmp_path / f"a~{n + 1}.png" for n in range(12)]
        assert [file.read_bytes() for file in files] == [bytes([n]) * n for n in range(12)]

    @pytest.mark.parametrize(
        ("path", "content_type", "name"),
        [
            ("x.mp4", "image/webp", "a.webp"),
            ("x.mov", "application/octet-stream", "a.mov"),
            ("x", "application/octet-stream", "a.bin"),
            ("x", "nonsense", "a.bin"),
        ],
    )
    async def test_takes_extension_from_type_else_url(
        self, server, client, tmp_path, path, content_type, name
    ):
        url = server.file(path, DATA, content_type=content_type)

        assert await client.download(completed(url), tmp_path) == [tmp_path / name]

    async def test_of_task_without_urls_makes_no_request(self, server, client, tmp_path):
        assert await client.download(completed(), tmp_path / "none") == []
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize("task_id", ["../x", "a/b", "..", "a\0b", "x" * 300, "ü", "-", "~"])
    async def test_of_any_id_stays_in_the_directory(self, server, client, tmp_path, task_id):
        task = completed(server.file("x.mp4", DATA), task_id=task_id)

        (file,) = await client.download(task, tmp_path)

        assert file.parent == tmp_path
        assert names(tmp_path) == [file.name]
        assert file.read_bytes() == DATA

    async def test_keeps_file_that_is_there(self, server, client, tmp_path):
        task = completed(server.file("x.mp4", DATA))
        await client.download(task, tmp_path)
        (tmp_path / "a.mp4").write_bytes(b"edited")

        files = await client.download(task, tmp_path)

        assert files == [tmp_path / "a.mp4"]
        assert files[0].read_bytes() == b"edited"
        assert server.count() == 1

    async def test_keeps_file_whose_name_the_answer_tells(self, server, client, tmp_path):
        task = completed(server.file("x", DATA, content_type="model/gltf-binary"))
        (tmp_path / "a.glb").write_bytes(b"edited")

        assert await client.download(task, tmp_path) == [tmp_path / "a.glb"]
        assert (tmp_path / "a.glb").read_bytes() == b"edited"

    async def test_does_not_take_another_kind_of_file_for_it(self, server, client, tmp_path):
        (tmp_path / "a.json").write_text("my notes")

        files = await client.download(completed(server.file("x.mp4", DATA)), tmp_path)

        assert files == [tmp_path / "a.mp4"]

    async def test_of_same_task_twice_at_once_fetches_once(self, server, client, tmp_path):
        task = completed(server.file("x.mp4", DATA))

        both = await asyncio.gather(*[client.download(task, tmp_path) for _ in range(2)])

        assert both == [[tmp_path / "a.mp4"]] * 2
        assert server.count() == 1

    async def test_saves_the_others_where_one_fails(self, server, client, tmp_path):
        urls = [
            server.file("1.mp4", DATA),
            f"{server.url}/files/no.mp4",
            server.file("3.mp4", DATA),
        ]

        with pytest.raises(DownloadExpiredError) as caught:
            await client.download(completed(*urls), tmp_path)

        assert caught.value.url == urls[1]
        assert names(tmp_path) == ["a~1.mp4", "a~3.mp4"]

    async def test_is_cancelled_by_a_strategy_that_says_so(self, server, tmp_path):
        def wait(state):
            raise asyncio.CancelledError

        url = server.file("x.bin", DATA)
        server.fault("GET /files/...", Fault.status(500))
        retry = RetryPolicy(wait=wait)
        async with TaskClient("test", base_url=server.url, retry=retry) as client:
            with pytest.raises(asyncio.CancelledError):
                await client.download(completed(url), tmp_path)

    async def test_fetches_eight_at_once(self, raw, raw_client, tmp_path):
        active, most = set(), []

        async def play(reader, writer):
            active.add(writer)
            most.append(len(active))
            await asyncio.sleep(0.02)
            active.discard(writer)
            writer.write(whole(b"x"))

        raw.default = play
        tasks = [
            completed(*(f"{raw.url}/{n}.{m}" for m in range(5)), task_id=str(n)) for n in range(5)
        ]
        await asyncio.gather(*[raw_client.download(task, tmp_path) for task in tasks])

        assert max(most) == 8
        assert len(names(tmp_path)) == 25

    @pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "identity"])
    async def test_decodes_what_is_encoded_though_unasked(self, raw, raw_client, tmp_path, coding):
        data = {"deflate": zlib.compress, "identity": bytes}.get(coding, gzip.compress)(DATA)
        raw.default = whole(data, **{"Content-Encoding": coding})

        (file,) = await raw_client.download(completed(f"{raw.url}/x.mp4"), tmp_path)

        assert raw.header("Accept-Encoding") == "identity"
        assert file.read_bytes() == DATA

    async def test_decodes_every_gzip_member(self, raw, raw_client, tmp_path):
        data = gzip.compress(DATA) + gzip.compress(b"") + gzip.compress(b"more")
        raw.default = whole(data, **{"Content-Encoding": "gzip"})

        (file,) = await raw_client.download(completed(f"{raw.url}/x.mp4"), tmp_path)

        assert file.read_bytes() == DATA + b"more"

    async def test_without_length_takes_what_comes(self, raw, raw_client, tmp_path):
        raw.default = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + DATA

        (file,) = await raw_client.download(completed(f"{raw.url}/x"), tmp_path)

        assert file.read_bytes() == DATA

    @pytest.mark.parametrize(
        ("url", "name", "data"),
        [
            ("data:image/png;base64,AAEC", "a.png", b"\x00\x01\x02"),
            ("data:image/png;charset=x;BASE64,AAE", "a.png", b"\x00\x01"),
            ("DATA:text/plain,a%20b", "a.txt", b"a b"),
            ("data:,x", "a.bin", b"x"),
            ("data:;base64,%41AEC", "a.bin", b"\x00\x01\x02"),
        ],
    )
    async def test_takes_data_urls(self, server, client, tmp_path, url, name, data):
        for _ in range(2):  # the second time it is there
            (file,) = await client.download(completed(url), tmp_path)

            assert (file.name, file.read_bytes()) == (name, data)
        assert server.count() == 0


class TestRequests:
    async def test_never_have_the_key(self, server, client, tmp_path):
        async with TaskServer() as other:
            url = other.file("y.mp4", DATA)
            server.fault("GET /files/x", Fault.redirect(url))

            await client.download(completed(server.file("x", b"")), tmp_path)

            for record in (*server.requests, *other.requests):
                assert "Authorization" not in record.headers
                assert "test" not in str(record.headers).replace("xai-tasks", "")
            assert (tmp_path / "a.mp4").read_bytes() == DATA

    async def test_have_the_clients_user_agent(self, server, tmp_path):
        async with client_of(server, user_agent="mine/1") as client:
            await client.download(completed(server.file("x", b"")), tmp_path)

        assert server.requests[0].headers["User-Agent"].startswith("mine/1 xai-tasks/")

    @pytest.mark.parametrize(
        ("url", "target"),
        [
            ("/x?X-Sig=a%2fb+c%2B/~%7e=&&d==%zz", "/x?X-Sig=a%2fb+c%2B/~%7e=&&d==%zz"),
            ("/a%2Fb/../c/./d//e", "/a%2Fb/../c/./d//e"),
            ('/[x]|{y}^`\\"<>', '/[x]|{y}^`\\"<>'),
            ("/x#fragment", "/x"),
            ("", "/"),
            ("?a=1", "/?a=1"),
            ("/猫?猫", "/%E7%8C%AB?%E7%8C%AB"),
        ],
    )
    async def test_ask_for_the_url_byte_for_byte(self, raw, raw_client, tmp_path, url, target):
        raw.default = whole(b"x")

        await raw_client.download(completed(raw.url + url), tmp_path)

        assert raw.target() == target

    @pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
    async def test_follow_five_redirects(self, raw, raw_client, tmp_path, code):
        for n in range(5):
            raw.answers.append(response(code, headers={"Location": f"/{n}?a=%2f+"}))
        raw.default = whole()

        (file,) = await raw_client.download(completed(f"{raw.url}/x"), tmp_path)

        assert file.read_bytes() == DATA
        assert raw.target() == "/4?a=%2f+"

    async def test_follow_no_more_redirects(self, raw, raw_client, tmp_path):
        raw.default = response(302, headers={"Location": "/again"})

        with pytest.raises(DownloadError, match="more than 5 redirects") as caught:
            await raw_client.download(completed(f"{raw.url}/x"), tmp_path)

        assert caught.value.status_code == 302
        assert len(raw.requests) == 6
        assert names(tmp_path) == []

    @pytest.mark.parametrize(
        ("headers", "words"),
        [
            ({}, "without a Location"),
            ({"Location": "ftp://a/b"}, "ftp://a is not https"),
            ({"Location": "file:///etc/passwd"}, "no host"),
            ({"Location": "http://a:99999/"}, "malformed"),
            ({"Location": "/\xff"}, "malformed"),
        ],
    )
    async def test_follow_no_senseless_redirect(self, raw, raw_client, tmp_path, headers, words):
        raw.answers.append(response(302, headers=headers))
        raw.default = response(404)

        with pytest.raises(DownloadError, match=words):
            await raw_client.download(completed(f"{raw.url}/x"), tmp_path)

    async def test_go_to_no_unknown_host(self, server, client, tmp_path):
        with pytest.raises(DownloadError, match="no-such-host.invalid"):
            await client.download(completed("http://no-such-host.invalid/x"), tmp_path)

    async def test_need_a_certificate_that_can_be_verified(self, tmp_path):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
        async with TaskServer(ssl_context=context) as server, client_of(server) as client:
            with pytest.raises(DownloadError, match="SSL_CERT_FILE"):
                await client.download(completed(server.file("x", DATA)), tmp_path)
            assert server.count() == 0


class TestRefused:
    """Refused before a byte is sent: the client is one of a real API, and no network is needed."""

    @pytest.fixture
    async def client(self):
        async with TaskClient("test", base_url="https://api.example") as client:
            yield client

    @pytest.mark.parametrize(
        "url",
        [
            "https://169.254.169.254/latest/meta-data/",
            "https://127.0.0.1/x",
            "https://10.0.0.1/x",
            "https://192.168.1.1:8443/x",
            "https://100.64.0.1/x",
            "https://0.0.0.0/x",
            "https://224.0.0.1/x",
            "https://[::1]/x",
            "https://[::ffff:127.0.0.1]/x",
            "https://[::ffff:a9fe:a9fe]/x",
            "https://[fd00::1]/x",
            "https://[fe80::1]/x",
            "https://localhost/x",
            "https://2130706433/x",
            "https://0x7f.1/x",
            "https://127.1/x",
            "https://①②⑦.0.0.1/x",
        ],
    )
    async def test_addresses_that_are_not_public(self, client, tmp_path, url):
        with pytest.raises(DownloadError, match="public|malformed|Cannot connect"):
            await client.download(completed(url), tmp_path)

        assert names(tmp_path) == []

    @pytest.mark.parametrize("url", ["http://example.com/x", "http://127.0.0.1/x"])
    async def test_plain_http(self, client, tmp_path, url):
        with pytest.raises(DownloadError, match="is not https"):
            await client.download(completed(url), tmp_path)

    async def test_plain_http_may_be_allowed_but_not_the_address(self, tmp_path):
        async with TaskClient(
            "test", base_url="http://api.example", allow_insecure_http=True
        ) as client:
            with pytest.raises(DownloadError, match="not a public address"):
                await client.download(completed("http://127.0.0.1/x"), tmp_path)

    async def test_a_refusal_is_not_retried(self, client, tmp_path, caplog):
        caplog.set_level("INFO", "xai_tasks")

        with pytest.raises(DownloadError):
            await client.download(completed("https://127.0.0.1/x"), tmp_path)

        assert caplog.records == []


TRANSIENT = {
    "reset at accept": Fault.reset(),
    "reset in headers": Fault.reset(at="headers"),
    "reset in body": Fault.reset(at="body"),
    "truncated": Fault.truncate(),
    "bad chunking": Fault.bad_chunking(),
    "garbage": Fault.garbage(),
    "oversized headers": Fault.oversized_headers(),
    "stalled": Fault.stall(),
    "429": Fault.status(429, {"Retry-After": "0.01"}),
    "broken gzip": Fault.status(200, {"Content-Encoding": "gzip"}, b"no gzip"),
    "cut gzip": Fault.status(200, {"Content-Encoding": "gzip"}, gzip.compress(DATA)[:-9]),
    **{str(code): Fault.status(code) for code in (403, 404, 408, 410, 500, 502, 503, 504)},
}


class TestFaults:
    @pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT)
    async def test_transient_one_is_outlived(self, server, tmp_path, fault):
        async with client_of(server, request_timeout=0.3) as client:
            server.fault("GET /files/...", fault, fault)

            (file,) = await client.download(completed(server.file("x.mp4", DATA)), tmp_path)

        assert file.read_bytes() == DATA
        assert names(tmp_path) == ["a.mp4"]
        assert not server.faults_left

    @pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT)
    async def test_lasting_one_leaves_nothing_under_the_name(self, server, tmp_path, fault):
        url = server.file("x.mp4", DATA) + f"?X-Sig={SECRET}"
        async with client_of(server, request_timeout=0.3) as client:
            server.disturb(1.0, fault)

            with pytest.raises(DownloadError) as caught:
                await client.download(completed(url), tmp_path)

        assert not (tmp_path / "a.mp4").exists()
        error = caught.value
        assert "task 'a'" in str(error)
        assert error.url == f"{server.url}/files/x.mp4"
        assert SECRET not in "".join(traceback.format_exception(error))

    @pytest.mark.parametrize("code", [403, 404, 410])
    async def test_expired_url_is_an_error_of_its_own(self, server, client, tmp_path, code):
        server.fault("GET /files/...", *[Fault.status(code)] * 4)

        with pytest.raises(DownloadExpiredError, match="get the task again") as caught:
            await client.download(completed(server.file("x.mp4", DATA)), tmp_path)

        assert caught.value.status_code == code
        assert names(tmp_path) == []

    @pytest.mark.parametrize("code", [204, 206, 304, 400, 401, 402, 405, 412, 416, 418, 501])
    async def test_other_status_ends_it_at_once(self, server, client, tmp_path, code):
        server.fault("GET /files/...", Fault.status(code))

        with pytest.raises(DownloadError, match=f"HTTP {code}") as caught:
            await client.download(completed(server.file("x.mp4", DATA)), tmp_path)

        assert type(caught.value) is DownloadError
        assert caught.value.status_code == code

    async def test_unknown_encoding_ends_it(self, raw, raw_client, tmp_path):
        raw.default = whole(b"?", **{"Content-Encoding": "br\r\nX-Evil: 1"})

        with pytest.raises(DownloadError, match="encoded as br"):
            await raw_client.download(completed(f"{raw.url}/x"), tmp_path)

        assert len(raw.requests) == 1

    async def test_slow_but_steady_server_is_no_fault(self, raw, tmp_path):
        async def drip(reader, writer):
            answer = whole(b"x" * 8)
            writer.write(answer[:-8])
            for byte in answer[-8:]:
                await asyncio.sleep(0.1)
                writer.write(bytes([byte]))

        raw.default = drip
        async with client_of(raw, request_timeout=0.5) as client:
            (file,) = await client.download(completed(f"{raw.url}/x"), tmp_path)

        assert file.read_bytes() == b"x" * 8

    async def test_silence_in_the_middle_is_cut(self, raw, tmp_path):
        async def stall(reader, writer):
            writer.write(cut(whole()))
            await silence(reader, writer)

        raw.answers.append(stall)
        raw.default = part(10)
        async with client_of(raw, request_timeout=0.3) as client:
            (file,) = await client.download(completed(f"{raw.url}/x"), tmp_path)

        assert file.read_bytes() == DATA
        assert raw.header("Range") == "bytes=10-"

    async def test_retry_after_is_kept(self, server, tmp_path):
        server.fault("GET /files/...", Fault.status(503, {"Retry-After": "0.2"}))
        async with client_of(server) as client:
            await client.download(completed(server.file("x", DATA)), tmp_path)

        first, second = (record.time for record in server.requests)
        assert second - first >= 0.2

    async def test_retry_after_that_is_too_long_ends_it(self, server, client, tmp_path):
        server.fault("GET /files/...", Fault.status(429, {"Retry-After": "3600"}))

        with pytest.raises(DownloadError, match="HTTP 429"):
            await client.download(completed(server.file("x", DATA)), tmp_path)

    async def test_retries_share_a_budget_that_polls_do_not(self, server, tmp_path):
        server.disturb(1.0, Fault.status(500))
        policy = RetryPolicy(wait=tenacity.wait_none(), budget=10)
        async with client_of(server, retry=policy) as client:
            urls = [f"{server.url}/files/{n}" for n in range(3)]
            with pytest.raises(DownloadError):
                await client.download(completed(*urls), tmp_path)
            downloads = server.count()
            server.disturb(0.0)
            server.add("b")
            server.fault("b", Fault.status(500), Fault.status(500))
            await client.get("b")

        assert downloads == 3 + 2

    async def test_stop_of_the_policy_holds(self, server, tmp_path):
        server.disturb(1.0, Fault.status(500))
        policy = RetryPolicy(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_none())
        async with client_of(server, retry=policy) as client:
            with pytest.raises(DownloadError):
                await client.download(completed(server.file("x", DATA)), tmp_path)

        assert server.count() == 2

    async def test_senseless_wait_is_raised(self, server, tmp_path):
        server.disturb(1.0, Fault.status(500))
        policy = RetryPolicy(wait=lambda state: float("nan"))
        async with client_of(server, retry=policy) as client:
            with pytest.raises(ValueError, match="gave nan seconds"):
                await client.download(completed(server.file("x", DATA)), tmp_path)

    async def test_retries_are_logged_without_signature(self, server, client, tmp_path, caplog):
        caplog.set_level("DEBUG", "xai_tasks")
        server.fault("GET /files/...", Fault.status(500))

        await client.download(completed(f"{server.file('x', DATA)}?{SECRET}"), tmp_path)

        assert "task 'a' again" in caplog.text
        assert SECRET not in caplog.text

    @pytest.mark.parametrize("url", ["data:image/png;base64,?", "data:x;base64,A"])
    async def test_malformed_data_url_is_told_without_its_data(self, client, tmp_path, url):
        with pytest.raises(DownloadError, match="base64 is malformed") as caught:
            await client.download(completed(url), tmp_path)

        assert caught.value.url == f"{url.partition(',')[0]},…"
        assert names(tmp_path) == []


class TestSize:
    async def test_is_checked_before_the_body(self, server, tmp_path):
        async with client_of(server, max_download_bytes=len(DATA) - 1) as client:
            with pytest.raises(DownloadError, match="raise max_download_bytes"):
                await client.download(completed(server.file("x", DATA)), tmp_path)

        assert names(tmp_path) == []
        assert server.count() == 1

    async def test_of_just_the_limit_is_taken(self, server, tmp_path):
        async with client_of(server, max_download_bytes=len(DATA)) as client:
            await client.download(completed(server.file("x", DATA)), tmp_path)

    @pytest.mark.parametrize("fault", [Fault.endless(), Fault.gzip_bomb(10_000_000)])
    async def test_is_checked_while_it_comes(self, server, tmp_path, fault):
        server.fault("GET /files/...", fault)
        async with client_of(server, max_download_bytes=3_000_000) as client:
            with pytest.raises(DownloadError, match="larger than 3000000 bytes"):
                await client.download(completed(server.file("x", DATA)), tmp_path)

        assert names(tmp_path) == []

    async def test_part_that_is_too_large_is_not_kept(self, raw, tmp_path):
        chunk = b"%x\r\n%b\r\n" % (len(DATA), DATA)
        head = b'HTTP/1.1 200 OK\r\nETag: "v1"\r\nTransfer-Encoding: chunked\r\n\r\n'
        raw.default = head + 30 * chunk + b"0\r\n\r\n"
        async with client_of(raw, max_download_bytes=3_000_000) as client:
            with pytest.raises(DownloadError, match="larger than 3000000 bytes"):
                await client.download(completed(f"{raw.url}/x"), tmp_path)

        assert names(tmp_path) == []

    async def test_of_data_url_is_checked(self, server, tmp_path):
        async with client_of(server, max_download_bytes=2) as client:
            with pytest.raises(DownloadError, match="larger than 2 bytes"):
                await client.download(completed("data:,abc"), tmp_path)


class TestResuming:
    async def test_asks_for_the_rest(self, server, client, tmp_path):
        server.fault("GET /files/...", Fault.truncate(), Fault.reset(at="body"))

        (file,) = await client.download(completed(server.file("x", DATA)), tmp_path)

        half = len(DATA) // 2
        assert ranges(server) == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]
        assert server.requests[1].headers["If-Range"].startswith('"')
        assert file.read_bytes() == DATA

    @pytest.mark.parametrize("etag", [None, 'W/"v1"', "v1", '"v 1"'])
    async def test_needs_a_strong_validator(self, raw, raw_client, tmp_path, etag):
        raw.answers += [cut(whole(etag=etag))]
        raw.default = whole(etag=etag)

        (file,) = await raw_client.download(completed(f"{raw.url}/x"), tmp_path)

        assert raw.header("Range") is None
        assert file.read_bytes() == DATA

    async def test_starts_over_when_the_file_has_changed(self, server, client, tmp_path):
        url = server.file("x", DATA)
        server.fault("GET /files/...", Fault.truncate(), Fault.truncate(), *[Fault.status(500)] * 2)
        with pytest.raises(DownloadError):
            await client.download(completed(url), tmp_path)
        server.file("x", DATA[::-1])

        (file,) = await client.download(completed(url), tmp_path)

        assert file.read_bytes() == DATA[::-1]
        assert ranges(server)[-1] is not None

    OTHER = DATA[::-1]
    CHANGED = {
        "200": whole(OTHER, '"v2"'),
        "another validator": part(10, OTHER, '"v2"'),
        "a weak one": part(10, OTHER, 'W/"v1"'),
        "412": response(412),
        "416": response(416),
        "another place": part(11, OTHER),
        "another size": part(10, OTHER, content_range=f"bytes 10-{len(DATA) - 1}/{len(DATA) + 1}"),
        "not to the end": part(10, OTHER, content_range=f"bytes 10-20/{len(DATA)}"),
        "no place": part(10, OTHER, content_range="pages 1-2/3"),
        "encoded": part(10, OTHER, **{"Content-Encoding": "gzip"}),
    }

    @pytest.mark.parametrize("answer", CHANGED.values(), ids=CHANGED)
    async def test_starts_over_at_any_sign_of_change(self, raw, raw_client, tmp_path, answer):
        raw.answers += [cut(whole()), answer]
        raw.default = whole(self.OTHER, '"v2"')

        (file,) = await raw_client.download(completed(f"{raw.url}/x"), tmp_path)

        assert raw.header("Range", 1) == "bytes=10-"
        assert file.read_bytes() == self.OTHER
        assert names(tmp_path) == ["a.mp4"]

    @pytest.mark.parametrize(
        "answer", [part(10, etag=None), part(10, content_range=f"bytes 10-{len(DATA) - 1}/*")]
    )
    async def test_trusts_if_range(self, raw, raw_client, tmp_path, answer):
        raw.answers += [cut(whole())]
        raw.default = answer

        (file,) = await raw_client.download(completed(f"{raw.url}/x"), tmp_path)

        assert file.read_bytes() == DATA

    @pytest.mark.parametrize("length", [5, len(DATA)])
    async def test_starts_over_when_the_rest_is_not_as_long_as_said(
        self, raw, raw_client, tmp_path, length
    ):
        said = {"Content-Range": f"bytes 10-{len(DATA) - 1}/{len(DATA)}", "ETag": '"v1"'}
        raw.answers += [cut(whole()), response(206, DATA[:length], said)]
        raw.default = whole()

        (file,) = await raw_client.download(completed(f"{raw.url}/x"), tmp_path)

        assert raw.header("Range", 1) == "bytes=10-"
        assert raw.header("Range") is None
        assert file.read_bytes() == DATA

    async def test_goes_on_in_a_later_run_with_a_new_signature(self, raw, tmp_path):
        raw.answers += [cut(whole())]
        raw.default = response(500)
        async with client_of(raw) as client:
            with pytest.raises(DownloadError):
                await client.download(completed(f"{raw.url}/x?sig=1"), tmp_path)
        assert names(tmp_path) == ["a.mp4.part", "a~resume"]

        raw.default = part(10)
        async with client_of(raw) as client:
            (file,) = await client.download(completed(f"{raw.url}/x?sig=2"), tmp_path)

        assert (raw.header("Range"), raw.header("If-Range")) == ("bytes=10-", '"v1"')
        assert file.read_bytes() == DATA
        assert names(tmp_path) == ["a.mp4"]

    async def test_ends_what_was_all_there_without_a_request(self, raw, raw_client, tmp_path):
        (tmp_path / "a.mp4.part").write_bytes(DATA)
        left = {"source": f"{raw.url}/x", "name": "a.mp4", "etag": '"v1"', "total": len(DATA)}
        (tmp_path / "a~resume").write_text(json.dumps(left))

        (file,) = await raw_client.download(completed(f"{raw.url}/x"), tmp_path)

        assert file.read_bytes() == DATA
        assert raw.requests == []
        assert names(tmp_path) == ["a.mp4"]

    @pytest.mark.parametrize(
        "change",
        [
            {"source": "https://elsewhere/x"},
            {"name": "../a.mp4"},
            {"name": "b.mp4"},
            {"name": "a.part"},
            {"name": "a"},
            {"name": 1},
            {"name": "a.mov"},
            {"etag": 'W/"v1"'},
            {"etag": '"v1"\r\nX-Evil: 1'},
            {"etag": None},
            {"total": []},
            {"total": "7"},
        ],
    )
    async def test_ignores_notes_that_are_not_its_own(self, raw, raw_client, tmp_path, change):
        (tmp_path / "a.mp4.part").write_bytes(b"x" * 10)
        left = {"source": f"{raw.url}/x", "name": "a.mp4", "etag": '"v1"', "total": len(DATA)}
        (tmp_path / "a~resume").write_text(json.dumps({**left, **change}))
        raw.default = whole()

        (file,) = await raw_client.download(completed(f"{raw.url}/x"), tmp_path)

        assert raw.header("Range") is None
        assert file.read_bytes() == DATA

    @pytest.mark.parametrize("notes", [b"", b"{", b"[]", b"null", b"\xff", b"{}"])
    async def test_ignores_broken_notes(self, raw, raw_client, tmp_path, notes):
        (tmp_path / "a.mp4.part").write_bytes(b"x" * 10)
        (tmp_path / "a~resume").write_bytes(notes)
        raw.default = whole()

        (file,) = await raw_client.download(completed(f"{raw.url}/x"), tmp_path)

        assert file.read_bytes() == DATA
        assert names(tmp_path) == ["a.mp4"]

    async def test_after_change_of_kind_leaves_no_part(self, raw, raw_client, tmp_path):
        raw.answers += [cut(whole())]
        raw.default = response(200, DATA, content_type="image/png")

        (file,) = await raw_client.download(completed(f"{raw.url}/x"), tmp_path)

        assert file.name == "a.png"
        assert names(tmp_path) == ["a.png"]

    @pytest.mark.slow
    async def test_survives_kill_9(self, raw, tmp_path):
        arrived = asyncio.Event()

        async def half(reader, writer):
            writer.write(cut(whole(), 1000))
            await writer.drain()
            arrived.set()
            await silence(reader, writer)

        raw.answers.append(half)
        program = (
            "import asyncio, sys, xai_tasks as x\n"
            "async def main():\n"
            "    async with x.TaskClient('test', base_url=sys.argv[1]) as client:\n"
            "        task = x.TaskResult('a', x.TaskStatus.COMPLETED, sys.argv[1] + '/x')\n"
            "        await client.download(task, sys.argv[2])\n"
            "asyncio.run(main())\n"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, raw.url, str(tmp_path)
        )
        await arrived.wait()
        while (
            not (tmp_path / "a.mp4.part").exists() or not (tmp_path / "a.mp4.part").stat().st_size
        ):
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        assert names(tmp_path) == ["a.mp4.part", "a~resume"]

        raw.default = part(1000)
        async with client_of(raw) as client:
            (file,) = await client.download(completed(f"{raw.url}/x"), tmp_path)

        assert raw.header("Range") == "bytes=1000-"
        assert file.read_bytes() == DATA
        assert names(tmp_path) == ["a.mp4"]


class TestDisk:
    @given(
        st.lists(st.binary(max_size=5), max_size=20),
        st.lists(st.integers(1, 12), min_size=1, max_size=5),
        st.integers(1, 4),
    )
    def test_writes_all_however_little_is_taken_at_once(self, chunks, taken, limit):
        written, amounts = bytearray(), itertools.cycle(taken)

        def writev(fd, views):
            assert 1 <= len(views) <= limit
            data = b"".join(views)[: next(amounts)]
            written.extend(data)
            return len(data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_downloads, "_MAX_VECTOR", limit)
            patch.setattr(_downloads.os, "writev", writev)
            _downloads._write_all(-1, chunks)

        assert bytes(written) == b"".join(chunks)

    async def test_full_is_an_oserror_and_leaves_nothing(
        self, server, client, tmp_path, monkeypatch
    ):
        def write(fd, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(_downloads.os, "writev", write)

        with pytest.raises(OSError, match="No space left.*task 'a'.*download them again") as caught:
            await client.download(completed(server.file("x", DATA)), tmp_path)

        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))
        assert names(tmp_path) == []

    async def test_full_ends_the_tasks_other_files(self, raw, raw_client, tmp_path, monkeypatch):
        monkeypatch.setattr(_downloads.os, "writev", lambda fd, data: os.close(-1))
        raw.answers.append(whole(b"x"))
        raw.default = silence

        with pytest.raises(OSError):
            await raw_client.download(completed(*(f"{raw.url}/{n}" for n in range(4))), tmp_path)

        assert names(tmp_path) == []

    async def test_that_fails_at_the_end_leaves_nothing(
        self, server, client, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(_downloads.os, "fsync", lambda fd: os.close(-1))

        with pytest.raises(OSError):
            await client.download(completed(server.file("x", DATA)), tmp_path)

        assert names(tmp_path) == []

    async def test_that_fails_at_everything_leaves_no_file_open(
        self, server, client, tmp_path, monkeypatch
    ):
        def fail(*args, **options):
            raise OSError(errno.EIO, "Input/output error")

        closed, close = [], os.close
        monkeypatch.setattr(_downloads.os, "close", lambda fd: closed.append(fd) or close(fd))
        monkeypatch.setattr(_downloads.os, "fsync", fail)
        url = server.file("x", DATA)
        monkeypatch.setattr(
            Path,
            "unlink",
            lambda path, missing_ok=False: (
                None if path.name.endswith("~resume") and not closed else fail()
            ),
        )

        with pytest.raises(OSError, match="Input/output error"):
            await client.download(completed(url), tmp_path)

        assert len(closed) == 1

    async def test_directory_that_is_a_file_is_an_oserror(self, server, client, tmp_path):
        (tmp_path / "file").touch()

        with pytest.raises(OSError, match="choose another directory"):
            await client.download(completed(server.file("x", DATA)), tmp_path / "file")

        assert server.count() == 0

    async def test_read_only_directory_is_a_permission_error(self, server, client, read_only):
        with pytest.raises(PermissionError, match="choose another directory"):
            await client.download(completed(server.file("x", DATA)), read_only)

    async def test_that_may_not_be_written_is_a_permission_error(
        self, server, client, tmp_path, monkeypatch
    ):
        def refuse(*args):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(_downloads.os, "open", refuse)

        with pytest.raises(PermissionError, match="choose another directory"):
            await client.download(completed(server.file("x", DATA)), tmp_path)

    @pytest.mark.parametrize("path", ["x.mp4", "x"])
    async def test_name_that_is_a_directory_is_that_files_error(
        self, server, client, tmp_path, path
    ):
        (tmp_path / "a.mp4").mkdir()

        with pytest.raises(DownloadError, match="is a directory; move it away"):
            url = server.file(path, DATA, content_type="video/mp4")
            await client.download(completed(url), tmp_path)

    async def test_link_in_the_parts_place_is_not_followed(self, server, client, tmp_path):
        (tmp_path / "target").write_bytes(b"precious")
        (tmp_path / "a.mp4.part").symlink_to(tmp_path / "target")

        with pytest.raises(OSError):
            await client.download(completed(server.file("x.mp4", DATA)), tmp_path)

        assert (tmp_path / "target").read_bytes() == b"precious"

    @pytest.mark.slow
    async def test_part_of_another_process_is_left_alone(self, server, client, tmp_path):
        part = tmp_path / "a.mp4.part"
        program = (
            "import fcntl, sys\n"
            "file = open(sys.argv[1], 'wb')\n"
            "fcntl.flock(file, fcntl.LOCK_EX)\n"
            "file.write(b'theirs'); file.flush()\n"
            "print(flush=True)\n"
            "sys.stdin.read()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program, part],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            process.stdout.readline()

            with pytest.raises(DownloadError, match="another process is downloading"):
                await client.download(completed(server.file("x.mp4", DATA)), tmp_path)
            process.stdin.close()

        assert part.read_bytes() == b"theirs"

    async def test_file_system_without_locks_is_written_all_the_same(
        self, server, client, tmp_path, monkeypatch
    ):
        def flock(fd, how):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(_downloads.fcntl, "flock", flock)

        (file,) = await client.download(completed(server.file("x.mp4", DATA)), tmp_path)

        assert file.read_bytes() == DATA

    async def test_part_renamed_while_it_is_opened_is_left_alone(
        self, server, client, tmp_path, monkeypatch
    ):
        def flock(fd, how):
            (tmp_path / "a.mp4.part").rename(tmp_path / "a.mp4")

        monkeypatch.setattr(_downloads.fcntl, "flock", flock)

        with pytest.raises(DownloadError, match="another process"):
            await client.download(completed(server.file("x.mp4", DATA)), tmp_path)


class TestEnding:
    async def test_cancelled_leaves_what_can_be_continued(self, raw, raw_client, tmp_path):
        async def half(reader, writer):
            writer.write(cut(whole(), 1000))
            await silence(reader, writer)

        raw.default = half
        download = asyncio.create_task(raw_client.download(completed(f"{raw.url}/x"), tmp_path))
        while not (tmp_path / "a.mp4.part").exists():
            await asyncio.sleep(0.01)

        download.cancel()
        with pytest.raises(asyncio.CancelledError):
            await download

        assert names(tmp_path) == ["a.mp4.part", "a~resume"]
        raw.default = whole()
        assert await raw_client.download(completed(f"{raw.url}/x"), tmp_path) == [
            tmp_path / "a.mp4"
        ]

    async def test_cancelled_leaves_nothing_that_can_not(self, raw, raw_client, tmp_path):
        async def half(reader, writer):
            writer.write(cut(whole(etag=None), 1000))
            await silence(reader, writer)

        raw.default = half
        download = asyncio.create_task(raw_client.download(completed(f"{raw.url}/x"), tmp_path))
        while not (tmp_path / "a.mp4.part").exists():
            await asyncio.sleep(0.01)

        download.cancel()
        with pytest.raises(asyncio.CancelledError):
            await download

        assert names(tmp_path) == []

    async def test_cancelled_again_and_again_waits_for_the_thread(
        self, server, client, tmp_path, monkeypatch
    ):
        writing, free, wrote = threading.Event(), threading.Event(), []
        write = os.writev

        def slow(fd, data):
            writing.set()
            free.wait(10)
            wrote.append(data)
            return write(fd, data)

        monkeypatch.setattr(_downloads.os, "writev", slow)
        download = asyncio.create_task(
            client.download(completed(server.file("x.mp4", DATA)), tmp_path)
        )
        while not writing.is_set():
            await asyncio.sleep(0.01)

        for _ in range(3):
            download.cancel()
            await asyncio.sleep(0.01)
        assert not download.done()
        free.set()
        with pytest.raises(asyncio.CancelledError):
            await download

        assert len(wrote) == 1
        assert not (tmp_path / "a.mp4").exists()

    async def test_cancelled_while_the_thread_fails_is_cancelled(
        self, server, client, tmp_path, monkeypatch
    ):
        writing, free = threading.Event(), threading.Event()

        def slow(fd, data):
            writing.set()
            free.wait(10)
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(_downloads.os, "writev", slow)
        download = asyncio.create_task(
            client.download(completed(server.file("x.mp4", DATA)), tmp_path)
        )
        while not writing.is_set():
            await asyncio.sleep(0.01)

        download.cancel()
        asyncio.get_running_loop().call_later(0.02, free.set)
        with pytest.raises(asyncio.CancelledError):
            await download

        assert not (tmp_path / "a.mp4").exists()

    async def test_slow_disk_does_not_hold_the_loop(self, server, client, tmp_path, monkeypatch):
        write = os.writev
        monkeypatch.setattr(
            _downloads.os, "writev", lambda fd, data: time.sleep(0.3) or write(fd, data)
        )
        download = asyncio.create_task(
            client.download(completed(server.file("x.mp4", DATA)), tmp_path)
        )

        server.add("b")
        polls = 0
        while not download.done():
            await client.get("b")
            polls += 1

        assert polls > 5
        assert (await download)[0].read_bytes() == DATA

    async def test_close_ends_downloads(self, raw, tmp_path):
        raw.default = silence
        client = client_of(raw)
        download = asyncio.create_task(client.download(completed(f"{raw.url}/x"), tmp_path))
        await raw.arrived.wait()

        await client.close()

        with pytest.raises(ClientClosedError, match="before the files were saved"):
            await download
        with pytest.raises(ClientClosedError):
            await client.download(completed(f"{raw.url}/x"), tmp_path)
        deadline = time.monotonic() + 10
        while any(t.name.startswith("xai-tasks-download") for t in threading.enumerate()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    async def test_close_that_is_cancelled_closes_all_the_same(self, server, tmp_path, monkeypatch):
        writing, free = threading.Event(), threading.Event()
        write = os.writev

        def slow(fd, data):
            writing.set()
            free.wait(10)
            return write(fd, data)

        monkeypatch.setattr(_downloads.os, "writev", slow)
        client = client_of(server)
        download = asyncio.create_task(
            client.download(completed(server.file("x.mp4", DATA)), tmp_path)
        )
        while not writing.is_set():
            await asyncio.sleep(0.01)

        closing = asyncio.create_task(client.close())
        await asyncio.sleep(0.01)
        closing.cancel()
        await asyncio.sleep(0.01)
        free.set()
        with pytest.raises(asyncio.CancelledError):
            await closing
        with pytest.raises(ClientClosedError):
            await download

    @pytest.mark.fake_clock
    async def test_close_ends_the_sleep_before_a_retry(self, server, tmp_path):
        server.disturb(1.0, Fault.status(500))
        client = client_of(server, retry=RetryPolicy(wait=tenacity.wait_fixed(1e6)))
        download = asyncio.create_task(client.download(completed(server.file("x", DATA)), tmp_path))
        await server.wait_for_requests(1)

        await client.close()

        with pytest.raises(ClientClosedError):
            await download


class TestArguments:
    @pytest.mark.parametrize("task", ["a", None, {"taskId": "a"}])
    async def test_task_must_be_one(self, client, tmp_path, task):
        with pytest.raises(TypeError, match="task must be a TaskResult"):
            await client.download(task, tmp_path)

    @pytest.mark.parametrize("directory", [None, 7, b"bytes"])
    async def test_directory_must_be_a_path(self, client, directory):
        with pytest.raises(TypeError, match="directory must be a path"):
            await client.download(completed("data:,"), directory)

    async def test_id_must_not_be_empty(self, client, tmp_path):
        with pytest.raises(InvalidTaskIdError):
            await client.download(completed("data:,", task_id=""), tmp_path)

    @pytest.mark.parametrize("limit", [0, 1.5, None])
    def test_limit_must_be_a_count(self, limit):
        with pytest.raises((ValueError, TypeError), match="max_download_bytes"):
            TaskClient("test", max_download_bytes=limit)
