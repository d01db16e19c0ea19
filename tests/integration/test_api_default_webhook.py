"""A key's own endpoint: where events go of what it creates, unless a request says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import redis
from typer.testing import CliRunner, Result

from service.cli.commands import app
from service.cli.failure import CommandFailed
from service.jobs.keys import key
from service.settings.gateway import GatewaySettings
from service.tenants.records import ApiKey, DefaultWebhook
from service.tenants.store import KeyStore, TenantStore
from tests.gateway import SHAPES, serving, show_models

pytestmark = pytest.mark.anyio

URL, OTHER = "https://shop.example/hooks?token=t0ken", "https://other.example/hook"


@pytest.fixture
async def shop(settings: GatewaySettings, redis_client: redis.Redis) -> AsyncIterator[httpx.AsyncClient]:
    """A caller whose key has an endpoint."""
    show_models(redis_client, SHAPES)
    TenantStore(redis_client).create("acme")
    made = KeyStore(redis_client).create("acme", webhook=DefaultWebhook(URL, ("started", "completed")))
    async with serving(settings, key=made.text) as client:
        yield client


async def told(api: httpx.AsyncClient, **body: Any) -> Any:
    response = await api.post("/v1/generations", json={"prompt": "x", **body})
    assert response.status_code == 202, response.text
    return response.json()["request"]["webhook"]


async def test_the_keys_endpoint_is_told_unless_the_request_says_otherwise(shop: httpx.AsyncClient) -> None:
    default = {"url": URL, "events": ["started", "completed"]}
    assert await told(shop) == await told(shop, webhook=None) == await told(shop, webhook={}) == default
    assert await told(shop, webhook={"events": ["progress"]}) == {"url": URL, "events": ["progress"]}
    assert await told(shop, webhook={"url": OTHER}) == {"url": OTHER, "events": ["completed"]}
    assert await told(shop, webhook={"events": []}) is None
    assert await told(shop, webhook={"url": OTHER, "events": []}) is None
    batch = await shop.post("/v1/generations/batch", json={"requests": [{"prompt": "x"}]})
    assert batch.json()["data"][0]["request"]["webhook"] == default


async def test_its_events_go_to_the_endpoint(shop: httpx.AsyncClient, redis_client: redis.Redis) -> None:
    created = (await shop.post("/v1/generations", json={"prompt": "x"})).json()
    await shop.post(f"/v1/generations/{created['id']}/cancel")
    (delivery,) = (await shop.get("/v1/webhooks/deliveries")).json()["data"]
    assert delivery["id"] == f"evt_{created['id']}_canceled"
    assert redis_client.hget(key("endpoint", delivery["endpoint"]), "url") == URL


async def test_without_an_endpoint_of_the_key_a_request_has_to_name_one(api: httpx.AsyncClient) -> None:
    assert await told(api) is None
    assert await told(api, webhook={"events": []}) is None
    for webhook in ({}, {"events": ["started"]}):
        one = await api.post("/v1/generations", json={"prompt": "x", "webhook": webhook})
        many = await api.post("/v1/generations/batch", json={"requests": [{"prompt": "x", "webhook": webhook}]})
        for response, where in ((one, ""), (many, "/requests/0")):
            assert response.status_code == 422
            (error,) = response.json()["errors"]
            assert error["pointer"] == f"{where}/webhook/url"
            assert "is required" in error["detail"]


def test_a_record_is_read_back_and_events_of_later_versions_are_left_out(redis_client: redis.Redis) -> None:
    TenantStore(redis_client).create("acme")
    made = KeyStore(redis_client).create("acme", webhook=DefaultWebhook(URL, ("progress", "completed"))).key
    fields = redis_client.hgetall(f"dr:key:{made.id}")
    assert ApiKey.from_hash(made.id, fields) == made
    later = ApiKey.from_hash(made.id, {**fields, "webhook_events": "withheld completed"})
    assert later.webhook == DefaultWebhook(URL, ("completed",))
    plain = KeyStore(redis_client).create("acme").key
    assert plain.webhook is None
    assert not [name for name in redis_client.hkeys(f"dr:key:{plain.id}") if name.startswith("webhook")]
    # What may be a secret of the receiver is in no log.
    assert "t0ken" not in str(redis_client.xrange(key("audit")))


def test_the_command_line_takes_an_endpoint_and_refuses_what_no_sender_would_call(
    valkey_url: str, redis_client: redis.Redis
) -> None:
    def create(*words: str) -> Result:
        return CliRunner().invoke(app, ["keys", "create", "acme", *words], env={"DARKROOM_REDIS_URL": valkey_url})

    TenantStore(redis_client).create("acme")
    assert create("--webhook", URL, "--webhook-event", "started").exit_code == 0
    (made,) = KeyStore(redis_client).list("acme")
    assert made.webhook == DefaultWebhook(URL, ("started",))
    for words, said in (
        (("--webhook", "http://shop.example/"), "--webhook: must begin with https://"),
        (("--webhook", URL, "--webhook-event", "ended"), "--webhook-event: must be one of started"),
        (("--webhook-event", "started"), "--webhook-event: needs --webhook"),
    ):
        refused = create(*words)
        assert isinstance(refused.exception, CommandFailed)
        assert refused.exception.message.startswith(said)
    assert len(KeyStore(redis_client).list("acme")) == 1
