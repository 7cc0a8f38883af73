"""Which addresses a download may connect to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_server import RawServer, response

from xai_tasks import ConfigurationError
from xai_tasks._http.addresses import (
    AddressRefusedError,
    PublicResolver,
    check_host,
    is_public,
)
from xai_tasks._http.file_transport import FileTransport, TransferError, shown
from xai_tasks._http.proxy import ProxySetting

PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
NOT_PUBLIC = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.255",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.1",
    "192.0.2.1",
    "192.168.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:224.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001:db8::1",
    "2001::1",
    "2002:7f00:1::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as executor:
        yield executor


def lookup_of(*answers):
    """Play `socket.getaddrinfo`: each call gets the next of `answers`, a list of addresses."""
    rest = iter(answers)

    def lookup(host, port, family, kind):
        found = []
        for address in next(rest):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            end = (0, 0) if ":" in address else ()
            found.append((family, kind, 6, "", (address, port, *end)))
        return found

    return lookup


def transport_of(executor, lookup, base_url="https://api.example"):
    return FileTransport(
        base_url,
        executor,
        allow_insecure_http=True,
        request_timeout=5.0,
        agent="test",
        proxies=ProxySetting(),
        lookup=lookup,
    )


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_reached(address):
    assert is_public(address)
    check_host(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_other_addresses_may_not(address):
    assert not is_public(address)
    with pytest.raises(AddressRefusedError, match="not a public address"):
        check_host(address)


@given(st.ip_addresses(v=4))
def test_mapped_address_is_as_public_as_what_it_stands_for(address):
    assert is_public(f"::ffff:{address}") == is_public(str(address))
    assert is_public(str(ipaddress.ip_address("64:ff9b::") + int(address))) == is_public(
        str(address)
    )


@given(st.ip_addresses(network="fc00::/7") | st.ip_addresses(network="10.0.0.0/8"))
def test_private_networks_are_not_public(address):
    assert not is_public(str(address))


@pytest.mark.parametrize("host", ["example.com", "127.1", "localhost", "a:b", ""])
def test_names_are_left_to_the_resolver(host):
    check_host(host)


async def test_resolver_returns_what_is_public(executor):
    resolver = PublicResolver(executor, any_address=False, lookup=lookup_of(["1.1.1.1", "2606::1"]))

    found = await resolver.resolve("example.com", 443)

    assert [(each["host"], each["family"]) for each in found] == [
        ("1.1.1.1", socket.AF_INET),
        ("2606::1", socket.AF_INET6),
    ]
    await resolver.close()


@pytest.mark.parametrize("answer", [["127.0.0.1"], ["1.1.1.1", "10.0.0.1"], ["::ffff:127.0.0.1"]])
async def test_resolver_refuses_name_with_any_address_that_is_not(executor, answer):
    resolver = PublicResolver(executor, any_address=False, lookup=lookup_of(answer))

    with pytest.raises(AddressRefusedError, match=r"example.com has the address .* not public"):
        await resolver.resolve("example.com", 443)


async def test_resolver_may_allow_any(executor):
    resolver = PublicResolver(executor, any_address=True, lookup=lookup_of(["127.0.0.1"]))

    assert len(await resolver.resolve("example.com")) == 1


async def test_refused_name_gets_no_request(executor):
    async with RawServer(response(200)) as raw:
        transport = transport_of(executor, lookup_of(["127.0.0.1"]))
        with pytest.raises(TransferError, match="has the address 127.0.0.1") as caught:
            await transport.get(f"http://rebind.example:{raw.port}/x", {})
        await transport.close()

    assert not caught.value.transient
    assert raw.requests == []


async def test_rebinding_does_not_help(executor):
    """A name that was public at its check is looked up no second time for the connection."""
    asked = []
    answers = lookup_of(["127.0.0.1"])

    def lookup(host, *rest):
        asked.append(host)
        return answers(host, *rest)

    async with RawServer(response(200, b"x")) as raw:
        transport = transport_of(executor, lookup, base_url="http://127.0.0.1")
        answer = await transport.get(f"http://rebind.example:{raw.port}/x", {})
        assert await answer.read() == b"x"
        answer.close()
        await transport.close()

    assert asked == ["rebind.example"]


async def test_redirect_to_refused_name_is_not_followed(executor):
    async with RawServer(response(302, headers={"Location": "http://inner.example/x"})) as raw:
        transport = transport_of(executor, lookup_of(["127.0.0.1"], ["10.0.0.1"]))
        first = PublicResolver.resolve

        async def resolve(self, host, port=0, family=socket.AF_UNSPEC):
            self._any_address = host == "outer.example"
            return await first(self, host, port, family)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PublicResolver, "resolve", resolve)
            with pytest.raises(TransferError, match=r"inner.example has the address 10\.0\.0\.1"):
                await transport.get(f"http://outer.example:{raw.port}/x", {})
        await transport.close()

    assert len(raw.requests) == 1


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://169.254.169.254/latest", "169.254.169.254 is not a public address"),
        ("https://[::ffff:7f00:1]/x", "is not a public address"),
        ("ftp://inner.example/x", "is not https"),
    ],
)
async def test_redirect_to_refused_address_is_not_followed(executor, monkeypatch, location, words):
    async with RawServer(response(302, headers={"Location": location})) as raw:
        transport = transport_of(executor, lookup_of(["127.0.0.1"]))
        monkeypatch.setattr(
            "xai_tasks._http.addresses.is_public", lambda a: a == "127.0.0.1" or is_public(a)
        )

        with pytest.raises(TransferError, match=words):
            await transport.get(f"http://outer.example:{raw.port}/x", {})
        await transport.close()

    assert len(raw.requests) == 1


PROXY = "http://user:pass-word@127.0.0.1:{}"


@pytest.fixture
async def proxied(executor):
    """A transport that sends everything to a proxy on loopback, which looks up names itself."""

    def transport(raw):
        proxies = ProxySetting(PROXY.format(raw.port))
        return FileTransport(
            "http://api.example",
            executor,
            allow_insecure_http=True,
            request_timeout=5,
            agent="test",
            proxies=proxies,
        )

    return transport


async def test_proxy_gets_the_request_and_its_own_login(proxied):
    async with RawServer(response(200, b"x")) as raw:
        transport = proxied(raw)
        answer = await transport.get("http://outer.example/x?y=%2f", {})
        assert await answer.read() == b"x"
        answer.close()
        await transport.close()

    assert raw.target() == "http://outer.example/x?y=%2f"
    assert raw.header("Proxy-Authorization").startswith("Basic ")
    assert raw.header("Authorization") is None


async def test_proxy_is_asked_for_no_refused_address(proxied):
    async with RawServer(response(200)) as raw:
        transport = proxied(raw)
        with pytest.raises(TransferError, match="not a public address"):
            await transport.get("http://169.254.169.254/x", {})
        await transport.close()

    assert raw.requests == []


async def test_malformed_proxy_of_the_environment_is_told(executor, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "socks5://user:pass-word@proxy:1")
    transport = FileTransport(
        "https://api.example",
        executor,
        allow_insecure_http=False,
        request_timeout=5,
        agent="test",
        proxies=ProxySetting(trust_env=True),
    )

    with pytest.raises(ConfigurationError, match="HTTPS_PROXY must be the URL"):
        await transport.get("https://outer.example/x", {})
    await transport.close()


async def test_close_that_is_cancelled_closes_both_sessions(executor, monkeypatch):
    async with RawServer(response(200, b"x")) as raw:
        monkeypatch.setenv("HTTP_PROXY", raw.url)
        monkeypatch.setenv("NO_PROXY", "direct.example")
        transport = FileTransport(
            "http://127.0.0.1",
            executor,
            allow_insecure_http=True,
            request_timeout=5,
            agent="test",
            proxies=ProxySetting(trust_env=True),
            lookup=lookup_of(["127.0.0.1"], ["127.0.0.1"]),
        )
        for host in ("outer.example", f"direct.example:{raw.port}"):
            (await transport.get(f"http://{host}/x", {})).close()
        sessions = list(transport._sessions.values())

        closing = asyncio.ensure_future(transport.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])

    assert [session.closed for session in sessions] == [True, True]


@pytest.mark.parametrize(("code", "transient"), [(407, False), (502, True)])
async def test_refusal_of_the_proxy_shows_no_login(proxied, code, transient):
    async with RawServer(response(code)) as raw:
        transport = proxied(raw)
        with pytest.raises(TransferError, match=f"proxy answered HTTP {code}") as caught:
            await transport.get("https://outer.example/x", {})
        await transport.close()

    assert caught.value.transient == transient
    assert "pass-word" not in repr(caught.value)


async def test_redirect_from_https_to_http_is_refused(executor):
    transport = FileTransport(
        "https://api.example",
        executor,
        allow_insecure_http=False,
        request_timeout=5,
        agent="test",
        proxies=ProxySetting(),
    )

    with pytest.raises(TransferError, match="http://a is not https"):
        await transport.get("http://a/x", {})
    await transport.close()


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://h/p?q=secret#f", "https://h/p"),
        ("https://user:secret@h:1/p", "https://h:1/p"),
        ("https://h?secret", "https://h"),
        ("https://h#secret", "https://h"),
        ("https://user:secret@h/p@q", "https://h/p@q"),
        ("data:image/png;base64,secret", "data:image/png;base64,…"),
    ],
)
def test_shown_url_holds_no_secret(url, text):
    assert shown(url) == text
