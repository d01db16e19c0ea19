"""The examples of `openapi.yaml`: what a generation, a list, a refusal look like. Made of the real resources."""

from __future__ import annotations

from datetime import date
from typing import Any

from pydantic import BaseModel

from service.api.documentation import EXAMPLE_ID
from service.api.health import Health, Readiness
from service.api.models import ModelList, SchedulerList, model_resource, scheduler_resource
from service.api.problems import FieldProblem, Problem
from service.api.uploads import EXAMPLE_UPLOAD_ID, upload_resource
from service.api.usage import UsageDay, UsageLimits, UsageList, UsageToday
from service.api.validation import EstimateResource, NeededModel, ValidationResource
from service.api.webhook_examples import WEBHOOK_EXAMPLES
from service.contract.catalog import Limits, ModelCard
from service.contract.generation import GenerationSpec, Receipt, ResultImage, Timings
from service.contract.job import Job, Status
from service.contract.schedulers import SCHEDULERS
from service.generations.outlook.reading import Outlook
from service.generations.resource import GenerationBatch, GenerationPage, generation_resource
from service.generations.uploads import OpenForm
from service.generations.webhook_message import webhook_message
from service.jobs.commands import RegisteredModel
from service.jobs.uploads import UploadRecord
from service.storage.s3 import UploadForm

_SHA256 = "9f2c7d0e4b8a61355c1e0f9a7b3d8e24c6f05a1b9d7e3428f60c5b1a2e4d7f93"
_TENANT = "acme"

_CARD = ModelCard(
    id="sd-1.5",
    description="Stable Diffusion 1.5.",
    family="sd1",
    pool="default",
    default=True,
    tasks=("text-to-image", "image-to-image", "inpaint"),
    size_step_px=8,
    width=512,
    height=512,
    steps=25,
    guidance_scale=7.5,
    scheduler="dpmpp_2m",
    schedulers=("ddim", "euler", "dpmpp_2m", "unipc"),
    limits=Limits(),
    dtype="float16",
    sha256=_SHA256,
)

_JOB = Job(
    id=EXAMPLE_ID,
    tenant=_TENANT,
    pool="default",
    status=Status.SUCCEEDED,
    revision=9,
    attempt=1,
    model=_CARD.id,
    spec=GenerationSpec(
        task="text-to-image",
        model=_CARD.id,
        prompt="a red circle on a blue background",
        width=512,
        height=512,
        steps=20,
        guidance_scale=7.5,
        scheduler="dpmpp_2m",
        seed=7,
    ),
    object_prefix=f"{_TENANT}/2026/11/{EXAMPLE_ID}/",
    created_ms=1_795_172_400_000,
    started_ms=1_795_172_400_120,
    finished_ms=1_795_172_402_310,
    retain_ms=604_800_000,
    expires_ms=1_795_777_202_310,
    progress_step=20,
    progress_steps=20,
    images=(
        ResultImage(
            index=0,
            seed=7,
            width_px=512,
            height_px=512,
            key=f"{_TENANT}/2026/11/{EXAMPLE_ID}/0/0.png",
            content_type="image/png",
            bytes=183_552,
            sha256=_SHA256,
        ),
    ),
    timings=Timings(
        queued_s=0.12, encode_s=0.03, denoise_s=1.84, decode_s=0.11, compress_s=0.08, upload_s=0.05, gpu_s=0.52
    ),
    receipt=Receipt(
        model_sha256=_SHA256,
        scheduler_config_sha256=_SHA256,
        versions={"torch": "2.13.0", "diffusers": "0.42.1"},
        device="cuda",
        dtype="float16",
    ),
    labels={"order": "12"},
)

_GENERATION = generation_resource(_JOB)

_QUEUED = generation_resource(
    Job.model_validate(
        _JOB.model_dump(
            include={"id", "tenant", "pool", "model", "spec", "object_prefix", "created_ms", "retain_ms", "labels"}
        )
    ),
    Outlook(position=4, start_s=6.2, finish_s=8.4),
)

_UPLOAD = UploadRecord(
    id=EXAMPLE_UPLOAD_ID,
    tenant=_TENANT,
    prefix=f"{_TENANT}/2026/11/{EXAMPLE_UPLOAD_ID}/",
    state="waiting",
    format="png",
    bytes=245_678,
    sha256=_SHA256,
    created_ms=1_795_172_400_000,
    expires_ms=1_795_258_800_000,
)
_FORM = UploadForm(
    "https://s3.example.com/darkroom",
    {"Content-Type": "image/png", "key": "…", "policy": "…", "x-amz-signature": "…"},
)

_PROBLEM = Problem(
    type="urn:darkroom:problem:invalid_request",
    title="The request has fields that are not allowed.",
    status=422,
    detail="The request has fields that are not allowed.",
    instance="urn:darkroom:request:req_5f0c2a9d81e34b7766f01d2c",
    code="invalid_request",
    request_id="req_5f0c2a9d81e34b7766f01d2c",
    errors=[FieldProblem(pointer="/steps", detail="must be an integer, 1 to 1000 denoising steps")],
)

_RESOURCES: tuple[BaseModel, ...] = (
    _GENERATION,
    GenerationBatch(data=[_QUEUED]),
    ValidationResource(
        accepted=True,
        refusal=None,
        request=_QUEUED.request,
        estimate=EstimateResource(gpu_s=0.54, position=4, start_s=6.2, finish_s=8.4),
        model=NeededModel(id=_CARD.id, state="warm", workers=2),
    ),
    GenerationPage(data=[_GENERATION], next_cursor=None),
    upload_resource(_UPLOAD, "waiting", OpenForm(_FORM, expires_ms=1_795_176_000_000)),
    ModelList(data=[model_resource(RegisteredModel(_CARD, warm=2))]),
    model_resource(RegisteredModel(_CARD, warm=2)),
    SchedulerList(data=[scheduler_resource(SCHEDULERS["euler"])]),
    UsageList(
        data=[UsageDay(day=date(2026, 11, 20), requests=412, images=430, gpu_s=221.4)],
        today=UsageToday(day=date(2026, 11, 20), gpu_s=221.4, remaining_gpu_s=3378.6),
        limits=UsageLimits(
            max_requests_per_minute=60, max_gpu_s_per_day=3600, max_queued=200, max_running=None, top_priority="high"
        ),
    ),
    Health(),
    Readiness(checks={"redis": "ok", "storage": "ok", "models": "ok"}),
    webhook_message(_JOB, "generation.succeeded", 1_795_172_402_310),
    *WEBHOOK_EXAMPLES,
)


def add_examples(schemas: dict[str, Any]) -> None:
    """Give the schemas of an OpenAPI document their examples, by the names of their classes."""
    for resource in _RESOURCES:
        schemas[type(resource).__name__]["examples"] = [resource.model_dump(mode="json")]
    schemas[Problem.__name__]["examples"] = [_PROBLEM.model_dump(mode="json", exclude_none=True)]
