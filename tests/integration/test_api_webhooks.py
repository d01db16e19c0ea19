"""`/v1/webhooks`: what was sent to whom, switching endpoints, sending again. The tests send by hand."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import redis

from service.contract.job import Job, Status
from service.jobs.commands import Outcome
from service.jobs.connection import connect_async
from service.jobs.deliveries import AsyncDeliveries, DeliveryFilter
from service.jobs.keys import key
from service.jobs.outbox import Attempt, DueEvent, Room, WebhookOutbox
from service.jobs.store import JobStore
from service.settings.gateway import GatewaySettings
from service.settings.groups import RedisSettings
from service.tenants.audit import AuditLog
from tests.clock import QueueClock
from tests.gateway import make_key, serving
from tests.jobs import submit

pytestmark = pytest.mark.anyio

ENDPOINTS, DELIVERIES = "/v1/webhooks/endpoints", "/v1/webhooks/deliveries"
URL = "https://shop.example/hook"
ROOM = Room(events=1000, failing=1000, per_endpoint=1000, per_tenant=1000)


def job_id(number: int) -> str:
    return f"gen_{number:040d}"


def ended(client: redis.Redis, number: int = 1, **fields: Any) -> Job:
    """Return a job of the tenant `acme` that has ended, and left what is to be told of it."""
    store = JobStore(client)
    values = {"tenant": "acme", "webhook_url": URL, "webhook_events": ("started", "completed"), **fields}
    job = submit(store, job_id(number), **values)
    claimed = store.claim("default", f"exe{number}", "agent")
    assert claimed is not None
    assert store.commit(job.id, f"exe{number}", Outcome(Status.SUCCEEDED)) == "committed"
    return job


@pytest.fixture
async def outbox(redis_settings: RedisSettings) -> AsyncIterator[WebhookOutbox]:
    async with connect_async(redis_settings) as client:
        yield WebhookOutbox(client)


async def due(outbox: WebhookOutbox) -> list[DueEvent]:
    return await outbox.due(ROOM, lease_ms=45_000)


async def attempt(outbox: WebhookOutbox, event: DueEvent, **how: Any) -> None:
    at_ms = 1_800_000_000_000
    recorded = await outbox.record(event, Attempt(at_ms=at_ms, duration_ms=182, **how), failing_off_ms=86_400_000)
    assert recorded.outcome == "recorded"


async def listed(api: httpx.AsyncClient, path: str = DELIVERIES, **parameters: Any) -> list[dict[str, Any]]:
    response = await api.get(path, params=parameters)
    assert response.status_code == 200, response.text
    return response.json()["data"]


async def test_an_event_is_listed_with_its_attempts_and_nothing_of_what_was_sent(
    api: httpx.AsyncClient, redis_client: redis.Redis, outbox: WebhookOutbox
) -> None:
    job = ended(redis_client)
    (event,) = await due(outbox)
    await attempt(outbox, event, verdict="failed", status=503, retry_ms=5000)
    response = await api.get(DELIVERIES, params={"state": "pending"})
    (found,) = response.json()["data"]
    assert found["id"] == f"evt_{job.id}_succeeded"
    assert (found["type"], found["generation"], found["state"]) == ("generation.succeeded", job.id, "pending")
    assert found["attempts"] == [{"at": "2027-01-15T08:00:00Z", "status": 503, "reason": None, "duration_s": 0.182}]
    assert found["next_attempt_at"] is not None
    assert job.spec.prompt not in response.text
    assert URL not in response.text
    assert (await api.get(f"{DELIVERIES}/{found['id']}")).json() == found

    (endpoint,) = await listed(api, ENDPOINTS)
    assert (endpoint["id"], endpoint["url"], endpoint["enabled"]) == (found["endpoint"], URL, True)
    assert endpoint["failing_since"] is not None
    assert (await api.get(f"{ENDPOINTS}/{endpoint['id']}")).json() == endpoint


async def test_a_name_that_leads_inside_reads_as_one_that_leads_nowhere(
    api: httpx.AsyncClient, redis_client: redis.Redis, outbox: WebhookOutbox
) -> None:
    for number, reason in enumerate(("dns", "address")):
        ended(redis_client, number, webhook_url=f"https://{reason}.example/", webhook_events=("completed",))
        (event,) = await due(outbox)
        await attempt(outbox, event, verdict="failed", reason=reason)
    first, second = (each["attempts"] for each in await listed(api, state="failed"))
    assert first == second
    assert (first[0]["reason"], first[0]["duration_s"]) == ("unreachable", 0)


async def test_filters_choose(api: httpx.AsyncClient, redis_client: redis.Redis, outbox: WebhookOutbox) -> None:
    first = ended(redis_client, 1)
    second = ended(redis_client, 2, webhook_url=f"{URL}2")
    for event in await due(outbox):
        if event.job is not None and event.job.id == first.id:
            await attempt(outbox, event, verdict="delivered", status=204)

    def of(found: list[dict[str, Any]]) -> set[tuple[str, str]]:
        return {(each["generation"], each["state"]) for each in found}

    assert of(await listed(api)) == {
        (first.id, "delivered"), (first.id, "superseded"), (second.id, "pending"), (second.id, "superseded"),
    }  # fmt: skip
    assert of(await listed(api, state="delivered")) == {(first.id, "delivered")}
    assert of(await listed(api, generation=second.id)) == {(second.id, "pending"), (second.id, "superseded")}
    assert of(await listed(api, generation=second.id, state="pending")) == {(second.id, "pending")}
    assert await listed(api, generation=first.id, state="pending") == []
    assert await listed(api, generation=job_id(3)) == []
    endpoints = {each["url"]: each["id"] for each in await listed(api, ENDPOINTS)}
    assert of(await listed(api, endpoint=endpoints[f"{URL}2"])) == of(await listed(api, generation=second.id))


async def test_another_tenants_endpoints_and_deliveries_are_unknown(
    api: httpx.AsyncClient, settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    job = ended(redis_client)
    (endpoint,) = await listed(api, ENDPOINTS)
    event = f"evt_{job.id}_succeeded"
    async with serving(settings, key=make_key(redis_client, "other")) as other:
        assert await listed(other) == await listed(other, ENDPOINTS) == await listed(other, generation=job.id) == []
        for method, path, body in (
            ("GET", f"{ENDPOINTS}/{endpoint['id']}", None),
            ("PATCH", f"{ENDPOINTS}/{endpoint['id']}", {"enabled": False}),
            ("GET", f"{DELIVERIES}/{event}", None),
            ("POST", f"{DELIVERIES}/{event}/redeliver", None),
        ):
            response = await other.request(method, path, json=body)
            assert (response.status_code, response.json()["code"]) == (404, "not_found"), path
    assert (await listed(api, ENDPOINTS))[0]["enabled"]


async def test_an_endpoint_that_is_switched_off_is_sent_nothing_until_it_is_on_and_asked_to_send_again(
    api: httpx.AsyncClient, redis_client: redis.Redis, outbox: WebhookOutbox
) -> None:
    ended(redis_client, 1)
    (endpoint,) = await listed(api, ENDPOINTS)
    path = f"{ENDPOINTS}/{endpoint['id']}"
    for _ in range(2):
        off = (await api.patch(path, json={"enabled": False})).json()
        assert (off["enabled"], off["disabled_reason"]) == (False, "by_request")
    assert await due(outbox) == []
    ended(redis_client, 2)
    assert await due(outbox) == []
    events = [each["id"] for each in await listed(api, state="failed")]
    assert events == [f"evt_{job_id(2)}_succeeded", f"evt_{job_id(2)}_started", f"evt_{job_id(1)}_succeeded"]
    refused = await api.post(f"{DELIVERIES}/{events[0]}/redeliver")
    assert (refused.status_code, refused.json()["code"]) == (422, "endpoint_off")

    on = (await api.patch(path, json={"enabled": True})).json()
    assert (on["enabled"], on["disabled_at"], on["disabled_reason"]) == (True, None, None)
    assert await due(outbox) == []
    accepted = await api.post(f"{DELIVERIES}/{events[0]}/redeliver", json={})
    assert (accepted.status_code, accepted.json()["state"]) == (202, "pending")
    assert [event.id for event in await due(outbox)] == events[:1]


async def test_whoever_switches_or_rotates_is_noted_once_for_each_change(
    api: httpx.AsyncClient, redis_client: redis.Redis
) -> None:
    ended(redis_client)
    (endpoint,) = await listed(api, ENDPOINTS)
    for enabled in (True, False, False, True):
        await api.patch(f"{ENDPOINTS}/{endpoint['id']}", json={"enabled": enabled})
    for _ in range(2):
        await api.post("/v1/webhooks/secrets/rotate", headers={"Idempotency-Key": "1"}, json={"keep_previous_s": 60})
    (secret,) = [each["id"] for each in (await api.get("/v1/webhooks/secrets")).json()["data"]]
    entries = [each for each in AuditLog(redis_client).latest(10) if each.who.startswith("key:")]
    assert {each.tenant for each in entries} == {"acme"}
    assert [(each.action, each.changes) for each in entries] == [
        ("endpoint_switched", {"endpoint": endpoint["id"], "enabled": [True, False]}),
        ("endpoint_switched", {"endpoint": endpoint["id"], "enabled": [False, True]}),
        ("webhook_secret_rotated", {"secret": secret, "keep_previous_s": 60}),
    ]


async def test_switching_on_forgets_the_failures_that_switched_it_off(
    api: httpx.AsyncClient, redis_client: redis.Redis, outbox: WebhookOutbox
) -> None:
    ended(redis_client)
    (event,) = await due(outbox)
    await attempt(outbox, event, verdict="gone", status=410)
    (endpoint,) = await listed(api, ENDPOINTS)
    assert (endpoint["enabled"], endpoint["disabled_reason"]) == (False, "gone")
    assert endpoint["failing_since"] is not None
    # It is off already: why stays told.
    path = f"{ENDPOINTS}/{endpoint['id']}"
    assert (await api.patch(path, json={"enabled": False})).json()["disabled_reason"] == "gone"
    assert (await api.patch(path, json={"enabled": True})).json()["failing_since"] is None


@pytest.mark.parametrize("verdict", ["delivered", "failed"])
async def test_an_event_is_sent_again_under_its_id_with_its_whole_schedule(
    api: httpx.AsyncClient, redis_client: redis.Redis, outbox: WebhookOutbox, verdict: str
) -> None:
    ended(redis_client)
    (event,) = await due(outbox)
    await attempt(outbox, event, verdict=verdict, status=200)
    path = f"{DELIVERIES}/{event.id}/redeliver"
    for _ in range(2):
        again = (await api.post(path)).json()
        assert (again["id"], again["state"], len(again["attempts"])) == (event.id, "pending", 1)
    (second,) = await due(outbox)
    assert (second.id, second.attempts) == (event.id, 0)
    # While it is being sent, a further wish is fulfilled already.
    assert (await api.post(path)).status_code == 202
    assert await due(outbox) == []
    await attempt(outbox, second, verdict="delivered", status=200)
    found = (await api.get(f"{DELIVERIES}/{event.id}")).json()
    assert (found["state"], len(found["attempts"])) == ("delivered", 2)


async def test_what_was_superseded_can_be_sent_all_the_same(
    api: httpx.AsyncClient, redis_client: redis.Redis, outbox: WebhookOutbox
) -> None:
    job = ended(redis_client)
    (end,) = await due(outbox)
    await attempt(outbox, end, verdict="delivered", status=200)
    assert (await api.post(f"{DELIVERIES}/evt_{job.id}_started/redeliver")).status_code == 202
    (event,) = await due(outbox)
    await attempt(outbox, event, verdict="failed", status=500, retry_ms=5000)
    assert (await api.get(f"{DELIVERIES}/{event.id}")).json()["state"] == "pending"


async def test_nothing_of_an_erased_generation_is_listed_or_sent_again(
    api: httpx.AsyncClient, redis_client: redis.Redis
) -> None:
    job = ended(redis_client)
    assert (await api.delete(f"/v1/generations/{job.id}")).status_code == 204
    assert await listed(api) == await listed(api, generation=job.id) == []
    assert (await api.post(f"{DELIVERIES}/evt_{job.id}_succeeded/redeliver")).status_code == 404


async def test_pages_hold_every_event_once_also_of_one_millisecond_and_while_others_come(
    api: httpx.AsyncClient, redis_client: redis.Redis
) -> None:
    clock = QueueClock()
    store = JobStore(redis_client, clock=clock)

    def cancel(number: int) -> str:
        job = submit(store, job_id(number), tenant="acme", webhook_url=URL)
        store.cancel("acme", job.id)
        return f"evt_{job.id}_canceled"

    expected = []
    for number in range(12):
        clock.now_ms += number // 6
        expected.append(cancel(number))
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await api.get(DELIVERIES, params={"limit": 5, **cursor})).json()
        seen += [each["id"] for each in page["data"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
        clock.now_ms += 1
        cancel(100 + len(seen))
    assert sorted(seen) == sorted(expected)


async def test_endpoints_are_paged_by_id(api: httpx.AsyncClient, redis_client: redis.Redis) -> None:
    store = JobStore(redis_client)
    for number in range(5):
        submit(store, job_id(number), tenant="acme", webhook_url=f"{URL}/{number}")
        store.cancel("acme", job_id(number))
    first = (await api.get(ENDPOINTS, params={"limit": 3})).json()
    second = (await api.get(ENDPOINTS, params={"limit": 3, "cursor": first["next_cursor"]})).json()
    ids = [each["id"] for each in first["data"] + second["data"]]
    assert (len(first["data"]), second["next_cursor"]) == (3, None)
    assert ids == sorted(set(ids))
    assert len(ids) == 5


async def test_a_filtered_call_looks_at_a_bounded_number_of_events(
    redis_client: redis.Redis, redis_settings: RedisSettings
) -> None:
    pipe = redis_client.pipeline(transaction=False)
    for number in range(1500):
        event = f"evt_{job_id(number)}_failed"
        fields = {"job": job_id(number), "tenant": "acme", "endpoint": "ep_0", "type": "generation.failed"}
        pipe.hset(key("event", event), mapping={**fields, "created_ms": number, "state": "failed", "log": "[]"})
        pipe.zadd(key("tenant_deliveries", "acme"), {event: number})
    pipe.execute()
    async with connect_async(redis_settings) as client:
        deliveries = AsyncDeliveries(client)
        page = await deliveries.page("acme", DeliveryFilter(state="pending"), limit=100)
        assert (page.deliveries, page.next) == ([], ("500", f"evt_{job_id(500)}_failed"))
        page = await deliveries.page("acme", DeliveryFilter(state="pending"), limit=100, before=page.next)
        assert (page.deliveries, page.next) == ([], None)
        # In few calls, however few are asked for.
        before = commands(redis_client)
        page = await deliveries.page("acme", DeliveryFilter(state="pending"), limit=1)
        assert (page.deliveries, page.next) == ([], ("500", f"evt_{job_id(500)}_failed"))
        assert commands(redis_client) - before < 30
        listed = [await deliveries.page("acme", DeliveryFilter(state="failed"), limit=7)]
        listed.append(await deliveries.page("acme", DeliveryFilter(state="failed"), limit=7, before=listed[0].next))
        ids = [each.id for page in listed for each in page.deliveries]
        assert ids == [f"evt_{job_id(number)}_failed" for number in range(1499, 1485, -1)]


def commands(client: redis.Redis) -> int:
    """Return how many ranges of indexes were read: with each go the events behind them, in one more round trip."""
    return int(client.info("commandstats").get("cmdstat_zrange", {}).get("calls", 0))


Damage = Callable[[redis.Redis, str, str], Any]


DAMAGES: list[Damage] = [
    lambda client, event, _: client.hset(event, "log", "[" * 5000),
    lambda client, event, _: client.hset(event, "log", '[{"at_ms": 1e300}]'),
    lambda client, event, _: client.hset(event, "log", "{}"),
    lambda client, event, _: client.hset(event, mapping={"created_ms": "nan", "next_ms": "9" * 400}),
    lambda client, event, _: client.hset(event, "state", "unheard-of"),
    lambda client, event, _: client.hdel(event, "endpoint"),
    lambda client, event, _: (client.delete(event), client.set(event, "no hash")),
    lambda client, _, endpoint: client.hset(endpoint, mapping={"created_ms": "-", "disabled_ms": "nan"}),
    lambda client, _, endpoint: (client.delete(endpoint), client.set(endpoint, "no hash")),
    lambda client, _, endpoint: client.delete(endpoint),
]


async def test_damage_hides_neither_the_other_events_nor_the_other_endpoints(
    api: httpx.AsyncClient, redis_client: redis.Redis
) -> None:
    ended(redis_client, 0)
    (sound,) = await listed(api, ENDPOINTS)
    for number, damage in enumerate(DAMAGES, start=1):
        ended(redis_client, number, webhook_url=f"{URL}/{number}")
        (found,) = await listed(api, generation=job_id(number), state="pending")
        event, endpoint = found["id"], found["endpoint"]
        damage(redis_client, key("event", event), key("endpoint", endpoint))
        assert f"evt_{job_id(0)}_succeeded" in {each["id"] for each in await listed(api, limit=100)}
        assert sound in await listed(api, ENDPOINTS)
        for method, path, body in (
            ("GET", f"{DELIVERIES}/{event}", None),
            ("POST", f"{DELIVERIES}/{event}/redeliver", None),
            ("PATCH", f"{ENDPOINTS}/{endpoint}", {"enabled": False}),
            ("PATCH", f"{ENDPOINTS}/{endpoint}", {"enabled": True}),
        ):
            response = await api.request(method, path, json=body)
            assert response.status_code in {200, 202, 404} or response.json()["code"] == "endpoint_off", number


async def test_whatever_is_wrong_is_told_at_once(api: httpx.AsyncClient, redis_client: redis.Redis) -> None:
    for path, parameters, wrong in (
        (DELIVERIES, {"generation": "gen_1", "endpoint": "x", "state": "sent"}, {"generation", "endpoint", "state"}),
        (DELIVERIES, {"limit": "0", "cursor": "x"}, {"limit", "cursor"}),
        (DELIVERIES, {"limit": ["1", "2"], "tenant": "other"}, {"limit", "tenant"}),
        (DELIVERIES, {"cursor": "1-evt_\n"}, {"cursor"}),
        (ENDPOINTS, {"limit": "101", "cursor": "ep_1", "state": "off"}, {"limit", "cursor", "state"}),
    ):
        response = await api.get(path, params=parameters)
        assert response.status_code == 422, parameters
        assert {each["pointer"] for each in response.json()["errors"]} == wrong
    ended(redis_client)
    (endpoint,) = await listed(api, ENDPOINTS)
    for body in ({}, {"enabled": None}, {"enabled": "true"}, {"enabled": 1}, {"enabled": True, "url": "x"}):
        assert (await api.patch(f"{ENDPOINTS}/{endpoint['id']}", json=body)).status_code == 422, json.dumps(body)
    event = (await listed(api))[0]["id"]
    assert (await api.post(f"{DELIVERIES}/{event}/redeliver", json={"now": True})).status_code == 422
    for path in (f"{ENDPOINTS}/x", f"{DELIVERIES}/x", f"{DELIVERIES}/evt_{job_id(1)}_succeeded%0A"):
        assert (await api.get(path)).status_code == 404
