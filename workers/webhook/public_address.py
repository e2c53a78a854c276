"""Connections to public addresses only, so that nobody makes a worker speak to its own network (SSRF).

The check stands where the socket is made, after every lookup: a name that points elsewhere the second time (DNS
rebinding), a literal address, an odd spelling of one and the target of a redirect all come through here.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.connector import AddrInfoType

_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")  # all that IANA has given out; the rest is local, multicast or reserved
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are the IPv4 address that is meant


class AddressRefused(OSError):
    """The address is not public. An OSError, since that is what a failed connection raises."""


def is_public(address: str) -> bool:
    """Whether `address` is an ordinary host of the internet: neither private, local, shared, multicast nor reserved.

    An IPv6 address that carries an IPv4 address (mapped, 6to4, NAT64) is as public as that one. What is no address
    is not public.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is None:
            return ip in _UNICAST_V6 and ip.is_global
        ip = inner
    return ip.is_global and not ip.is_multicast


def guarded_socket(is_permitted: Callable[[str], bool]) -> Callable[[AddrInfoType], socket.socket]:
    """A `socket_factory` for `aiohttp.TCPConnector`: sockets for permitted addresses; the rest raise `AddressRefused`.

    The error is the same for every address: where all addresses of a name are refused, the connector then raises this
    very error, and not a summary of several.
    """

    def make(address: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, sockaddr = address
        if not is_permitted(str(sockaddr[0])):
            raise AddressRefused("the address is private, local or reserved")
        return socket.socket(family, kind, protocol)

    return make
