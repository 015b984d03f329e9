"""The servers that an address may mean, each by one host, port and IP address.

libpq itself, used without blocking, waits for the first address as long as for all of them.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Mapping

Target = dict[str, str]


def targets(options: Mapping[str, str]) -> list[Target]:
    """Return connection parameters, one set for each address to try, in their order.

    [{}] leaves it to libpq: one address, a socket, or a service file.
    """
    names, numbers = (options.get(name, "").split(",") for name in ("host", "hostaddr"))
    if names == numbers == [""]:
        return [{}]
    count = max(len(names), len(numbers))
    ports = options.get("port", "").split(",")
    ports = ports * count if len(ports) == 1 else ports
    if {len(names), len(numbers)} - {1, count} or len(ports) != count:
        return [{}]  # libpq says what is wrong with it
    hosts = zip(_filled(names, count), _filled(numbers, count), ports, strict=True)
    whole = [target for host in hosts for target in _of_host(*host)]
    if options.get("load_balance_hosts") == "random":
        random.shuffle(whole)
    if options.get("target_session_attrs") == "prefer-standby" and len(whole) > 1:
        kinds = ("standby", "any")
        whole = [{**target, "target_session_attrs": kind} for kind in kinds for target in whole]
    return whole if len(whole) > 1 or count > 1 else [{}]


def _filled(values: list[str], count: int) -> list[str]:
    return values if len(values) == count else [""] * count


def _of_host(name: str, number: str, port: str) -> list[Target]:
    """Return the addresses of one host; none when it has no address."""
    where = {"host": name, **({"port": port} if port else {})}
    if number:
        return [{**where, "hostaddr": number}]
    if not name or name.startswith(("/", "@")):
        return [where]
    try:
        rows = socket.getaddrinfo(name, port or None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [{**where, "hostaddr": ip} for ip in dict.fromkeys(str(entry[4][0]) for entry in rows)]
