"""Agents with the fake engine, on a Valkey that may be killed and behind proxies that may be cut."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import redis
import yaml
from PIL import Image
from pydantic import SecretStr

from service.cli.embedded import EmbeddedValkey
from service.contract.generation import StoredInput
from service.contract.job import Job
from service.jobs.commands import SubmitLimits
from service.jobs.keys import key
from service.jobs.scripts import ScriptName, script_text
from service.jobs.store import JobStore
from service.settings.groups import RedisSettings, StorageSettings
from service.storage.keys import input_key
from service.storage.s3 import ObjectStorage
from tests.e2e.processes import Service, wait_for
from tests.jobs import make_job
from tests.proxy import Proxy

ROOM = SubmitLimits(None, 10_000)


class Outpost:
    """A queue, a storage and agents; the test speaks to the servers directly, the agents through the proxies."""

    def __init__(self, valkey: EmbeddedValkey, storage: StorageSettings, folder: Path) -> None:
        self.valkey = valkey
        self.redis = redis.Redis.from_url(valkey.url, decode_responses=True)
        self.store = JobStore(self.redis)
        self.storage = ObjectStorage(storage)
        self.bucket = storage.bucket
        assert storage.access_key
        assert storage.secret_key
        self.s3 = boto3.client(
            "s3",
            endpoint_url=storage.endpoint,
            region_name=storage.region,
            aws_access_key_id=storage.access_key.get_secret_value(),
            aws_secret_access_key=storage.secret_key.get_secret_value(),
        )
        self.redis_proxy = Proxy(_port(valkey.url))
        self.storage_proxy = Proxy(_port(str(storage.endpoint)))
        self.folder = folder
        self.model = folder / "model"
        self.model.mkdir(parents=True)
        catalogue = folder / "models.yaml"
        catalogue.write_text(yaml.safe_dump({"models": [{"id": "tiny", "source": "./model", "default": True}]}))
        self.service = Service(
            RedisSettings(url=SecretStr(valkey.url.replace(f":{_port(valkey.url)}/", f":{self.redis_proxy.port}/"))),
            storage.model_copy(update={"endpoint": f"http://127.0.0.1:{self.storage_proxy.port}"}),
            folder,
            models=catalogue,
            extra={"DARKROOM_LOG": "json", "DARKROOM_ENGINE_MODULE": "worker.engine.fake"},
        )
        self.jobs: list[Job] = []

    def close(self) -> None:
        self.redis_proxy.mend()
        self.storage_proxy.mend()
        self.service.stop()
        self.redis_proxy.cut()
        self.storage_proxy.cut()
        self.redis.close()
        self.storage.close()
        self.s3.close()

    def agent(self, name: str = "agent", **environment: str) -> subprocess.Popen[bytes]:
        """Start an agent and wait until it has loaded its model."""
        process = self.service.agent(name, **environment)
        wait_for(f"{name} is warm", lambda: self.service.lives(process, name) and "model_loaded" in self.log(name))
        return process

    def stop_agents(self) -> None:
        """Stop them, once those that live have answered every bell: some are rung twice, and find nothing."""
        if any(process.poll() is None for process in self.service.running):
            wait_for("no bell waits", lambda: self.redis.llen(key("rq_queue", "default")) == 0, timeout_s=10)
        self.service.stop()
        self.service.running.clear()

    def lose_replies(self, script: ScriptName, times: int) -> None:
        """Have the next `times` replies to a script lost, after it has run."""
        sha = hashlib.sha1(script_text(script).encode()).hexdigest()
        self.redis_proxy.lose_replies(sha.encode(), times)

    def log(self, name: str = "agent") -> str:
        return (self.folder / f"{name}.log").read_text("utf-8", errors="replace")

    def events(self, event: str, name: str = "agent") -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.log(name).splitlines() if line.startswith("{")]
        return [each for each in found if each.get("event") == event]

    def submit(self, prompt: str = "", *, side_px: int = 64, image: bool = False, steps: int = 4, **fields: Any) -> str:
        job_id = f"gen_{len(self.jobs):04}_{time.monotonic_ns():x}"
        job = make_job(job_id, created_ms=round(time.time() * 1000), **fields)
        changes: dict[str, Any] = {"prompt": prompt, "width": side_px, "height": side_px, "steps": steps}
        if image:
            changes |= {"task": "image-to-image", "strength": 0.5, "image": self._store_picture(job)}
        job = job.model_copy(update={"spec": job.spec.model_copy(update=changes)})
        assert self.store.submit(job, limits=ROOM).outcome == "created"
        self.jobs.append(job)
        return job.id

    def _store_picture(self, job: Job) -> StoredInput:
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "PNG")
        data = file.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        name = input_key(job.object_prefix, 0, "png")
        self.storage.put(name, data, content_type="image/png", sha256=digest)
        return StoredInput(key=name, format="png", width_px=8, height_px=8, bytes=len(data), sha256=digest)

    def damage(self, job_id: str) -> None:
        """Write into a record what is none."""
        self.redis.hset(key("job", job_id), "spec", '{"prompt')

    def job(self, job_id: str) -> Job:
        job = self.store.get("ada", job_id)
        assert job is not None
        return job

    def status(self, job_id: str) -> str:
        return str(self.redis.hget(key("job", job_id), "status"))

    def wait_until(self, job_id: str, status: str, timeout_s: float = 60.0) -> None:
        wait_for(f"{job_id} is {status}", lambda: self.status(job_id) == status, timeout_s=timeout_s)

    def ended(self, job_ids: Iterable[str], timeout_s: float = 60.0) -> list[str]:
        """Wait until all have ended; return their statuses."""
        waiting = set(job_ids)

        def look() -> bool:
            waiting.difference_update({each for each in waiting if self.status(each) not in {"queued", "running"}})
            return not waiting

        try:
            wait_for("the end of all jobs", look, timeout_s=timeout_s)
        except AssertionError:
            stuck = {each: self.status(each) for each in sorted(waiting)}
            msg = f"not within {timeout_s:.0f} s: {stuck}"
            raise AssertionError(msg) from None
        return [self.status(each) for each in job_ids]

    def check_objects(self, job_ids: Iterable[str]) -> None:
        """What lies in storage of succeeded jobs is their pictures, no more, no less."""
        for job in map(self.job, job_ids):
            keys = [image.key for image in job.images]
            assert len(keys) == job.spec.num_images
            wait_for(f"{keys} alone", lambda job=job, keys=keys: self.objects(job.object_prefix) == keys, timeout_s=10)

    def images_metered(self) -> int:
        """Committed pictures: counted by the script that commits, so what is committed twice is counted twice."""
        return sum(int(self.redis.hget(day, "images") or 0) for day in self.redis.scan_iter(key("usage", "ada", "*")))

    def objects(self, prefix: str) -> list[str]:
        found = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", [])
        return [str(each["Key"]) for each in found]

    def check_nothing_is_left(self) -> None:
        """Every count is zero, no lease stays, and no job waits without a bell."""
        assert self.redis.zcard(key("leases")) == 0
        assert self.redis.hlen(key("executions")) == 0
        counts = self.redis.hmget(key("pool", "default"), "queued", "running")
        assert [int(each or 0) for each in counts] == [0, 0]


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port
    return port
