"""Processes of two versions on one Redis: documents of the newer one are read, and nothing of them is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis

from service.contract.generation import GenerationSpec, Output, Receipt, ResultImage, StoredInput, Timings
from service.contract.job import JobError, Status
from service.jobs import documents
from service.jobs.commands import Holding, Outcome
from service.jobs.keys import key
from service.jobs.store import JobStore
from tests.clock import QueueClock
from tests.jobs import make_job, submit

NEWER = {"of_a_later_version": {"nested": [1, 2]}}

RECEIPT = Receipt(model_sha256="0" * 64, scheduler_config_sha256="1" * 64, device="cpu", dtype="float32")
IMAGE = ResultImage(index=0, seed=1, width_px=64, height_px=64, key="k", content_type="image/png", bytes=3, sha256="2")
INPUT = StoredInput(key="k", format="png", width_px=64, height_px=64, bytes=3, sha256="3")


@pytest.fixture
def store(redis_client: redis.Redis, clock: QueueClock) -> JobStore:
    return JobStore(redis_client, clock=clock)


def _amend(client: redis.Redis, job_id: str, name: str, amend: Callable[[Any], Any]) -> None:
    """Change one JSON field of a stored document, as a process of a later version had written it."""
    text = client.hget(key("job", job_id), name)
    assert isinstance(text, str)
    client.hset(key("job", job_id), name, json.dumps(amend(json.loads(text))))


def test_a_document_with_newer_fields_everywhere_is_read(redis_client: redis.Redis, store: JobStore) -> None:
    spec = make_job("gen_1").spec.model_copy(update={"image": INPUT})
    submit(store, "gen_1", spec=spec)
    assert store.claim("default", "exe", "agent") is not None
    outcome = Outcome(
        Status.FAILED, (IMAGE,), Timings(gpu_s=1.5), RECEIPT, JobError(code="internal", message="no", retryable=True)
    )
    assert store.commit("gen_1", "exe", outcome) == "committed"
    plain = store.get("ada", "gen_1")
    _amend(redis_client, "gen_1", "spec", lambda spec: spec | NEWER | {"image": spec["image"] | NEWER})
    _amend(redis_client, "gen_1", "spec", lambda spec: spec | {"output": spec["output"] | NEWER})
    _amend(redis_client, "gen_1", "images", lambda images: [image | NEWER for image in images])
    for name in ("timings", "receipt", "error"):
        _amend(redis_client, "gen_1", name, lambda value: value | NEWER)
    redis_client.hset(key("job", "gen_1"), "of_a_later_version", "text")
    assert plain is not None
    assert store.get("ada", "gen_1") == plain


def test_an_older_worker_draws_a_newer_document_and_loses_nothing_of_it(
    redis_client: redis.Redis, store: JobStore, clock: QueueClock
) -> None:
    submit(store, "gen_1", labels={"user": "7"})
    _amend(redis_client, "gen_1", "spec", lambda spec: spec | NEWER)
    redis_client.hset(key("job", "gen_1"), "of_a_later_version", "text")
    spec = redis_client.hget(key("job", "gen_1"), "spec")
    assert store.claim("default", "first", "agent") is not None
    store.renew("agent", [Holding("gen_1", "first", 1, 4, "denoise")])
    assert store.release("gen_1", "first", "drained")
    clock.now_ms += 1
    assert store.claim("default", "second", "agent") is not None
    assert store.commit("gen_1", "second", Outcome(Status.SUCCEEDED, (IMAGE,), Timings(), RECEIPT)) == "committed"
    stored = redis_client.hmget(key("job", "gen_1"), "spec", "of_a_later_version", "status")
    assert stored == [spec, "text", "succeeded"]


def test_a_document_without_newer_fields_is_read_by_their_defaults() -> None:
    """A field without a default would be refused in what an older process wrote."""
    spec = GenerationSpec.model_validate(
        make_job("gen_1").spec.model_dump(
            include={"task", "model", "prompt", "width", "height", "steps", "guidance_scale", "scheduler", "seed"}
        )
    )
    assert (spec.output, spec.image, spec.deterministic) == (Output(), None, False)
    fields = documents.encode(make_job("gen_1"))
    needed = {"id", "tenant", "pool", "model", "spec", "object_prefix", "created_ms", "retain_ms"}
    assert documents.decode({name: fields[name] for name in needed}).revision == 0
