"""A gateway on the session's servers, a caller of it, and a worker's hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import redis
from redis.asyncio import Redis as AsyncRedis

from service.jobs.outbox import WebhookOutbox
from service.settings.gateway import GatewaySettings
from service.settings.groups import RedisSettings, StorageSettings
from service.storage.s3 import ObjectStorage
from tests.clock import QueueClock
from tests.gateway import EMOJI, SHAPES, Hand, gateway_settings, make_key, serving, show_models
from tests.outbox import SenderHand


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock() -> QueueClock:
    return QueueClock()


@pytest.fixture
def settings(redis_settings: RedisSettings, storage_settings: StorageSettings) -> GatewaySettings:
    return gateway_settings(redis_settings, storage_settings)


@pytest.fixture
async def api(settings: GatewaySettings, redis_client: redis.Redis) -> AsyncIterator[httpx.AsyncClient]:
    """A caller of the tenant `acme`; two models are registered."""
    show_models(redis_client, SHAPES, EMOJI)
    async with serving(settings, key=make_key(redis_client)) as client:
        yield client


@pytest.fixture(scope="session")
def storage(storage_settings: StorageSettings) -> Iterator[ObjectStorage]:
    storage = ObjectStorage(storage_settings)
    yield storage
    storage.close()


@pytest.fixture
def hand(redis_client: redis.Redis, storage: ObjectStorage) -> Hand:
    return Hand(redis_client, storage)


@pytest.fixture
async def sender(valkey_url: str, redis_client: redis.Redis, clock: QueueClock) -> AsyncIterator[SenderHand]:
    client = AsyncRedis.from_url(valkey_url, decode_responses=True)
    yield SenderHand(WebhookOutbox(client, clock=clock), clock)
    await client.aclose()
