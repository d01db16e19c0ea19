"""One Idempotency-Key, one generation: over gateways, over restarts, over time."""

from __future__ import annotations

import asyncio
import base64

import httpx
import pytest
import redis

from service.settings.gateway import GatewaySettings
from tests.gateway import EMOJI, SHAPES, Hand, make_key, picture, serving, show_models

pytestmark = pytest.mark.anyio

PATH = "/v1/generations"
KEY = {"Idempotency-Key": "order-12"}


async def test_sixteen_calls_at_once_over_two_gateways_make_one_generation(
    settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    show_models(redis_client, SHAPES)
    key = make_key(redis_client)
    async with serving(settings, key=key) as one, serving(settings, key=key) as two:
        calls = [(one, two)[n % 2].post(PATH, json={"prompt": "x"}, headers=KEY) for n in range(16)]
        responses = await asyncio.gather(*calls)
        listed = (await one.get(PATH)).json()["data"]
    assert {response.status_code for response in responses} == {202}
    assert len({response.json()["id"] for response in responses}) == 1
    assert len({response.json()["request"]["seed"] for response in responses}) == 1
    assert sorted(response.headers.get("idempotency-replayed", "") for response in responses) == [""] + ["true"] * 15
    assert len(listed) == 1


async def test_a_restarted_gateway_remembers(settings: GatewaySettings, redis_client: redis.Redis) -> None:
    show_models(redis_client, SHAPES)
    key = make_key(redis_client)
    async with serving(settings, key=key) as api:
        first = await api.post(PATH, json={"prompt": "x", "steps": 4}, headers=KEY)
    async with serving(settings, key=key) as api:
        # Neither spaces nor the order of members make it another body.
        again = await api.post(
            PATH, content=b'{ "steps": 4,\n "prompt": "x" }', headers={**KEY, "Content-Type": "application/json"}
        )
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["location"] == first.headers["location"]


async def test_another_body_under_the_same_key_is_422(api: httpx.AsyncClient) -> None:
    await api.post(PATH, json={"prompt": "x"}, headers=KEY)
    response = await api.post(PATH, json={"prompt": "y"}, headers=KEY)
    assert response.status_code == 422
    assert response.json()["code"] == "idempotency_key_reused"


async def test_after_the_erasure_the_key_is_410_and_makes_nothing(api: httpx.AsyncClient) -> None:
    created = await api.post(PATH, json={"prompt": "x"}, headers=KEY)
    await api.delete(created.json()["urls"]["self"])
    response = await api.post(PATH, json={"prompt": "x"}, headers=KEY)
    assert response.status_code == 410
    assert (await api.get(PATH)).json()["data"] == []


async def test_a_refused_body_stores_nothing_under_the_key(api: httpx.AsyncClient) -> None:
    refused = await api.post(PATH, json={"prompt": "x", "steps": 0}, headers=KEY)
    assert refused.status_code == 422
    accepted = await api.post(PATH, json={"prompt": "x", "steps": 1}, headers=KEY)
    assert accepted.status_code == 202
    assert "idempotency-replayed" not in accepted.headers


async def test_keys_of_different_tenants_do_not_meet(
    api: httpx.AsyncClient, settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    mine = await api.post(PATH, json={"prompt": "x"}, headers=KEY)
    async with serving(settings, key=make_key(redis_client, "other")) as other:
        theirs = await other.post(PATH, json={"prompt": "x"}, headers=KEY)
    assert theirs.status_code == 202
    assert theirs.json()["id"] != mine.json()["id"]


async def test_a_replay_of_an_ended_generation_gives_its_result(api: httpx.AsyncClient, hand: Hand) -> None:
    await api.post(PATH, json={"prompt": "x"}, headers=KEY)
    data = hand.draw(await asyncio.to_thread(hand.claim))
    plain = await api.post(PATH, json={"prompt": "x"}, headers=KEY)
    assert (plain.status_code, plain.json()["status"]) == (202, "succeeded")
    waiting = await api.post(PATH, json={"prompt": "x"}, headers={**KEY, "Prefer": "wait=5"})
    assert (waiting.status_code, waiting.json()["status"]) == (200, "succeeded")
    itself = await api.post(PATH, json={"prompt": "x"}, headers={**KEY, "Accept": "image/png"})
    assert itself.content == data
    assert itself.headers["idempotency-replayed"] == "true"
    other = await api.post(PATH, json={"prompt": "x"}, headers={**KEY, "Accept": "image/webp"})
    assert other.status_code == 406


async def test_what_was_accepted_stays_accepted_where_it_would_be_refused_today(
    settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    show_models(redis_client, SHAPES, EMOJI)
    key = make_key(redis_client)
    body = {"prompt": "x", "model": EMOJI.id}
    async with serving(settings, key=key) as api:
        first = await api.post(PATH, json=body, headers=KEY)
        assert first.status_code == 202, first.text
    redis_client.hdel("dr:models", EMOJI.id)
    async with serving(settings, key=key) as api:
        assert (await api.post(PATH, json=body)).status_code == 422
        again = await api.post(PATH, json=body, headers=KEY)
        other = await api.post(PATH, json={**body, "prompt": "y"}, headers=KEY)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert again.headers["idempotency-replayed"] == "true"
    assert other.status_code == 422


async def test_the_202_and_the_record_tell_the_same_time(api: httpx.AsyncClient) -> None:
    accepted = (await api.post(PATH, json={"prompt": "x"})).json()
    assert (await api.get(f"{PATH}/{accepted['id']}")).json()["created_at"] == accepted["created_at"]


async def test_the_inputs_of_a_replay_are_due_for_erasure(api: httpx.AsyncClient, redis_client: redis.Redis) -> None:
    body = {
        "prompt": "x",
        "task": "image-to-image",
        "image": {"base64": base64.b64encode(picture()).decode()},
    }
    first = await api.post(PATH, json=body, headers=KEY)
    assert redis_client.zrange("dr:erasures", 0, -1) == []
    again = await api.post(PATH, json=body, headers=KEY)
    assert again.json()["id"] == first.json()["id"]
    (due,) = redis_client.zrange("dr:erasures", 0, -1, withscores=True)
    assert due[1] == 0
    assert first.json()["id"] not in due[0]


async def test_the_key_itself_is_not_stored(api: httpx.AsyncClient, redis_client: redis.Redis) -> None:
    await api.post(PATH, json={"prompt": "x"}, headers={"Idempotency-Key": "secret-order-77"})
    assert [name for name in redis_client.scan_iter("dr:*") if "secret-order-77" in name] == []
