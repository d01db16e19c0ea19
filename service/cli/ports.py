"""Free TCP ports on this machine's loopback address."""

from __future__ import annotations

import contextlib
import random
import socket

LOOPBACK = "127.0.0.1"

#: SeaweedFS serves gRPC on each port + 10000. Both ranges lie below what systems hand out to outgoing connections
#: (32768 on Linux, 49152 on macOS), so that no client socket takes a port between the look and the use.
GRPC_OFFSET = 10_000
_FIRST, _LAST = 12_000, 21_900

_random = random.SystemRandom()


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:`port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            return True
    return False


def free_ports(count: int, *, offsets: tuple[int, ...] = (0,)) -> list[int]:
    """Return `count` consecutive ports, each of them free at every offset. Raises OSError when there are none."""
    for _ in range(200):
        first = _random.randrange(_FIRST, _LAST - count)
        ports = list(range(first, first + count))
        if all(is_free(port + offset) for port in ports for offset in offsets):
            return ports
    msg = f"no {count} consecutive free ports between {_FIRST} and {_LAST}"
    raise OSError(msg)
