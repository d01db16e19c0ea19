"""Events of generations for tests: jobs with webhooks, and what a sender does to their events, by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import redis

from service.contract.job import Job, Status
from service.jobs.commands import Holding, Outcome
from service.jobs.keys import key
from service.jobs.outbox import Attempt, DueEvent, Recorded, Room, Verdict, WebhookOutbox
from service.jobs.store import JobStore
from tests.clock import QueueClock
from tests.jobs import submit

URL = "https://example.com/hook"
OTHER = "https://other.example.com/hook"
ALL = ("started", "progress", "completed")
LEASE_MS = 45_000
DAY_MS = 86_400_000
ROOMY = Room(events=100, failing=50, per_endpoint=4, per_tenant=50)


def endpoint_of(url: str = URL, tenant: str = "ada") -> str:
    return "ep_" + hashlib.sha1(f"{tenant}\n{url}".encode()).hexdigest()


class SenderHand:
    """What a sender does, by hand."""

    def __init__(self, outbox: WebhookOutbox, clock: QueueClock) -> None:
        self._outbox = outbox
        self._clock = clock

    async def take(self, room: Room = ROOMY) -> list[DueEvent]:
        return await self._outbox.due(room, lease_ms=LEASE_MS)

    async def ids(self, room: Room = ROOMY) -> list[str]:
        return [event.id for event in await self.take(room)]

    async def tell(self, event: DueEvent, verdict: Verdict = "delivered", **more: Any) -> Recorded:
        attempt = Attempt(verdict, at_ms=self._clock(), duration_ms=12, **more)
        return await self._outbox.record(event, attempt, failing_off_ms=3 * DAY_MS)


def begin(store: JobStore, job_id: str, **fields: Any) -> Job:
    """Submit a job with a webhook and start it."""
    submit(store, job_id, **{"webhook_url": URL, "webhook_events": ALL, **fields})
    job = store.claim("default", f"exe-{job_id}", "agent")
    assert job is not None
    assert job.id == job_id
    return job


def end(store: JobStore, job: Job, status: Status = Status.SUCCEEDED) -> None:
    assert store.commit(job.id, str(job.execution_id), Outcome(status)) == "committed"


def step(store: JobStore, job: Job, number: int) -> None:
    assert store.renew("agent", [Holding(job.id, str(job.execution_id), number, 20, "denoise")]) == ["ok"]


def states(client: redis.Redis) -> dict[str, str]:
    """Every event, and its state."""
    names: Iterator[str] = client.scan_iter(key("event", "*"))
    return {name.removeprefix(key("event", "")): client.hget(name, "state") or "" for name in sorted(names)}
