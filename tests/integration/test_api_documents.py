"""Every example of docs/api.md is true: a shell runs them in order against a real gateway."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import redis
from PIL import Image

from service.settings.groups import RedisSettings, StorageSettings
from tests.gateway import EMOJI, SHAPES, Hand, gateway_process, make_key, show_models

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples are for curl")
def test_the_examples_run_as_they_stand(
    redis_client: redis.Redis,
    redis_settings: RedisSettings,
    storage_settings: StorageSettings,
    hand: Hand,
    tmp_path: Path,
) -> None:
    show_models(redis_client, SHAPES, EMOJI)
    examples = re.findall(r"^```sh\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(examples) >= 8
    stopping = threading.Event()

    def draw() -> None:
        while not stopping.is_set():
            job = hand.claim_soon(0.1)
            if job is not None:
                hand.draw(job)

    worker = threading.Thread(target=draw)
    with gateway_process(redis_settings, storage_settings) as gateway:
        worker.start()
        environment = {**os.environ, "GATEWAY": gateway.url, "KEY": make_key(redis_client), "no_proxy": "127.0.0.1"}
        script = "set -eu\n" + "\n".join(examples)
        done = subprocess.run(
            ["bash", "-c", script], check=False, cwd=tmp_path, env=environment, capture_output=True, timeout=120
        )
        stopping.set()
        worker.join(timeout=10)
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()[-2000:]
    for name, kind in {"circle.png": "PNG", "second.png": "PNG", "blue.webp": "WEBP"}.items():
        with Image.open(tmp_path / name) as picture:
            assert picture.format == kind
