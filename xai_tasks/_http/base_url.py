"""The check of `base_url`."""

from __future__ import annotations

import ipaddress

from yarl import URL

from xai_tasks._errors import ConfigurationError, printable

DEFAULT_BASE_URL = "https://api.mountsea.ai"


def check_base_url(base_url: object, *, allow_insecure_http: bool, name: str = "base_url") -> str:
    """Return `base_url` without a slash at its end; messages call it `name`.

    Raises:
        ConfigurationError: it has no scheme or host, credentials, a query or a fragment, or another
            scheme than https (or http to loopback, or anywhere with `allow_insecure_http`).
        TypeError: it is not a string.

    """
    if not isinstance(base_url, str):
        raise TypeError(f"{name} must be a string, not {type(base_url).__name__}")
    try:
        url = URL(base_url) if base_url.isprintable() and " " not in base_url else None
    except ValueError:
        url = None
    if url is None or url.scheme not in ("https", "http") or not url.raw_host:
        raise ConfigurationError(f"{name} must be like https://host or https://host/prefix")
    if url.raw_user is not None or url.raw_password is not None:
        raise ConfigurationError(f"{name} must not hold credentials: pass the key as api_key")
    if url.raw_query_string or url.raw_fragment or base_url.rstrip("/").endswith(("?", "#")):
        raise ConfigurationError(f"{name} must not have a query or a fragment")
    if url.scheme == "http" and not allow_insecure_http and not is_loopback(url.raw_host):
        raise ConfigurationError(
            f"{name} would send the key over plain http to {printable(url.raw_host)}: use https, "
            "or pass allow_insecure_http=True"
        )
    return str(url).rstrip("/")


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine, without resolving names other than localhost."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
