"""What is left of a generation that its caller erased: nothing in Redis but its id, nothing in the bucket."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Iterable
from typing import Any, cast

import httpx
import pytest
import redis

from service.contract.job import Job
from service.jobs.keys import key
from service.jobs.store import JobStore
from service.settings.groups import RedisSettings
from service.storage.s3 import ObjectStorage
from tests.gateway import SHAPES, Hand, picture, show_models

pytestmark = pytest.mark.anyio

PATH = "/v1/generations"
#: In everything that a caller says.
MARK = "xyzzy"


def naming(settings: RedisSettings, *marks: str) -> list[str]:
    """Return the names of all that has one of these texts in its name or in what it holds."""
    found: list[str] = []
    with redis.Redis.from_url(settings.url.get_secret_value()) as client:
        for name in cast("Iterable[bytes]", client.scan_iter()):
            held: object = {
                b"hash": client.hgetall,
                b"zset": lambda each: client.zrange(each, 0, -1),
                b"set": client.smembers,
                b"list": lambda each: client.lrange(each, 0, -1),
                b"stream": client.xrange,
                b"string": client.get,
            }[cast("bytes", client.type(name))](name)
            if any(mark in f"{name!r} {held!r}" for mark in marks):
                found.append(name.decode())
    return sorted(found)


def body(**more: Any) -> dict[str, Any]:
    return {
        "prompt": f"a {MARK}",
        "negative_prompt": f"no {MARK}",
        "task": "image-to-image",
        "image": {"base64": base64.b64encode(picture()).decode()},
        "labels": {MARK: MARK},
        **more,
    }


@pytest.mark.parametrize("moment", ["queued", "running", "ended"])
async def test_nothing_but_ids_is_left_of_generations_that_were_erased(
    moment: str,
    api: httpx.AsyncClient,
    hand: Hand,
    redis_client: redis.Redis,
    redis_settings: RedisSettings,
    storage: ObjectStorage,
) -> None:
    show_models(redis_client, SHAPES)
    url = "https://receiver.example/a"
    endpoint = "ep_" + hashlib.sha1(f"acme\n{url}".encode(), usedforsecurity=False).hexdigest()
    hook = {"url": url, "events": ["started", "progress", "completed"]}
    one = await api.post(PATH, json=body(webhook=hook), headers={"Idempotency-Key": MARK})
    again = await api.post(f"{PATH}/{one.json()['id']}/rerun", json={"labels": {MARK: MARK}, "webhook": hook})
    two = await api.post(
        f"{PATH}/batch", json={"requests": [body(), body(webhook=hook)]}, headers={"Idempotency-Key": "b"}
    )
    assert [one.status_code, again.status_code, two.status_code] == [202, 202, 202]
    ids = [one.json()["id"], again.json()["id"], *(each["id"] for each in two.json()["data"])]
    assert naming(redis_settings, MARK)
    taken: list[Job] = []
    if moment != "queued":
        taken = [await asyncio.to_thread(hand.claim) for _ in ids]
        for job in taken:
            hand.step(job, 1, 4)
            hand.show(job, b"RIFF" + MARK.encode())
        if moment == "ended":
            for job in taken:
                await asyncio.to_thread(hand.draw, job)
    for each in ids:
        assert (await api.delete(f"{PATH}/{each}")).status_code == 204
    # Of what an agent still draws it hears, and ends it.
    assert naming(redis_settings, MARK) == []
    if moment == "running":
        for job in taken:
            hand.stop(job)
    agent = JobStore(redis_client)
    due = agent.due_erasures(limit=100)
    assert len(due) == len(ids)
    for prefix in due:
        # An input at least, or its copy.
        assert storage.delete_prefix(prefix) >= 1
        agent.forget(prefix)
    # The endpoint is the tenant's, and serves its other generations; a key used again has to be told that it is gone.
    assert naming(redis_settings, MARK, url) == [key("endpoint", endpoint)]
    left = naming(redis_settings, *ids)
    assert len([name for name in left if name.startswith("dr:idem:acme:")]) == 2
    # Nobody took the bells here.
    assert all(name.startswith(("dr:idem:acme:", "rq:job:bell-")) for name in left)
