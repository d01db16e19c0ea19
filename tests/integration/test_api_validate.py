"""What would become of a request: the same strictness as creating, and nothing is kept of it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis

from service.contract.worker import WorkerRecord
from service.jobs.keys import key
from service.jobs.store import JobStore
from service.settings.gateway import GatewaySettings
from service.tenants.records import TenantLimits
from service.tenants.store import TenantStore
from tests.costs import cost
from tests.gateway import SHAPES, make_key, picture, serving

pytestmark = pytest.mark.anyio

PATH = "/v1/generations"
VALIDATE = f"{PATH}/validate"

#: Written by whatever goes on in a gateway that nobody calls.
_OWN = {key("forecaster"), key("forecast"), key("secret"), key("agent", "agent-1")}


async def validated(api: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await api.post(VALIDATE, json={"prompt": "a red circle", **fields})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture
def raw(valkey_url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(valkey_url)
    yield client
    client.close()


def stored(client: redis.Redis) -> dict[str, object]:
    """Return everything that is stored, but for what a gateway does by the clock."""
    return {name.decode(): client.dump(name) for name in client.scan_iter() if name.decode() not in _OWN}


async def test_a_request_is_filled_in_as_creating_does(api: httpx.AsyncClient) -> None:
    fields = {"seed": 7, "num_images": 2, "steps": 9, "priority": "low", "retain_s": 600, "finish_within_s": 60}
    told = await validated(api, **fields)
    created = (await api.post(PATH, json={"prompt": "a red circle", **fields})).json()
    assert told["request"] == created["request"]
    assert (told["accepted"], told["refusal"]) == (True, None)
    assert told["model"] == {"id": "shapes", "state": "warm", "workers": 1}


async def test_nothing_is_stored_and_nothing_of_a_rate_is_used(
    settings: GatewaySettings, api: httpx.AsyncClient, redis_client: redis.Redis, raw: redis.Redis
) -> None:
    limited = make_key(redis_client, "limited", TenantLimits(max_requests_per_minute=4))
    async with serving(settings, key=limited) as client:
        await validated(client)
        before = stored(raw)
        for _ in range(3):
            response = await client.post(VALIDATE, json={"prompt": "x"})
            assert response.headers["RateLimit"] == '"default";r=1;t=0'
        picture_text = base64.b64encode(picture(40, 32)).decode()
        told = await validated(client, task="image-to-image", image={"base64": picture_text})
        assert stored(raw) == before
        image = told["request"]["image"]
        assert (image["width_px"], image["height_px"], image["format"]) == (40, 32, "png")
        assert (await client.get(PATH)).json()["data"] == []


async def test_what_it_would_be_refused_with_is_told_and_not_done(
    settings: GatewaySettings, api: httpx.AsyncClient, redis_client: redis.Redis
) -> None:
    limited = make_key(redis_client, "limited", TenantLimits(max_requests_per_minute=4, max_queued=1))
    async with serving(settings, key=limited) as client:
        created = (await client.post(PATH, json={"prompt": "x"})).json()
        told = await validated(client)
        assert told["accepted"] is False
        assert told["refusal"]["code"] == "rate_limited"
        assert 1 <= told["refusal"]["retry_after_s"] <= 15
        TenantStore(redis_client).set_limits("limited", TenantLimits(max_queued=1))
        told = await validated(client)
        assert told["refusal"]["code"] == "limit_reached"
        await client.post(created["urls"]["cancel"])
        assert (await validated(client))["accepted"] is True


async def test_a_full_queue_would_refuse_it(
    settings: GatewaySettings, api: httpx.AsyncClient, redis_client: redis.Redis
) -> None:
    redis_client.hset(key("pool", "default"), "queued", settings.admission.queue_limit)
    assert (await validated(api))["refusal"]["code"] == "overloaded"


async def test_the_priority_is_the_one_that_it_would_have(settings: GatewaySettings, redis_client: redis.Redis) -> None:
    JobStore(redis_client).announce(WorkerRecord(agent_id="a", pool="default"), [SHAPES], ttl_ms=60_000)
    async with serving(settings, key=make_key(redis_client, "low", TenantLimits(top_priority="low"))) as client:
        told = await validated(client, priority="high")
    assert told["request"]["priority"] == "low"
    assert told["model"]["state"] == "unavailable"
    assert {told["estimate"][name] for name in ("gpu_s", "start_s", "finish_s")} == {None}


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        pytest.param({"steps": "12"}, "/steps", id="a number as text"),
        pytest.param({"stregth": 1}, "/stregth", id="an unknown field"),
        pytest.param({"task": "image-to-image"}, "/image", id="no picture"),
        pytest.param({"task": "image-to-image", "image": {"base64": "!"}}, "/image/base64", id="no base64"),
        pytest.param({"task": "image-to-image", "image": {"base64": "aGk="}}, "/image/base64", id="no picture in it"),
        pytest.param({"task": "image-to-image", "image": {"upload_id": "upl_x"}}, "/image/upload_id", id="no upload"),
    ],
)
async def test_what_is_wrong_is_422_as_when_creating(
    api: httpx.AsyncClient, fields: dict[str, Any], pointer: str
) -> None:
    told = await api.post(VALIDATE, json={"prompt": "x", **fields})
    created = await api.post(PATH, json={"prompt": "x", **fields})
    assert told.status_code == created.status_code == 422
    assert told.json()["errors"] == created.json()["errors"]
    assert [error["pointer"] for error in told.json()["errors"]] == [pointer]


async def test_a_url_is_looked_at_and_not_fetched(api: httpx.AsyncClient) -> None:
    told = await validated(api, task="image-to-image", image={"url": "https://nowhere.invalid/a.png"})
    assert told["request"]["image"] is None
    body = {"prompt": "x", "task": "image-to-image", "image": {"url": "https://127.0.0.1/a.png"}}
    refused = await api.post(VALIDATE, json=body)
    assert refused.status_code == 422
    assert [error["pointer"] for error in refused.json()["errors"]] == ["/image/url"]


async def test_cost_start_and_end_are_told_by_what_calls_cost(
    settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    store = JobStore(redis_client)
    record = WorkerRecord(agent_id="a", pool="default", device_name="A device", warm=("shapes",), capacity=1)
    store.announce(record, [SHAPES], ttl_ms=60_000)
    store.keep_costs("A device", [cost(2, 0.1, model="shapes", sha256="0" * 12)])
    async with serving(settings, key=make_key(redis_client)) as client:
        # 20 steps of 0.1 s.
        for _ in range(100):
            told = await validated(client, steps=20)
            if None not in told["estimate"].values():
                break
            await asyncio.sleep(0.05)
        assert told["estimate"]["gpu_s"] == pytest.approx(2.0)
        assert (told["estimate"]["position"], told["estimate"]["start_s"]) == (1, 0.0)
        assert told["estimate"]["finish_s"] == pytest.approx(2.0, abs=0.3)


async def test_other_methods_are_405_and_no_generation(api: httpx.AsyncClient) -> None:
    assert (await api.get(VALIDATE)).status_code == 405
    assert (await api.delete(VALIDATE)).status_code == 405
