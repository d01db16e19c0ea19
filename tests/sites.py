"""Servers at local addresses that stand for the internet and for what is inside, and names that lead to them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network

from service.net.egress import EgressRules

#: "Public" by being named in the rules; "inside" is what nobody named.
PUBLIC, INSIDE = "127.0.0.2", "127.0.0.1"

Play = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """One request that a site got, and the way to answer it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.request = b""
        self.body = b""

    @property
    def line(self) -> str:
        return self.request.split(b"\r\n")[0].decode()

    @property
    def headers(self) -> dict[str, str]:
        lines = self.request.decode().split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}

    async def read(self) -> None:
        self.request = await self._reader.readuntil(b"\r\n\r\n")
        self.body = await self._reader.readexactly(int(self.headers.get("content-length", 0)))

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        named = {"content-length": str(len(body)), **headers}
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items())
        await self.send(f"HTTP/1.1 {status} Word\r\n{lines}\r\n".encode() + body)


class Site:
    """A server that counts who comes; `plays` says what it does by path, and `/` is `b"here"`."""

    def __init__(self, address: str, greeting: bytes) -> None:
        self.address = address
        self._greeting = greeting
        self.port = 0
        self.hits = 0
        self._came = asyncio.Condition()
        self.exchanges: list[Exchange] = []
        self.plays: dict[str, Play] = {}

    async def met(self, hits: int, timeout_s: float = 10) -> None:
        """Wait until so many have come."""
        async with asyncio.timeout(timeout_s), self._came:
            await self._came.wait_for(lambda: self.hits >= hits)

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._came:
            self.hits += 1
            self._came.notify_all()
        exchange = Exchange(reader, writer)
        try:
            await exchange.send(self._greeting)
            await exchange.read()
            self.exchanges.append(exchange)
            play = self.plays.get(exchange.line.split(" ")[1])
            await (play(exchange) if play else exchange.answer(200, b"here"))
        except (OSError, asyncio.IncompleteReadError):
            pass  # whoever called has gone
        finally:
            with contextlib.suppress(OSError):
                writer.close()


@asynccontextmanager
async def site(
    address: str = PUBLIC, *, port: int = 0, tls: ssl.SSLContext | None = None, greeting: bytes = b""
) -> AsyncIterator[Site]:
    """Serve at an address until the block ends; `greeting` is said before anybody asks."""
    place = Site(address, greeting)
    tasks: set[asyncio.Task[None]] = set()

    def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(place.meet(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(met, address, port, ssl=tls)
    place.port = server.sockets[0].getsockname()[1]
    try:
        yield place
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


class Names:
    """A resolver: each name's answers one after the other, the last for ever; counts what it was asked."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): each for name, each in answers.items()}
        self.asked: list[str] = []

    async def resolve(self, host: str, _port: int) -> list[str]:
        self.asked.append(host)
        answers = self.answers.get(host)
        if answers is None:
            raise OSError("no such name")
        return answers.pop(0) if len(answers) > 1 else answers[0]


def rules_for(*sites: Site, networks: tuple[str, ...] = (f"{PUBLIC}/32",), http: bool = True) -> EgressRules:
    """Return rules by which only the public address, and the sites' ports, may be called."""
    ports = (80, 443, *(each.port for each in sites))
    return EgressRules(http=http, networks=tuple(ip_network(each) for each in networks), ports=ports)
