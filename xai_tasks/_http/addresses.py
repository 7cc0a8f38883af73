"""Which addresses a download may connect to: a result must not lead into the user's own network."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

Lookup = Callable[..., list[tuple[Any, ...]]]
"""`socket.getaddrinfo`, or what stands in for it."""

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")


class AddressRefusedError(OSError):
    """A host has an address that is not public."""


def is_public(address: str) -> bool:
    """Return whether an IP address can be reached by everybody, and so holds nobody's secrets.

    Private, loopback, link-local (with the metadata services of clouds), shared, multicast and
    reserved addresses are not; nor are IPv6 addresses that stand for such an IPv4 address.

    Raises:
        ValueError: it is not an IP address.

    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip in _NAT64:
            ip = ipaddress.IPv4Address(ip.packed[-4:])
        else:
            return ip in _GLOBAL_UNICAST and ip not in _SIX_TO_FOUR and ip.is_global
    return ip.is_global and not ip.is_multicast


def check_host(host: str) -> None:
    """Check a URL's host where it is an address: such a host is never looked up.

    Raises:
        AddressRefusedError: it is an address that is not public.

    """
    try:
        public = is_public(host)
    except ValueError:
        return  # a name, which `PublicResolver` looks up
    if not public:
        raise AddressRefusedError(f"{host} is not a public address")


class PublicResolver(AbstractResolver):
    """Looks up names and refuses what is not public.

    The connection is made to the addresses that were checked, so it does not help a name's owner
    to answer otherwise the next time (DNS rebinding).

    Args:
        executor: where to look names up, which blocks.
        any_address: whether to refuse nothing.
        lookup: `socket.getaddrinfo`.

    """

    def __init__(
        self, executor: Executor, *, any_address: bool, lookup: Lookup = socket.getaddrinfo
    ) -> None:
        self._executor = executor
        self._any_address = any_address
        self._lookup = lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a host.

        Raises:
            AddressRefusedError: one of them is not public.
            OSError: the host has none.

        """
        lookup = partial(self._lookup, host, port, family, socket.SOCK_STREAM)
        infos = await asyncio.get_running_loop().run_in_executor(self._executor, lookup)
        found = [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=port,
                family=kind,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, proto, _, address in infos
        ]
        for each in found:
            if not self._any_address and not is_public(each["host"]):
                raise AddressRefusedError(
                    f"{host} has the address {each['host']}, which is not public"
                )
        return found

    async def close(self) -> None:
        """Hold nothing to release."""
