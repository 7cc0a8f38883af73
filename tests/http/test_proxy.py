"""Which proxy is used, what is sent to it, and what errors say of it; with a real one:
realserver/test_tinyproxy.py.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import traceback

import aiohttp
import pytest
import trustme
from raw_server import RawServer, reset, response, silence
from rich.pretty import pretty_repr
from yarl import URL

from xai_tasks import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ConfigurationError,
    RetryPolicy,
    TaskClient,
)
from xai_tasks._errors import is_transient
from xai_tasks._http.proxy import ProxySetting

KEY = "sk-test-0123456789"
PASSWORD = "p@ss/w0rd:S3CRET"
LOGIN = "us%65r:p%40ss%2Fw0rd%3AS3CRET"
SENT = "Basic " + base64.b64encode(f"user:{PASSWORD}".encode()).decode()
PENDING = b'{"taskId": "a", "status": "pending"}'
API = URL("https://api.example:443/xai/tasks")
NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUEST_METHOD")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch.setenv


# Which proxy.


@pytest.mark.parametrize(
    ("given", "url", "login"),
    [
        ("http://proxy:3128", "http://proxy:3128", None),
        ("http://proxy:3128/", "http://proxy:3128", None),
        ("http://proxy", "http://proxy", None),
        ("HTTP://PROXY:8080", "http://proxy:8080", None),
        ("http://[::1]:8080", "http://[::1]:8080", None),
        (f"http://{LOGIN}@proxy:3128", "http://proxy:3128", SENT),
        ("http://user@proxy:1", "http://proxy:1", "Basic dXNlcjo="),
        ("http://:pw@proxy:1", "http://proxy:1", "Basic OnB3"),
    ],
)
def test_a_proxys_url_is_taken_apart(given, url, login):
    proxy = ProxySetting(given).for_url(API)

    assert proxy.url == url
    assert str(proxy.options["proxy"]).rstrip("/") == url
    assert proxy.options.get("proxy_headers", {}).get("Proxy-Authorization") == login
    assert proxy.has_login is (login is not None)


NOT_PROXIES = [
    "http://", "http:///x", "https://proxy:3128", "socks5://proxy:1080", "ftp://proxy", "http://proxy:99999",
    "http://proxy:x", "http://pro xy", "http://[::1", "http://proxy/path", "http://proxy?a=b", "http://proxy#x",
    f"socks5://{LOGIN}@proxy", f"http://{LOGIN}@proxy/path",
]  # fmt: skip


@pytest.mark.parametrize("given", ["", "proxy", "proxy:3128", "http://proxy\n", *NOT_PROXIES])
def test_malformed_proxy_is_refused(given):
    with pytest.raises(ConfigurationError, match="^proxy must be .*http://host:port") as caught:
        TaskClient(KEY, proxy=given)

    assert_hidden(caught.value)


@pytest.mark.parametrize("given", NOT_PROXIES)
def test_malformed_environment_proxy_is_refused(given, environment):
    environment("HTTPS_PROXY", given)

    with pytest.raises(ConfigurationError, match=r"^\$HTTPS_PROXY must be ") as caught:
        TaskClient(KEY, trust_env=True)

    assert_hidden(caught.value)


@pytest.mark.parametrize("given", [7, b"http://proxy:3128", URL("http://proxy:3128"), True])
def test_a_proxy_that_is_no_string_is_a_type_error(given):
    with pytest.raises(TypeError, match="^proxy must be a string, not "):
        TaskClient(KEY, proxy=given)


@pytest.mark.parametrize("options", [{"proxy": f"http://{LOGIN}@proxy:1"}, {"trust_env": True}])
async def test_a_borrowed_session_has_its_own_proxy(options):
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ConfigurationError, match="set the proxy on the session") as caught:
            TaskClient(KEY, session=session, **options)

    assert_hidden(caught.value)


@pytest.mark.parametrize("damage", [{"api_key": "sk\n"}, {"max_concurrency": 0}, {"base_url": "x"}])
def test_constructor_errors_hide_proxy_password(damage):
    arguments = {"api_key": KEY, **damage}
    with pytest.raises(ValueError) as caught:
        TaskClient(arguments.pop("api_key"), proxy=f"http://{LOGIN}@proxy:1", **arguments)

    assert_hidden(caught.value)


@pytest.mark.parametrize(
    ("variables", "url", "expected"),
    [
        ({}, API, None),
        ({"HTTPS_PROXY": "http://p:1"}, API, "http://p:1"),
        ({"https_proxy": "http://p:1"}, API, "http://p:1"),
        ({"HTTPS_PROXY": "p:1"}, API, "http://p:1"),
        ({"HTTPS_PROXY": ""}, API, None),
        ({"HTTP_PROXY": "http://p:1"}, API, None),
        ({"HTTP_PROXY": "http://p:1"}, URL("http://api.example"), "http://p:1"),
        ({"ALL_PROXY": "http://p:1"}, API, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, API, None),
        ({"HTTPS_PROXY": "http://p:1", "no_proxy": "api.example"}, API, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "x, EXAMPLE"}, API, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".example"}, API, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "api.example:443"}, API, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "api.example:80"}, API, "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "ample,pi.example,,"}, API, "http://p:1"),
    ],
)
def test_the_environments_proxy_is_found(environment, variables, url, expected):
    for name, value in variables.items():
        environment(name, value)

    proxy = ProxySetting(trust_env=True).for_url(url)

    assert (proxy and proxy.url) == expected
    assert ProxySetting().for_url(url) is None


def test_argument_precedes_environment(environment):
    environment("HTTPS_PROXY", "http://other:1")

    assert ProxySetting("http://proxy:1", trust_env=True).for_url(API).url == "http://proxy:1"


# What is sent.


@pytest.fixture
async def proxy():
    async with RawServer(response(200, PENDING)) as proxy:
        yield proxy


def client_by(proxy, base_url="http://127.0.0.1:9", login=None, **options):
    url = proxy.url if login is None else proxy.url.replace("//", f"//{login}@")
    options.setdefault("retry", RetryPolicy(stop=lambda state: True))
    return TaskClient(KEY, base_url=base_url, proxy=url, **options)


@pytest.mark.parametrize("login", [None, LOGIN])
async def test_a_plain_request_is_sent_to_the_proxy(proxy, login):
    async with client_by(proxy, login=login) as client:
        for _ in range(2):
            assert (await client.get("a b")).task_id == "a"

    for request in (0, 1):
        assert proxy.target(request) == "http://127.0.0.1:9/xai/tasks?taskId=a%20b"
        assert proxy.header("Host", request) == "127.0.0.1:9"
        assert proxy.header("Authorization", request) == f"Bearer {KEY}"
        assert proxy.header("Proxy-Authorization", request) == (login and SENT)


async def test_environment_proxy_without_netrc_login(proxy, environment, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login them password pw\ndefault login them password pw\n")
    environment("NETRC", str(netrc))
    environment("HTTP_PROXY", proxy.url)
    async with TaskClient(KEY, base_url="http://127.0.0.1:9", trust_env=True) as client:
        await client.get("a")

    assert proxy.header("Authorization") == f"Bearer {KEY}"
    assert proxy.header("Proxy-Authorization") is None


@pytest.mark.parametrize("login", [None, LOGIN])
async def test_tunnel_is_requested_without_key(proxy, login):
    proxy.default = b"HTTP/1.1 503 No\r\n\r\n"
    async with client_by(proxy, "https://api.example", login) as client:
        with pytest.raises(APIConnectionError):
            await client.get("a")

    assert proxy.requests[0].startswith(b"CONNECT api.example:443 HTTP/1.1\r\n")
    assert proxy.header("Authorization") is None
    assert proxy.header("Proxy-Authorization") == (login and SENT)
    assert KEY.encode() not in b"".join(proxy.requests)


# What goes wrong.


def assert_hidden(error):
    """Assert that nothing that can be seen of an error holds the password or the key."""
    frames = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename != __file__
    ]
    texts = [str(error), repr(error), pretty_repr(vars(error)), *error.args]
    texts += traceback.StackSummary.extract(iter(frames), capture_locals=True).format()
    for frame, _ in frames:
        texts += [pretty_repr(value) for value in frame.f_locals.values()]
    assert error.__cause__ is error.__context__ is None
    for secret in (PASSWORD, "p%40ss", SENT.removeprefix("Basic "), KEY):
        assert secret not in "\n".join(map(str, texts))


ECHO = f"{PASSWORD} {SENT} {LOGIN}"
BROKEN = {
    "407": (b"HTTP/1.1 407 Login please\r\nContent-Length: 0\r\n\r\n", "HTTP 407"),
    "403": (b"HTTP/1.1 403 Filtered\r\nContent-Length: 0\r\n\r\n", "HTTP 403"),
    "echo": (f"HTTP/1.1 502 {ECHO}\r\nX: {ECHO}\r\n\r\n{ECHO}".encode(), "HTTP 502"),
    "garbage": (b"\x00\x01 " + ECHO.encode() + b"\r\n\r\n", ""),
    "closed": (b"", ""),
    "reset": (reset, ""),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("base_url", ["https://api.example", "http://127.0.0.1:9"])
async def test_errors_name_proxy_and_hide_password(proxy, name, base_url):
    proxy.default, text = BROKEN[name]
    async with client_by(proxy, base_url, LOGIN) as client:
        with pytest.raises((APIConnectionError, APIStatusError)) as caught:
            await client.get("a")

    if isinstance(caught.value, APIConnectionError):
        assert f"(through the proxy {proxy.url})" in str(caught.value)
    assert text in str(caught.value)
    assert_hidden(caught.value)


@pytest.mark.parametrize("base_url", ["https://api.example", "http://127.0.0.1:9"])
@pytest.mark.parametrize(
    ("login", "hint"), [(None, "wants a login"), (LOGIN, "refused the login in its URL")]
)
async def test_407_ends_a_wait_and_says_what_to_do(proxy, base_url, login, hint):
    proxy.default = BROKEN["407"][0]
    async with client_by(proxy, base_url, login) as client:
        with pytest.raises((APIConnectionError, APIStatusError)) as caught:
            await client.wait("a")

    assert f"the proxy {proxy.url} {hint}" in str(caught.value)
    assert not is_transient(caught.value)
    assert len(proxy.requests) == 1


async def test_a_proxy_that_is_gone_is_named(proxy):
    await proxy.__aexit__()
    async with client_by(proxy, "https://api.example", LOGIN) as client:
        with pytest.raises(APIConnectionError, match=f"through the proxy {proxy.url}") as caught:
            await client.get("a")

    assert is_transient(caught.value)
    assert_hidden(caught.value)


async def test_silent_proxy_times_out_and_is_named(proxy):
    proxy.default = silence
    async with client_by(proxy, "https://api.example", LOGIN, request_timeout=0.1) as client:
        with pytest.raises(APITimeoutError, match=f"through the proxy {proxy.url}") as caught:
            await client.get("a")

    assert_hidden(caught.value)


async def test_a_certificate_behind_the_proxy_is_verified():
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with RawServer(response(200, PENDING), tls=context) as api, RawServer() as proxy:

        async def tunnel(reader, writer):
            there = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            await asyncio.wait(
                [
                    asyncio.create_task(pump(reader, there[1])),
                    asyncio.create_task(pump(there[0], writer)),
                ]
            )

        async def pump(source, target):
            while data := await source.read(2**16):
                target.write(data)
            target.close()

        proxy.default = tunnel
        async with client_by(proxy, api.url) as client:
            with pytest.raises(APIConnectionError, match="SSL_CERT_FILE"):
                await client.wait("a")
        assert api.requests == []


async def test_no_part_of_a_client_shows_the_password(proxy):
    async with client_by(proxy, login=LOGIN) as client:
        await client.get("a")
        transport = client._parts.transport
        shown = pretty_repr([transport, transport._proxy, transport._template, transport._sessions])
        shown += repr([client, transport, transport._proxy, transport._template])

    for secret in (PASSWORD, "p%40ss", SENT.removeprefix("Basic ")):
        assert secret not in shown
