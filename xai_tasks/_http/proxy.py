"""The proxy of the client's own session, and how its password stays hidden."""

from __future__ import annotations

import base64
from typing import Any
from urllib.request import getproxies_environment

from attrs import field, frozen
from multidict import CIMultiDict
from yarl import URL

from xai_tasks._errors import ConfigurationError


@frozen
class Proxy:
    """One HTTP proxy. Its `repr` shows no login."""

    url: str
    """Its URL without the login, for messages."""
    options: dict[str, Any] = field(repr=False)
    """What aiohttp's `get` and `post` need to use it."""
    secrets: tuple[str, ...] = field(repr=False, default=())
    """What must be redacted: the password, and the login as it is sent."""

    @property
    def has_login(self) -> bool:
        """Whether a login is sent to the proxy."""
        return bool(self.secrets)


class ProxySetting:
    """What `TaskClient` was told of proxies: a URL, or to look into the environment.

    No frame that raises holds the URL in a local variable: tracebacks may be printed with locals.
    """

    __slots__ = ("_proxy", "_trust_env")

    def __init__(self, proxy: str | None = None, *, trust_env: bool = False) -> None:
        """Take the arguments of `TaskClient` as they are; `check` tells what is wrong with them."""
        self._proxy = proxy
        self._trust_env = trust_env

    @property
    def given(self) -> bool:
        """Whether there may be a proxy."""
        return self._proxy is not None or self._trust_env

    def for_url(self, url: URL) -> Proxy | None:
        """Return the proxy for requests to `url`, if any.

        Raises:
            ConfigurationError: the proxy's URL is malformed, or not that of an HTTP proxy.
            TypeError: it is not a string.

        """
        found = self._find(url)
        if isinstance(found, Exception):
            raise found
        return found

    def _find(self, url: URL) -> Proxy | Exception | None:
        if self._proxy is not None:
            if not isinstance(self._proxy, str):
                return TypeError(f"proxy must be a string, not {type(self._proxy).__name__}")
            return _parse(self._proxy, "proxy")
        if not self._trust_env:
            return None
        proxies = getproxies_environment()
        value = proxies.get(url.scheme)
        if not value or _is_exempt(url, proxies.get("no", "")):
            return None
        # As curl and others take it, the variable may leave out the scheme.
        return _parse(
            value if "://" in value else f"http://{value}", f"${url.scheme.upper()}_PROXY"
        )


def _is_exempt(url: URL, no_proxy: str) -> bool:
    """Return whether `NO_PROXY` names the host of `url`, a domain above it, or everything."""
    host = url.raw_host or ""
    for entry in no_proxy.lower().split(","):
        name = entry.strip().removesuffix(f":{url.port}").lstrip(".")
        if name == "*" or (name and (host == name or host.endswith(f".{name}"))):
            return True
    return False


def _parse(value: str, name: str) -> Proxy | ConfigurationError:
    """Return the proxy at a URL, or what is wrong with the URL, without showing it."""
    like = "http://host:port or http://user:password@host:port"
    try:
        url = URL(value) if value.isprintable() and " " not in value else URL()
        complete = url.scheme == "http" and bool(url.raw_host) and url.port is not None
    except ValueError:
        url, complete = URL(), False
    if not complete:
        return ConfigurationError(f"{name} must be the URL of an HTTP proxy: {like}")
    if url.raw_path not in ("", "/") or url.raw_query_string or url.raw_fragment:
        return ConfigurationError(f"{name} must be {like}, without a path")
    bare = str(url.origin())
    options: dict[str, Any] = {"proxy": URL(bare)}
    if url.user is None and url.password is None:
        return Proxy(bare, options)
    password = url.password or ""
    login = base64.b64encode(f"{url.user or ''}:{password}".encode()).decode()
    options["proxy_headers"] = CIMultiDict({"Proxy-Authorization": f"Basic {login}"})
    return Proxy(bare, options, (password, login))
