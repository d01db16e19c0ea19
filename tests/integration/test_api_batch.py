"""`POST /v1/generations/batch`: many generations in one call, accepted together or not at all."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any

import httpx
import pytest
import redis

from service.settings.gateway import GatewaySettings
from service.storage.s3 import ObjectStorage
from service.tenants.records import TenantLimits
from service.tenants.store import TenantStore
from tests.gateway import (
    EMOJI,
    SHAPES,
    Hand,
    gateway_settings,
    lasting,
    make_key,
    picture,
    serving,
    show_models,
)

pytestmark = pytest.mark.anyio

PATH = "/v1/generations/batch"
KEY = {"Idempotency-Key": "order-12"}


def inline(color: str) -> dict[str, str]:
    return {"base64": base64.b64encode(picture(color=color)).decode()}


def stored(client: redis.Redis) -> set[str]:
    """Return what a refused call must leave nothing of."""
    found = {name for name in client.scan_iter() if name.startswith(("dr:job:", "dr:idem:", "dr:queue:", "rq:job:"))}
    return found | set(client.zrange("dr:erasures", 0, -1))


async def test_each_request_becomes_a_generation_of_its_own_in_its_place(
    api: httpx.AsyncClient, hand: Hand, storage: ObjectStorage
) -> None:
    requests: list[dict[str, Any]] = [
        {"prompt": "a", "seed": 7, "labels": {"order": "12"}, "priority": "low", "retain_s": 3600},
        {"prompt": "b", "model": "emoji", "steps": 4, "finish_within_s": 60},
        {"prompt": "c", "task": "image-to-image", "strength": 0.5, "image": inline("red"), "priority": "high"},
        {"prompt": "d", "task": "inpaint", "image": inline("blue"), "mask": inline("white")},
    ]
    reply = await api.post(PATH, json={"requests": requests}, headers={"Prefer": "wait=5"})
    assert (reply.status_code, reply.json()["object"]) == (202, "list")
    assert "preference-applied" not in reply.headers
    data = reply.json()["data"]
    assert [each["request"]["prompt"] for each in data] == ["a", "b", "c", "d"]
    assert {each["status"] for each in data} == {"queued"}
    assert [each["request"]["priority"] for each in data] == ["low", "normal", "high", "normal"]
    assert (data[0]["labels"], data[0]["request"]["seed"], data[0]["request"]["retain_s"]) == ({"order": "12"}, 7, 3600)
    assert (data[1]["model"], data[1]["request"]["finish_within_s"]) == ("emoji", 60)
    for each in data:
        assert lasting((await api.get(each["urls"]["self"])).json()) == lasting(each)
    listed = (await api.get("/v1/generations")).json()["data"]
    assert [each["id"] for each in listed] == [each["id"] for each in reversed(data)]
    # By priority, then in their order; and each finds its own pictures.
    jobs = [hand.claim() for _ in requests]
    assert [job.spec.prompt for job in jobs] == ["c", "b", "d", "a"]
    for job in jobs:
        for asset in filter(None, (job.spec.image, job.spec.mask)):
            assert asset.key.startswith(job.object_prefix)
            storage.get(asset.key, max_bytes=10_000, sha256=asset.sha256)
        hand.draw(job)
    assert {(await api.get(each["urls"]["self"])).json()["status"] for each in data} == {"succeeded"}


async def test_one_wrong_request_refuses_all_and_says_which(api: httpx.AsyncClient, redis_client: redis.Redis) -> None:
    broken = {"base64": base64.b64encode(b"no picture").decode()}
    requests: list[Any] = [
        {"prompt": "a"},
        {"prompt": "b", "steps": "12", "stregth": 1},
        "c",
        {"prompt": "d", "model": "nothing"},
    ]
    reply = await api.post(PATH, json={"requests": requests}, headers=KEY)
    assert reply.status_code == 422
    pointers = [error["pointer"] for error in reply.json()["errors"]]
    assert pointers == ["/requests/1/steps", "/requests/1/stregth", "/requests/2", "/requests/3/model"]
    good: dict[str, Any] = {"prompt": "e", "task": "image-to-image", "image": inline("red")}
    requests = [good, {**good, "image": broken}, {"prompt": "f", "task": "inpaint", "image": broken, "mask": broken}]
    reply = await api.post(PATH, json={"requests": requests}, headers=KEY)
    pointers = [error["pointer"] for error in reply.json()["errors"]]
    assert pointers == ["/requests/1/image/base64", "/requests/2/image/base64", "/requests/2/mask/base64"]
    # What was stored of the good one is due to be erased now; of the others nothing was stored.
    (due,) = redis_client.zrange("dr:erasures", 0, -1, withscores=True)
    assert due[1] == 0
    redis_client.zrem("dr:erasures", due[0])
    assert stored(redis_client) == set()
    # A refused call stores nothing under its key.
    assert (await api.post(PATH, json={"requests": [{"prompt": "a"}]}, headers=KEY)).status_code == 202


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, ["/requests"]),
        ({"requests": []}, ["/requests"]),
        ({"requests": {"0": {"prompt": "a"}}}, ["/requests"]),
        ({"requests": [{"prompt": "a"}] * 101}, ["/requests"]),
        ({"requests": [{"prompt": "a"}], "prompt": "b"}, ["/prompt"]),
        ({"requests": [None]}, ["/requests/0"]),
        ({"requests": [[{"prompt": "a"}]]}, ["/requests/0"]),
    ],
)
async def test_a_body_that_is_no_batch_is_422(
    api: httpx.AsyncClient, redis_client: redis.Redis, body: Any, pointers: list[str]
) -> None:
    reply = await api.post(PATH, json=body)
    assert reply.status_code == 422
    assert [error["pointer"] for error in reply.json()["errors"]] == pointers
    assert stored(redis_client) == set()


async def test_a_hundred_are_accepted_by_one_call_of_redis(api: httpx.AsyncClient, redis_client: redis.Redis) -> None:
    await api.post(PATH, json={"requests": [{"prompt": "x"}]})
    before = redis_client.info("commandstats")["cmdstat_evalsha"]["calls"]
    started = time.monotonic()
    reply = await api.post(PATH, json={"requests": [{"prompt": f"p{n}"} for n in range(100)]})
    took_s = time.monotonic() - started
    assert [each["request"]["prompt"] for each in reply.json()["data"]] == [f"p{n}" for n in range(100)]
    # The reaper of the gateway runs scripts too, once a second.
    assert redis_client.info("commandstats")["cmdstat_evalsha"]["calls"] - before <= 1 + 2 * (1 + took_s)
    assert redis_client.hget("dr:pool:default", "queued") == "101"
    assert len(redis_client.lrange("rq:queue:darkroom.default", 0, -1)) >= 101


async def test_many_gateways_make_one_batch_of_one_key(settings: GatewaySettings, redis_client: redis.Redis) -> None:
    show_models(redis_client, SHAPES, EMOJI)
    key = make_key(redis_client)
    body = {"requests": [{"prompt": f"p{n}", "model": "shapes"} for n in range(5)]}
    async with serving(settings, key=key) as one, serving(settings, key=key) as two:
        replies = await asyncio.gather(*((one, two)[n % 2].post(PATH, json=body, headers=KEY) for n in range(6)))
        assert [reply.status_code for reply in replies] == [202] * 6, [reply.text for reply in replies]
        ids = {tuple(each["id"] for each in reply.json()["data"]) for reply in replies}
        assert len(ids) == 1
        assert sorted(reply.headers.get("idempotency-replayed", "") for reply in replies) == [""] + ["true"] * 5
        other = await one.post(PATH, json={"requests": body["requests"][:4]}, headers=KEY)
        assert other.json()["code"] == "idempotency_key_reused"
        # The same key of another operation is another key.
        assert (await one.post("/v1/generations", json={"prompt": "x"}, headers=KEY)).status_code == 202
        # What was accepted once stays accepted, also where it would be refused today.
        redis_client.hdel("dr:models", "shapes")
        await asyncio.sleep(1.1)
        again = await two.post(PATH, json=body, headers=KEY)
        assert again.status_code == 202, again.text
        assert {tuple(each["id"] for each in again.json()["data"])} == ids
        show_models(redis_client, SHAPES, EMOJI)
        await asyncio.sleep(1.1)
        await one.delete(f"/v1/generations/{again.json()['data'][2]['id']}")
        assert (await two.post(PATH, json=body, headers=KEY)).json()["code"] == "gone"


async def test_a_batch_that_is_too_much_now_comes_later_and_one_that_always_is_never(
    settings: GatewaySettings, redis_client: redis.Redis, storage: ObjectStorage
) -> None:
    show_models(redis_client, SHAPES)
    key = make_key(redis_client, limits=TenantLimits(max_requests_per_minute=16))
    tenants = TenantStore(redis_client)

    def batch(size: int, **more: Any) -> dict[str, Any]:
        return {"requests": [{"prompt": "x", **more}] * size}

    with_picture = {"task": "image-to-image", "image": inline("red")}
    tight = gateway_settings(settings.redis, settings.storage, admission={"queue_limit": 6})
    async with serving(settings, key=key) as api, serving(tight, key=key) as small:
        first = await api.post(PATH, json=batch(3))
        assert (first.status_code, first.headers["ratelimit"]) == (202, '"default";r=1;t=4')
        for body in (batch(3), batch(3, **with_picture)):
            refused = await api.post(PATH, json=body)
            assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
            # One is left, the second comes within 4 s, the third 3.75 s after.
            assert int(refused.headers["retry-after"]) in {7, 8}
        for body in (batch(5), batch(5, **with_picture)):
            never = await api.post(PATH, json=body)
            assert (never.status_code, never.json()["errors"][0]["pointer"]) == (422, "/requests")
            assert "at most 4" in never.json()["errors"][0]["detail"]
        tenants.set_limits("acme", TenantLimits(max_queued=4))
        await asyncio.sleep(2.1)  # the gateway's own copy of the limits
        refused = await api.post(PATH, json=batch(2))
        assert (refused.status_code, refused.json()["code"]) == (429, "limit_reached")
        never = await api.post(PATH, json=batch(5))
        assert "at most 4" in never.json()["errors"][0]["detail"]
        tenants.set_limits("acme", TenantLimits())
        refused = await small.post(PATH, json=batch(4))
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        never = await small.post(PATH, json=batch(7))
        assert "at most 6" in never.json()["errors"][0]["detail"]
    assert redis_client.hget("dr:tenant:acme:counts", "queued") == "3"
    assert redis_client.zcard("dr:erasures") == 0


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "PATCH", "HEAD"])
async def test_batch_is_no_generation(api: httpx.AsyncClient, method: str) -> None:
    reply = await api.request(method, PATH)
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
