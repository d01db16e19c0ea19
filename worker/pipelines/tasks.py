"""From a request to the diffusers pipeline that draws it, and the arguments of its call."""

from __future__ import annotations

import copy
from typing import Any

import PIL.Image
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint import (
    StableDiffusionXLInpaintPipeline,
)

from service.contract.errors import FailureCode
from service.contract.generation import GenerationSpec, Task
from worker.pipelines import schedulers
from worker.pipelines.errors import Refusal
from worker.pipelines.loading import LoadedModel, Pipeline

_CLASSES: dict[tuple[bool, Task], type[Any]] = {
    (False, "text-to-image"): StableDiffusionPipeline,
    (False, "image-to-image"): StableDiffusionImg2ImgPipeline,
    (False, "inpaint"): StableDiffusionInpaintPipeline,
    (True, "text-to-image"): StableDiffusionXLPipeline,
    (True, "image-to-image"): StableDiffusionXLImg2ImgPipeline,
    (True, "inpaint"): StableDiffusionXLInpaintPipeline,
}

#: Sizes and conditions of SDXL that its pipelines derive from the request by themselves are left to them.
_XL_OPTIONS = ("force_zeros_for_empty_prompt", "requires_aesthetics_score")


def is_xl(model: LoadedModel) -> bool:
    """Return whether the model is of the XL family, with two text encoders and its own conditioning."""
    return model.card.family == "sdxl"


def task_pipeline(model: LoadedModel, spec: GenerationSpec, *, seed: int) -> Pipeline:
    """Return a pipeline for one image: the task's class over the model's shared modules, with a fresh scheduler.

    Takes under a millisecond and no memory. The constructor is used because `from_pipe` casts shared bfloat16 modules
    to float32. The scheduler is set afterwards, as a user of diffusers does: some constructors correct the config of
    the scheduler they are given, and must see the model's own.
    """
    config = model.pipeline.config
    options: dict[str, Any] = {"requires_safety_checker": False}
    if is_xl(model):
        taken = _XL_OPTIONS[:1] if spec.task == "text-to-image" else _XL_OPTIONS
        options = {"add_watermarker": False} | {name: config[name] for name in taken if name in config}
    components = {**model.pipeline.components, "scheduler": copy.deepcopy(model.scheduler)}
    pipeline = _CLASSES[is_xl(model), spec.task](**components, **options)
    pipeline.scheduler = _fresh_sampler(model, pipeline, spec, seed)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _fresh_sampler(model: LoadedModel, pipeline: Pipeline, spec: GenerationSpec, seed: int) -> schedulers.Scheduler:
    """Return an unused sampler. Making one takes up to 0.3 s (DPM2), copying one that was made 0.3 ms."""
    key = (type(pipeline).__name__, spec.scheduler, spec.sigmas)
    made = model.samplers.get(key)
    if made is None:
        made = schedulers.build(spec.scheduler, pipeline.scheduler, sigmas=spec.sigmas, seed=seed)
        if schedulers.takes_seed(spec.scheduler):
            return made
        model.samplers[key] = made
    return copy.deepcopy(made)


def check_supported(model: LoadedModel, spec: GenerationSpec) -> None:
    """Raise `Refusal` for what this model cannot draw at all."""
    card = model.card
    if spec.task not in card.tasks:
        raise _invalid(f"The model {card.id} does not do {spec.task}. It does: {', '.join(card.tasks)}.")
    if spec.scheduler not in card.schedulers:
        raise _invalid(f"The model {card.id} cannot be sampled with this scheduler. Take one of its card's.")
    if spec.width % card.size_step_px or spec.height % card.size_step_px:
        raise _invalid(f"Width and height must be multiples of {card.size_step_px} px for the model {card.id}.")
    if spec.task != "text-to-image" and spec.strength is None:
        raise _invalid(f"{spec.task} needs a strength.")
    if spec.guidance_rescale > 0 and not _takes_guidance_rescale(model, spec.task):
        raise _invalid(f"guidance_rescale does nothing in {spec.task} with this model's family; leave it at 0.")
    schedulers.check_spacing(spec.scheduler, spec.sigmas)


def count_calls(model: LoadedModel, spec: GenerationSpec) -> int:
    """Return how many denoiser calls one image of the request takes; raises `Refusal` where there would be none."""
    scheduler = task_pipeline(model, spec, seed=spec.seed).scheduler
    return schedulers.count_calls(scheduler, steps=spec.steps, strength=spec.strength)


def call_arguments(
    model: LoadedModel, spec: GenerationSpec, image: PIL.Image.Image | None, mask: PIL.Image.Image | None
) -> dict[str, Any]:
    """Return the arguments of the pipeline's call that the task decides, prompts and generator aside.

    Pictures have the asked size already, so that preprocessing is diffusers' own and resizes nothing.
    """
    arguments: dict[str, Any] = {
        "num_inference_steps": spec.steps,
        "guidance_scale": spec.guidance_scale,
        "eta": spec.eta,
    }
    if _takes_guidance_rescale(model, spec.task):
        arguments["guidance_rescale"] = spec.guidance_rescale
    if spec.task != "image-to-image":
        arguments |= {"width": spec.width, "height": spec.height}
    if spec.task != "text-to-image":
        arguments |= {"image": image, "strength": spec.strength}
    if spec.task == "inpaint":
        arguments["mask_image"] = mask
    return arguments


def _takes_guidance_rescale(model: LoadedModel, task: Task) -> bool:
    return is_xl(model) or task == "text-to-image"


def _invalid(message: str) -> Refusal:
    return Refusal(FailureCode.INVALID_REQUEST, message)
