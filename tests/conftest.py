"""Real servers for the tests, started when the first test asks for one, gone with the session."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, settings
from pydantic import SecretStr

from service.cli.embedded import EmbeddedS3, EmbeddedValkey
from service.settings.groups import RedisSettings, StorageSettings

# How fast examples come is the machine's affair, and what else it does.
settings.register_profile("darkroom", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("darkroom")


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Threads of several processes on few cores make a tiny model's time swing twentyfold."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The session's Valkey. It writes no file: tests of durability start one of their own.

    TEST_REDIS_URL names another server to run the suite on, a Redis 6.2 say; its database is emptied.
    """
    if other := os.environ.get("TEST_REDIS_URL"):
        yield other
        return
    server = EmbeddedValkey(tmp_path_factory.mktemp("valkey"), fsync="off")
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def redis_settings(valkey_url: str) -> RedisSettings:
    return RedisSettings(url=SecretStr(valkey_url))


@pytest.fixture
def redis_client(valkey_url: str) -> Iterator[redis.Redis]:
    """A client of the session's Valkey, which is empty before and after the test."""
    client = redis.Redis.from_url(valkey_url, decode_responses=True)
    client.flushdb()
    yield client
    client.flushdb()
    client.close()


@pytest.fixture(scope="session")
def storage_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageSettings]:
    """The session's S3, with its bucket. Tests keep out of each other's way by their keys' prefixes."""
    server = EmbeddedS3(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server.settings
    server.stop()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """An empty folder for a server of the test's own."""
    return tmp_path / "data"
