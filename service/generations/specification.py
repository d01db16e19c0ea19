"""From a request to a specification: every default filled in from the model card, every limit checked. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from service.contract.catalog import ModelCard, UnusedField
from service.contract.errors import FieldError, InvalidRequest, Unavailable
from service.contract.generation import SEED_MAX, GenerationSpec, Output, StoredInput, Task
from service.contract.schedulers import ALIASES, OWN_SCHEDULER, SCHEDULERS
from service.contract.steps import most_steps, steps_run
from service.generations.field_errors import MAX_ERRORS, field_errors, nearest
from service.generations.request import GenerationRequest
from service.net.urls import UrlRefused

#: Quality of JPEG and WebP where none is asked for: no artefact that one sees at 100 %, a third of the bytes of 100.
DEFAULT_QUALITY = 90

#: Which pictures a task needs.
_NEEDS: Mapping[Task, frozenset[str]] = {
    "text-to-image": frozenset(),
    "image-to-image": frozenset({"image"}),
    "inpaint": frozenset({"image", "mask"}),
}


@dataclass(frozen=True, slots=True)
class Draft:
    """A checked request; only the input pictures are not stored yet."""

    card: ModelCard
    request: GenerationRequest
    #: Without `image` and `mask`.
    spec: GenerationSpec
    #: Denoiser rows × steps, in units of the model's native size: what fairness is measured in.
    cost: float
    #: JSON pointer of the request in the body; empty = the body itself.
    where: str = ""
    #: The generation that it repeats, and whose pictures, by field, are copied for it.
    rerun_of: str | None = None
    copied: Mapping[str, StoredInput] = field(default_factory=dict)

    @property
    def has_pictures(self) -> bool:
        """Whether input pictures have to be stored for it."""
        return bool(self.copied) or self.request.image is not None or self.request.mask is not None


@dataclass(slots=True)
class _Findings:
    """What is wrong so far. A field that was refused once is not judged again."""

    errors: list[FieldError] = field(default_factory=list)

    def refused(self, where: str) -> bool:
        return any(each.pointer == where or each.pointer.startswith(f"{where}/") for each in self.errors)

    def add(self, where: str, message: str) -> None:
        if not self.refused(where):
            self.errors.append(FieldError(where, message))


def draft(
    body: Mapping[str, Any],
    cards: Sequence[ModelCard],
    *,
    draw_seed: Callable[[int], int],
    retain_max_s: int,
    check_url: Callable[[str], object],
) -> Draft:
    """Return the request with every default filled in.

    `draw_seed(n)` returns a number in [0, n); `check_url` raises `UrlRefused` for what may not be called. Raises
    `InvalidRequest` with everything that is wrong at once, or `Unavailable` where no model is registered at all.
    """
    if not cards:
        raise Unavailable("No worker has shown a model yet.")
    findings = _Findings()
    request = _typed(body, findings)
    card = _model(request, cards, findings)
    if card is None:
        raise InvalidRequest(findings.errors[:MAX_ERRORS])
    spec = _specification(request, card, findings, draw_seed)
    if request.retain_s is not None and request.retain_s > retain_max_s:
        findings.add("/retain_s", f"must be at most {retain_max_s} s on this server")
    _check_webhook(request, check_url, findings)
    if findings.errors:
        raise InvalidRequest(findings.errors[:MAX_ERRORS])
    return Draft(card, request, spec, cost=_cost(spec, card))


def _check_webhook(request: GenerationRequest, check_url: Callable[[str], object], findings: _Findings) -> None:
    if request.webhook is None or request.webhook.url is None:
        return
    try:
        check_url(request.webhook.url)
    except UrlRefused as err:
        findings.add("/webhook/url", err.message)


def _typed(body: Mapping[str, Any], findings: _Findings) -> GenerationRequest:
    """Return the request; of a wrong one, what is right of it, so that all errors are found at once."""
    try:
        return GenerationRequest.model_validate(body)
    except ValidationError as err:
        findings.errors.extend(field_errors(err))
        wrong = {str(each["loc"][0]) for each in err.errors(include_url=False, include_input=False)}
        right = {name: value for name, value in body.items() if name not in wrong}
        return GenerationRequest.model_validate({"prompt": "", **right})


def _model(request: GenerationRequest, cards: Sequence[ModelCard], findings: _Findings) -> ModelCard | None:
    if request.model is None:
        return next((card for card in cards if card.default), cards[0])
    for card in cards:
        if card.id == request.model:
            return card
    close = nearest(request.model, [card.id for card in cards])
    findings.add("/model", f"is not a model of this server{close or '; GET /v1/models lists them'}")
    return None


def _specification(
    request: GenerationRequest, card: ModelCard, findings: _Findings, draw_seed: Callable[[int], int]
) -> GenerationSpec:
    task = request.task or "text-to-image"
    if task not in card.tasks:
        findings.add("/task", f"is not what the model {card.id} does: {', '.join(card.tasks)}")
    _check_pictures(request, task, findings)
    width, height = _size(request, card, findings)
    steps = request.steps or card.steps
    if steps > card.limits.max_steps:
        findings.add("/steps", f"must be at most {card.limits.max_steps} denoising steps for the model {card.id}")
    strength = _strength(request, card, task, steps, findings)
    num_images = request.num_images or 1
    if num_images > card.limits.max_images:
        findings.add("/num_images", f"must be at most {card.limits.max_images} images for the model {card.id}")
    _check_unused(request, card, task, findings)
    scheduler = _scheduler(request, card, task, findings)
    _check_steps(card, scheduler, steps, strength, findings)
    return GenerationSpec(
        task=task,
        model=card.id,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt or "",
        width=width,
        height=height,
        steps=steps,
        guidance_scale=card.guidance_scale if request.guidance_scale is None else request.guidance_scale,
        guidance_rescale=request.guidance_rescale or 0.0,
        eta=request.eta or 0.0,
        scheduler=scheduler,
        sigmas=request.sigmas,
        seed=_seed(request, num_images, findings, draw_seed),
        num_images=num_images,
        deterministic=request.deterministic or False,
        strength=strength,
        output=_output(request, findings),
    )


def _check_pictures(request: GenerationRequest, task: Task, findings: _Findings) -> None:
    if findings.refused("/task"):
        return
    for name, asset in (("image", request.image), ("mask", request.mask)):
        if name in _NEEDS[task] and asset is None:
            findings.add(f"/{name}", f"is required for {task}")
        if name not in _NEEDS[task] and asset is not None:
            findings.add(f"/{name}", f"has no place in {task}; leave it out, or name the task that uses it")


def _size(request: GenerationRequest, card: ModelCard, findings: _Findings) -> tuple[int, int]:
    limits, step = card.limits, card.size_step_px
    width, height = request.width or card.width, request.height or card.height
    fitting = True
    for name, side in (("width", width), ("height", height)):
        if side % step or not limits.min_side_px <= side <= limits.max_side_px:
            findings.add(
                f"/{name}",
                f"must be a multiple of {step} px, {limits.min_side_px} to {limits.max_side_px} px, "
                f"for the model {card.id}",
            )
            fitting = False
    if fitting and width * height > limits.max_pixels:
        findings.add("/width", f"width × height must be at most {limits.max_pixels} px² for the model {card.id}")
    return width, height


def _strength(request: GenerationRequest, card: ModelCard, task: Task, steps: int, findings: _Findings) -> float | None:
    if task == "text-to-image":
        if request.strength is not None and not findings.refused("/task"):
            findings.add("/strength", "has no place in text-to-image: there is no picture to keep anything of")
        return None
    strength = card.strength if request.strength is None else request.strength
    if steps_run(card.family, steps=steps, strength=strength) < 1:
        least = next(n for n in range(1, 1001) if steps_run(card.family, steps=steps, strength=n / 1000) >= 1) / 1000
        findings.add("/strength", f"must be at least {least:g} for {steps} steps: at least one has to run")
    return strength


def _seed(request: GenerationRequest, num_images: int, findings: _Findings, draw_seed: Callable[[int], int]) -> int:
    highest = SEED_MAX - (num_images - 1)
    if request.seed is None:
        return draw_seed(highest + 1)
    if request.seed > highest:
        findings.add("/seed", f"must be at most {highest} for {num_images} images: image i uses seed + i")
    return request.seed


def _check_steps(card: ModelCard, scheduler: str, steps: int, strength: float | None, findings: _Findings) -> None:
    """Refuse what the sampler cannot do; there is no choice of steps where strength leaves none."""
    allowed = card.step_ranges.get(scheduler)
    if allowed is None or findings.refused("/scheduler") or findings.refused("/strength"):
        return
    most = most_steps(card.family, most=allowed.max_steps, strength=strength)
    if most < allowed.min_steps:
        least = math.ceil(1000 * allowed.min_steps / allowed.max_steps) / 1000
        findings.add("/strength", f"must be at least {least:g} with the scheduler {scheduler}: a step has to be left")
    elif not allowed.min_steps <= steps <= most:
        given = "" if most == allowed.max_steps else f" at strength {strength:g}"
        findings.add(
            "/steps",
            f"must be {allowed.min_steps} to {most} denoising steps with the scheduler {scheduler}{given}, "
            f"for the model {card.id}",
        )


def _check_unused(request: GenerationRequest, card: ModelCard, task: Task, findings: _Findings) -> None:
    """Refuse what would do nothing: a caller who asks for it expects to see it in the picture."""
    asked: Mapping[UnusedField, object] = {
        "negative_prompt": request.negative_prompt,
        "guidance_scale": request.guidance_scale not in (None, card.guidance_scale),
        "guidance_rescale": request.guidance_rescale,
        "eta": request.eta,
        "sigmas": request.sigmas,
    }
    for name in card.unused_fields:
        if asked[name]:
            findings.add(f"/{name}", f"does nothing with the model {card.id}; leave it out")
    if request.guidance_rescale and task in card.tasks and task not in card.rescaled_tasks:
        findings.add("/guidance_rescale", f"does nothing in {task} with the model {card.id}; leave it out")


def _scheduler(request: GenerationRequest, card: ModelCard, task: Task, findings: _Findings) -> str:
    asked = request.scheduler
    name = card.scheduler if asked is None else ALIASES.get(asked, asked)
    if name == OWN_SCHEDULER and name in card.schedulers:
        return name
    if name not in SCHEDULERS:
        titles = {spec.title.lower(): each for each, spec in SCHEDULERS.items()}
        close = titles.get(name.lower())
        hint = f"; did you mean {close}?" if close else nearest(name, [*SCHEDULERS, *ALIASES])
        findings.add("/scheduler", f"is not a scheduler{hint or '; GET /v1/schedulers lists them'}")
    elif name not in card.schedulers and name != card.scheduler:
        findings.add("/scheduler", f"is not offered by the model {card.id}: {', '.join(card.schedulers)}")
    elif task not in SCHEDULERS[name].tasks:
        findings.add("/scheduler", f"does {', '.join(SCHEDULERS[name].tasks)} only; take another for {task}")
    elif (
        request.sigmas is not None
        and request.sigmas not in SCHEDULERS[name].spacings
        and not findings.refused("/scheduler")
    ):
        allowed = ", ".join(SCHEDULERS[name].spacings)
        findings.add("/sigmas", f"the scheduler {name} takes {allowed or 'no choice of spacing'}")
    return name


def _output(request: GenerationRequest, findings: _Findings) -> Output:
    asked = request.output
    if asked is None:
        return Output()
    image_format = asked.format or "png"
    if image_format == "png" and asked.quality is not None:
        findings.add("/output/quality", "has no place in png, which is lossless; ask for jpeg or webp, or leave it out")
    quality = None if image_format == "png" else asked.quality or DEFAULT_QUALITY
    return Output(format=image_format, quality=quality, embed_parameters=bool(asked.embed_parameters))


def _cost(spec: GenerationSpec, card: ModelCard) -> float:
    rows = spec.num_images * (2 if spec.guidance_scale > 1 and card.takes_negative_prompt else 1)
    area = (spec.width * spec.height) / (card.width * card.height)
    return rows * steps_run(card.family, steps=spec.steps, strength=spec.strength) * area
