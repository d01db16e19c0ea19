"""Streams of events: a real gateway on a socket, a real Valkey, a worker's hand."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import redis
from pydantic import SecretStr

from service.jobs.keys import key
from service.settings.gateway import AuthSettings, GatewaySettings
from service.settings.groups import RedisSettings, StorageSettings
from service.tenants.store import KeyStore
from tests.gateway import EMOJI, SHAPES, Hand, gateway_process, gateway_settings, make_key, picture, show_models
from tests.proxy import Proxy
from tests.streams import SOON_S, follow, listening

pytestmark = pytest.mark.anyio

PATH = "/v1/generations"


@pytest.fixture
async def api(settings: GatewaySettings, redis_client: redis.Redis) -> AsyncIterator[httpx.AsyncClient]:
    """A caller of the tenant `acme`, over a socket."""
    show_models(redis_client, SHAPES, EMOJI)
    async with listening(settings, make_key(redis_client)) as (client, _):
        yield client


def with_http(settings: GatewaySettings, **http: Any) -> GatewaySettings:
    return gateway_settings(settings.redis, settings.storage, http=http)


async def create(api: httpx.AsyncClient) -> str:
    created = await api.post(PATH, json={"prompt": "a red circle\n\r\x85\u2028\u2029", "labels": {"order": "12"}})
    assert created.status_code == 202
    assert created.json()["urls"]["events"] == f"{created.headers['location']}/events"
    return created.headers["location"]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110 - what changes is another process
            await asyncio.sleep(0.01)


def watched(client: redis.Redis) -> int:
    """Return how many generations gateways are subscribed to."""
    return len(client.pubsub_channels(key("changes", "gen_*")))


async def test_a_life_is_told_in_order_as_the_resource_is_at_each_moment(api: httpx.AsyncClient, hand: Hand) -> None:
    path = await create(api)
    began = time.monotonic()
    async with follow(api, path) as stream:
        headers = stream.response.headers
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")
        events = [await anext(stream)]
        job = await asyncio.to_thread(hand.claim)
        events.append(await anext(stream))
        hand.step(job, 3, 12)
        events.append(await anext(stream))
        hand.show(job, picture(16, 8, "webp"))
        events.append(await anext(stream))
        hand.draw(job)
        events.append(await anext(stream))
        assert await stream.names() == []
    # Told as it happened: looks alone, every 5 s, would have taken 20 s.
    assert time.monotonic() - began < 10
    assert [event.name for event in events] == ["queued", "started", "progress", "progress", "completed"]
    assert [event.id for event in events] == [str(event.data["revision"]) for event in events]
    assert len({event.id for event in events}) == len(events)
    assert [event.data["status"] for event in events] == ["queued", "running", "running", "running", "succeeded"]
    assert events[2].data["progress"]["step"] == 3
    assert events[3].data["progress"]["preview_url"] == f"{path}/preview"
    assert events[4].data == (await api.get(path)).json()


async def test_who_comes_back_is_told_what_it_missed_and_nothing_twice(api: httpx.AsyncClient, hand: Hand) -> None:
    path = await create(api)
    queued = (await api.get(path)).json()["revision"]
    job = await asyncio.to_thread(hand.claim)
    async with follow(api, path, since=queued) as stream:
        started = await anext(stream)
    assert started.name == "started"
    async with follow(api, path, since=int(started.id or "")) as stream:
        hand.step(job, 1, 12)
        step = await anext(stream)
        assert (step.name, step.data["progress"]["step"]) == ("progress", 1)
    hand.draw(job)
    async with follow(api, path, since=int(step.id or "")) as stream:
        (completed,) = [event async for event in stream]
    assert completed.name == "completed"
    last = {"Last-Event-ID": str(completed.id)}
    async with asyncio.timeout(SOON_S):
        over = await api.get(f"{path}/events", headers=last)
    assert (over.status_code, over.content) == (204, b"")
    # Ahead of what is there: an answer of a Redis that has lost its last writes. What is there is told.
    async with follow(api, path, since=int(completed.id or "") + 5) as stream:
        assert await stream.names() == ["completed"]


async def test_an_id_that_no_event_has_is_refused(api: httpx.AsyncClient) -> None:
    path = await create(api)
    name = b"Last-Event-ID"
    for given in ["", "-1", "1.0", "x", "9" * 16, "٣"]:
        refused = await api.get(f"{path}/events", headers=[(name, given.encode())])
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["pointer"] == "Last-Event-ID"
    twice = await api.get(f"{path}/events", headers=[(name, b"1"), (name, b"2")])
    assert twice.status_code == 422


async def test_refusals_come_before_the_stream_as_everywhere_else(
    api: httpx.AsyncClient, redis_client: redis.Redis
) -> None:
    path = await create(api)
    other = {"Authorization": f"Bearer {make_key(redis_client, 'rival')}"}
    erased = await create(api)
    await api.delete(erased)
    for where, headers, status, code in [
        (path, other, 404, "not_found"),
        (f"{PATH}/gen_{'0' * 40}", {}, 404, "not_found"),
        (erased, {}, 410, "gone"),
        (path, {"Authorization": "Bearer dk_x_y"}, 401, "unauthenticated"),
    ]:
        refused = await api.get(f"{where}/events", headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (status, code)
        assert refused.headers["content-type"] == "application/problem+json"
    assert watched(redis_client) == 0


async def test_a_generation_that_is_erased_ends_its_streams_with_its_id_alone(
    api: httpx.AsyncClient, hand: Hand
) -> None:
    for runs in (False, True):
        path = await create(api)
        if runs:
            await asyncio.to_thread(hand.claim)
        async with follow(api, path) as stream:
            assert (await anext(stream)).name == ("started" if runs else "queued")
            asked = time.monotonic()
            await api.delete(path)
            (event,) = [event async for event in stream]
            # Told at once, not by the next look after 5 s.
            assert time.monotonic() - asked < 3
        assert (event.name, event.id, event.data) == ("erased", None, {"id": path.rpartition("/")[2]})


async def test_silence_is_filled_with_comments(settings: GatewaySettings, redis_client: redis.Redis) -> None:
    show_models(redis_client, SHAPES)
    quick = with_http(settings, stream_heartbeat_s=0.2)
    async with listening(quick, make_key(redis_client)) as (api, _):
        path = await create(api)
        async with follow(api, path) as stream:
            assert (await anext(stream)).name == "queued"
            began = time.monotonic()
            for _ in range(3):
                await stream.beat()
            assert time.monotonic() - began > 0.5
            await api.post(f"{path}/cancel")
            assert await stream.names() == ["completed"]


async def test_a_stream_has_an_end_and_its_caller_comes_again(
    settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    show_models(redis_client, SHAPES)
    async with listening(with_http(settings, stream_cap_s=0.3), make_key(redis_client)) as (api, _):
        path = await create(api)
        for since, told in [(None, ["queued"]), ((await api.get(path)).json()["revision"], [])]:
            async with follow(api, path, since=since) as stream:
                assert await stream.names() == told


async def test_a_revoked_key_is_told_nothing_more(
    settings: GatewaySettings, redis_client: redis.Redis, hand: Hand
) -> None:
    show_models(redis_client, SHAPES)
    text = make_key(redis_client)
    strict = dataclasses.replace(settings, auth=AuthSettings(key_cache_s=0))
    async with listening(strict, text) as (api, _):
        path = await create(api)
        async with follow(api, path) as stream:
            assert (await anext(stream)).name == "queued"
            KeyStore(redis_client).revoke(text.split("_")[1])
            await asyncio.to_thread(hand.claim)
            assert await stream.names() == []


async def test_too_many_streams_are_503_until_one_ends(settings: GatewaySettings, redis_client: redis.Redis) -> None:
    show_models(redis_client, SHAPES)
    async with listening(with_http(settings, stream_limit=2), make_key(redis_client)) as (api, _):
        path = await create(api)
        async with follow(api, path) as first, follow(api, path) as second:
            assert (await anext(first)).name == (await anext(second)).name == "queued"
            async with asyncio.timeout(SOON_S):
                refused = await api.get(f"{path}/events")
            assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
            assert int(refused.headers["retry-after"]) > 0
        await until(lambda: watched(redis_client) == 0)
        async with follow(api, path) as stream:
            assert (await anext(stream)).name == "queued"


async def test_a_tenant_that_follows_all_it_may_leaves_places_to_others(
    settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    show_models(redis_client, SHAPES)
    strict = with_http(settings, stream_limit=10, tenant_stream_limit=1)
    async with listening(strict, make_key(redis_client)) as (api, _):
        path = await create(api)
        other = {"Authorization": f"Bearer {make_key(redis_client, 'other')}"}
        async with follow(api, path) as stream:
            assert (await anext(stream)).name == "queued"
            async with asyncio.timeout(SOON_S):
                refused = await api.get(f"{path}/events")
            assert (refused.status_code, refused.json()["code"]) == (429, "limit_reached")
            assert int(refused.headers["retry-after"]) > 0
            theirs = await api.post(PATH, json={"prompt": "x"}, headers=other)
            async with api.stream("GET", theirs.json()["urls"]["events"], headers=other) as followed:
                assert followed.status_code == 200
        await until(lambda: watched(redis_client) == 0)
        async with follow(api, path) as stream:
            assert (await anext(stream)).name == "queued"


async def test_callers_that_leave_leave_no_subscription_behind(
    api: httpx.AsyncClient, redis_client: redis.Redis
) -> None:
    path, other = await create(api), await create(api)
    async with AsyncExitStack() as staying:
        stream = await staying.enter_async_context(follow(api, path))
        assert (await anext(stream)).name == "queued"
        for where in [path, other, other]:
            async with follow(api, where) as leaving:
                assert (await anext(leaving)).name == "queued"
        await until(lambda: watched(redis_client) == 1)
        await api.post(f"{path}/cancel")
        assert await stream.names() == ["completed"]
    await until(lambda: watched(redis_client) == 0)


async def test_two_hundred_streams_share_one_subscribed_connection(
    api: httpx.AsyncClient, redis_client: redis.Redis
) -> None:
    paths = await asyncio.gather(*(create(api) for _ in range(20)))
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(follow(api, paths[n % 20])) for n in range(200)]
        assert {event.name for event in await asyncio.gather(*(anext(stream) for stream in streams))} == {"queued"}
        await until(lambda: watched(redis_client) == 20)
        assert len(redis_client.client_list(_type="pubsub")) == 1
        asked = time.monotonic()
        await asyncio.gather(*(api.post(f"{path}/cancel") for path in paths))
        ends = await asyncio.gather(*(stream.names() for stream in streams))
        assert ends == [["completed"]] * 200
        assert time.monotonic() - asked < SOON_S
    await until(lambda: watched(redis_client) == 0)


async def test_a_slow_reader_misses_states_but_not_the_last(
    settings: GatewaySettings, redis_client: redis.Redis, hand: Hand
) -> None:
    show_models(redis_client, SHAPES)
    async with listening(settings, make_key(redis_client)) as (api, app):
        path = await create(api)
        job = await asyncio.to_thread(hand.claim)

        async def admitted() -> None:
            """Let the caller in."""

        following = app.state.gateway.follow.following("acme", job.id, known=None, admitted=admitted)
        async with following as events:
            assert (await anext(events)).name == "started"
            for step in range(1, 21):
                hand.step(job, step, 20)
            told = await anext(events)
            assert (told.name, told.job.progress_step) == ("progress", 20)
            hand.draw(job)
            assert [told.name async for told in events] == ["completed"]
        assert (await api.get(path)).json()["status"] == "succeeded"


async def test_an_outage_of_redis_delays_events_and_ends_no_stream(
    settings: GatewaySettings, redis_client: redis.Redis, hand: Hand, valkey_url: str
) -> None:
    show_models(redis_client, SHAPES)
    port = urlsplit(valkey_url).port
    assert port is not None
    with Proxy(port) as proxy:
        behind = RedisSettings(url=SecretStr(valkey_url.replace(f":{port}/", f":{proxy.port}/")))
        through = dataclasses.replace(with_http(settings, stream_heartbeat_s=0.2), redis=behind)
        async with listening(through, make_key(redis_client)) as (api, _):
            path = await create(api)
            async with follow(api, path) as stream:
                assert (await anext(stream)).name == "queued"
                proxy.cut()
                job = await asyncio.to_thread(hand.claim)
                refused = await api.get(path)
                assert refused.status_code == 503
                await stream.beat()
                await stream.beat()
                proxy.mend()
                assert (await anext(stream)).name == "started"
                hand.draw(job)
                assert await stream.names() == ["completed"]


async def test_sigterm_ends_streams_at_once_and_another_gateway_goes_on(
    redis_client: redis.Redis, redis_settings: RedisSettings, storage_settings: StorageSettings,
    settings: GatewaySettings,
) -> None:  # fmt: skip
    show_models(redis_client, SHAPES)
    text = make_key(redis_client)
    headers = {"Authorization": f"Bearer {text}"}
    with gateway_process(redis_settings, storage_settings) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=SOON_S) as api:
            path = await create(api)
            async with follow(api, path) as stream:
                queued = await anext(stream)
                stopped = time.monotonic()
                gateway.process.send_signal(signal.SIGTERM)
                assert await stream.names() == []
                assert await asyncio.to_thread(gateway.wait) == 0
                assert time.monotonic() - stopped < 8
    async with listening(settings, text) as (api, _), follow(api, path, since=int(queued.id or "")) as stream:
        await api.post(f"{path}/cancel")
        assert await stream.names() == ["completed"]
