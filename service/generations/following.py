"""Following a generation: what a stream of events tells, and when. No HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from service.contract.errors import Gone, NotFound, Overloaded, RequestError, Unavailable
from service.contract.job import Job, Status
from service.generations.outlook.reading import Outlook, Outlooks
from service.generations.places import TenantPlaces
from service.generations.wait import WatchGeneration
from service.jobs.waiting import REREAD_S, JobWatch, Waiters

EventName = Literal["queued", "started", "progress", "completed", "erased"]

#: Documents that all streams of a gateway read at once: most of Redis' 512 connections are left to the other calls.
_READS_AT_ONCE = 128
#: s between two looks at how far a waiting generation has come forward; they cost no read.
_PLACE_S = 2.0


@dataclass(frozen=True, slots=True)
class StreamRules:
    """What streams may cost a gateway."""

    #: Streams open at once; beyond, `Overloaded`.
    limit: int
    #: Of one tenant; beyond, `LimitReached`. None = as many as there are places.
    tenant_limit: int | None
    #: s without an event until a sign of life.
    heartbeat_s: float
    #: s, the longest life of a stream; its caller may come again at once.
    cap_s: float


@dataclass(frozen=True, slots=True)
class Told:
    """One event of a generation."""

    name: EventName
    generation_id: str
    #: As it was when the event was taken; None = it is erased.
    job: Job | None
    #: What is to come of it.
    outlook: Outlook | None = None

    @property
    def last(self) -> bool:
        """Whether nothing can follow."""
        return self.name in {"completed", "erased"}


@dataclass(slots=True)
class Teller:
    """What one stream has told. Pure: states come in, events come out.

    A state is told once, by its revision. States that came and went between two looks are not told: an event is what
    the job *is*. `started` is the first that this stream tells of an attempt; an attempt that was handed back at a
    drain and began anew is the same one.
    """

    #: What the caller knows already, from this stream or an earlier one; None = nothing.
    revision: int | None
    outlook_of: Callable[[Job], Outlook | None] = lambda _: None
    _attempt: int = field(default=0, init=False)
    #: The job as it waits, and its place as it was told last.
    _waiting: Job | None = field(default=None, init=False)
    _position: int | None = field(default=None, init=False)

    def event(self, job: Job) -> Told | None:
        """Return what to tell now that the job is so; None where the caller knows."""
        self._waiting = job if job.status is Status.QUEUED else None
        told = self._event(job)
        if told is None:
            return None
        outlook = self.outlook_of(job)
        self._position = outlook.position if outlook else None
        return replace(told, outlook=outlook)

    @property
    def waits(self) -> bool:
        """Whether the job has a place that may change."""
        return self._waiting is not None

    def moved(self) -> Told | None:
        """Return `queued` once more where a job that waits has another place by now: the same state, told anew."""
        outlook = self.outlook_of(self._waiting) if self._waiting else None
        if self._waiting is None or outlook is None or outlook.position in (None, self._position):
            return None
        self._position = outlook.position
        return Told("queued", self._waiting.id, self._waiting, outlook)

    def _event(self, job: Job) -> Told | None:
        # Not "newer than": after a failover Redis may have lost the last revisions, and what is there now counts.
        if job.revision == self.revision:
            # Known from an earlier stream perhaps, and with it that this attempt has started.
            self._attempt = max(self._attempt, job.attempt)
            return None
        self.revision = job.revision
        if job.ended:
            return Told("completed", job.id, job)
        if job.status is Status.QUEUED:
            return Told("queued", job.id, job)
        if job.attempt > self._attempt:
            self._attempt = job.attempt
            return Told("started", job.id, job)
        return Told("progress", job.id, job)


class FollowGeneration:
    """The use case. Streams wait on the one subscription of their gateway, and keep nothing for slow readers.

    A stream reads the job when its caller can take an event, so that a slow one misses states, never the last.
    """

    def __init__(self, *, watch: WatchGeneration, waiters: Waiters, outlooks: Outlooks, rules: StreamRules) -> None:
        self._watch = watch
        self._outlooks = outlooks
        self._waiters = waiters
        self._rules = rules
        self._open = 0
        self._tenants = TenantPlaces("As many generations as this tenant may follow at once are.", rules.tenant_limit)
        self._reading = asyncio.Semaphore(_READS_AT_ONCE)

    @asynccontextmanager
    async def following(
        self, tenant: str, generation_id: str, *, known: int | None, admitted: Callable[[], Awaitable[object]]
    ) -> AsyncIterator[AsyncIterator[Told | None]]:
        """Yield the events of a generation that the caller has been shown to have, None for each sign of life.

        `known` is the revision that the caller has seen. `admitted` is asked before each look whether the caller is
        still let in; a `RequestError` of it ends the stream. The events end behind the last one, when the caller is no
        longer admitted, after `cap_s`, and when the process is about to end. An outage of Redis only delays them.
        Raises `Overloaded` where too many are followed already, `LimitReached` where too many of this tenant's are.
        """
        with self._tenants.place(tenant), self._place():
            async with self._waiters.watching(generation_id, every_change=True) as watch:
                teller = Teller(known, self._outlooks.of)
                look = partial(self._look, teller, tenant, generation_id)
                async with aclosing(self._events(watch, teller, look, admitted)) as events:
                    yield events

    @property
    def streams(self) -> int:
        """How many are open."""
        return self._open

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._open >= self._rules.limit:
            raise Overloaded("Too many generations are being followed at the moment.")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def _events(
        self,
        watch: JobWatch,
        teller: Teller,
        look: Callable[[], Awaitable[Told | None]],
        admitted: Callable[[], Awaitable[object]],
    ) -> AsyncGenerator[Told | None, None]:
        now = asyncio.get_running_loop().time
        ends, heard = now() + self._rules.cap_s, now()
        reread, place = now(), now() + _PLACE_S
        while True:
            told = None
            if watch.is_woken or now() >= reread:
                watch.clear()
                try:
                    await admitted()
                    told = await look()
                except Unavailable:
                    # What is missed meanwhile is told by the first look that succeeds.
                    pass
                except RequestError:
                    return
                reread = now() + REREAD_S
            if told is None and now() >= place:
                told, place = teller.moved(), now() + _PLACE_S
            if told is not None or now() >= heard + self._rules.heartbeat_s:
                yield told
                heard = now()
                place = max(place, heard + _PLACE_S) if told is not None else place
            if (told is not None and told.last) or self._waiters.closing or now() >= ends:
                return
            wake = min(reread, heard + self._rules.heartbeat_s, ends, place if teller.waits else reread)
            await watch.woken(max(0.0, wake - now()))

    async def _look(self, teller: Teller, tenant: str, generation_id: str) -> Told | None:
        async with self._reading:
            try:
                job = await self._watch.get(tenant, generation_id)
            except (Gone, NotFound):
                return Told("erased", generation_id, None)
        return teller.event(job)
