"""`GET /v1/models`: what can be asked for, and how near it is."""

from __future__ import annotations

import httpx
import pytest
import redis

from service.contract.worker import WorkerRecord
from service.jobs.store import JobStore
from tests.gateway import SHAPES

pytestmark = pytest.mark.anyio


def announce(client: redis.Redis, agent_id: str, **states: tuple[str, ...]) -> None:
    """Say what a live worker has of the model."""
    record = WorkerRecord(agent_id=agent_id, pool="default", **states)
    JobStore(client).announce(record, [SHAPES], ttl_ms=600_000)


@pytest.mark.parametrize(
    ("workers", "state", "warm"),
    [
        ({}, "unavailable", 0),
        ({"one": "cold"}, "cold", 0),
        ({"one": "cold", "two": "loading"}, "loading", 0),
        ({"one": "cold", "two": "loading", "three": "warm"}, "warm", 1),
        ({"one": "warm", "two": "warm"}, "warm", 2),
    ],
)
async def test_a_model_is_as_near_as_on_the_worker_that_is_nearest_to_it(
    api: httpx.AsyncClient, redis_client: redis.Redis, workers: dict[str, str], state: str, warm: int
) -> None:
    JobStore(redis_client).withdraw("agent-1")
    for agent_id, its_state in workers.items():
        announce(redis_client, agent_id, **{its_state: (SHAPES.id,)})
    reply = await api.get(f"/v1/models/{SHAPES.id}")
    assert reply.json()["state"] == state
    assert reply.json()["workers"] == warm


async def test_a_model_says_how_it_executes_and_what_it_has_no_use_for(
    api: httpx.AsyncClient, redis_client: redis.Redis
) -> None:
    whole = SHAPES.model_copy(
        update={"id": "whole", "default": False, "execution": "whole", "unused_fields": ("negative_prompt", "eta")}
    )
    record = WorkerRecord(agent_id="agent-2", pool="default", warm=("whole",))
    JobStore(redis_client).announce(record, [SHAPES, whole], ttl_ms=600_000)
    found = {model["id"]: model for model in (await api.get("/v1/models")).json()["data"]}
    assert (found["whole"]["execution"], found["whole"]["unused_fields"]) == ("whole", ["negative_prompt", "eta"])
    assert (found["shapes"]["execution"], found["shapes"]["unused_fields"]) == ("batched", [])
    body = {"prompt": "x", "model": "whole", "negative_prompt": "blurry"}
    refused = await api.post("/v1/generations", json=body)
    assert refused.status_code == 422
    assert [each["pointer"] for each in refused.json()["errors"]] == ["/negative_prompt"]
    assert "blurry" not in refused.text
