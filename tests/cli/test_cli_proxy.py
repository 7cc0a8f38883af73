"""The proxy: from an option, or from the environment as for every command line."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from urllib.parse import urlsplit

import pytest
from cli_program import KEY, run_here


class ForwardProxy:
    """An HTTP proxy on a loopback port, and the heads of the requests that it has passed on."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.heads = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(OSError):
                    self._pass_on(connection)

    def _pass_on(self, connection):
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(65536)
        self.heads.append(head.decode())
        method, target, rest = head.split(b" ", 2)
        url = urlsplit(target.decode())
        with socket.create_connection((url.hostname, url.port)) as server:
            path = f"{url.path}?{url.query}".encode()
            rest = rest.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
            server.sendall(b" ".join([method, path, rest]))
            while data := server.recv(65536):
                connection.sendall(data)

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def proxy():
    proxy = ForwardProxy()
    yield proxy
    proxy.close()


CLEAN = dict.fromkeys(
    ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "NO_PROXY", "no_proxy", "REQUEST_METHOD"]
)


@pytest.mark.parametrize("command", ["get", "wait", "watch"])
def test_requests_go_through_the_proxy_of_the_option(program, server, proxy, command):
    server.add("a")
    ended = program.run(command, "a", "--proxy", f"http://{proxy.address}", env=CLEAN)
    assert ended.code == 0
    assert proxy.heads[0].startswith(f"GET {server.url}/xai/tasks?taskId=a ")


def test_login_of_the_proxy_is_shown_nowhere(program, server, proxy):
    server.add("a")
    url = f"http://me:a-password@{proxy.address}"
    ended = program.run("wait", "a", "-vv", "--proxy", url, env=CLEAN)
    assert (ended.code, len(proxy.heads)) == (0, 1)
    login = base64.b64encode(b"me:a-password").decode()
    assert "a-password" not in ended.err + ended.out
    assert login not in ended.err + ended.out


def test_environment_names_the_proxy(program, server, proxy):
    server.add("a")
    env = CLEAN | {"http_proxy": f"http://{proxy.address}"}
    assert program.run("wait", "a", env=env).code == 0
    assert len(proxy.heads) == 1


def test_environment_names_hosts_without_a_proxy(program, server, proxy):
    server.add("a")
    env = CLEAN | {"http_proxy": f"http://{proxy.address}", "no_proxy": "127.0.0.1"}
    assert program.run("wait", "a", env=env).code == 0
    assert proxy.heads == []


@pytest.mark.parametrize("value", ["nowhere", "socks5://127.0.0.1:1080", "http://me:secret@"])
def test_malformed_proxy_is_refused(server, monkeypatch, capfd, value):
    code, _, err = run_here(monkeypatch, capfd, server.url, ["wait", "a", "--proxy", value])
    assert (code, server.count()) == (2, 0)
    assert "--proxy must be" in err
    assert "secret" not in err
    assert KEY not in err
