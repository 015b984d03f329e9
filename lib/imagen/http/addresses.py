"""Addresses of hosts: which are of this machine or of a private network, and looking them up."""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from collections.abc import Iterator
from itertools import chain, zip_longest
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# (family, type, protocol, canonical name, socket address), as socket.getaddrinfo gives them
AddressInfo = tuple[int, int, int, str, Any]

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LOCAL_ZONES = ("localhost", "local", "internal", "intranet", "lan", "home.arpa", "localdomain")


def is_loopback(host: str) -> bool:
    """Tell whether a host, by its name or address, is this machine."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _literal(name)
    return address is not None and any(
        each.is_loopback or each.is_unspecified for each in _meant(address)
    )


def is_public(text: str) -> bool:
    """Tell whether an address belongs to the internet, with those that it holds inside itself."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return all(each.is_global and not each.is_multicast for each in _meant(address))


def is_local_name(host: str) -> bool:
    """Tell whether a host need not be looked up to know that it is none of the internet."""
    name = host.strip("[]").rstrip(".").lower()
    address = _literal(name)
    if address is not None:
        return not is_public(str(address))
    zones = tuple(f".{zone}" for zone in _LOCAL_ZONES)
    return "." not in name or name.endswith(zones)


def look_up(host: str, port: int, timeout_s: float) -> list[AddressInfo]:
    """Return a host's addresses, families in turn. Raise TimeoutError or what getaddrinfo raises.

    The resolver has time-outs of its own that can be far longer, so it works in a thread.
    """
    host = host.strip("[]")
    if _literal(host) is not None:
        return _alternating(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    outcome: list[Any] = []

    def ask() -> None:
        try:
            outcome.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, ValueError) as fault:
            outcome.append(fault)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not outcome:
        raise TimeoutError("timed out")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return _alternating(outcome[0])


def _alternating(rows: list[Any]) -> list[AddressInfo]:
    """Let the families take turns, so that one that leads nowhere does not use up the time."""
    first = [row for row in rows if row[0] == rows[0][0]]
    other = [row for row in rows if row[0] != rows[0][0]]
    return [row for row in chain(*zip_longest(first, other)) if row is not None]


def _literal(name: str) -> Address | None:
    """Read an address, also in the old spellings that resolvers take (127.1, 0x7f000001)."""
    try:
        return ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        pass
    if not re.fullmatch(r"(0x[\da-f]*|\d+)(\.(0x[\da-f]*|\d+)){0,3}", name):
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(name))
    except OSError:
        return None


def _meant(address: Address) -> Iterator[Address]:
    """Yield an address, or the IPv4 addresses that an IPv6 address stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        yield address
        return
    last = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped or address in _NAT64:
        yield last
        return
    if int(address) >> 32 == 0 and int(last) > 1:  # the old IPv4-compatible form
        yield last
    if address.sixtofour:
        yield address.sixtofour
    if address.teredo:
        yield from address.teredo
    yield address
