"""A gateway writes which web pages may use the bucket, and serves whether or not it may."""

from __future__ import annotations

import asyncio
import secrets
import time

import httpx
import pytest
import redis
from structlog.testing import capture_logs

from service.settings.gateway import GatewaySettings
from service.settings.groups import StorageSettings
from service.storage.s3 import ObjectStorage
from tests.gateway import gateway_settings, serving

pytestmark = pytest.mark.anyio

ORIGIN = "https://shop.example"


def allowed(storage: StorageSettings, origin: str) -> str | None:
    """The origin that the storage answers to a page of `origin`, whatever else it thinks of the request."""
    reply = httpx.get(f"{storage.endpoint}/{storage.bucket}", headers={"Origin": origin})
    return reply.headers.get("access-control-allow-origin")


async def logged(logs: list, event: str) -> dict:
    deadline = time.monotonic() + 20
    while not (found := [each for each in logs if each["event"] == event]):
        assert time.monotonic() < deadline, f"no {event}"
        await asyncio.sleep(0.02)
    return found[0]


@pytest.fixture
def bucket(settings: GatewaySettings) -> StorageSettings:
    """A bucket of this test's own: rules hold for all of it."""
    own = settings.storage.model_copy(update={"bucket": f"origins-{secrets.token_hex(4)}"})
    storage = ObjectStorage(own)
    storage.ensure_bucket()
    storage.close()
    return own


async def test_the_rule_is_written_at_the_start(
    settings: GatewaySettings, bucket: StorageSettings, redis_client: redis.Redis
) -> None:
    with capture_logs() as logs:
        async with serving(gateway_settings(settings.redis, bucket, uploads={"origins": ORIGIN})):
            assert (await logged(logs, "bucket_origins_set"))["new"]
    assert allowed(bucket, ORIGIN) == ORIGIN
    assert allowed(bucket, "https://other.example") is None
    with capture_logs() as logs:
        async with serving(gateway_settings(settings.redis, bucket, uploads={"origins": ORIGIN})):
            assert not (await logged(logs, "bucket_origins_set"))["new"]


async def test_what_is_not_permitted_is_told_and_the_gateway_serves(
    settings: GatewaySettings, bucket: StorageSettings, redis_client: redis.Redis
) -> None:
    stranger = bucket.model_copy(update={"bucket": "no-such-bucket"})
    with capture_logs() as logs:
        async with serving(gateway_settings(settings.redis, stranger, uploads={"origins": ORIGIN})) as api:
            told = await logged(logs, "bucket_origins_not_set")
            assert (await api.get("/healthz")).status_code == 200
    assert told["log_level"] == "warning"
    assert "NoSuchBucket" in told["reason"]
