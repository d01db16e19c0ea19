"""The card of a model: its abilities, and what the operator made of them in the catalogue."""

from __future__ import annotations

from service.contract.catalog import CatalogEntry, DType, Limits, ModelCard, StepRange
from service.contract.schedulers import ALIASES
from worker.pipelines.capabilities import Capabilities, is_batched
from worker.pipelines.errors import UnusableModel


def make_card(entry: CatalogEntry, abilities: Capabilities, *, dtype: DType, sha256: str) -> ModelCard:
    """Return the card, or raise `UnusableModel` naming the catalogue's field that contradicts the model."""
    asked = entry.defaults
    width = asked.width or abilities.native_width_px
    height = asked.height or abilities.native_height_px
    if width is None or height is None:
        raise UnusableModel("Its configs do not tell its native size. Set defaults.width and defaults.height, in px.")
    limits = _limits(entry.limits, abilities.max_side_px)
    strength = asked.strength if asked.strength is not None else abilities.strength
    guidance = asked.guidance_scale if asked.guidance_scale is not None else abilities.guidance_scale
    scheduler = ALIASES.get(asked.scheduler, asked.scheduler) if asked.scheduler else abilities.scheduler
    _check_size(width, height, limits, abilities.size_step_px)
    if scheduler not in abilities.schedulers:
        raise UnusableModel(f"defaults.scheduler {scheduler}: this model takes {', '.join(abilities.schedulers)}.")
    steps = _steps(asked.steps, scheduler, limits, abilities)
    if not 0 < strength <= 1:
        raise UnusableModel(f"defaults.strength {strength:g}: it lies over 0 and at most at 1.")
    return ModelCard(
        id=entry.id,
        description=entry.description,
        family=abilities.family,
        pool=entry.pool,
        default=entry.default,
        tasks=abilities.tasks,
        size_step_px=abilities.size_step_px,
        width=width,
        height=height,
        steps=steps,
        guidance_scale=guidance,
        scheduler=scheduler,
        schedulers=abilities.schedulers,
        step_ranges=dict(abilities.step_ranges),
        strength=strength,
        limits=limits,
        max_prompt_tokens=abilities.max_prompt_tokens,
        safety_checker=abilities.safety_checker,
        execution="batched" if is_batched(abilities.pipeline_class) and entry.options.offload == "none" else "whole",
        unused_fields=abilities.unused_fields,
        rescaled_tasks=abilities.rescaled_tasks,
        dtype=dtype,
        sha256=sha256,
    )


def _limits(asked: Limits, max_side_px: int | None) -> Limits:
    """Return the operator's limits; none is wider than what the denoiser has positions for."""
    if max_side_px is None or asked.max_side_px <= max_side_px:
        return asked
    return asked.model_copy(update={"max_side_px": max_side_px})


def _steps(asked: int | None, scheduler: str, limits: Limits, abilities: Capabilities) -> int:
    """Return the steps of requests that do not say, which the default sampler must be able to do."""
    allowed = abilities.step_ranges.get(scheduler, StepRange(min_steps=1, max_steps=limits.max_steps))
    steps = asked or min(abilities.steps, limits.max_steps, allowed.max_steps)
    if not 1 <= steps <= limits.max_steps:
        raise UnusableModel(f"defaults.steps {steps}: limits.max_steps allows 1 to {limits.max_steps}.")
    if not allowed.min_steps <= steps <= allowed.max_steps:
        does = f"{allowed.min_steps} to {allowed.max_steps}"
        raise UnusableModel(f"defaults.steps {steps}: the scheduler {scheduler} does {does} with this model.")
    return steps


def _check_size(width_px: int, height_px: int, limits: Limits, step_px: int) -> None:
    for name, side in (("width", width_px), ("height", height_px)):
        if side % step_px:
            raise UnusableModel(f"defaults.{name} {side} px is no multiple of the model's step of {step_px} px.")
        if not limits.min_side_px <= side <= limits.max_side_px:
            allowed = f"{limits.min_side_px} to {limits.max_side_px} px"
            raise UnusableModel(f"The default {name} of {side} px is outside limits of {allowed}.")
    if width_px * height_px > limits.max_pixels:
        raise UnusableModel(f"The default size {width_px}×{height_px} px is over limits.max_pixels.")
