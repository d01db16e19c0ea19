"""Jobs for tests of the queue."""

from __future__ import annotations

from typing import Any, cast

from service.contract.generation import GenerationSpec
from service.contract.job import Job, Status
from service.jobs.commands import Outcome, SubmitLimits
from service.jobs.store import JobStore

ROOM = SubmitLimits(None, 10_000)


def make_job(job_id: str, *, tenant: str = "ada", **fields: Any) -> Job:
    """Return a valid job; `fields` replace any of its own."""
    model = fields.get("model", "tiny")
    spec = GenerationSpec(
        task="text-to-image",
        model=model,
        prompt="a red circle",
        width=64,
        height=64,
        steps=4,
        guidance_scale=4.0,
        scheduler="ddim",
        seed=1,
    )
    values: dict[str, Any] = {
        "id": job_id,
        "tenant": tenant,
        "pool": "default",
        "model": model,
        "spec": spec,
        "object_prefix": f"{tenant}/2026/11/{job_id}/",
        "created_ms": 1_800_000_000_000,
        "retain_ms": 86_400_000,
    }
    return Job.model_validate(values | fields)


def submit(store: JobStore, job_id: str, **fields: Any) -> Job:
    job = make_job(job_id, **fields)
    assert store.submit(job, limits=ROOM).outcome == "created"
    return job


def claim_all(store: JobStore, count: int, *, pool: str = "default", commit: bool = True) -> list[Job]:
    jobs: list[Job] = []
    for number in range(count):
        job = store.claim(pool, f"claim{number}-{len(jobs)}", "agent")
        if job is None:
            break
        jobs.append(job)
        if commit:
            assert store.commit(job.id, cast("str", job.execution_id), Outcome(Status.SUCCEEDED)) == "committed"
    return jobs
