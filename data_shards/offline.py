"""One switch after which nothing of this process connects beyond its machine: `CARDIALIGN_OFFLINE=1`.

Python tells its audit hooks of every name that is looked up and every socket that connects, whichever package does it
(PEP 578); the hook here refuses what is neither on this machine nor in `CARDIALIGN_OFFLINE_HOSTS`, the names, addresses
and networks of one's own cluster. What is written in C and does not ask Python (Ray's and NCCL's own connections to the
nodes that they were told to join) is not seen by it; the hosts that a database's driver is given are asked about before
(`refuse_elsewhere`).
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import platform
import socket
import sys
from typing import Any

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shown import shown

SWITCH, HOSTS = "CARDIALIGN_OFFLINE", "CARDIALIGN_OFFLINE_HOSTS"
OF_OTHERS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
"""Switches of the hub's packages, which then say in their own words what they lack."""
_LOOKED_UP = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
_SENT = ("socket.connect", "socket.sendto", "socket.sendmsg")
_HERE = ("", "*", "localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
_OF_THE_KERNEL = (socket.AF_UNIX, getattr(socket, "AF_NETLINK", None))
_watching: list[bool] = []


def is_offline() -> bool:
    return os.environ.get(SWITCH, "") not in ("", "0")


def stay_offline() -> None:
    """From now on, where the switch is on. Raises UsageError for what is no network in `CARDIALIGN_OFFLINE_HOSTS`."""
    if not is_offline():
        return
    for name in OF_OTHERS:
        os.environ.setdefault(name, "1")
    _allowed(os.environ.get(HOSTS, ""))
    if not _watching:
        _watching.append(True)
        sys.addaudithook(_judge)


def _judge(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _LOOKED_UP:
        host = arguments[0]
    elif event in _SENT:
        address = arguments[1]
        if getattr(arguments[0], "family", None) in _OF_THE_KERNEL or not isinstance(address, tuple) or not address:
            return  # a socket in the file system or of the kernel, or one that is connected already
        host = address[0]
    else:
        return
    refuse_elsewhere(_text(host))


def refuse_elsewhere(host: str) -> None:
    """For who hands a host to a library that connects without asking Python. Raises UserError where the switch is on
    and the host is neither this machine nor allowed."""
    if is_offline() and not _is_here(host):
        raise UserError(
            f"{shown(host[:200])} was to be connected to, and {SWITCH} forbids it",
            f"take the switch away, or name the host, or its network, in {HOSTS}",
        )


def _text(host: Any) -> str:
    if isinstance(host, bytes | bytearray):
        return bytes(host).decode("ascii", "replace")
    return "" if host is None else str(host)


def _is_here(host: str) -> bool:
    """Whether a host is this machine, or one that the user has allowed."""
    name = host.strip("[]").partition("%")[0].rstrip(".").lower()
    names, networks = _allowed(os.environ.get(HOSTS, ""))
    if name in _HERE or name in names or name == platform.node().rstrip(".").lower():
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback or address.is_unspecified or any(address in each for each in networks):
        return True
    return _is_own(str(address))


@functools.lru_cache(maxsize=256)
def _is_own(address: str) -> bool:
    """Whether an address is one of this machine: only these can be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return True
    return False


@functools.lru_cache(maxsize=16)
def _allowed(text: str) -> tuple[frozenset[str], tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]]:
    """Names, and networks, of `CARDIALIGN_OFFLINE_HOSTS`: separated by commas or blanks."""
    names, networks = set(), []
    for word in text.replace(",", " ").split():
        try:
            networks.append(ipaddress.ip_network(word, strict=False))
        except ValueError:
            if "/" in word:
                raise UsageError(
                    f"{HOSTS}: {shown(word[:100])} is no network", "write for example 10.0.0.0/8, or a host's name"
                ) from None
            names.add(word.rstrip(".").lower())
    return frozenset(names), tuple(networks)
