"""A gateway for tests: the real app over ASGI or as a process, and a worker's hand for ending jobs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import redis
from fastapi import FastAPI
from PIL import Image

from service.app import create_app
from service.contract.catalog import Limits, ModelCard
from service.contract.errors import FailureCode
from service.contract.generation import CONTENT_TYPES, Receipt, ResultImage, Timings
from service.contract.job import Job, JobError, Status
from service.contract.schedulers import SCHEDULERS
from service.contract.worker import WorkerRecord
from service.jobs.commands import Holding, Outcome
from service.jobs.store import JobStore
from service.settings.egress import EgressSettings, FetchSettings
from service.settings.gateway import AdmissionSettings, AuthSettings, GatewaySettings, HttpSettings
from service.settings.groups import LogSettings, RedisSettings, StorageSettings, WebhookSettings
from service.settings.telemetry import MetricsSettings, TracingSettings
from service.settings.uploads import UploadSettings
from service.storage.keys import image_key
from service.storage.s3 import ObjectStorage
from service.tenants.records import TenantLimits
from service.tenants.store import KeyStore, TenantStore

BASE_URL = "http://127.0.0.1:8000"

SHAPES = ModelCard(
    id="shapes",
    description="Draws shapes.",
    family="sd1",
    pool="default",
    default=True,
    tasks=("text-to-image", "image-to-image", "inpaint"),
    size_step_px=8,
    width=64,
    height=64,
    steps=20,
    guidance_scale=3.0,
    scheduler="ddim",
    schedulers=tuple(SCHEDULERS),
    limits=Limits(min_side_px=32, max_side_px=128, max_pixels=128 * 96, max_steps=50, max_images=4),
    dtype="float32",
    sha256="0" * 64,
)
#: A second model that can do less.
EMOJI = SHAPES.model_copy(
    update={"id": "emoji", "default": False, "tasks": ("text-to-image",), "schedulers": ("ddim", "euler")}
)


def gateway_settings(
    redis_settings: RedisSettings,
    storage_settings: StorageSettings,
    *,
    http: dict[str, Any] | None = None,
    auth: str = "keys",
    admission: dict[str, Any] | None = None,
    egress: EgressSettings | None = None,
    fetch: FetchSettings | None = None,
    webhooks: WebhookSettings | None = None,
    uploads: dict[str, Any] | None = None,
) -> GatewaySettings:
    """Return the settings of a gateway on the test's servers."""
    return GatewaySettings(
        http=HttpSettings(**(http or {})),
        auth=AuthSettings.model_validate({"auth": auth}),
        admission=AdmissionSettings(**(admission or {})),
        uploads=UploadSettings(**(uploads or {})),
        redis=redis_settings,
        storage=storage_settings,
        webhooks=webhooks or WebhookSettings(),
        log=LogSettings(),
        metrics=MetricsSettings(),
        egress=egress or EgressSettings(),
        fetch=fetch or FetchSettings(),
        tracing=TracingSettings(),
    )


@asynccontextmanager
async def serving(settings: GatewaySettings, *, key: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """Run an app with its lifespan; yield a client of it."""
    app = create_app(settings)
    async with running(app):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=BASE_URL, headers=headers, timeout=30) as client:
            yield client


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[None]:
    """Run an app. It is told to stop as a server tells it, also by a test that fails: its tasks would outlive that."""
    lifespan = app.router.lifespan_context(app)
    await lifespan.__aenter__()
    try:
        yield
    finally:
        await lifespan.__aexit__(None, None, None)


def make_key(client: redis.Redis, tenant: str = "acme", limits: TenantLimits | None = None) -> str:
    """Make a tenant and a key of it; return the key's text."""
    TenantStore(client).create(tenant, limits=limits)
    return KeyStore(client).create(tenant).text


def show_models(client: redis.Redis, *cards: ModelCard) -> None:
    """Register models as a live worker does."""
    record = WorkerRecord(agent_id="agent-1", pool="default", warm=tuple(card.id for card in cards), capacity=1)
    JobStore(client).announce(record, cards, ttl_ms=600_000)


def picture(width_px: int = 64, height_px: int = 64, image_format: str = "png", color: str = "red") -> bytes:
    """Return the file of a plain picture."""
    file = io.BytesIO()
    Image.new("RGB", (width_px, height_px), color).save(file, image_format)
    return file.getvalue()


def lasting(resource: dict[str, Any]) -> dict[str, Any]:
    """Return a generation without what is only expected of it, which changes by itself."""
    return {name: value for name, value in resource.items() if name != "queue"}


class Hand:
    """Does what a worker does to jobs, without drawing."""

    def __init__(self, client: redis.Redis, storage: ObjectStorage) -> None:
        self._store = JobStore(client)
        self._storage = storage

    def claim(self) -> Job:
        """Claim the next job; one has to come within 10 s."""
        job = self.claim_soon(10)
        assert job is not None, "no job was queued within 10 s"
        return job

    def claim_soon(self, timeout_s: float) -> Job | None:
        """Claim the next job, or return None where none comes in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            job = self._store.claim("default", f"exe{secrets.token_hex(4)}", "agent-1")
            if job is not None:
                return job
            time.sleep(0.01)
        return None

    def draw(self, job: Job, *, model_sha256: str = SHAPES.sha256) -> bytes:
        """End a claimed job with a stored picture each; return the first one's bytes."""
        output = job.spec.output
        data = picture(job.spec.width, job.spec.height, output.format)
        sha256 = hashlib.sha256(data).hexdigest()
        images: list[ResultImage] = []
        for index in range(job.spec.num_images):
            key = image_key(job.object_prefix, str(job.execution_id), index, output.format)
            self._storage.put(key, data, content_type=CONTENT_TYPES[output.format], sha256=sha256)
            images.append(
                ResultImage(
                    index=index,
                    seed=job.spec.seed + index,
                    width_px=job.spec.width,
                    height_px=job.spec.height,
                    key=key,
                    content_type=CONTENT_TYPES[output.format],
                    bytes=len(data),
                    sha256=sha256,
                )
            )
        receipt = Receipt(model_sha256=model_sha256, scheduler_config_sha256="1" * 64, device="cpu", dtype="float32")
        self._commit(job, Outcome(Status.SUCCEEDED, tuple(images), Timings(gpu_s=0.5), receipt))
        return data

    def flag(self, job: Job) -> None:
        """End a claimed job with a picture that the safety checker withheld."""
        image = ResultImage(index=0, seed=job.spec.seed, width_px=64, height_px=64, flagged=True)
        self._commit(job, Outcome(Status.SUCCEEDED, images=(image,)))

    def fail(self, job: Job, code: FailureCode) -> None:
        """End a claimed job without a picture."""
        self._commit(job, Outcome(Status.FAILED, error=JobError(code=code, message="It failed.", retryable=False)))

    def stop(self, job: Job) -> None:
        """End a claimed job whose cancelling was asked for."""
        self._commit(job, Outcome(Status.CANCELED))

    def step(self, job: Job, step: int, steps: int) -> None:
        """Tell progress of a claimed job."""
        self._store.renew("agent-1", [Holding(job.id, str(job.execution_id), step, steps, "denoise")])

    def show(self, job: Job, preview: bytes) -> None:
        """Show what a claimed job looks like so far."""
        assert self._store.show_preview(job.id, str(job.execution_id), preview)

    def _commit(self, job: Job, outcome: Outcome) -> None:
        assert self._store.commit(job.id, str(job.execution_id), outcome) == "committed"


class GatewayProcess:
    """A running `python -m service.app`. Its log is read all the time: a full pipe would stop it."""

    def __init__(self, environment: dict[str, str]) -> None:
        command = [sys.executable, "-W", "error", "-m", "service.app"]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._port: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        port = self._port.get(timeout=30)
        assert port is not None, "".join(self.lines)
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if '"gateway_listening"' in line:
                self._port.put(int(json.loads(line)["port"]))
        self._port.put(None)

    def wait(self, timeout_s: float = 20) -> int:
        """Wait for the end; return the exit code."""
        code = self.process.wait(timeout=timeout_s)
        self._reader.join(timeout=timeout_s)
        return code

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.wait()
        if self.process.stderr:
            self.process.stderr.close()


@contextmanager
def gateway_process(
    redis_settings: RedisSettings, storage_settings: StorageSettings, **variables: str
) -> Iterator[GatewayProcess]:
    """Run a gateway on a free port until the block ends."""
    secrets_of_storage = {
        "DARKROOM_S3_ACCESS_KEY": storage_settings.access_key,
        "DARKROOM_S3_SECRET_KEY": storage_settings.secret_key,
    }
    gateway = GatewayProcess(
        {
            **{name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")},
            "DARKROOM_REDIS_URL": redis_settings.url.get_secret_value(),
            "DARKROOM_S3_ENDPOINT": storage_settings.endpoint or "",
            "DARKROOM_S3_BUCKET": storage_settings.bucket,
            **{name: secret.get_secret_value() for name, secret in secrets_of_storage.items() if secret},
            "DARKROOM_LOG": "json",
            "DARKROOM_PORT": "0",
            **variables,
        }
    )
    try:
        yield gateway
    finally:
        gateway.stop()
