"""Which addresses are of the public internet: a table of our own, since Python's `is_global` errs.

Python 3.11.7 calls these global: NAT64's and 6to4's forms of 127.0.0.1, multicast, the address that a host of Azure
answers on (of others: CVE-2024-4032). So every block of IANA's registries of special-purpose addresses stands here
(https://www.iana.org/assignments/iana-ipv4-special-registry, …/iana-ipv6-special-registry), those too that IANA calls
reachable and where no picture and no receiver is. Of IPv6 only global unicast (2000::/3) and NAT64's well-known prefix
are left, and IPv4 addresses inside either are looked at as well.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: IPv4: IANA's registry, multicast, and what clouds answer on outside of both.
SPECIAL_V4 = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this network; on Linux 0.0.0.0 is this machine
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by carriers; metadata of Alibaba (100.100.100.200)
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # the host of a virtual machine of Azure
        "169.254.0.0/16",  # link-local; metadata of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; metadata of Oracle (192.0.0.192)
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)

#: IPv6: IANA's registry, and what was taken out of it and may still be routed somewhere.
SPECIAL_V6 = tuple(
    IPv6Network(block)
    for block in (
        "::/8",  # unspecified, loopback; IPv4 compatible (::/96), mapped (::ffff:0:0/96), translated (::ffff:0:0:0/96)
        "64:ff9b:1::/48",  # NAT64 of a network's own
        "100::/64",  # discarded
        "100:0:0:1::/64",  # dummy prefix
        "2001::/23",  # protocol assignments: Teredo (2001::/32), benchmarks, ORCHID, …
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3ffe::/16",  # 6bone
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fc00::/7",  # private; metadata of AWS (fd00:ec2::254) and Google
        "fe80::/10",  # link-local
        "fec0::/10",  # site-local
        "ff00::/8",  # multicast
    )
)

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
#: The third and second of a host part's four words where ISATAP puts an IPv4 address behind (RFC 5214).
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


def is_public(address: Address) -> bool:
    """Tell whether an address, and whatever address is inside it, is one of the public internet."""
    if isinstance(address, IPv4Address):
        return not any(address in block for block in SPECIAL_V4)
    if address in _NAT64:
        return all(is_public(each) for each in embedded(address))
    if address not in _GLOBAL_UNICAST or any(address in block for block in SPECIAL_V6):
        return False
    return all(is_public(each) for each in embedded(address))


def is_allowed(address: Address, networks: Collection[Network]) -> bool:
    """Tell whether we may connect to an address: it is public, or in a network that the operator names.

    An address in such a network is taken as it is; in all others, what is inside it has to be public.
    """
    return any(address in network for network in networks) or is_public(address)


def embedded(address: IPv6Address) -> list[IPv4Address]:
    """Return the IPv4 addresses that an IPv6 address leads to, by every form of writing one into the other.

    Mapped, translated and compatible, NAT64 (RFC 6052, RFC 8215), 6to4, Teredo (server, and client obscured), ISATAP.
    """
    if address.ipv4_mapped:
        return [address.ipv4_mapped]
    if address.sixtofour:
        return [address.sixtofour]
    if address.teredo:
        return list(address.teredo)
    last = IPv4Address(int(address) & 0xFFFF_FFFF)
    middle = (int(address) >> 32) & 0xFFFF_FFFF
    if address in IPv6Network("::/8") or address in _NAT64 or address in IPv6Network("64:ff9b:1::/48"):
        return [last]
    return [last] if middle in _ISATAP else []


def literal(text: str) -> Address | None:
    """Return the address that a host is, in its one canonical form; None for a name."""
    try:
        return ip_address(text)
    except ValueError:
        return None
