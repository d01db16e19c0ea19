"""The whole service, once per module: real gateways, agents and engine children."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from service.cli.embedded import EmbeddedValkey
from service.settings.groups import RedisSettings, StorageSettings
from tests.e2e.outages import Outpost
from tests.e2e.processes import Service


@pytest.fixture(scope="module")
def service(
    redis_settings: RedisSettings, storage_settings: StorageSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """An empty queue, and processes that end with the module. Their logs lie in `service.folder`."""
    client = redis.Redis.from_url(redis_settings.url.get_secret_value(), decode_responses=True)
    client.flushdb()
    service = Service(
        redis_settings, storage_settings, tmp_path_factory.mktemp("service"), extra={"DARKROOM_LOG": "json"}
    )
    try:
        yield service
    finally:
        service.stop()
        client.flushdb()
        client.close()


@pytest.fixture(scope="module")
def _outpost(storage_settings: StorageSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outpost]:
    valkey = EmbeddedValkey(tmp_path_factory.mktemp("valkey"))
    valkey.start()
    outpost = Outpost(valkey, storage_settings, tmp_path_factory.mktemp("outpost"))
    try:
        yield outpost
    finally:
        outpost.close()
        valkey.stop()


@pytest.fixture
def outpost(_outpost: Outpost) -> Iterator[Outpost]:
    """A queue on a disk of its own, and the session's storage; whatever a test does to them, nothing may be left."""
    yield _outpost
    _outpost.stop_agents()
    _outpost.check_nothing_is_left()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name for the test's agent, and its log."""
    return request.node.name
