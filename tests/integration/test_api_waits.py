"""How many calls of a tenant a gateway holds: one more is refused before it does anything."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import redis

from service.settings.gateway import GatewaySettings
from tests.gateway import SHAPES, Hand, gateway_settings, make_key, serving, show_models

pytestmark = pytest.mark.anyio

PATH = "/v1/generations"
WAIT = {"Prefer": "wait=30"}


def strict(settings: GatewaySettings, *, auth: str = "keys") -> GatewaySettings:
    """A gateway that holds two calls of each tenant."""
    return gateway_settings(settings.redis, settings.storage, auth=auth, http={"tenant_wait_limit": 2})


async def held(api: httpx.AsyncClient, client: redis.Redis) -> list[asyncio.Task[httpx.Response]]:
    """Have a tenant hold two calls: one that looks, one that asks for a picture."""
    made = await api.post(PATH, json={"prompt": "x"})
    calls = [
        asyncio.create_task(api.get(made.json()["urls"]["self"], headers=WAIT)),
        asyncio.create_task(api.post(PATH, json={"prompt": "y"}, headers={"Accept": "image/png"})),
    ]
    async with asyncio.timeout(10):
        while len(client.pubsub_channels("dr:changes:gen_*")) < 2:  # noqa: ASYNC110 - what changes is a server
            await asyncio.sleep(0.01)
    return calls


async def test_one_more_is_429_queues_nothing_and_takes_nothing_from_others(
    settings: GatewaySettings, redis_client: redis.Redis, hand: Hand
) -> None:
    show_models(redis_client, SHAPES)
    async with serving(strict(settings), key=make_key(redis_client)) as api:
        calls = await held(api, redis_client)
        queued = (await api.get(PATH)).json()["data"]
        path = queued[0]["urls"]["self"]
        for refused in (await api.post(PATH, json={"prompt": "z"}, headers=WAIT), await api.get(path, headers=WAIT)):
            assert (refused.status_code, refused.json()["code"]) == (429, "limit_reached")
            assert int(refused.headers["retry-after"]) > 0
        assert len((await api.get(PATH)).json()["data"]) == len(queued) == 2
        # What is not held needs no place, nor what has ended.
        assert (await api.get(path)).status_code == 200
        assert (await api.post(PATH, json={"prompt": "z"})).status_code == 202
        other = {"Authorization": f"Bearer {make_key(redis_client, 'other')}"}
        theirs = await api.post(PATH, json={"prompt": "x"}, headers={**other, "Prefer": "wait=1"})
        assert theirs.status_code == 202
        for _ in range(4):
            hand.draw(await asyncio.to_thread(hand.claim))
        assert [(await call).status_code for call in calls] == [200, 200]
        for _ in range(3):
            assert (await api.get(path, headers=WAIT)).json()["status"] == "succeeded"


async def test_a_call_that_is_broken_off_or_refused_gives_its_place_back(
    settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    show_models(redis_client, SHAPES)
    async with serving(strict(settings), key=make_key(redis_client)) as api:
        for _ in range(3):
            assert (await api.post(PATH, json={"prompt": "x", "steps": 0}, headers=WAIT)).status_code == 422
            assert (await api.get(f"{PATH}/x", headers=WAIT)).status_code == 404
        for call in await held(api, redis_client):
            call.cancel()
            await asyncio.wait({call})
        reply = await api.post(PATH, json={"prompt": "x"}, headers={"Prefer": "wait=1"})
        assert reply.status_code == 202


async def test_without_keys_everybody_is_one_tenant_and_nobody_is_kept_out(
    settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    show_models(redis_client, SHAPES)
    async with serving(strict(settings, auth="none")) as api:
        calls = await held(api, redis_client)
        third = await api.post(PATH, json={"prompt": "z"}, headers={"Prefer": "wait=1"})
        assert third.status_code == 202
        for call in calls:
            call.cancel()
            await asyncio.wait({call})
