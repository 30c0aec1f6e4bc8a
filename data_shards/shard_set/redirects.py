"""Where a web server may send us on to: a mirror, a store behind it, but nowhere nearer to this machine than itself.

Data hosts answer with the address of another store as a matter of course. One that answers with an address of this
machine, of its link (169.254.169.254 hands out a cloud machine's credentials) or, from outside, of a private network
would have us ask there in its place.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from cardialign.data_shards.errors import DataError

if TYPE_CHECKING:
    from aiohttp import ClientSession, TraceRequestRedirectParams
    from yarl import URL

_OUTSIDE, _PRIVATE, _HERE = range(3)


async def guarded_client(**words: Any) -> ClientSession:
    """As fsspec's own client for http; what is redirected inwards raises DataError before anything is asked there."""
    import aiohttp
    from fsspec.implementations.http import get_client

    guard = aiohttp.TraceConfig()
    guard.on_request_redirect.append(_judge)
    client: ClientSession = await get_client(**words, trace_configs=[guard])
    return client


async def _judge(session: ClientSession, context: SimpleNamespace, hop: TraceRequestRedirectParams) -> None:
    from yarl import URL

    named = hop.response.headers.get("Location") or hop.response.headers.get("URI")
    try:
        target = hop.url.join(URL(named or ""))
    except ValueError:  # no address at all: aiohttp says so
        return
    if await leads_inwards(hop.url, target):
        raise DataError(
            f"{hop.url.origin()} sends us on to {target.origin()}, which is nearer to this machine than itself",
            "if that is where the set lies, give its address there; otherwise do not trust this server",
        )


async def leads_inwards(url: URL, target: URL) -> bool:
    """Whether `target`, which the server of `url` answers with, is nearer to this machine than that server.

    Another port of this machine is; a private network seen from within is not.
    """
    if (target.host, target.port) == (url.host, url.port):
        return False
    nearness = await _nearness(target)
    return nearness == _HERE or nearness > await _nearness(url)


async def _nearness(url: URL) -> int:
    """How near the nearest of a host's addresses is. One that cannot be resolved here is left to a proxy to find."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return _OUTSIDE
    return max(_near(str(address[0])) for *_, address in found)


def _near(text: str) -> int:
    address = ipaddress.ip_address(text.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback or address.is_link_local or address.is_unspecified:
        return _HERE
    return _OUTSIDE if address.is_global else _PRIVATE
