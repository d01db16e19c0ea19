"""What was sent to whom: a tenant's endpoints and events, for looking at them, switching and sending again.

The scripts of the outbox write what is read here. Whatever else stands in Redis is left out, and logged.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import structlog
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from redis.asyncio import Redis

from service.contract.events import EventState, EventType
from service.contract.job import TERMINAL
from service.jobs.keys import key
from service.jobs.outages import as_unavailable
from service.jobs.outbox import DisabledReason
from service.jobs.scripts import ScriptName, script_text

log = structlog.get_logger(__name__)

#: Events that one listing call looks at before it returns a short page with a cursor.
_LISTING_SCAN = 1000
#: Of them, those that are read at once where a filter leaves most out: a page of one would take two calls for each.
_FILTERED_AT_ONCE = 100
#: ms; the last moment that can be told as a date.
_LAST_MS = 253_402_300_799_999

Redelivery = Literal["accepted", "endpoint_off", "unknown"]


class DeliveryAttempt(BaseModel):
    """One attempt to send an event."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    at_ms: int = Field(ge=0, le=_LAST_MS)
    #: What the receiver answered; None where it did not.
    status: int | None = None
    #: Why there was no answer, or no attempt.
    reason: str | None = Field(default=None, max_length=64)
    duration_ms: int = Field(default=0, ge=0, le=_LAST_MS)


_ATTEMPTS = TypeAdapter(tuple[DeliveryAttempt, ...])


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event, and how far it came."""

    id: str
    job_id: str
    endpoint_id: str
    type: EventType
    state: EventState
    created_ms: int
    #: When it is sent, or sent again; None where it is not.
    next_ms: int | None
    #: The latest ones, oldest first.
    attempts: tuple[DeliveryAttempt, ...]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where events of a tenant go: an exact URL."""

    id: str
    url: str
    created_ms: int
    enabled: bool
    #: Since when nothing is sent to it, and why.
    disabled_ms: int | None
    disabled_reason: DisabledReason | None
    #: Since when every attempt failed.
    failing_since_ms: int | None
    last_success_ms: int | None


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which events; None = all."""

    job_id: str | None = None
    endpoint_id: str | None = None
    state: EventState | None = None

    def passes(self, delivery: LoggedEvent) -> bool:
        """Tell whether an event is one of them."""
        return (
            self.job_id in {None, delivery.job_id}
            and self.endpoint_id in {None, delivery.endpoint_id}
            and self.state in {None, delivery.state}
        )


@dataclass(frozen=True, slots=True)
class DeliveryPage:
    """One page, newest first."""

    deliveries: list[LoggedEvent]
    #: (created_ms, id) of the last event that was looked at; None on the last page.
    next: tuple[str, str] | None


class AsyncDeliveries:
    """Endpoints and events of tenants. `clock` as in `AsyncJobStore`; raises `Unavailable`; all may be repeated."""

    def __init__(self, redis: Redis, *, clock: Callable[[], int] | None = None) -> None:
        self._redis = redis
        self._clock = clock
        names: tuple[ScriptName, ...] = ("switch_endpoint", "redeliver")
        self._scripts = {name: redis.register_script(script_text(name)) for name in names}

    async def _run(self, name: ScriptName, arguments: Sequence[str]) -> object:
        now = "" if self._clock is None else self._clock()
        with as_unavailable():
            return await self._scripts[name](args=[now, *arguments])

    async def switch(self, tenant: str, endpoint_id: str, *, on: bool, who: str) -> Endpoint | None:
        """Switch an endpoint off or on; return it, or None where this tenant has none such."""
        if await self._run("switch_endpoint", [tenant, endpoint_id, "1" if on else "0", who]) != 1:
            return None
        return await self.endpoint(tenant, endpoint_id)

    async def redeliver(self, tenant: str, event_id: str) -> Redelivery:
        """Have an event sent again as soon as may be, under the same id."""
        return cast("Redelivery", await self._run("redeliver", [tenant, event_id]))

    async def endpoint(self, tenant: str, endpoint_id: str) -> Endpoint | None:
        """Return an endpoint; None where this tenant has none such."""
        found = await self._hashes([key("endpoint", endpoint_id)])
        return _endpoint(endpoint_id, tenant, found[0])

    async def endpoints(self, tenant: str, *, limit: int, after: str = "") -> tuple[list[Endpoint], str | None]:
        """Return up to `limit` endpoints by id, behind the id `after`, and the last id if there may be more."""
        with as_unavailable():
            # A bounded number; their order in Redis is by use, and changes between two pages.
            ids = cast("list[str]", await self._redis.zrange(key("tenant_endpoints", tenant), 0, -1))
        behind = sorted(each for each in ids if each > after)
        chosen = behind[:limit]
        hashes = await self._hashes([key("endpoint", each) for each in chosen])
        read = (_endpoint(each, tenant, fields) for each, fields in zip(chosen, hashes, strict=True))
        return [each for each in read if each], chosen[-1] if len(behind) > limit else None

    async def delivery(self, tenant: str, event_id: str) -> LoggedEvent | None:
        """Return an event; None where this tenant has none such."""
        return (await self._deliveries(tenant, [event_id]))[0]

    async def of_job(self, tenant: str, job_id: str) -> list[LoggedEvent]:
        """Return every event of a job, newest first: there are few, and their ids are known."""
        with as_unavailable():
            told = cast("str | None", await self._redis.hget(key("job", job_id), "told_progress"))
        kinds = ["started", *sorted(TERMINAL), *([f"progress_{told}"] if told else [])]
        found = await self._deliveries(tenant, [f"evt_{job_id}_{kind}" for kind in kinds])
        present = (each for each in found if each and each.job_id == job_id)
        return sorted(present, key=lambda each: (each.created_ms, each.id), reverse=True)

    async def page(
        self, tenant: str, chosen: DeliveryFilter, *, limit: int, before: tuple[str, str] | None = None
    ) -> DeliveryPage:
        """Return up to `limit` events, newest first, after the position `before`.

        A filtered page may be short, or empty, and still have a `next`: a call looks at a bounded number of events.
        """
        position, found, scanned = before, list[LoggedEvent](), 0
        size = limit if chosen == DeliveryFilter() else max(limit, _FILTERED_AT_ONCE)
        while scanned < _LISTING_SCAN:
            entries = await self._entries(tenant, position, size)
            deliveries = await self._deliveries(tenant, [event_id for _, event_id in entries])
            for entry, delivery in zip(entries, deliveries, strict=True):
                position = entry
                scanned += 1
                if delivery is not None and chosen.passes(delivery):
                    found.append(delivery)
                if len(found) == limit:
                    return DeliveryPage(found, position)
            if len(entries) < size:
                return DeliveryPage(found, None)
        return DeliveryPage(found, position)

    async def _entries(self, tenant: str, position: tuple[str, str] | None, size: int) -> list[tuple[str, str]]:
        """Return up to `size` (created_ms, event) after `position`, in descending order of both."""
        index, offset = key("tenant_deliveries", tenant), 0
        top: int | str = "+inf"
        with as_unavailable():
            if position:
                top = int(position[0])
                # Within one millisecond Redis orders ids descending too: skip those up to the position's.
                same = cast("list[str]", await self._redis.zrange(index, top, top, byscore=True, desc=True))
                offset = sum(1 for event_id in same if event_id >= position[1])
            found = await self._redis.zrange(
                index,
                cast("int", top),
                cast("int", "-inf"),
                byscore=True,
                desc=True,
                offset=offset,
                num=size,
                withscores=True,
            )
        return [(str(int(score)), event_id) for event_id, score in cast("list[tuple[str, float]]", found)]

    async def _deliveries(self, tenant: str, event_ids: Sequence[str]) -> list[LoggedEvent | None]:
        hashes = await self._hashes([key("event", each) for each in event_ids])
        return [_delivery(each, tenant, fields) for each, fields in zip(event_ids, hashes, strict=True)]

    async def _hashes(self, names: Sequence[str]) -> list[dict[str, str]]:
        """Return hashes; what is of another type reads as empty."""
        if not names:
            return []
        pipe = self._redis.pipeline(transaction=False)
        for name in names:
            pipe.hgetall(name)
        with as_unavailable():
            found = await cast("Awaitable[list[object]]", pipe.execute(raise_on_error=False))
        return [cast("dict[str, str]", each) if isinstance(each, dict) else {} for each in found]


def _endpoint(endpoint_id: str, tenant: str, fields: Mapping[str, str]) -> Endpoint | None:
    if fields.get("tenant") != tenant or "url" not in fields:
        return None
    enabled, reason = not fields.get("disabled_ms"), fields.get("disabled_reason")
    known = next((each for each in get_args(DisabledReason) if each == reason), None)
    return Endpoint(
        id=endpoint_id,
        url=fields["url"],
        created_ms=_moment(fields.get("created_ms")) or 0,
        enabled=enabled,
        disabled_ms=_moment(fields.get("disabled_ms")),
        disabled_reason=None if enabled else known,
        failing_since_ms=_moment(fields.get("failing_since_ms")),
        last_success_ms=_moment(fields.get("last_success_ms")),
    )


def _delivery(event_id: str, tenant: str, fields: Mapping[str, str]) -> LoggedEvent | None:
    if fields.get("tenant") != tenant:
        return None
    event_type = next((each for each in get_args(EventType) if each == fields.get("type")), None)
    state = next((each for each in get_args(EventState) if each == fields.get("state")), None)
    if event_type is None or state is None or not fields.get("job") or not fields.get("endpoint"):
        log.error("event_corrupt", event_id=event_id)
        return None
    return LoggedEvent(
        id=event_id,
        job_id=fields["job"],
        endpoint_id=fields["endpoint"],
        type=event_type,
        state=state,
        created_ms=_moment(fields.get("created_ms")) or 0,
        next_ms=_moment(fields.get("next_ms")) if state == "pending" else None,
        attempts=_attempts(event_id, fields.get("log", "")),
    )


def _attempts(event_id: str, text: str) -> tuple[DeliveryAttempt, ...]:
    try:
        # Lua writes an empty list as an empty object.
        return _ATTEMPTS.validate_python(json.loads(text or "[]") or [])
    except (ValueError, ValidationError, RecursionError):
        log.error("event_corrupt", event_id=event_id)
        return ()


def _moment(text: str | None) -> int | None:
    """Return milliseconds since 1970; None where none are stored."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= 14 else None
