"""A tenant's jobs, newest first, a page at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import structlog
from redis.asyncio import Redis

from service.contract.job import Job, Status
from service.jobs import documents
from service.jobs.keys import key
from service.jobs.outages import as_unavailable

log = structlog.get_logger(__name__)

#: Documents that one call looks at before it returns a short page; a filter may match nothing of a hundred thousand.
SCAN_MAX = 1000
#: Documents that are looked at in one round trip where a filter leaves few of them.
_SCAN_AT_ONCE = 200

#: The last moment that a position can name: year 10889.
LAST_MS = 2**48 - 1
#: Enough of a document to tell whether it belongs on a page.
_LOOK: tuple[str, ...] = ("tenant", "erase_requested", "status", "labels")


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a listing, whether a job is still there or not: the next page has what is behind it."""

    created_ms: int
    job_id: str


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing."""

    jobs: list[Job]
    #: None on the last page.
    next: Position | None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs are asked for."""

    status: Status | None
    labels: Mapping[str, str]

    @property
    def is_set(self) -> bool:
        """Whether anything is left out."""
        return self.status is not None or bool(self.labels)

    def passes(self, status: str, labels: Mapping[str, object]) -> bool:
        """Whether a job of this status and these labels is asked for."""
        return self.status in (None, status) and all(labels.get(name) == value for name, value in self.labels.items())


class JobListing:
    """Reads listings. Jobs that come, or are erased, between two pages move no other onto the wrong one.

    Raises `Unavailable` where Redis does not answer in time.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def page(
        self,
        tenant: str,
        *,
        limit: int,
        after: Position | None = None,
        status: Status | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Page:
        """Return up to `limit` jobs behind a position.

        A filtered page may be short, or empty, and still have a `next`: a call looks at a bounded number of documents.
        """
        wish = Filter(status, dict(labels or {}))
        at_once = max(limit, _SCAN_AT_ONCE) if wish.is_set else limit
        found: list[Job] = []
        looked = 0
        while looked < SCAN_MAX:
            entries = await self._entries(tenant, after, at_once)
            is_last = len(entries) < at_once
            looked += len(entries)
            wanted = await self._matching(tenant, entries, wish) if wish.is_set else entries
            room = limit - len(found)
            if len(wanted) > room:
                # Those behind are the next page's, or the next round's if one of these is gone by now.
                wanted = wanted[:room]
                entries, is_last = entries[: entries.index(wanted[-1]) + 1], False
            jobs = await self._jobs(tenant, wanted)
            for entry in entries:
                after = entry
                job = jobs.get(entry)
                if job and wish.passes(job.status, job.labels):
                    found.append(job)
                if len(found) == limit:
                    return Page(found, after)
            if is_last:
                return Page(found, None)
        return Page(found, after)

    async def _entries(self, tenant: str, after: Position | None, count: int) -> list[Position]:
        """Return up to `count` places behind a position, in descending order.

        Jobs of one moment are ordered by their ids. They are few, and read as a whole: an offset among them would be
        wrong as soon as one comes or goes.
        """
        index = key("tenant_jobs", tenant)
        with as_unavailable():
            pipe = self._redis.pipeline(transaction=False)
            if after:
                pipe.zrange(index, after.created_ms, after.created_ms, byscore=True, desc=True, withscores=True)
            pipe.zrange(
                index,
                cast("int", f"({after.created_ms}" if after else "+inf"),
                cast("int", "-inf"),
                byscore=True,
                desc=True,
                offset=0,
                num=count,
                withscores=True,
            )
            replies = cast("list[list[tuple[str, float]]]", await pipe.execute())
        # A stranger may have written any score.
        places = [
            Position(int(min(max(created_ms, 0), LAST_MS)), job_id) for reply in replies for job_id, created_ms in reply
        ]
        return [place for place in places if after is None or place < after][:count]

    async def _matching(self, tenant: str, entries: Sequence[Position], wish: Filter) -> list[Position]:
        """Return those that a look at four fields does not rule out."""
        with as_unavailable():
            pipe = self._redis.pipeline(transaction=False)
            for entry in entries:
                pipe.hmget(key("job", entry.job_id), _LOOK)
            replies = cast("list[list[str | None]]", await pipe.execute()) if entries else []
        found: list[Position] = []
        for entry, values in zip(entries, replies, strict=True):
            fields = dict(zip(_LOOK, (value or "" for value in values), strict=True))
            if documents.is_here(fields, tenant) and wish.passes(fields["status"], _labels(fields["labels"])):
                found.append(entry)
        return found

    async def _jobs(self, tenant: str, entries: Sequence[Position]) -> dict[Position, Job]:
        """Return the jobs of these places that are still there."""
        with as_unavailable():
            pipe = self._redis.pipeline(transaction=False)
            for entry in entries:
                pipe.hgetall(key("job", entry.job_id))
            replies = cast("list[dict[str, str]]", await pipe.execute()) if entries else []
        found: dict[Position, Job] = {}
        for entry, fields in zip(entries, replies, strict=True):
            if not documents.is_here(fields, tenant):
                continue
            try:
                found[entry] = documents.decode(fields)
            except documents.CorruptDocument:
                # One that was damaged must not hide the others.
                log.error("document_corrupt", job_id=entry.job_id)
        return found


def _labels(text: str) -> Mapping[str, object]:
    """Return labels as stored, or none where they do not read as labels."""
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, object]", stored) if isinstance(stored, dict) else {}
