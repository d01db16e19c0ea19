"""Names to checked addresses, once, and connections to those and no others.

A name that is looked up a second time may lead elsewhere (DNS rebinding). Here the connection is opened by a backend
that was given the checked addresses and does not look at the name; the name only remains in TLS and in `Host`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any, cast

import httpcore

from service.net.addresses import Address

#: Gives the addresses of a host, in the order they are to be tried; raises OSError where there are none.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

#: Names that are looked up at once. The system's resolver cannot be broken off: a lookup keeps its thread for as long
#: as that tries, 30 s as a rule, 180 s with a long search list. At four fetches in 10 s one tenant has 72 in that time.
_LOOKUPS = 128
#: s until the next of several addresses is tried.
_NEXT_ADDRESS_S = 3.0
#: Addresses of a name that are tried.
_MOST_ADDRESSES = 6
#: Bytes that may come before an answer's own header is whole: interim answers (1xx) are parsed without end otherwise.
_HEAD_BYTES = 64 * 1024
#: Bytes that are parsed in one go, as many as keep other calls waiting for some 10 ms where they are of the worst kind.
_READ_BYTES = 16 * 1024


class SystemResolver:
    """The system's resolver, on threads of its own: those of the event loop also look up Redis."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="resolve")

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Return a host's addresses in the system's order; raises OSError where there are none."""
        loop = asyncio.get_running_loop()
        # As bytes, the name is not put through Python's own IDNA.
        found = await loop.run_in_executor(self._threads, _look_up, host.encode("ascii"), port)
        return list(dict.fromkeys(found))

    def close(self) -> None:
        """Let the threads go; a lookup that hangs is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: bytes, port: int) -> list[str]:
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Sockets(httpcore.AsyncNetworkBackend):
    """Opens connections for one call, and closes them with it: httpcore forgets one whose handshake is broken off."""

    def __init__(self) -> None:
        # httpcore has another class of that name for machines without anyio.
        self._backend = cast("httpcore.AsyncNetworkBackend", httpcore.AnyIOBackend())
        self._opened: list[httpcore.AsyncNetworkStream] = []
        self._head_bytes = 0
        self._head_came = False

    def head_came(self) -> None:
        """Count no more: from now on the body's reader does."""
        self._head_came = True

    def read(self, size: int) -> None:
        """Count bytes that came; raises `httpcore.RemoteProtocolError` for too many without an answer."""
        if not self._head_came:
            self._head_bytes += size
            if self._head_bytes > _HEAD_BYTES:
                raise httpcore.RemoteProtocolError

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a host; raises `httpcore.ConnectError` or `ConnectTimeout`."""
        stream = await self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        self._opened.append(stream)
        return _CountedStream(stream, self)

    async def sleep(self, seconds: float) -> None:
        """Wait; httpcore asks for it between retries."""
        await asyncio.sleep(seconds)

    async def aclose(self) -> None:
        """Close what is open still."""
        while self._opened:
            await self._opened.pop().aclose()


class _CountedStream(httpcore.AsyncNetworkStream):
    """A connection, encrypted or not, whose bytes are counted and read few at a time."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, sockets: Sockets) -> None:
        self._stream = stream
        self._sockets = sockets

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        data = await self._stream.read(min(max_bytes, _READ_BYTES), timeout)
        self._sockets.read(len(data))
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return _CountedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout), self._sockets)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class PinnedSockets(Sockets):
    """Opens connections to the given addresses, whatever host is asked for."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        super().__init__()
        self._addresses = addresses[:_MOST_ADDRESSES]

    async def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - on purpose
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that answers; raises `httpcore.ConnectError` or `ConnectTimeout` of the last."""
        *before, last = map(str, self._addresses)
        for address in before:
            try:
                return await super().connect_tcp(address, port, _NEXT_ADDRESS_S, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await super().connect_tcp(last, port, timeout, local_address, socket_options)


def addresses_of(found: Iterable[str]) -> list[Address]:
    """Return what a resolver found, as addresses; raises ValueError for what is none."""
    # A scope (fe80::1%eth0) belongs to link-local addresses, which are refused with and without it.
    return [ip_address(each.partition("%")[0]) for each in found]
