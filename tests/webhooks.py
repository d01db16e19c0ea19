"""Receivers of webhooks, and the real sender with a clock of the test's own."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis as AsyncRedis

from service.jobs.keys import key
from service.jobs.outbox import WebhookOutbox
from service.net.egress import Egress, EgressRules
from service.telemetry.tracing import NO_TRACER
from service.tenants.sealing import Sealer
from service.tenants.webhook_secrets import WebhookSecrets
from service.webhooks.delivery import Delivery
from service.webhooks.sender import Sender, SenderRules
from tests.clock import QueueClock
from tests.sites import Exchange, Site, rules_for

RULES = SenderRules(concurrency=100, per_endpoint=4, per_tenant=50, timeout_s=10.0, poll_s=0.01)


@dataclass(frozen=True, slots=True)
class Received:
    """One attempt as its receiver saw it."""

    path: str
    id: str
    #: s since 1970.
    timestamp: int
    body: dict[str, Any]

    @property
    def job(self) -> str:
        return self.body["data"]["id"]

    @property
    def revision(self) -> int:
        return self.body["data"]["revision"]


def gen(name: object) -> str:
    """Return an id of the right form, told by its end; `name` has digits and letters up to v."""
    return f"gen_{name!s:0>40}"


def received(exchange: Exchange) -> Received:
    headers = exchange.headers
    path = exchange.line.split(" ")[1]
    return Received(path, headers["webhook-id"], int(headers["webhook-timestamp"]), json.loads(exchange.body))


def inbox(place: Site) -> list[Received]:
    """Everything that came, in its order, whatever was answered."""
    return [received(each) for each in place.exchanges]


def answering(status: int, **headers: str) -> Callable[[Exchange], Any]:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(status, **headers)

    return play


@asynccontextmanager
async def sending(url: str, clock: QueueClock, *sites: Site, **more: Any) -> AsyncIterator[SenderDrive]:
    """A sender on a Redis, whose receivers may be at the sites' ports."""
    rules: EgressRules = rules_for(*sites)
    egress = Egress(rules, now_s=clock.seconds)
    client = AsyncRedis.from_url(url, decode_responses=True)
    delivery = Delivery(
        post=egress.post,
        secrets=WebhookSecrets(client, more.get("sealer") or Sealer(), clock=clock),
        timeout_s=RULES.timeout_s,
        now_ms=clock,
        chance=lambda: 0.5,
    )
    sender = Sender(
        outbox=WebhookOutbox(client, clock=clock),
        delivery=delivery,
        rules=more.get("rules", RULES),
        metrics=more.get("metrics"),
        tracer=more.get("tracer", NO_TRACER),
    )
    try:
        yield SenderDrive(sender, client, clock)
    finally:
        await sender.settle(0)
        await egress.aclose()
        await client.aclose()


@dataclass
class SenderDrive:
    """A sender that goes step by step."""

    sender: Sender
    redis: AsyncRedis
    clock: QueueClock

    async def go(self) -> int:
        """Send everything that is due by now; return how many attempts that were."""
        attempts = 0
        while taken := await self.sender.take():
            attempts += taken
            await self.sender.settle(20)
        return attempts

    async def due_ms(self) -> int | None:
        """Return when the next endpoint is to be looked at."""
        first = await self.redis.zrange(key("outbox"), 0, 0, withscores=True)
        return int(first[0][1]) if first else None

    async def until(self, end_ms: int) -> None:
        """Let time pass up to `end_ms`, sending what falls due on the way."""
        while True:
            await self.go()
            due = await self.due_ms()
            if due is None or due > end_ms:
                break
            self.clock.now_ms = max(self.clock.now_ms + 1, due)
        self.clock.now_ms = max(self.clock.now_ms, end_ms)


async def seen(what: str, look: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait until `look` returns something true."""
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.005)
