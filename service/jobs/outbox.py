"""The outbox as senders of webhooks see it: events that are due, and what became of each attempt.

An event is in Redis in the same step as the change that it tells, and is handed out under a lease until an attempt is
recorded: a sender that dies is followed by another, and the receiver sees the same event id again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

from redis.asyncio import Redis

from service.contract.job import Job
from service.jobs import documents
from service.jobs.keys import key
from service.jobs.outages import as_unavailable
from service.jobs.scripts import ScriptName, script_text

#: How an attempt ended. `gone`: the receiver wants nothing at this URL any more; `unsent`: for a reason of our own.
Verdict = Literal["delivered", "failed", "gone", "unsent"]
#: What the record of an attempt came to. `fenced`: another sender has the event by now, or it is recorded already;
#: `erased`: its generation was erased meanwhile.
RecordOutcome = Literal["recorded", "fenced", "erased"]
#: Why an endpoint is switched off.
DisabledReason = Literal["gone", "failing", "by_request"]

_SCRIPTS: Final[tuple[ScriptName, ...]] = ("due_deliveries", "record_delivery")


@dataclass(frozen=True, slots=True)
class DueEvent:
    """An event in the hands of one sender."""

    #: The same for every attempt.
    id: str
    endpoint: str
    #: `generation.started` and so on.
    type: str
    created_ms: int
    #: Recorded so far.
    attempts: int
    #: Names this handing out; a later one fences it.
    claim: str
    #: Nothing was delivered to the endpoint since it failed last.
    failing: bool
    #: As it is now; None where the document does not read as one.
    job: Job | None


@dataclass(frozen=True, slots=True)
class Room:
    """How many events one call may hand out."""

    events: int
    #: Of these, at endpoints that are failing.
    failing: int
    #: In flight at one endpoint, and of one tenant, over all senders.
    per_endpoint: int
    per_tenant: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """How sending an event went."""

    verdict: Verdict
    at_ms: int
    duration_ms: int
    #: Of the reply; None where none came.
    status: int | None = None
    #: In one word, where there was no reply.
    reason: str | None = None
    #: ms until the next attempt; None = this was the last.
    retry_ms: int | None = None
    #: ms for which the endpoint is sent nothing.
    hold_ms: int = 0

    def as_json(self) -> str:
        """Return the entry of the delivery log."""
        entry: dict[str, int | str] = {"at_ms": self.at_ms, "duration_ms": self.duration_ms}
        if self.status is not None:
            entry["status"] = self.status
        if self.reason is not None:
            entry["reason"] = self.reason
        return json.dumps(entry, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a record came to."""

    outcome: RecordOutcome
    #: Why the endpoint was switched off by it; None where it was not.
    disabled: DisabledReason | None


class WebhookOutbox:
    """Everything a sender does to events. `clock` as in `JobStore`; raises `Unavailable`. All may be repeated."""

    def __init__(self, redis: Redis, *, clock: Callable[[], int] | None = None) -> None:
        self._clock = clock
        self._redis = redis
        self._scripts = {name: redis.register_script(script_text(name)) for name in _SCRIPTS}

    async def _run(self, name: ScriptName, *arguments: str | int) -> object:
        now = "" if self._clock is None else self._clock()
        with as_unavailable():
            return await self._scripts[name](args=[now, *arguments])

    async def due(self, room: Room, *, lease_ms: int) -> list[DueEvent]:
        """Return events that are due; each is nobody else's for `lease_ms`."""
        reply = await self._run(
            "due_deliveries", lease_ms, room.events, room.failing, room.per_endpoint, room.per_tenant
        )
        return [_due_event(entry) for entry in cast("Sequence[Sequence[object]]", reply)]

    async def record(self, event: DueEvent, attempt: Attempt, *, failing_off_ms: int) -> Recorded:
        """Note how an attempt went; an endpoint that only fails for `failing_off_ms` is switched off."""
        reply = await self._run(
            "record_delivery",
            event.id,
            event.endpoint,
            event.claim,
            attempt.verdict,
            attempt.as_json(),
            "" if attempt.retry_ms is None else attempt.retry_ms,
            attempt.hold_ms,
            failing_off_ms,
        )
        outcome, disabled = cast("Sequence[str]", reply)
        return Recorded(cast("RecordOutcome", outcome), cast("DisabledReason", disabled) if disabled else None)

    async def lag_s(self) -> float:
        """Return for how long the endpoint that is due first has been due, s; one that is full counts as due later."""
        with as_unavailable():
            pipe = self._redis.pipeline(transaction=False)
            pipe.zrange(key("outbox"), 0, 0, withscores=True)
            pipe.time()
            first, (seconds, microseconds) = cast(
                "tuple[list[tuple[str, float]], tuple[int, int]]", await pipe.execute()
            )
        now_ms = 1000 * seconds + microseconds / 1000 if self._clock is None else self._clock()
        return max(0.0, now_ms - first[0][1]) / 1000 if first else 0.0


def _due_event(entry: Sequence[object]) -> DueEvent:
    event, endpoint, kind, created_ms, attempts, claim, failing = cast("Sequence[str]", entry[:7])
    flat = cast("Sequence[str]", entry[7])
    return DueEvent(
        id=event,
        endpoint=endpoint,
        type=kind,
        created_ms=int(created_ms),
        attempts=int(attempts),
        claim=claim,
        failing=failing == "1",
        job=_job(dict(zip(flat[::2], flat[1::2], strict=True))),
    )


def _job(fields: dict[str, str]) -> Job | None:
    try:
        return documents.decode(fields)
    except documents.CorruptDocument:
        return None
