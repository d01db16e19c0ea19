"""The service as real processes for a benchmark: embedded servers in a temporary folder, gateways, agents."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretStr

from service.cli.embedded import EmbeddedS3, EmbeddedValkey
from service.settings.groups import RedisSettings
from tests.e2e.processes import Service, running

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def fleet(*, fsync: str = "always") -> Iterator[Service]:
    """Yield a service with nothing running yet but Valkey (AOF, fsync as given) and S3."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        valkey, storage = EmbeddedValkey(base / "valkey", fsync=fsync), EmbeddedS3(base / "s3")
        valkey.start()
        storage.start()
        try:
            settings = RedisSettings(url=SecretStr(valkey.url))
            with running(Service(settings, storage.settings, base, extra={"DARKROOM_LOG": "json"})) as service:
                yield service
        finally:
            storage.stop()
            valkey.stop()
