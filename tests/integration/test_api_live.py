"""A waiting generation's place as its caller sees it: in the resource, in lists, in streams, through any gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import redis

from service.jobs.keys import key
from service.settings.gateway import GatewaySettings
from service.tenants.store import KeyStore
from tests.gateway import EMOJI, SHAPES, Hand, make_key, serving, show_models
from tests.streams import SOON_S, follow, listening

pytestmark = pytest.mark.anyio

PATH = "/v1/generations"

Resource = dict[str, Any]


@pytest.fixture
async def api(settings: GatewaySettings, redis_client: redis.Redis) -> AsyncIterator[httpx.AsyncClient]:
    """A caller of the tenant `acme`, over a socket."""
    show_models(redis_client, SHAPES, EMOJI)
    async with listening(settings, make_key(redis_client)) as (client, _):
        yield client


async def create(api: httpx.AsyncClient, **fields: Any) -> Resource:
    response = await api.post(PATH, json={"prompt": "a red circle", **fields})
    assert response.status_code == 202, response.text
    return response.json()


async def seen(api: httpx.AsyncClient, resource: Resource, wanted: Callable[[Resource], bool]) -> Resource:
    """Return the generation when it is as wanted."""
    for _ in range(20 * SOON_S):
        found = (await api.get(resource["urls"]["self"])).json()
        if wanted(found):
            return found
        await asyncio.sleep(0.05)
    pytest.fail(f"not within {SOON_S} s; it is {found['queue']}")


async def test_a_place_is_told_and_moves_up_when_others_start(api: httpx.AsyncClient, hand: Hand) -> None:
    jobs = [await create(api) for _ in range(3)]
    assert all(job["queue"].keys() == {"position", "estimated_start_s", "estimated_finish_s"} for job in jobs)
    for place, job in enumerate(jobs, 1):
        await seen(api, job, lambda found, place=place: found["queue"]["position"] == place)
    listed = (await api.get(PATH)).json()["data"]
    assert [each["queue"]["position"] for each in listed] == [3, 2, 1]
    first = await asyncio.to_thread(hand.claim)
    moved = await seen(api, jobs[1], lambda found: found["queue"]["position"] == 1)
    # A place is no change of the generation.
    assert moved["revision"] == jobs[1]["revision"]
    running = (await api.get(f"{PATH}/{first.id}")).json()
    assert running["queue"] is None
    assert "estimated_finish_s" in running["progress"]
    hand.draw(first)
    ended = (await api.get(f"{PATH}/{first.id}")).json()
    assert (ended["queue"], ended["progress"]) == (None, None)


async def test_a_stream_tells_a_new_place_as_the_same_state(api: httpx.AsyncClient, hand: Hand) -> None:
    jobs = [await create(api) for _ in range(3)]
    await seen(api, jobs[2], lambda found: found["queue"]["position"] == 3)
    async with follow(api, jobs[2]["urls"]["self"]) as stream:
        told = await anext(stream)
        assert (told.name, told.data["queue"]["position"]) == ("queued", 3)
        await asyncio.to_thread(hand.claim)
        moved = await anext(stream)
        assert (moved.name, moved.id, moved.data["queue"]["position"]) == ("queued", told.id, 2)
    # Whoever comes back knows the state, and is told the place alone.
    async with follow(api, jobs[2]["urls"]["self"], since=int(moved.id or "")) as stream:
        again = await anext(stream)
        assert (again.name, again.id, again.data["queue"]["position"]) == ("queued", told.id, 2)


async def test_one_gateway_looks_ahead_and_all_tell(
    settings: GatewaySettings, api: httpx.AsyncClient, redis_client: redis.Redis
) -> None:
    job = await create(api)
    await seen(api, job, lambda found: found["queue"]["position"] == 1)
    leader = redis_client.get(key("forecaster"))
    async with serving(settings, key=KeyStore(redis_client).create("acme").text) as other:
        await seen(other, job, lambda found: found["queue"]["position"] == 1)
        assert redis_client.get(key("forecaster")) == leader
