"""How long an engine works on a request, by what calls were measured to cost. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from service.contract.catalog import ModelCard
from service.contract.costs import CallCost, CallKind, short_digest
from service.contract.generation import GenerationSpec, Task
from service.contract.steps import denoiser_calls, steps_run

#: Pictures that a task has encoded for each image: inpainting encodes one as it is, and one without what is replaced.
_ENCODED: dict[Task, int] = {"text-to-image": 0, "image-to-image": 1, "inpaint": 2}


def estimate_engine_s(spec: GenerationSpec, card: ModelCard, costs: Iterable[CallCost]) -> float | None:
    """Return the seconds of a device that a request takes; None where its model was never measured.

    It is the request's part of its calls, at the widths that are usual: what `timings.gpu_s` will say, not how long it
    lasts. Sizes that were never measured are taken to cost as the nearest does, by area.
    """
    of_model = [c for c in costs if c.label.model == card.id and c.label.sha256 == short_digest(card)]
    area = spec.width * spec.height
    step_s = _piece_of(of_model, "denoise", area)
    if step_s is None:
        return None
    calls = denoiser_calls(spec.scheduler, run=steps_run(card.family, steps=spec.steps, strength=spec.strength))
    rows = 2 if spec.guidance_scale > 1 and card.takes_negative_prompt else 1
    image_s = calls * rows * step_s
    image_s += encoded_pictures(spec.task) * (_piece_of(of_model, "encode", area) or 0.0)
    image_s += _piece_of(of_model, "decode", area) or 0.0
    return spec.num_images * image_s + (_piece_of(of_model, "prompts", 0) or 0.0)


def encoded_pictures(task: Task) -> int:
    """Return how many pictures a task has encoded for each image."""
    return _ENCODED[task]


def piece_s(of_kind: Sequence[CallCost], area: int) -> float | None:
    """Return what one piece costs by calls of its kind: a row that is denoised, a picture, or one request's prompts.

    `area` in px, 0 for prompts. None where nothing was measured.
    """
    if not of_kind:
        return None
    areas = {_area(cost) for cost in of_kind}
    nearest = min(areas, key=lambda each: abs(math.log(max(1, each) / max(1, area))))
    usual = [cost for cost in of_kind if _area(cost) == nearest]
    seconds = sum(cost.calls * cost.seconds for cost in usual)
    pieces = sum(cost.calls * cost.rows / cost.label.rows_each for cost in usual)
    return seconds / pieces * (area / nearest if nearest else 1.0)


def _piece_of(costs: Sequence[CallCost], kind: CallKind, area: int) -> float | None:
    return piece_s([cost for cost in costs if cost.label.kind == kind], area)


def _area(cost: CallCost) -> int:
    return cost.label.width_px * cost.label.height_px
