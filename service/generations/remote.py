"""Input pictures by URL: fetched when the request is, so that what is wrong is told at once and what is drawn is kept.

A caller learns whether a picture was got, and not what else there is: a host inside, one that does not exist and one
that does not answer read the same.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

import structlog

from service.contract.errors import LimitReached, Overloaded
from service.generations.pictures import Picture, PictureLimits, PictureRefused, picture_of
from service.net.egress import Egress, EgressFailed
from service.net.urls import UrlRefused

log = structlog.get_logger(__name__)

_UNREACHABLE = (
    "could not be fetched: it must lead to a host of the public internet that answers in time, after at most three "
    "redirects; look at the address, or send the picture as base64"
)
_NO_SUCH_PICTURE = "could not be fetched: its server answered with an error; it must answer 200, without a login"


@dataclass(frozen=True, slots=True)
class FetchRules:
    """What fetching may cost."""

    #: s for a turn, and as long again for the picture.
    timeout_s: float
    #: Fetches at once in this process, and of one tenant.
    at_once: int
    tenant_at_once: int
    #: Bytes of fetched pictures in memory, until they are stored.
    held_bytes: int


class RemotePictures:
    """Fetches pictures from where callers say they are; many wait for their turn, few are fetched at once."""

    def __init__(self, *, egress: Egress, rules: FetchRules, limits: PictureLimits, threads: Executor) -> None:
        self._egress = egress
        self._rules = rules
        self._limits = limits
        self._threads = threads
        self._turns = asyncio.Semaphore(rules.at_once)
        # Kept while somebody of the tenant holds one or waits for it.
        self._turns_of_tenants: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        #: Bytes of pictures that are fetched, or were and are not stored yet.
        self.held_bytes = 0

    def check(self, url: str) -> None:
        """Return if a URL may be fetched, as far as that is known without asking anybody; raises `PictureRefused`."""
        try:
            self._egress.check(url)
        except UrlRefused as err:
            raise PictureRefused(err.message) from None

    async def read(self, tenant: str, url: str) -> Picture:
        """Return the picture at a URL. Raises `PictureRefused`; `LimitReached` or `Overloaded` where no turn came."""
        async with self._turn(tenant):
            data = await self._fetched(url)
        return await self._picture(data)

    async def _fetched(self, url: str) -> bytes:
        max_bytes = self._limits.max_bytes
        # For all that it may turn out to be.
        if self.held_bytes + max_bytes > self._rules.held_bytes:
            raise Overloaded("As many pictures as this server holds are being fetched.", retry_after_s=2)
        self.held_bytes += max_bytes
        held_bytes = 0
        try:
            data = await self._egress.fetch(url, max_bytes=max_bytes, deadline_s=self._rules.timeout_s)
            held_bytes = len(data)
        except UrlRefused as err:
            raise PictureRefused(err.message) from None
        except EgressFailed as err:
            log.info("picture_not_fetched", reason=err.reason, answered=err.status)
            raise PictureRefused(self._message(err)) from None
        finally:
            self.held_bytes -= max_bytes - held_bytes
        return data

    async def _picture(self, data: bytes) -> Picture:
        loop = asyncio.get_running_loop()
        try:
            picture = await loop.run_in_executor(self._threads, picture_of, data, self._limits)
        except BaseException:
            self._release(len(data))
            raise
        # Whoever has the picture stores it when there is room for that, or fails before: then it is let go.
        weakref.finalize(picture, self._release, len(data)).atexit = False
        return picture

    def _release(self, size: int) -> None:
        self.held_bytes -= size

    def _message(self, err: EgressFailed) -> str:
        match err.reason:
            case "too_large":
                return f"must lead to a picture of at most {self._limits.max_bytes} bytes"
            case "status":
                return _NO_SUCH_PICTURE
            case _:
                return _UNREACHABLE

    @asynccontextmanager
    async def _turn(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a turn: first among the tenant's own fetches, so that its slow servers hold up nobody else's."""
        own = self._turns_of_tenants.get(tenant)
        if own is None:
            own = self._turns_of_tenants[tenant] = asyncio.Semaphore(self._rules.tenant_at_once)
        timeout_s = self._rules.timeout_s
        if not await _acquired(own, timeout_s):
            raise LimitReached(f"{self._rules.tenant_at_once} pictures of this tenant are being fetched already.")
        try:
            if not await _acquired(self._turns, timeout_s):
                raise Overloaded("As many pictures as this server fetches at once are being fetched.", retry_after_s=2)
            try:
                yield
            finally:
                self._turns.release()
        finally:
            own.release()


async def _acquired(turns: asyncio.Semaphore, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await turns.acquire()
    except TimeoutError:
        return False
    return True
