"""The reference side: diffusers as a user writes it. Nothing of the worker is imported here, and no table of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSDEScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from numpy.typing import NDArray

from tests.fidelity.cases import Case

_UNCLIPPED = {"clip_sample": False, "steps_offset": 1}

#: Name → how a user of diffusers makes it from a pipeline's scheduler config, seed and spacing.
SAMPLERS: dict[str, Callable[[Any, int, dict[str, bool]], Any]] = {
    "ddim": lambda c, _, __: DDIMScheduler.from_config(c, **_UNCLIPPED),
    "ddpm": lambda c, _, __: DDPMScheduler.from_config(c, **_UNCLIPPED),
    "pndm": lambda c, _, __: PNDMScheduler.from_config(c, skip_prk_steps=True, steps_offset=1),
    "lms": lambda c, _, sigmas: LMSDiscreteScheduler.from_config(c, **sigmas),
    "euler": lambda c, _, sigmas: EulerDiscreteScheduler.from_config(c, **sigmas),
    "euler_a": lambda c, _, __: EulerAncestralDiscreteScheduler.from_config(c),
    "heun": lambda c, _, sigmas: HeunDiscreteScheduler.from_config(c, **sigmas),
    "dpm2": lambda c, _, sigmas: KDPM2DiscreteScheduler.from_config(c, **sigmas),
    "dpm2_a": lambda c, _, sigmas: KDPM2AncestralDiscreteScheduler.from_config(c, **sigmas),
    "dpmpp_2m": lambda c, _, sigmas: DPMSolverMultistepScheduler.from_config(c, algorithm_type="dpmsolver++", **sigmas),
    "dpmpp_2m_sde": lambda c, _, sigmas: DPMSolverMultistepScheduler.from_config(
        c, algorithm_type="sde-dpmsolver++", **sigmas
    ),
    "dpmpp_2s": lambda c, _, sigmas: DPMSolverSinglestepScheduler.from_config(c, **sigmas),
    "dpmpp_sde": lambda c, seed, sigmas: DPMSolverSDEScheduler.from_config(c, noise_sampler_seed=seed, **sigmas),
    "unipc": lambda c, _, sigmas: UniPCMultistepScheduler.from_config(c, **sigmas),
    "deis": lambda c, _, sigmas: DEISMultistepScheduler.from_config(c, **sigmas),
    "sa_solver": lambda c, _, sigmas: SASolverScheduler.from_config(c, **sigmas),
    "lcm": lambda c, _, __: LCMScheduler.from_config(c, clip_sample=False),
    "tcd": lambda c, _, __: TCDScheduler.from_config(c, clip_sample=False),
}

#: Samplers whose noise levels can be spaced otherwise.
SPACED = (
    "lms",
    "euler",
    "heun",
    "dpm2",
    "dpm2_a",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_sde",
    "unipc",
    "deis",
    "sa_solver",
)

_CLASSES = {
    (False, "text-to-image"): diffusers.StableDiffusionPipeline,
    (False, "image-to-image"): diffusers.StableDiffusionImg2ImgPipeline,
    (False, "inpaint"): diffusers.StableDiffusionInpaintPipeline,
    (True, "text-to-image"): diffusers.StableDiffusionXLPipeline,
    (True, "image-to-image"): diffusers.StableDiffusionXLImg2ImgPipeline,
    (True, "inpaint"): diffusers.StableDiffusionXLInpaintPipeline,
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """What plain diffusers made of a case."""

    pixels: NDArray[np.uint8]
    latents: torch.Tensor
    #: Denoiser calls made.
    calls: int


class Reference:
    """Plain pipelines over one folder, loaded once per task."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._xl = (folder / "text_encoder_2").is_dir()
        self._pipelines: dict[str, Any] = {}
        self._own: dict[str, Any] = {}

    def draw(self, case: Case) -> Drawn:
        seen: list[torch.Tensor] = []

        def keep(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            seen.append(tensors["latents"].clone())
            return {}

        (picture,) = self._call([case], callback_on_step_end=keep)
        return Drawn(pixels=np.asarray(picture), latents=seen[-1], calls=len(seen))

    def pictures(self, cases: Sequence[Case]) -> torch.Tensor:
        """Return the pictures of one call, (n, 3, height, width) in [0, 1] before they are rounded to pixels.

        The cases differ in prompts, seeds, input pictures and masks only: plain diffusers can share nothing else.
        """
        return self._call(cases, output_type="pt")

    def _call(self, cases: Sequence[Case], **options: Any) -> Any:
        def each(values: list[Any]) -> Any:
            return values if len(values) > 1 else values[0]

        first = cases[0]
        pipeline = self._pipeline(first.task)
        pipeline.scheduler = self._scheduler(first)
        if first.negative_prompt:
            options["negative_prompt"] = each([case.negative_prompt for case in cases])
        if first.guidance_rescale:
            options["guidance_rescale"] = first.guidance_rescale
        if first.task != "text-to-image":
            options |= {"image": each([case.input_picture() for case in cases]), "strength": first.strength}
        if first.task == "inpaint":
            options["mask_image"] = each([case.input_mask() for case in cases])
        if first.task != "image-to-image":
            options |= {"width": first.width, "height": first.height}
        return pipeline(
            prompt=each([case.prompt for case in cases]),
            num_inference_steps=first.steps,
            guidance_scale=first.guidance_scale,
            eta=first.eta,
            generator=each([torch.Generator("cpu").manual_seed(case.seed) for case in cases]),
            **options,
        ).images

    def _pipeline(self, task: str) -> Any:
        if task not in self._pipelines:
            options = {"add_watermarker": False} if self._xl else {}
            pipeline = _CLASSES[self._xl, task].from_pretrained(self._folder, dtype=torch.float32, **options)
            pipeline.set_progress_bar_config(disable=True)
            self._pipelines[task] = pipeline
            self._own[task] = pipeline.scheduler
        return self._pipelines[task]

    def _scheduler(self, case: Case) -> Any:
        """Return a scheduler as a user swaps one in: from the config of the one that the pipeline came with."""
        sigmas = {f"use_{case.sigmas}_sigmas": True} if case.sigmas else {}
        own = self._own[case.task]
        wanted = SAMPLERS[case.scheduler](own.config, case.seed, sigmas)
        same_algorithm = wanted.config.get("algorithm_type") == own.config.get("algorithm_type")
        if type(wanted) is type(own) and same_algorithm and not sigmas and case.scheduler != "dpmpp_sde":
            # A model's own sampler stays as it was loaded.
            return own
        return wanted
