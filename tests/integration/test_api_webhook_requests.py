"""Webhooks from the request to the receiver: a real gateway, a real sender, a worker's hand."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import pytest
import redis

from service.jobs.keys import key
from service.settings.egress import EgressSettings
from service.settings.gateway import GatewaySettings
from tests.clock import QueueClock
from tests.gateway import SHAPES, Hand, make_key, serving, show_models
from tests.outbox import endpoint_of
from tests.sites import PUBLIC, Site, site
from tests.webhooks import inbox, sending

pytestmark = pytest.mark.anyio


@pytest.fixture
async def hook() -> AsyncIterator[Site]:
    async with site() as place:
        yield place


@pytest.fixture
async def shop(settings: GatewaySettings, redis_client: redis.Redis, hook: Site) -> AsyncIterator[httpx.AsyncClient]:
    """A caller of a gateway that may call the receiver."""
    show_models(redis_client, SHAPES)
    allowed = EgressSettings.model_validate({"http": True, "networks": f"{PUBLIC}/32", "ports": str(hook.port)})
    open_to_hook = GatewaySettings(
        **{name: getattr(settings, name) for name in settings.__dataclass_fields__ if name != "egress"}, egress=allowed
    )
    async with serving(open_to_hook, key=make_key(redis_client)) as client:
        yield client


def at(hook: Site, path: str = "/hook?token=a1b2") -> str:
    return f"http://{PUBLIC}:{hook.port}{path}"


async def test_receiver_is_told_what_the_caller_would_see(
    shop: httpx.AsyncClient, hook: Site, hand: Hand, valkey_url: str
) -> None:
    webhook = {"url": at(hook), "events": ["completed", "started", "completed"]}
    reply = await shop.post("/v1/generations", json={"prompt": "a red circle", "webhook": webhook})
    assert reply.status_code == 202, reply.text
    created = reply.json()
    assert created["request"]["webhook"] == {"url": at(hook), "events": ["completed", "started"]}
    job = hand.claim()
    async with sending(valkey_url, QueueClock(4_000_000_000_000), hook) as drive:
        await drive.go()
        hand.draw(job)
        await drive.go()
    start, end = inbox(hook)
    assert (start.body["type"], start.body["data"]["status"]) == ("generation.started", "running")
    seen = (await shop.get(created["urls"]["self"])).json()
    assert end.body["type"] == "generation.succeeded"
    assert end.body["data"] == seen
    assert end.body["timestamp"].endswith("Z")


async def test_default_is_the_end_alone_and_nothing_where_nobody_asks(
    shop: httpx.AsyncClient, hook: Site, hand: Hand, redis_client: redis.Redis
) -> None:
    told = await shop.post("/v1/generations", json={"prompt": "x", "webhook": {"url": at(hook)}})
    assert told.json()["request"]["webhook"]["events"] == ["completed"]
    silent = await shop.post("/v1/generations", json={"prompt": "x", "webhook": None})
    assert silent.json()["request"]["webhook"] is None
    for _ in range(2):
        hand.draw(hand.claim())
    assert redis_client.zrange(key("tenant_deliveries", "acme"), 0, -1) == [f"evt_{told.json()['id']}_succeeded"]


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "https://169.254.169.254/latest", "ftp://example.com/"])
async def test_urls_that_are_not_called_are_refused_at_their_field(shop: httpx.AsyncClient, url: str) -> None:
    reply = await shop.post("/v1/generations", json={"prompt": "x", "seed": -1, "webhook": {"url": url}})
    assert reply.status_code == 422
    assert sorted(each["pointer"] for each in reply.json()["errors"]) == ["/seed", "/webhook/url"]
    batch = await shop.post("/v1/generations/batch", json={"requests": [{"prompt": "x", "webhook": {"url": url}}]})
    assert [each["pointer"] for each in batch.json()["errors"]] == ["/requests/0/webhook/url"]


async def test_too_many_endpoints_are_the_tenants_limit(
    shop: httpx.AsyncClient, hook: Site, redis_client: redis.Redis
) -> None:
    redis_client.zadd(key("tenant_endpoints", "acme"), {f"ep_{number}": 4e12 for number in range(999)})
    known = {"prompt": "x", "webhook": {"url": at(hook)}}
    assert (await shop.post("/v1/generations", json=known)).status_code == 202
    new = {"prompt": "x", "webhook": {"url": at(hook, "/new")}}
    refused = await shop.post("/v1/generations", json=new)
    assert (refused.status_code, refused.json()["code"]) == (429, "limit_reached")
    assert "1000 webhook endpoints" in refused.json()["detail"]
    assert refused.headers["Retry-After"] == "3600"
    assert (await shop.post("/v1/generations", json=known)).status_code == 202
    assert redis_client.exists(key("endpoint", endpoint_of(at(hook, "/new"), "acme"))) == 0


async def test_erased_generation_is_not_told_of(
    shop: httpx.AsyncClient, hook: Site, valkey_url: str, redis_client: redis.Redis
) -> None:
    reply = await shop.post("/v1/generations", json={"prompt": "x", "webhook": {"url": at(hook)}})
    assert (await shop.delete(reply.json()["urls"]["self"])).status_code == 204
    async with sending(valkey_url, QueueClock(4_000_000_000_000), hook) as drive:
        await drive.go()
    assert hook.hits == 0
    assert json.dumps(redis_client.keys("dr:event:*")) == "[]"
