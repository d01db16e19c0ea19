"""Calls to URLs that callers chose: pictures and receivers of webhooks. Nothing inside is reached that nobody allowed.

A URL is parsed once, its name looked up once, every address that it has is checked, and the connection goes to one of
these. There are no cookies, no proxy from the environment, no compression, and no second connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urljoin, urlsplit

import certifi
import httpcore

from service.contract.errors import DarkroomError
from service.net.addresses import Address, Network, is_allowed
from service.net.connecting import PinnedSockets, Resolve, Sockets, SystemResolver, addresses_of
from service.net.urls import Destination, UrlRefused, parse_url
from service.settings.egress import EgressSettings

EgressReason = Literal["dns", "address", "connect", "tls", "timeout", "too_large", "redirect", "status", "protocol"]

#: What a caller is told of an address that is not called, whichever it is.
NOT_PUBLIC = "must lead to an address of the public internet"

MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

#: Bytes and s of a receiver's answer that are read, so that it may finish its sentence; nobody looks at them.
_ANSWER_BYTES = 16 * 1024
_ANSWER_S = 2.0
#: Parts of a chunked body: beyond so many, they have to have so many bytes on average.
_FREE_PARTS, _PART_BYTES = 1000, 256
#: s; what a receiver may ask for by Retry-After is cut to a week.
_LONGEST_RETRY_S = 7 * 86_400


class EgressFailed(DarkroomError):
    """The call to outside did not succeed."""

    def __init__(self, reason: EgressReason, *, status: int | None = None) -> None:
        """`status` is the answer's, where there was one."""
        super().__init__(f"The call to outside failed: {reason}.")
        self.reason: EgressReason = reason
        self.status = status


@dataclass(frozen=True, slots=True)
class EgressRules:
    """What may be called."""

    #: `http://` too, not only `https://`.
    http: bool = False
    #: Networks that may be called although they are not of the public internet.
    networks: tuple[Network, ...] = ()
    ports: tuple[int, ...] = (80, 443)
    #: A proxy that makes all connections; it then looks up names, and has to refuse what is inside.
    proxy: str | None = None
    #: Certificates (PEM) that are believed besides the public ones.
    ca_file: Path | None = None

    @classmethod
    def of(cls, settings: EgressSettings) -> EgressRules:
        """Return the rules that the operator set."""
        proxy = settings.proxy.get_secret_value() if settings.proxy else None
        return cls(settings.http, settings.networks, (80, 443, *settings.ports), proxy, settings.ca_file)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a receiver answered."""

    status: int
    #: Of `Retry-After`, 0 to a week; None where there is none that can be read.
    retry_after_s: int | None


class Egress:
    """Calls URLs of callers by the rules. One for a process; each call has a connection of its own."""

    def __init__(
        self, rules: EgressRules, *, resolve: Resolve | None = None, now_s: Callable[[], float] = time.time
    ) -> None:
        """`now_s` is the time in seconds since 1970, against which dates in `Retry-After` are read."""
        self._rules = rules
        self._system = SystemResolver()
        self._resolve = resolve or self._system.resolve
        self._now_s = now_s
        self._tls = ssl.create_default_context(cafile=certifi.where())
        if rules.ca_file:
            self._tls.load_verify_locations(rules.ca_file)

    def check(self, url: str) -> None:
        """Raise `UrlRefused` for a URL that would never be called; asks nobody, so a name's addresses are not known."""
        destination = self._parsed(url)
        if destination.address and not is_allowed(destination.address, self._rules.networks):
            raise UrlRefused(NOT_PUBLIC)

    async def fetch(self, url: str, *, max_bytes: int, deadline_s: float) -> bytes:
        """Return what a URL answers to GET with 200, after at most three redirects, each checked like the first.

        `deadline_s` is for all of it. Raises `UrlRefused` for the URL itself, `EgressFailed` for all else.
        """
        destination = self._parsed(url)
        async with _failing(deadline_s):
            for _ in range(MAX_REDIRECTS + 1):
                answer = await self._get(destination, max_bytes)
                if isinstance(answer, bytes):
                    return answer
                destination = self._redirected(destination, answer)
            raise EgressFailed("redirect")

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], *, deadline_s: float) -> Reply:
        """Send a body and return what was answered, whichever the status: a redirect is not followed.

        Raises `UrlRefused` for the URL itself, `EgressFailed` where there was no answer.
        """
        destination = self._parsed(url)
        sent = {**headers, "Content-Length": str(len(body))}
        async with _failing(deadline_s), self._answer("POST", destination, sent, body) as response:
            reply = Reply(response.status, self._retry_after_s(response))
            await _let_finish(response)
            return reply

    async def aclose(self) -> None:
        """Let go of the resolver's threads."""
        self._system.close()

    def _parsed(self, url: str) -> Destination:
        return parse_url(url, http=self._rules.http, ports=self._rules.ports)

    async def _get(self, destination: Destination, max_bytes: int) -> bytes | str:
        """Return the body, or where to look instead."""
        async with self._answer("GET", destination, {"Accept": "*/*"}, b"") as response:
            if response.status in _REDIRECTS:
                return _header(response, b"location") or ""
            if response.status != 200:
                raise EgressFailed("status", status=response.status)
            # What is compressed would be counted after it grew; nobody was asked to compress.
            if (_header(response, b"content-encoding") or "identity").strip().lower() != "identity":
                raise EgressFailed("protocol")
            announced = _header(response, b"content-length") or "0"
            if announced.isdigit() and int(announced) > max_bytes:
                raise EgressFailed("too_large")
            body = bytearray()
            async for part in _parts(response):
                body += part
                if len(body) > max_bytes:
                    raise EgressFailed("too_large")
            return bytes(body)

    def _redirected(self, origin: Destination, location: str) -> Destination:
        try:
            destination = self._parsed(urljoin(origin.url, location.partition("#")[0]))
        except ValueError:
            raise EgressFailed("redirect") from None
        except UrlRefused:
            raise EgressFailed("redirect") from None
        if not location or (origin.scheme == "https" and destination.scheme != "https"):
            raise EgressFailed("redirect")
        return destination

    @asynccontextmanager
    async def _answer(
        self, method: str, destination: Destination, headers: Mapping[str, str], body: bytes
    ) -> AsyncIterator[httpcore.Response]:
        """Send a request over a connection of its own, which ends with the block."""
        all_headers = {
            "Host": destination.authority,
            "User-Agent": "Darkroom",
            "Accept-Encoding": "identity",
            "Connection": "close",
            **headers,
        }
        where = httpcore.URL(
            scheme=destination.scheme, host=destination.host, port=destination.port, target=destination.target
        )
        sockets = await self._sockets(destination)
        connections = httpcore.AsyncConnectionPool(
            ssl_context=self._tls,
            proxy=_proxy(self._rules.proxy) if self._rules.proxy else None,
            max_connections=1,
            max_keepalive_connections=0,
            network_backend=sockets,
        )
        try:
            async with connections.stream(method, where, headers=list(all_headers.items()), content=body) as response:
                sockets.head_came()
                yield response
        finally:
            await sockets.aclose()

    async def _sockets(self, destination: Destination) -> Sockets:
        """Return what opens connections for one call. A name is looked up here, or by the proxy, and nowhere else."""
        if self._rules.proxy is None:
            return PinnedSockets(await self._addresses(destination))
        if destination.address and not is_allowed(destination.address, self._rules.networks):
            raise EgressFailed("address")
        return Sockets()

    async def _addresses(self, destination: Destination) -> Sequence[Address]:
        """Return the addresses of a host, all of them allowed: one that is not makes the others suspect."""
        if destination.address:
            addresses: Sequence[Address] = [destination.address]
        else:
            try:
                addresses = addresses_of(await self._resolve(destination.host, destination.port))
            except (OSError, ValueError):
                raise EgressFailed("dns") from None
        if not addresses:
            raise EgressFailed("dns")
        if not all(is_allowed(each, self._rules.networks) for each in addresses):
            raise EgressFailed("address")
        return addresses

    def _retry_after_s(self, response: httpcore.Response) -> int | None:
        """Read seconds or a date (RFC 9110, 10.2.3)."""
        text = (_header(response, b"retry-after") or "").strip()
        if text.isascii() and text.isdigit():
            return min(int(text[:9]), _LONGEST_RETRY_S)
        try:
            wait_s = parsedate_to_datetime(text).timestamp() - self._now_s()
        except (ValueError, OverflowError):
            return None
        return min(max(0, int(wait_s)), _LONGEST_RETRY_S)


@asynccontextmanager
async def _failing(deadline_s: float) -> AsyncIterator[None]:
    """Turn whatever goes wrong on the way into `EgressFailed`, at the deadline at the latest."""
    try:
        async with asyncio.timeout(deadline_s):
            yield
    except (TimeoutError, httpcore.TimeoutException):
        raise EgressFailed("timeout") from None
    except (httpcore.ConnectError, httpcore.ProxyError) as err:
        # httpcore's errors hold what they came from as their argument; their cause is taken away on the way.
        of_tls = any(isinstance(each, ssl.SSLError) for each in err.args)
        raise EgressFailed("tls" if of_tls else "connect") from None
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol, OSError):
        raise EgressFailed("protocol") from None


async def _parts(response: httpcore.Response) -> AsyncIterator[bytes]:
    """Yield what comes of a body; raises `EgressFailed` where it comes in crumbs: each costs us its parsing."""
    count, size = 0, 0
    async for part in response.aiter_stream():
        count, size = count + 1, size + len(part)
        if count > _FREE_PARTS and size < count * _PART_BYTES:
            raise EgressFailed("protocol")
        yield part


async def _let_finish(response: httpcore.Response) -> None:
    """Read a little of an answer whose status is all that counts."""
    read = 0
    with contextlib.suppress(
        EgressFailed, TimeoutError, OSError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException
    ):
        async with asyncio.timeout(_ANSWER_S):
            async for part in _parts(response):
                read += len(part)
                if read > _ANSWER_BYTES:
                    break


def _header(response: httpcore.Response, name: bytes) -> str | None:
    return next((value.decode("latin-1") for each, value in response.headers if each.lower() == name), None)


def _proxy(url: str) -> httpcore.Proxy:
    parts = urlsplit(url)
    bare = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    if parts.username is None:
        return httpcore.Proxy(bare)
    return httpcore.Proxy(bare, auth=(unquote(parts.username), unquote(parts.password or "")))
