"""Every example of docs/api.md is true: a shell runs them in order against a real gateway."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import redis
from PIL import Image

from service.settings.groups import RedisSettings, StorageSettings
from tests.gateway import EMOJI, SHAPES, Hand, gateway_process, make_key, picture, show_models

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"


class OnePicture(BaseHTTPRequestHandler):
    """Answers every GET with a picture."""

    def do_GET(self) -> None:
        data = picture(image_format="jpeg")
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_words: object) -> None:
        pass


def shell_examples() -> list[str]:
    """Return the examples in their order, those in Python as a command of the shell too."""
    found = re.findall(r"^```(sh|python)\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text if kind == "sh" else f'"$PYTHON" - <<"END_OF_EXAMPLE"\n{text}END_OF_EXAMPLE' for kind, text in found]


def free_port() -> int:
    with socket.create_server(("127.0.0.2", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def sender_process(redis_settings: RedisSettings, variables: dict[str, str]) -> Iterator[None]:
    """Run a sender of webhooks until the block ends."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    url = redis_settings.url.get_secret_value()
    environment = {**kept, **variables, "DARKROOM_REDIS_URL": url}
    process = subprocess.Popen([sys.executable, "-m", "service.webhooks"], env=environment, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples are for curl")
def test_the_examples_run_as_they_stand(
    redis_client: redis.Redis,
    redis_settings: RedisSettings,
    storage_settings: StorageSettings,
    hand: Hand,
    tmp_path: Path,
) -> None:
    show_models(redis_client, SHAPES, EMOJI)
    examples = shell_examples()
    assert len(examples) >= 8
    stopping = threading.Event()

    def draw() -> None:
        while not stopping.is_set():
            job = hand.claim_soon(0.1)
            if job is not None:
                hand.draw(job)

    worker = threading.Thread(target=draw)
    # What the examples take for the internet.
    internet = ThreadingHTTPServer(("127.0.0.2", 0), OnePicture)
    threading.Thread(target=internet.serve_forever, daemon=True).start()
    port, hook_port = str(internet.server_port), str(free_port())
    may_call = {"HTTP": "1", "NETWORKS": "127.0.0.2/32", "PORTS": f"{port},{hook_port}"}
    variables = {f"DARKROOM_EGRESS_{name}": value for name, value in may_call.items()}
    with (
        gateway_process(redis_settings, storage_settings, **variables) as gateway,
        sender_process(redis_settings, variables),
    ):
        worker.start()
        environment = {
            **os.environ,
            "GATEWAY": gateway.url,
            "KEY": make_key(redis_client),
            "PYTHON": sys.executable,
            "HOOK": f"127.0.0.2:{hook_port}",
            "PICTURE_URL": f"http://127.0.0.2:{port}/photo.jpg",
            "no_proxy": "127.0.0.1",
        }
        script = "set -eu\n" + "\n".join(examples)
        done = subprocess.run(
            ["bash", "-c", script], check=False, cwd=tmp_path, env=environment, capture_output=True, timeout=120
        )
        stopping.set()
        worker.join(timeout=10)
    internet.shutdown()
    internet.server_close()
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()[-2000:]
    for name, kind in {"circle.png": "PNG", "second.png": "PNG", "client.png": "PNG", "blue.webp": "WEBP"}.items():
        with Image.open(tmp_path / name) as drawn:
            assert drawn.format == kind


def test_the_client_is_typed(tmp_path: Path) -> None:
    (client,) = (text for text in re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.M | re.S))
    (tmp_path / "client.py").write_text(client, encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text('[tool.basedpyright]\ntypeCheckingMode = "strict"\n', encoding="utf-8")
    checker = Path(sys.executable).with_name("basedpyright")
    done = subprocess.run(
        [checker, "--pythonpath", sys.executable, "client.py"],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
