"""The reference side: diffusers as a user writes it. Nothing of the worker is imported here, and no table of ours."""

from __future__ import annotations

import json
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
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
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

_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

#: The same for models trained by flow matching.
FLOW_SAMPLERS: dict[str, Callable[[Any, int, dict[str, bool]], Any]] = {
    "flow_euler": lambda c, _, sigmas: FlowMatchEulerDiscreteScheduler.from_config(c, **sigmas),
    "flow_heun": lambda c, _, __: FlowMatchHeunDiscreteScheduler.from_config(c),
    "flow_dpmpp_2m": lambda c, _, __: DPMSolverMultistepScheduler.from_config(c, flow_shift=c["shift"], **_FLOW),
    "flow_unipc": lambda c, _, __: UniPCMultistepScheduler.from_config(c, flow_shift=c["shift"], **_FLOW),
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

#: Families by the beginning of the class names of their pipelines, the longest first.
_SD, _LCM, _XL = "StableDiffusion", "LatentConsistencyModel", "StableDiffusionXL"
_SD3, _FLUX, _FILL = "StableDiffusion3", "Flux", "FluxFill"
_KINDS = (_XL, _SD3, _SD, _LCM, _FILL, _FLUX)
_TASKS = {"text-to-image": "", "image-to-image": "Img2Img", "inpaint": "Inpaint"}


@dataclass(frozen=True, slots=True)
class Drawn:
    """What plain diffusers made of a case."""

    pixels: NDArray[np.uint8]
    latents: torch.Tensor
    #: Denoiser calls made.
    calls: int


class Reference:
    """Plain pipelines over one folder, loaded once per task."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32, *, channels_last: bool = False) -> None:
        """`channels_last`: as diffusers' guides arrange the denoiser and the autoencoder for speed."""
        self._folder = folder
        self._dtype = dtype
        self._channels_last = channels_last
        class_name = json.loads((folder / "model_index.json").read_text())["_class_name"]
        self._kind = next(kind for kind in _KINDS if class_name.startswith(kind))
        self._pipelines: dict[str, Any] = {}
        self._own: dict[str, Any] = {}

    def draw(self, case: Case) -> Drawn:
        seen: list[torch.Tensor] = []

        def keep(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            seen.append(tensors["latents"].clone())
            return {}

        (picture,) = self._call([case], callback_on_step_end=keep)
        latents = seen[-1]
        if self._kind in (_FLUX, _FILL):
            pipeline = self._pipelines[case.task]
            latents = pipeline._unpack_latents(latents, case.height, case.width, pipeline.vae_scale_factor)
        return Drawn(pixels=np.asarray(picture), latents=latents, calls=len(seen))

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
        if first.negative_prompt and self._kind not in (_LCM, _FLUX, _FILL):
            options["negative_prompt"] = each([case.negative_prompt for case in cases])
        if first.guidance_rescale:
            options["guidance_rescale"] = first.guidance_rescale
        if first.task != "text-to-image":
            options |= {"image": each([case.input_picture() for case in cases]), "strength": first.strength}
        if first.task == "inpaint":
            options["mask_image"] = each([case.input_mask() for case in cases])
        if first.task != "image-to-image" or self._kind in (_SD3, _FLUX):
            options |= {"width": first.width, "height": first.height}
        if self._kind in (_SD, _XL):
            options["eta"] = first.eta
        if self._kind == _FLUX and not pipeline.transformer.config.guidance_embeds:
            options["max_sequence_length"] = 256  # as the card of schnell says
        return pipeline(
            prompt=each([case.prompt for case in cases]),
            num_inference_steps=first.steps,
            guidance_scale=first.guidance_scale,
            generator=each([torch.Generator("cpu").manual_seed(case.seed) for case in cases]),
            **options,
        ).images

    def _pipeline(self, task: str) -> Any:
        if task not in self._pipelines:
            options: dict[str, Any] = {"add_watermarker": False} if self._kind == _XL else {}
            if self._kind == _SD3 and not (self._folder / "text_encoder_3").is_dir():
                options |= {"text_encoder_3": None, "tokenizer_3": None}
            kind = getattr(diffusers, f"{self._kind}{_TASKS[task] if self._kind != _FILL else ''}Pipeline")
            pipeline = kind.from_pretrained(self._folder, dtype=self._dtype, **options)
            pipeline.set_progress_bar_config(disable=True)
            if self._channels_last:
                pipeline.unet.to(memory_format=torch.channels_last)
                pipeline.vae.to(memory_format=torch.channels_last)
            self._pipelines[task] = pipeline
            self._own[task] = pipeline.scheduler
        return self._pipelines[task]

    def _scheduler(self, case: Case) -> Any:
        """Return a scheduler as a user swaps one in: from the config of the one that the pipeline came with."""
        sigmas = {f"use_{case.sigmas}_sigmas": True} if case.sigmas else {}
        own = self._own[case.task]
        wanted = (SAMPLERS | FLOW_SAMPLERS)[case.scheduler](own.config, case.seed, sigmas)
        same_algorithm = wanted.config.get("algorithm_type") == own.config.get("algorithm_type")
        if type(wanted) is type(own) and same_algorithm and not sigmas and case.scheduler != "dpmpp_sde":
            # A model's own sampler stays as it was loaded.
            return own
        return wanted
