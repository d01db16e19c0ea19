"""The job resource: what callers see of a job. The only place that turns one into the other."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, get_args

from pydantic import BaseModel, ConfigDict, Field

from service.contract.engine import Phase
from service.contract.generation import (
    SEED_MAX,
    ImageFormat,
    Output,
    Receipt,
    ResultImage,
    SigmaSpacing,
    StoredInput,
    Task,
    Timings,
)
from service.contract.job import Job, Priority, Status
from service.generations.ids import ID_PATTERN
from service.generations.outlook.reading import Outlook

#: Where generations live, without a trailing slash.
GENERATIONS_PATH = "/v1/generations"


class _Resource(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class QueueResource(_Resource):
    """Where a waiting generation stands. An estimate: whoever comes meanwhile with more right to it goes first."""

    position: Annotated[
        int | None, Field(ge=1, description="1 = next. Over all tenants that share its workers. null: not known yet.")
    ]
    estimated_start_s: Annotated[
        float | None, Field(ge=0, description="s from now; null while nothing is known of the workers' pace.")
    ]
    estimated_finish_s: Annotated[
        float | None, Field(ge=0, description="s from now, the time that it takes to draw included.")
    ]


class ProgressResource(_Resource):
    """How far a running generation is, over all its images."""

    phase: Annotated[
        Phase | None,
        Field(description="`load`: the model is read into memory, or compiled. null before the first sign."),
    ]
    step: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=0)]
    fraction: Annotated[float, Field(ge=0, le=1)]
    preview_url: Annotated[
        str | None, Field(description="What the first picture looks like so far; null until there is something to see.")
    ]
    estimated_finish_s: Annotated[
        float | None, Field(ge=0, description="An estimate, s from now; null while nothing is known.")
    ] = None


class ImageResource(_Resource):
    """One picture."""

    url: Annotated[str | None, Field(description="Stable; redirects to a short-lived link. null when flagged.")]
    seed: Annotated[int, Field(ge=0, le=SEED_MAX)]
    width_px: int
    height_px: int
    content_type: str | None
    bytes: int | None
    sha256: str | None
    flagged: Annotated[bool, Field(description="Withheld by the model's safety checker.")]


class ErrorResource(_Resource):
    """Why a generation ended without a picture."""

    code: str
    message: str
    retryable: Annotated[bool, Field(description="Whether the same request may succeed when it is sent again.")]


class InputResource(_Resource):
    """An input picture as it was received."""

    format: ImageFormat
    width_px: int
    height_px: int
    bytes: int
    sha256: str


class WebhookResource(_Resource):
    """Where its events are sent."""

    url: str
    events: list[str]


class RequestResource(_Resource):
    """What is run, every default filled in."""

    task: Task
    model: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    guidance_rescale: float
    eta: float
    scheduler: str
    sigmas: SigmaSpacing | None
    seed: Annotated[int, Field(ge=0, le=SEED_MAX)]
    num_images: int
    deterministic: bool
    image: InputResource | None
    mask: InputResource | None
    strength: float | None
    output: Output
    priority: Priority
    start_within_s: int | None
    finish_within_s: int | None
    retain_s: int
    webhook: WebhookResource | None


class UrlsResource(_Resource):
    """Where to go from here."""

    self: str
    events: Annotated[str, Field(description="Server-Sent Events: what happens to it, as it happens.")]
    cancel: str


class GenerationResource(_Resource):
    """A generation."""

    id: Annotated[str, Field(pattern=ID_PATTERN)]
    status: Status
    revision: Annotated[int, Field(ge=0, description="Grows with every change.")]
    attempt: Annotated[int, Field(ge=0, description="Started executions; more than 1 where a worker was lost.")]
    task: Task
    model: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: Annotated[datetime | None, Field(description="When the record and the pictures are erased.")]
    queue: Annotated[QueueResource | None, Field(description="While queued. Changes without a new revision.")] = None
    progress: Annotated[ProgressResource | None, Field(description="While running.")]
    images: list[ImageResource]
    error: ErrorResource | None
    timings: Timings | None
    request: RequestResource
    receipt: Receipt | None
    labels: dict[str, str]
    rerun_of: Annotated[
        str | None, Field(description="The generation that it repeats; null where it was asked for by itself.")
    ]
    urls: UrlsResource


class GenerationBatch(_Resource):
    """The generations of a batch, in the order of their requests."""

    object: Annotated[str, Field(pattern="^list$")] = "list"
    data: list[GenerationResource]


class GenerationPage(_Resource):
    """Generations, newest first. A filtered page may be short, or empty, and still have a next one."""

    object: Annotated[str, Field(pattern="^list$")] = "list"
    data: list[GenerationResource]
    next_cursor: Annotated[str | None, Field(description="Send as `cursor`; null on the last page.")]


def generation_path(job_id: str) -> str:
    """Return the path of a generation."""
    return f"{GENERATIONS_PATH}/{job_id}"


def image_path(job_id: str, index: int) -> str:
    """Return the stable path of one of its pictures."""
    return f"{GENERATIONS_PATH}/{job_id}/images/{index}"


def preview_path(job_id: str) -> str:
    """Return the path of its preview."""
    return f"{GENERATIONS_PATH}/{job_id}/preview"


def generation_resource(job: Job, outlook: Outlook | None = None) -> GenerationResource:
    """Return what a caller sees of a job; without an outlook nothing is said of what is to come."""
    path = generation_path(job.id)
    error = job.error
    return GenerationResource(
        id=job.id,
        status=job.status,
        revision=job.revision,
        attempt=job.attempt,
        task=job.spec.task,
        model=job.model,
        created_at=moment(job.created_ms),
        started_at=_moment_or_none(job.started_ms),
        finished_at=_moment_or_none(job.finished_ms),
        expires_at=_moment_or_none(job.expires_ms),
        queue=_queue(job, outlook),
        progress=_progress(job, outlook),
        images=[_image(job.id, image) for image in job.images],
        error=error and ErrorResource(code=error.code, message=error.message, retryable=error.retryable),
        timings=job.timings,
        request=_request(job),
        receipt=job.receipt,
        labels=job.labels,
        rerun_of=job.rerun_of,
        urls=UrlsResource(self=path, events=f"{path}/events", cancel=f"{path}/cancel"),
    )


def _image(job_id: str, image: ResultImage) -> ImageResource:
    return ImageResource(
        url=None if image.flagged else image_path(job_id, image.index),
        seed=image.seed,
        width_px=image.width_px,
        height_px=image.height_px,
        content_type=image.content_type,
        bytes=image.bytes,
        sha256=image.sha256,
        flagged=image.flagged,
    )


def _queue(job: Job, outlook: Outlook | None) -> QueueResource | None:
    if job.status is not Status.QUEUED or outlook is None:
        return None
    return QueueResource(
        position=outlook.position, estimated_start_s=outlook.start_s, estimated_finish_s=outlook.finish_s
    )


def _progress(job: Job, outlook: Outlook | None) -> ProgressResource | None:
    if job.status is not Status.RUNNING:
        return None
    step, steps = job.progress_step, job.progress_steps
    # A phase of a newer worker, or of a stranger in our Redis, is none that this contract has.
    phase = next((known for known in get_args(Phase) if known == job.phase), None)
    fraction = min(1.0, step / steps) if steps else 0.0
    preview_url = preview_path(job.id) if job.previewed else None
    return ProgressResource(
        phase=phase,
        step=step,
        steps=steps,
        fraction=fraction,
        preview_url=preview_url,
        estimated_finish_s=outlook and outlook.finish_s,
    )


def _request(job: Job) -> RequestResource:
    spec = job.spec
    return RequestResource(
        task=spec.task,
        model=spec.model,
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt,
        width=spec.width,
        height=spec.height,
        steps=spec.steps,
        guidance_scale=spec.guidance_scale,
        guidance_rescale=spec.guidance_rescale,
        eta=spec.eta,
        scheduler=spec.scheduler,
        sigmas=spec.sigmas,
        seed=spec.seed,
        num_images=spec.num_images,
        deterministic=spec.deterministic,
        image=_input(spec.image),
        mask=_input(spec.mask),
        strength=spec.strength,
        output=spec.output,
        priority=job.priority,
        start_within_s=_span_s(job.created_ms, job.start_by_ms),
        finish_within_s=_span_s(job.created_ms, job.finish_by_ms),
        retain_s=job.retain_ms // 1000,
        webhook=(job.webhook_url and WebhookResource(url=job.webhook_url, events=list(job.webhook_events))) or None,
    )


def _input(stored: StoredInput | None) -> InputResource | None:
    return stored and InputResource.model_validate(stored.model_dump(exclude={"key"}))


def _span_s(start_ms: int, end_ms: int | None) -> int | None:
    return None if end_ms is None else (end_ms - start_ms) // 1000


def moment(milliseconds: int) -> datetime:
    """Return milliseconds since 1970 as a moment in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)


def _moment_or_none(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else moment(milliseconds)
