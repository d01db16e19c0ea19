"""Pipelines that are not batched: called as a user of diffusers calls them, for one image at a time.

The pipeline is a black box from the prompt to the picture. What is ours of it: the arguments that its signature takes,
a generator of the image's own, and stand-ins for its denoisers, so that whoever holds them decides when each call is
made.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from numpy.typing import NDArray

from service.contract.errors import FailureCode
from service.contract.generation import GenerationSpec
from worker.pipelines.errors import Refusal
from worker.pipelines.loading import LoadedModel, Pipeline
from worker.pipelines.stages import CallDenoiser, Denoiser
from worker.pipelines.whole_folder import takes_number

#: The modules that are called once or more for every step, by their names in pipelines.
_DENOISERS = ("unet", "transformer", "transformer_2", "prior", "decoder", "prior_prior")

#: Called after each step with the number of those done and of all.
OnStep = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One picture of a pipeline."""

    #: (height, width, 3), 0 to 1; other values where the model failed.
    picture: NDArray[np.floating[Any]]
    #: Found unsafe by the pipeline's own checker.
    flagged: bool


def check_supported(model: LoadedModel, spec: GenerationSpec) -> None:
    """Raise `Refusal` for what this model cannot draw, or what would do nothing."""
    card = model.card
    if spec.task not in card.tasks:
        raise _invalid(f"The model {card.id} does not do {spec.task}. It does: {', '.join(card.tasks)}.")
    if spec.scheduler not in card.schedulers:
        raise _invalid(f"The model {card.id} is sampled as its folder says: scheduler {', '.join(card.schedulers)}.")
    if spec.width % card.size_step_px or spec.height % card.size_step_px:
        raise _invalid(f"Width and height must be multiples of {card.size_step_px} px for the model {card.id}.")
    asked = {
        "negative_prompt": spec.negative_prompt,
        "guidance_scale": spec.guidance_scale != card.guidance_scale,
        "guidance_rescale": spec.guidance_rescale,
        "eta": spec.eta,
        "sigmas": spec.sigmas,
    }
    for name in card.unused_fields:
        if asked[name]:
            raise _invalid(f"{name} does nothing with the model {card.id}; leave it out.")


def check_prompts(model: LoadedModel, spec: GenerationSpec) -> None:
    """Raise `Refusal` when a prompt is longer than any of the text encoders reads: the pipeline would cut it."""
    limit = model.card.max_prompt_tokens
    tokenizers = [part for name, part in model.pipeline.components.items() if "tokenizer" in name and part is not None]
    for name, text in (("prompt", spec.prompt), ("negative_prompt", spec.negative_prompt)):
        ids = [each(text, add_special_tokens=False, truncation=False, verbose=False).input_ids for each in tokenizers]
        count = max((len(each) for each in ids), default=0)
        if count > limit:
            message = f"The {name} has {count} tokens; the model {model.card.id} reads at most {limit}. Shorten it."
            raise Refusal(FailureCode.PROMPT_TOO_LONG, message)


def instance(pipeline: DiffusionPipeline, call: CallDenoiser) -> Pipeline:
    """Return the pipeline for one image: its modules, samplers of its own, and every denoiser call through `call`.

    Takes no memory to speak of. Hooks of offloading stay those of the original: they are ended there, after the image.
    """
    made = copy.copy(pipeline)
    parts: dict[str, Any] = {"_all_hooks": []}
    for name, value in vars(pipeline).items():
        if isinstance(value, DiffusionPipeline):
            parts[name] = instance(value, call)
        elif isinstance(value, SchedulerMixin):
            parts[name] = copy.deepcopy(value)
        elif name in _DENOISERS and isinstance(value, torch.nn.Module):
            parts[name] = Denoiser(value, call)
    for name, value in parts.items():
        # Past the pipeline's own attribute hook, which takes nothing but registered modules.
        object.__setattr__(made, name, value)
    return made


def draw(pipeline: Pipeline, spec: GenerationSpec, *, seed: int, on_step: OnStep) -> Drawn:
    """Return one image of the request, equal to that of a plain call with the same arguments.

    `on_step` is called where the pipeline has a callback; it may raise to end the image.
    """
    takes = inspect.signature(type(pipeline).__call__).parameters
    optional = {
        "negative_prompt": spec.negative_prompt or None,
        "guidance_scale": spec.guidance_scale if takes_number(takes, "guidance_scale") else None,
        "num_images_per_prompt": 1,
    }
    result = pipeline(
        prompt=spec.prompt,
        width=spec.width,
        height=spec.height,
        num_inference_steps=spec.steps,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
        **{name: value for name, value in optional.items() if name in takes and value is not None},
        **_callback(takes, spec.steps, on_step),
    )
    flags = getattr(result, "nsfw_content_detected", None) or getattr(result, "nsfw_detected", None) or [False]
    return Drawn(picture=result.images[0], flagged=bool(flags[0]))


def to_pixels(picture: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Return a picture in [0, 1] as height × width × 3 RGB, contiguous; rounded as diffusers rounds it."""
    return np.ascontiguousarray((picture * 255).round().astype("uint8"))


def dtypes_of(pipeline: DiffusionPipeline) -> dict[str, torch.dtype]:
    """Return the number format of every module."""
    found = {name: getattr(part, "dtype", None) for name, part in pipeline.components.items()}
    return {name: dtype for name, dtype in found.items() if isinstance(dtype, torch.dtype)}


def restore_dtypes(pipeline: DiffusionPipeline, dtypes: dict[str, torch.dtype]) -> None:
    """Bring modules back to the number formats that they had.

    Some pipelines cast their autoencoder for a while, and one that is ended meanwhile leaves it cast.
    """
    for name, dtype in dtypes.items():
        module = pipeline.components[name]
        if module.dtype != dtype:
            module.to(dtype=dtype)


def _callback(takes: Any, asked: int, on_step: OnStep) -> dict[str, Any]:
    """Return the arguments by which this pipeline tells of its steps; none where it does not."""
    done = 0

    def step_done(steps: object) -> None:
        nonlocal done
        done += 1
        on_step(done, max(done, steps if isinstance(steps, int) and steps else asked))

    def at_end(pipeline: Pipeline, _step: int, _timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
        step_done(getattr(pipeline, "num_timesteps", asked))
        return {}

    def legacy(_step: int, _timestep: Any, _latents: Any) -> None:
        step_done(asked)

    if "callback_on_step_end" in takes:
        return {"callback_on_step_end": at_end}
    return {"callback": legacy, "callback_steps": 1} if {"callback", "callback_steps"} <= set(takes) else {}


def _invalid(message: str) -> Refusal:
    return Refusal(FailureCode.INVALID_REQUEST, message)
