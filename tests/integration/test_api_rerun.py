"""`POST /v1/generations/{id}/rerun`: the same specification again, as a generation of its own."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx
import pytest
import redis

from service.contract.errors import FailureCode
from service.settings.gateway import GatewaySettings
from service.storage.errors import ObjectMissing
from service.storage.s3 import ObjectStorage
from tests.gateway import EMOJI, SHAPES, Hand, make_key, picture, serving, show_models

pytestmark = pytest.mark.anyio

PATH = "/v1/generations"
KEY = {"Idempotency-Key": "again-1"}

FULL: dict[str, Any] = {
    "prompt": "a (red:1.2) circle",
    "negative_prompt": "blue",
    "model": "shapes",
    "width": 96,
    "height": 64,
    "steps": 11,
    "guidance_scale": 2.5,
    "guidance_rescale": 0.25,
    "eta": 0.5,
    "scheduler": "euler",
    "sigmas": "karras",
    "seed": 2**53 - 3,
    "num_images": 2,
    "deterministic": True,
    "task": "inpaint",
    "strength": 0.7,
    "output": {"format": "webp", "quality": 71, "embed_parameters": True},
}


def inline(color: str) -> dict[str, str]:
    return {"base64": base64.b64encode(picture(color=color)).decode()}


async def create(api: httpx.AsyncClient, **request: Any) -> dict[str, Any]:
    reply = await api.post(PATH, json={"prompt": "x", **request})
    assert reply.status_code == 202, reply.text
    return reply.json()


def rerun_path(resource: dict[str, Any]) -> str:
    return f"{PATH}/{resource['id']}/rerun"


async def test_everything_that_is_drawn_is_the_originals(
    api: httpx.AsyncClient, hand: Hand, storage: ObjectStorage, redis_client: redis.Redis
) -> None:
    hook = {"url": "https://example.com/one", "events": ["started"]}
    terms = {"labels": {"order": "12"}, "priority": "low", "retain_s": 3600, "finish_within_s": 600, "webhook": hook}
    first = await create(api, **FULL, **terms, image=inline("red"), mask=inline("white"))
    drawn = hand.claim()
    hand.draw(drawn)
    reply = await api.post(rerun_path(first), json={"labels": {"order": "13"}, "priority": "high", "webhook": None})
    assert reply.status_code == 202
    again = reply.json()
    assert reply.headers["location"] == f"{PATH}/{again['id']}"
    assert (again["rerun_of"], again["status"], again["id"] != first["id"]) == (first["id"], "queued", True)
    assert first["rerun_of"] is None
    assert again["labels"] == {"order": "13"}
    own = {"priority": "high", "finish_within_s": None, "retain_s": 7 * 86_400, "webhook": None}
    assert again["request"] == first["request"] | own
    assert (await api.get(reply.headers["location"])).json() == again
    # The inputs are copies: they stay where the original and its own are erased.
    assert (await api.delete(first["urls"]["self"])).status_code == 204
    storage.delete_prefix(drawn.object_prefix)
    job = hand.claim()
    assert (job.id, job.cost) == (again["id"], drawn.cost)
    for copy, original in ((job.spec.image, drawn.spec.image), (job.spec.mask, drawn.spec.mask)):
        assert copy is not None
        assert original is not None
        assert copy.key.startswith(job.object_prefix)
        storage.get(copy.key, max_bytes=10_000, sha256=original.sha256)
        with pytest.raises(ObjectMissing):
            storage.get(original.key, max_bytes=10_000)
    assert job.object_prefix not in redis_client.zrange("dr:erasures", 0, -1)


@pytest.mark.parametrize("status", ["queued", "running", "failed", "canceled"])
async def test_it_may_be_in_any_status_and_needs_no_body(api: httpx.AsyncClient, hand: Hand, status: str) -> None:
    first = await create(api, seed=5, output={"format": "jpeg"})
    if status == "canceled":
        await api.post(first["urls"]["cancel"])
    elif status != "queued":
        job = hand.claim()
        if status == "failed":
            hand.fail(job, FailureCode.OUT_OF_MEMORY)
    assert (await api.get(first["urls"]["self"])).json()["status"] == status
    again = (await api.post(rerun_path(first))).json()
    assert again["request"] == first["request"]
    # And so may a rerun; what is null is the original's.
    third = (await api.post(rerun_path(again), json={"output": None, "same": None})).json()
    assert (third["rerun_of"], third["request"]) == (again["id"], first["request"])
    other = (await api.post(rerun_path(first), json={"output": {"format": "png"}})).json()
    assert other["request"]["output"] == {"format": "png", "quality": None, "embed_parameters": False}


async def test_another_model_under_the_name_is_refused_unless_that_is_asked_for(
    api: httpx.AsyncClient, hand: Hand, redis_client: redis.Redis
) -> None:
    first = await create(api, steps=40)
    hand.draw(hand.claim(), model_sha256="f" * 64)
    refused = await api.post(rerun_path(first))
    assert (refused.status_code, refused.json()["code"]) == (422, "model_changed")
    assert '{"same": false}' in refused.json()["detail"]
    assert (await api.post(rerun_path(first), json={"same": False})).status_code == 202
    # What the present model allows holds for a rerun too.
    narrower = SHAPES.model_copy(update={"limits": SHAPES.limits.model_copy(update={"max_steps": 30})})
    show_models(redis_client, narrower, EMOJI)
    await asyncio.sleep(1.1)
    refused = await api.post(rerun_path(first), json={"same": False})
    assert [error["pointer"] for error in refused.json()["errors"]] == ["/steps"]
    redis_client.hdel("dr:models", "shapes")
    await asyncio.sleep(1.1)
    for body in ({}, {"same": False}):
        gone = await api.post(rerun_path(first), json=body)
        assert (gone.status_code, gone.json()["code"]) == (422, "model_changed")
        assert "not served any more" in gone.json()["detail"]


async def test_what_does_nothing_with_the_model_is_no_obstacle(
    api: httpx.AsyncClient, redis_client: redis.Redis
) -> None:
    distilled = SHAPES.model_copy(
        update={"unused_fields": ("negative_prompt", "guidance_scale"), "guidance_scale": 1.5}
    )
    show_models(redis_client, distilled, EMOJI)
    await asyncio.sleep(1.1)
    first = await create(api)
    show_models(redis_client, distilled.model_copy(update={"guidance_scale": 2.0}), EMOJI)
    await asyncio.sleep(1.1)
    assert (await api.post(rerun_path(first))).status_code == 202


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({"seed": 8}, ["/seed"]),
        ({"same": "true", "prompt": "y", "priority": "high"}, ["/prompt", "/same"]),
        (
            {"priority": "highest", "retain_s": 1, "output": {"quality": 5}},
            ["/priority", "/retain_s", "/output/quality"],
        ),
        ({"labels": {"a b": "c"}}, ["/labels/a b"]),
        ({"webhook": {"url": "https://127.0.0.1/"}}, ["/webhook/url"]),
    ],
)
async def test_a_rerun_takes_little(api: httpx.AsyncClient, body: dict[str, Any], pointers: list[str]) -> None:
    first = await create(api)
    reply = await api.post(rerun_path(first), json=body)
    assert reply.status_code == 422
    assert sorted(error["pointer"] for error in reply.json()["errors"]) == sorted(pointers)
    assert len((await api.get(PATH)).json()["data"]) == 1


async def test_a_body_that_is_not_json_is_415(api: httpx.AsyncClient) -> None:
    first = await create(api)
    assert (await api.post(rerun_path(first), content=b"same=true")).status_code == 415


async def test_erased_is_410_and_another_tenants_404(settings: GatewaySettings, redis_client: redis.Redis) -> None:
    show_models(redis_client, SHAPES, EMOJI)
    mine, theirs = make_key(redis_client), make_key(redis_client, "other")
    async with serving(settings, key=mine) as api, serving(settings, key=theirs) as other:
        first = await create(api)
        assert (await other.post(rerun_path(first))).status_code == 404
        assert (await api.post(f"{PATH}/gen_{'0' * 40}/rerun")).status_code == 404
        await api.delete(first["urls"]["self"])
        assert (await api.post(rerun_path(first))).status_code == 410


async def test_a_key_gives_the_one_rerun_also_after_the_original_went(
    api: httpx.AsyncClient, hand: Hand, storage: ObjectStorage, redis_client: redis.Redis
) -> None:
    first = await create(api, task="image-to-image", image=inline("red"))
    one = await api.post(rerun_path(first), headers=KEY)
    two = await api.post(rerun_path(first), json={}, headers=KEY)
    assert one.json()["id"] == two.json()["id"]
    assert two.headers["idempotency-replayed"] == "true"
    assert (await api.post(rerun_path(first), json={"same": False}, headers=KEY)).status_code == 422
    # The repeated call made no copy, the other one's is due to be erased.
    kept = {job.object_prefix for job in (hand.claim(), hand.claim())}
    ((prefix, due_ms),) = redis_client.zrange("dr:erasures", 0, -1, withscores=True)
    assert prefix not in kept
    assert due_ms == 0
    await api.delete(first["urls"]["self"])
    three = await api.post(rerun_path(first), headers=KEY)
    assert (three.status_code, three.json()["id"]) == (202, one.json()["id"])


async def test_inputs_that_are_gone_from_the_storage_are_410(
    api: httpx.AsyncClient, hand: Hand, storage: ObjectStorage
) -> None:
    first = await create(api, task="image-to-image", image=inline("red"))
    storage.delete_prefix(hand.claim().object_prefix)
    assert (await api.post(rerun_path(first))).status_code == 410
    assert len((await api.get(PATH)).json()["data"]) == 1
