"""Erased is erased: of a generation that its caller erases, or whose time is over, nothing is left anywhere."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import redis
from redis.asyncio import Redis as AsyncRedis

from service.contract.errors import FailureCode
from service.contract.job import Job
from service.jobs.keys import key
from service.jobs.outbox import Attempt, WebhookOutbox
from service.jobs.store import JobStore
from service.settings.gateway import GatewaySettings
from service.settings.groups import StorageSettings
from service.storage.client import client_of, session_of
from service.storage.s3 import ObjectStorage
from tests.gateway import EMOJI, SHAPES, Hand, make_key, picture, serving, show_models
from tests.outbox import DAY_MS, LEASE_MS, ROOMY

pytestmark = pytest.mark.anyio

PATH = "/v1/generations"
#: Stands in everything that a caller writes.
MARK = "zebrafinch"
PREVIEW = picture(32, 32, "webp")


@dataclass
class House:
    """Everything that keeps something, and who works in it."""

    api: httpx.AsyncClient
    tenant: str
    redis: redis.Redis
    hand: Hand
    storage: ObjectStorage
    outbox: WebhookOutbox
    storage_settings: StorageSettings

    def stored(self) -> list[str]:
        """Return the keys of the tenant's objects."""
        client = client_of(
            session_of(self.storage_settings), self.storage_settings.endpoint, read_timeout_s=10, attempts=2
        )
        try:
            found = client.list_objects_v2(Bucket=self.storage_settings.bucket, Prefix=f"{self.tenant}/")
            return [each["Key"] for each in found.get("Contents", [])]
        finally:
            client.close()

    def sweep(self, *, in_days: int = 0) -> None:
        """Do what agents do every second, as if so many days had passed."""
        now_ms = time.time_ns() // 1_000_000 + in_days * DAY_MS
        store = JobStore(self.redis, clock=lambda: now_ms)
        while due := store.due_erasures():
            for prefix in due:
                self.storage.delete_prefix(prefix)
                assert store.forget(prefix)

    def texts(self) -> dict[str, str]:
        """Return everything in Redis as text, by key."""
        readers = {
            "string": self.redis.get,
            "hash": self.redis.hgetall,
            "list": lambda name: self.redis.lrange(name, 0, -1),
            "set": self.redis.smembers,
            "zset": lambda name: self.redis.zrange(name, 0, -1),
            "stream": self.redis.xrange,
        }
        found: dict[str, str] = {}
        for name in self.redis.scan_iter():
            found[name] = f"{name} {readers[str(self.redis.type(name))](name)}"
        return found

    async def send(self, verdict: str) -> None:
        """Be a sender for every event that is due."""
        for event in await self.outbox.due(ROOMY, lease_ms=LEASE_MS):
            retry_ms = None if verdict == "delivered" else 300_000
            attempt = Attempt(verdict, at_ms=time.time_ns() // 1_000_000, duration_ms=5, status=200, retry_ms=retry_ms)
            await self.outbox.record(event, attempt, failing_off_ms=3 * DAY_MS)


@pytest.fixture
async def house(
    settings: GatewaySettings,
    redis_client: redis.Redis,
    hand: Hand,
    storage: ObjectStorage,
    storage_settings: StorageSettings,
    valkey_url: str,
) -> AsyncIterator[House]:
    show_models(redis_client, SHAPES, EMOJI)
    tenant = f"erasing-{secrets.token_hex(4)}"
    key_text = make_key(redis_client, tenant)
    async with (
        serving(settings, key=key_text) as api,
        AsyncRedis.from_url(valkey_url, decode_responses=True) as client,
    ):
        # Bells and previews hold bytes.
        reader = redis.Redis.from_url(valkey_url, decode_responses=True, encoding_errors="replace")
        yield House(api, tenant, reader, hand, storage, WebhookOutbox(client), storage_settings)
        reader.close()


async def uploaded(house: House) -> str:
    data = picture(40, 32)
    declared = {"content_type": "image/png", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    upload = (await house.api.post("/v1/uploads", json=declared)).json()
    async with httpx.AsyncClient() as outside:
        form = upload["form"]
        reply = await outside.post(form["url"], data=form["fields"], files={"file": ("a", data)})
        assert reply.status_code == 204
    return upload["id"]


def request(**more: Any) -> dict[str, Any]:
    inline = {"base64": base64.b64encode(picture()).decode()}
    return {
        "prompt": f"a {MARK}",
        "negative_prompt": f"no {MARK}",
        "task": "inpaint",
        "image": inline,
        "mask": inline,
        "labels": {f"{MARK}.label": f"{MARK} label"},
        "webhook": {"url": f"https://example.com/{MARK}", "events": ["started", "progress", "completed"]},
    } | more


async def create(house: House, **more: Any) -> str:
    headers = {"Idempotency-Key": f"{MARK}-{secrets.token_hex(4)}", "X-Request-Id": f"{MARK}"}
    reply = await house.api.post(PATH, json=request(**more), headers=headers)
    assert reply.status_code == 202, reply.text
    return reply.json()["id"]


async def bring_to(house: House, state: str) -> str:
    """Make a generation that has left traces everywhere, in a state."""
    job_id = await create(house, image={"upload_id": await uploaded(house)})
    if state == "queued":
        return job_id
    if state == "canceled":
        await house.api.post(f"{PATH}/{job_id}/cancel")
        return job_id
    job = house.hand.claim()
    house.hand.step(job, 3, 20)
    house.hand.show(job, PREVIEW)
    await house.send("delivered")
    if state == "running":
        return job_id
    if state == "failed":
        house.hand.fail(job, FailureCode.OUT_OF_MEMORY)
    else:
        house.hand.draw(job)
    await house.send("delivered" if state == "told" else "failed")
    return job_id


def left_of(house: House, job_id: str) -> dict[str, str]:
    """Return what Redis holds of a generation, but what has to stay.

    An Idempotency-Key answers 410 for a day, so its record has the id, and a hash of the body. An endpoint is the
    tenant's, and outlives each of its generations. A bell has the id it was rung for until an agent answers it.
    """
    found: dict[str, str] = {}
    for name, text in house.texts().items():
        may_id = name.startswith(("dr:idem:", "rq:job:"))
        may_mark = name.startswith("dr:endpoint:ep_") and name.count(":") == 2
        if (job_id in text and not may_id) or (MARK in text and not may_mark):
            found[name] = text
    return found


STATES = ("queued", "running", "canceled", "failed", "told", "untold")


@pytest.mark.parametrize("state", STATES)
async def test_after_a_delete_nothing_is_left_in_redis_or_in_the_bucket(house: House, state: str) -> None:
    job_id = await bring_to(house, state)
    assert left_of(house, job_id)
    assert house.stored()
    assert (await house.api.delete(f"{PATH}/{job_id}")).status_code == 204
    if state == "running":
        # The engine stops within a step; until then the marks stay that end it.
        house.hand.stop(_running(house, job_id))
    assert MARK not in str(house.redis.hmget(key("job", job_id), "spec", "labels", "images", "error"))
    house.sweep()
    await _without_uploads(house)
    assert left_of(house, job_id) == {}
    assert house.stored() == []
    assert await house.outbox.due(ROOMY, lease_ms=LEASE_MS) == []
    assert (await house.api.get(f"{PATH}/{job_id}")).status_code == 410


@pytest.mark.parametrize("state", ["canceled", "failed", "told", "untold"])
async def test_after_its_retention_nothing_is_left_either(house: House, state: str) -> None:
    job_id = await bring_to(house, state)
    house.sweep(in_days=6)
    assert (await house.api.get(f"{PATH}/{job_id}")).status_code == 200
    house.sweep(in_days=8)
    await _without_uploads(house)
    assert left_of(house, job_id) == {}
    assert house.stored() == []
    assert (await house.api.get(f"{PATH}/{job_id}")).status_code == 410


async def test_a_batch_a_rerun_and_their_original_are_erased_each_by_itself(house: House) -> None:
    original = await create(house)
    batch = (await house.api.post(f"{PATH}/batch", json={"requests": [request(), request()]})).json()["data"]
    rerun = (await house.api.post(f"{PATH}/{original}/rerun", json={"labels": {"a": MARK}})).json()["id"]
    for job_id in (original, batch[0]["id"], batch[1]["id"]):
        assert (await house.api.delete(f"{PATH}/{job_id}")).status_code == 204
    house.sweep()
    job = (await house.api.get(f"{PATH}/{rerun}")).json()
    assert job["request"]["prompt"] == f"a {MARK}"
    assert len(house.stored()) == 2
    assert all(rerun in name for name in house.stored())
    assert (await house.api.delete(f"{PATH}/{rerun}")).status_code == 204
    house.sweep()
    for job_id in (original, batch[0]["id"], batch[1]["id"], rerun):
        assert left_of(house, job_id) == {}
    assert house.stored() == []


def _running(house: House, job_id: str) -> Job:
    """Return a job as the agent that holds it knows it."""
    execution = house.redis.hget(key("job", job_id), "execution_id")
    prefix = house.redis.hget(key("job", job_id), "object_prefix")
    return Job.model_construct(id=job_id, execution_id=execution, object_prefix=prefix)


async def _without_uploads(house: House) -> None:
    """Delete the tenant's uploads: they are its own, and outlive the generations that use them."""
    for name in list(house.redis.scan_iter("dr:upload:upl_*")):
        upload_id = name.rpartition(":")[2]
        assert (await house.api.delete(f"/v1/uploads/{upload_id}")).status_code == 204
    house.sweep(in_days=30)
