"""Jobs for tests of the queue."""

from __future__ import annotations

from typing import Any

from service.contract.generation import GenerationSpec
from service.contract.job import Job


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
