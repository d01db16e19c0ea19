"""`GET /v1/usage`: what a tenant used, by day in UTC."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import anyio
import httpx
import pytest
import redis

from service.contract.errors import FailureCode
from service.contract.generation import ResultImage, Timings
from service.contract.job import Status
from service.jobs.async_store import AsyncJobStore
from service.jobs.commands import DayUsage, Outcome
from service.jobs.connection import connect_async
from service.jobs.keys import key
from service.jobs.store import JobStore
from service.settings.gateway import GatewaySettings
from service.settings.groups import RedisSettings
from service.tenants.store import TenantStore
from tests.gateway import Hand, make_key, serving
from tests.jobs import submit

pytestmark = pytest.mark.anyio

PATH = "/v1/usage"
FIRST = date(1970, 1, 1)


def today(client: redis.Redis) -> date:
    """Return the day that Redis has: tests that pass midnight ask again."""
    return FIRST + timedelta(days=client.time()[0] // 86_400)


def day_key(tenant: str, day: date) -> str:
    return key("usage", tenant, str((day - FIRST).days))


async def used(api: httpx.AsyncClient, **parameters: Any) -> dict[str, tuple[int, int, float]]:
    response = await api.get(PATH, params=parameters)
    assert response.status_code == 200, response.text
    assert response.json()["object"] == "list"
    return {each["day"]: (each["requests"], each["images"], each["gpu_s"]) for each in response.json()["data"]}


async def test_what_was_drawn_is_told_to_its_tenant_alone(
    api: httpx.AsyncClient, settings: GatewaySettings, redis_client: redis.Redis, hand: Hand
) -> None:
    before = today(redis_client)
    for body in ({"num_images": 3}, {}, {}):
        response = await api.post("/v1/generations", json={"prompt": "x", **body})
        assert response.status_code == 202
    for end in (hand.draw, hand.draw, lambda job: hand.fail(job, FailureCode.INTERNAL)):
        await anyio.to_thread.run_sync(lambda end=end: end(hand.claim()))
    days = await used(api)
    if today(redis_client) == before:
        assert days[str(before)] == (3, 4, 1.0)
    assert tuple(map(sum, zip(*days.values(), strict=True))) == (3, 4, 1.0)
    async with serving(settings, key=make_key(redis_client, "other")) as other:
        assert set((await used(other)).values()) == {(0, 0, 0.0)}


async def test_days_without_use_are_told_too_in_their_order(api: httpx.AsyncClient, redis_client: redis.Redis) -> None:
    last = today(redis_client) - timedelta(days=1)
    redis_client.hset(day_key("acme", last), mapping={"requests": 7, "images": 9, "gpu_ms": 1234})
    redis_client.hset(day_key("acme", last - timedelta(days=2)), mapping={"requests": 1})
    redis_client.hset(day_key("acme", last - timedelta(days=3)), mapping={"requests": 1000})
    found = await used(api, **{"from": last - timedelta(days=2), "to": last})
    assert list(found.items()) == [
        (str(last - timedelta(days=2)), (1, 0, 0.0)),
        (str(last - timedelta(days=1)), (0, 0, 0.0)),
        (str(last), (7, 9, 1.234)),
    ]
    assert len(await used(api)) == 30
    assert len(await used(api, to=last)) == 30
    assert list(await used(api, to=last))[-1] == str(last)
    # A day later it would be one too many.
    assert len(await used(api, **{"from": today(redis_client) - timedelta(days=398)})) in {399, 400}


async def test_days_that_cannot_be_known_are_refused(api: httpx.AsyncClient, redis_client: redis.Redis) -> None:
    now = today(redis_client)
    for parameters, wrong in [
        ({"from": now - timedelta(days=401)}, ["from"]),
        ({"to": now + timedelta(days=2)}, ["to"]),
        ({"from": now, "to": now - timedelta(days=1)}, ["from"]),
        ({"from": "2026-02-30", "to": "yesterday"}, ["from", "to"]),
        ({"from": f"{now}T00:00:00+14:00"}, ["from"]),
        ({"from": "20260101"}, ["from"]),
        ({"from": "٢٠٢٦-٠١-٠١"}, ["from"]),
        ({"to": ""}, ["to"]),
        ({"to": [str(now), str(now)]}, ["to"]),
        ({"tenant": "other"}, ["tenant"]),
    ]:
        response = await api.get(PATH, params=parameters)
        assert response.status_code == 422, parameters
        assert [each["pointer"] for each in response.json()["errors"]] == wrong
    assert "YYYY-MM-DD" in (await api.get(PATH, params={"to": "x"})).json()["errors"][0]["detail"]


async def test_a_day_begins_at_midnight_in_utc(redis_client: redis.Redis, redis_settings: RedisSettings) -> None:
    # 2027-01-15 is day 20833.
    midnight_ms = 20_833 * 86_400_000
    images = (ResultImage(index=0, seed=0, width_px=64, height_px=64, key="k"),)
    for name, at_ms in (("gen_1", midnight_ms - 1), ("gen_2", midnight_ms)):
        store = JobStore(redis_client, clock=lambda at_ms=at_ms: at_ms)
        submit(store, name)
        store.claim("default", name, "agent")
        store.commit(name, name, Outcome(Status.SUCCEEDED, images=images, timings=Timings(gpu_s=0.25)))
    async with connect_async(redis_settings) as client:
        store = AsyncJobStore(client, clock=lambda: midnight_ms)
        assert await store.today() == 20_833
        assert await store.usage("ada", 20_831, 3) == [DayUsage(0, 0, 0), DayUsage(1, 1, 250), DayUsage(1, 1, 250)]


async def test_damaged_counts_are_told_as_numbers_and_begin_anew(
    api: httpx.AsyncClient, redis_client: redis.Redis
) -> None:
    now = today(redis_client)
    hostile = {"nan": 0, "inf": 0, "-5": 0, "1e400": 0, "9" * 5000: 0, "1e300": 2**53, "x": 0, "": 0, "2.7": 2}
    for back, text in enumerate(hostile, start=1):
        redis_client.hset(
            day_key("acme", now - timedelta(days=back)), mapping={"requests": text, "gpu_ms": b"\xff\xfe"}
        )
    redis_client.set(day_key("acme", now - timedelta(days=len(hostile) + 1)), "no hash")
    found = [requests for requests, _, _ in (await used(api, to=now)).values()]
    assert found[-len(hostile) - 2 :] == [0, *reversed(hostile.values()), 0]

    # Nor do they make what was accepted look refused: that of today and, around midnight, of tomorrow.
    for day in (now, now + timedelta(days=1)):
        redis_client.hset(day_key("acme", day), mapping={"requests": "nan"})
    assert (await api.post("/v1/generations", json={"prompt": "x"})).status_code == 202
    assert sum(requests for requests, _, _ in (await used(api)).values()) >= 1
    assert redis_client.hget(day_key("acme", today(redis_client)), "requests") == "1"


async def test_a_new_tenant_is_not_told_what_an_earlier_one_of_its_id_used(
    settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    tenants, now = TenantStore(redis_client), today(redis_client)
    tenants.create("acme")
    for back in (0, 1, 399):
        redis_client.hset(day_key("acme", now - timedelta(days=back)), mapping={"requests": 7})
    tenants.remove("acme")
    assert redis_client.exists(day_key("acme", now))
    async with serving(settings, key=make_key(redis_client, "acme")) as api:
        found = await used(api, **{"from": now - timedelta(days=398)})
    assert set(found.values()) == {(0, 0, 0.0)}
    assert not redis_client.exists(day_key("acme", now - timedelta(days=399)))
