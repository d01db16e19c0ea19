"""What a sender of webhooks counts and traces: attempts, ages, the lag, endpoints off; against real receivers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis

from service.jobs.keys import key
from service.jobs.outbox import WebhookOutbox
from service.jobs.store import JobStore
from service.telemetry import metric_names
from service.telemetry.exposition import expose
from service.telemetry.otel import OtelTracer
from service.telemetry.sender_metrics import SenderMetrics
from service.webhooks.lag import OutboxLag
from service.webhooks.sender import Sender
from tests.clock import QueueClock
from tests.collector import collecting
from tests.e2e.processes import free_port, samples
from tests.outbox import begin, end
from tests.sites import PUBLIC, Site, site
from tests.webhooks import answering, gen, seen, sending

pytestmark = pytest.mark.anyio

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def store(redis_client: redis.Redis, clock: QueueClock) -> JobStore:
    return JobStore(redis_client, clock=clock)


@pytest.fixture
async def hook() -> AsyncIterator[Site]:
    async with site() as place:
        yield place


def ended(store: JobStore, place: Site, job_id: str, path: str, **fields: str) -> None:
    url = f"http://{PUBLIC}:{place.port}{path}?token=a-private-token"
    end(store, begin(store, job_id, webhook_url=url, webhook_events=("completed",), **fields))


def of(outcome: str) -> str:
    return f'{metric_names.WEBHOOK_DELIVERIES}{{outcome="{outcome}"}}'


async def test_attempts_are_counted_by_outcome_with_ages_and_endpoints_that_go(
    store: JobStore, hook: Site, valkey_url: str, clock: QueueClock
) -> None:
    metrics, port = SenderMetrics(), free_port()
    expose(metrics.registry, "127.0.0.1", port)
    hook.plays["/down?token=a-private-token"] = answering(500)
    hook.plays["/gone?token=a-private-token"] = answering(410)
    for number, path in enumerate(("/well", "/down", "/gone")):
        ended(store, hook, gen(number), path)
    clock.now_ms += 40_000
    async with sending(valkey_url, clock, hook, metrics=metrics) as drive:
        lag = OutboxLag(WebhookOutbox(drive.redis, clock=clock))
        metrics.watch(lag)
        await lag.look()
        assert samples(port)[metric_names.WEBHOOK_LAG_SECONDS] == 40
        assert await drive.go() == 3
        await lag.look()
    found = samples(port)
    assert (found[of("delivered")], found[of("failed")], found[of("gone")]) == (1, 1, 1)
    assert found[f"{metric_names.WEBHOOK_AGE_SECONDS}_count"] == 1
    assert 40 <= found[f"{metric_names.WEBHOOK_AGE_SECONDS}_sum"] < 50
    assert found[f'{metric_names.WEBHOOK_ENDPOINTS_OFF}{{reason="gone"}}'] == 1
    assert found[metric_names.WEBHOOK_LAG_SECONDS] == 0
    assert not [name for name in found if PUBLIC in name or "token" in name or "ada" in name]


async def test_no_lag_is_shown_where_redis_does_not_tell_it(
    redis_client: redis.Redis, valkey_url: str, clock: QueueClock
) -> None:
    metrics, port = SenderMetrics(), free_port()
    expose(metrics.registry, "127.0.0.1", port)
    async with sending(valkey_url, clock) as drive:
        lag = OutboxLag(WebhookOutbox(drive.redis, clock=clock))
        metrics.watch(lag)
        await lag.look()
        assert samples(port)[metric_names.WEBHOOK_LAG_SECONDS] == 0
        redis_client.set(key("outbox"), "no zset")
        await lag.look()
        assert metric_names.WEBHOOK_LAG_SECONDS not in samples(port)


async def test_an_attempt_is_a_trace_of_its_own_linked_to_its_jobs(
    store: JobStore, hook: Site, valkey_url: str, clock: QueueClock
) -> None:
    ended(store, hook, gen(1), "/hook", traceparent=f"00-{TRACE}-00f067aa0ba902b7-01")
    with collecting() as collector:
        tracer = OtelTracer(collector.url, "darkroom-sender")
        async with sending(valkey_url, clock, hook, tracer=tracer) as drive:
            assert isinstance(drive.sender, Sender)
            assert await drive.go() == 1
        tracer.close()
        await seen("the span", lambda: collector.spans)
    (span,) = collector.spans
    assert (span.service, span.name, span.parent_id, span.links) == ("darkroom-sender", "webhook", "", (TRACE,))
    assert span.trace_id != TRACE
    assert span.attributes["darkroom.outcome"] == "delivered"
    assert span.attributes["darkroom.job_id"] == gen(1)
    sent = b"".join(collector.bodies)
    assert b"token" not in sent
    assert PUBLIC.encode() not in sent
    assert b"a red circle" not in sent
