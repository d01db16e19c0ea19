"""The service as real processes: gateways and agents on the tests' own Valkey and S3."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from service.settings.groups import RedisSettings, StorageSettings

T = TypeVar("T")


def wait_for(what: str, look: Callable[[], T | None], *, timeout_s: float = 60.0, every_s: float = 0.05) -> T:
    """Return the first true thing that `look` sees; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if seen := look():
            return seen
        time.sleep(every_s)
    msg = f"not within {timeout_s:.0f} s: {what}"
    raise AssertionError(msg)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def samples(port: int) -> dict[str, float]:
    """Return what a process tells Prometheus: name and labels → value."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def children(pid: int) -> list[int]:
    """Return the living direct children of a process."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text("utf-8").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@dataclass
class Service:
    """What runs; `stop` ends it all."""

    redis: RedisSettings
    storage: StorageSettings
    folder: Path
    models: Path | None = None
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        storage = self.storage
        assert storage.endpoint
        assert storage.access_key
        assert storage.secret_key
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DARKROOM_", "AUTH", "PORT"))}
        return {
            **kept,
            "DARKROOM_REDIS_URL": self.redis.url.get_secret_value(),
            "DARKROOM_S3_ENDPOINT": storage.endpoint,
            "DARKROOM_S3_BUCKET": storage.bucket,
            "DARKROOM_S3_ACCESS_KEY": storage.access_key.get_secret_value(),
            "DARKROOM_S3_SECRET_KEY": storage.secret_key.get_secret_value(),
            "DARKROOM_ENGINE_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            **({"DARKROOM_MODELS": str(self.models)} if self.models else {}),
            **self.extra,
        }

    def spawn(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{name}.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env={**self.environment(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        self.running.append(process)
        return process

    def gateway(self, name: str = "gateway", **environment: str) -> Gateway:
        port = free_port()
        process = self.spawn(name, "service.app", AUTH="none", PORT=str(port), **environment)
        gateway = Gateway(process, f"http://127.0.0.1:{port}")
        wait_for(f"{name} answers", lambda: self.lives(process, name) and gateway.healthy())
        return gateway

    def agent(self, name: str = "agent", **environment: str) -> subprocess.Popen[bytes]:
        return self.spawn(name, "worker.agent", **environment)

    def lives(self, process: subprocess.Popen[bytes], name: str) -> bool:
        if process.poll() is not None:
            text = (self.folder / f"{name}.log").read_text("utf-8", errors="replace")[-3000:]
            msg = f"{name} ended with {process.returncode}:\n{text}"
            raise AssertionError(msg)
        return True

    def engine_of(self, agent: subprocess.Popen[bytes]) -> int:
        """Return the process id of an agent's engine child."""
        return wait_for(
            "an engine child",
            lambda: next((pid for pid in children(agent.pid) if "worker.engine" in command_line(pid)), None),
        )

    def stop(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


@dataclass
class Gateway:
    process: subprocess.Popen[bytes]
    url: str

    def healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def client(self, timeout_s: float = 90.0) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=timeout_s)

    def wait_for_workers(self, count: int = 1, timeout_s: float = 120.0) -> None:
        """Wait until `count` workers hold the default model."""

        def look() -> bool:
            models = httpx.get(f"{self.url}/v1/models", timeout=5).json()["data"]
            return bool(models) and models[0]["workers"] >= count

        wait_for(f"{count} warm workers", look, timeout_s=timeout_s, every_s=0.1)


def draw(client: httpx.Client, **request: Any) -> dict[str, Any]:
    """Post a request and return the resource when it has ended."""
    body = {"prompt": "a red circle on a blue background", **request}
    reply = client.post("/v1/generations", json=body, headers={"Prefer": "wait=60"})
    assert reply.status_code in {200, 202}, reply.text
    resource: dict[str, Any] = reply.json()
    while resource["status"] in {"queued", "running"}:
        reply = client.get(f"/v1/generations/{resource['id']}", headers={"Prefer": "wait=60"})
        assert reply.status_code == 200, reply.text
        resource = reply.json()
    return resource


@contextmanager
def running(service: Service) -> Iterator[Service]:
    try:
        yield service
    finally:
        service.stop()
