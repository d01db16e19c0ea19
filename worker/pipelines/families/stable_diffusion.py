"""Stable Diffusion 1.x, 2.x and XL, and latent consistency models: a U-Net, read by prompts through CLIP."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_img2img import (
    LatentConsistencyModelImg2ImgPipeline,
)
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import (
    LatentConsistencyModelPipeline,
)
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

from service.contract.catalog import Family, UnusedField
from service.contract.generation import Task
from worker.pipelines.errors import UnusableModel
from worker.pipelines.families.family import ALL_TASKS, PipelineFamily, Traits
from worker.pipelines.folder import SUPPORTED, ComponentConfig, ModelFolder, VaeConfig

#: diffusers checks prompts-only sizes against 8 px whatever the autoencoder; the others against its factor.
_DIFFUSERS_STEP_PX = 8

#: The start and end marks take two places of the text encoder.
_MARKS = 2

#: Sizes and conditions of SDXL that its pipelines derive from the request by themselves are left to them.
_XL_OPTIONS = ("force_zeros_for_empty_prompt", "requires_aesthetics_score")

_COMPONENTS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}

_SIZED: frozenset[Task] = frozenset({"text-to-image", "inpaint"})


class UNetConfig(ComponentConfig):
    """Of a denoiser."""

    in_channels: int = 4
    out_channels: int = 4
    sample_size: int | tuple[int, int]
    #: Width of the embedding of its guidance scale, where that is an input.
    time_cond_proj_dim: int | None = None
    diffusers_version: str = "0.42.1"


class TextEncoderConfig(ComponentConfig):
    """Of a CLIP text encoder."""

    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"


class StableDiffusion(PipelineFamily):
    """Stable Diffusion 1.x and 2.x."""

    pipelines: Mapping[Task, type[Any]] = {
        "text-to-image": StableDiffusionPipeline,
        "image-to-image": StableDiffusionImg2ImgPipeline,
        "inpaint": StableDiffusionInpaintPipeline,
    }
    rescaled_tasks: frozenset[Task] = frozenset({"text-to-image"})
    takes_eta = True
    sized_tasks = _SIZED

    def constructor_options(self, config: Mapping[str, Any], task: Task) -> dict[str, Any]:
        """See the base class."""
        del config, task
        return {"requires_safety_checker": False}

    def unscaled(self, latents: torch.Tensor, vae: Any, task: Task) -> torch.Tensor:
        """See the base class."""
        del task
        return latents / vae.config.scaling_factor


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL and its refiner."""

    pipelines: Mapping[Task, type[Any]] = {
        "text-to-image": StableDiffusionXLPipeline,
        "image-to-image": StableDiffusionXLImg2ImgPipeline,
        "inpaint": StableDiffusionXLInpaintPipeline,
    }
    embeddings = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    rescaled_tasks = frozenset(ALL_TASKS)
    loading_options: Mapping[str, Any] = {"add_watermarker": False}

    def constructor_options(self, config: Mapping[str, Any], task: Task) -> dict[str, Any]:
        """See the base class."""
        taken = _XL_OPTIONS[:1] if task == "text-to-image" else _XL_OPTIONS
        return {"add_watermarker": False} | {name: config[name] for name in taken if name in config}

    def decodes_in_float32(self, vae: Any) -> bool:
        """See the base class: where its config says that float16 overflows."""
        return vae.dtype == torch.float16 and bool(vae.config.force_upcast)

    def unscaled(self, latents: torch.Tensor, vae: Any, task: Task) -> torch.Tensor:
        """See the base class."""
        mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
        if mean is None or std is None:
            return super().unscaled(latents, vae, task)
        mean, std = (torch.tensor(v).view(1, 4, 1, 1).to(latents.device, latents.dtype) for v in (mean, std))
        return latents * std / vae.config.scaling_factor + mean


class LatentConsistency(StableDiffusion):
    """Latent consistency models with the pipelines of their own: guidance is an input of the U-Net."""

    pipelines: Mapping[Task, type[Any]] = {
        "text-to-image": LatentConsistencyModelPipeline,
        "image-to-image": LatentConsistencyModelImg2ImgPipeline,
    }
    rescaled_tasks: frozenset[Task] = frozenset()
    takes_eta = False

    def own_samplers(self) -> frozenset[str]:
        """See the base class: the pipeline takes its picture from what this sampler alone returns."""
        return frozenset({"lcm"})

    def runnable_samplers(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """See the base class."""
        del config
        return ("lcm",)

    def timestep_options(self, scheduler: Any, strength: float | None) -> dict[str, Any]:
        """See the base class: strength chooses among the steps of the distillation, not among those asked for."""
        del scheduler
        return {} if strength is None else {"strength": strength}


def read_stable_diffusion(folder: ModelFolder) -> Traits:
    """Return the traits of a folder of Stable Diffusion 1.x or 2.x."""
    return _read(folder, _older_family(folder), guidance_scale=7.5)


def read_stable_diffusion_xl(folder: ModelFolder) -> Traits:
    """Return the traits of a folder of Stable Diffusion XL."""
    return _read(folder, "sdxl", guidance_scale=5.0)


def read_latent_consistency(folder: ModelFolder) -> Traits:
    """Return the traits of a folder of a latent consistency model."""
    folder.require(_COMPONENTS)
    unet = folder.config("unet", UNetConfig)
    if unet.time_cond_proj_dim is None or unet.in_channels != 4:
        found = f"{unet.in_channels} input channels and time_cond_proj_dim {unet.time_cond_proj_dim}"
        raise UnusableModel(f"Its denoiser has {found}; pipelines of latent consistency take 4 channels and a number.")
    unused: tuple[UnusedField, ...] = ("negative_prompt", "guidance_rescale", "eta")
    traits = _read(folder, "lcm", guidance_scale=8.5)
    return replace(traits, tasks=("text-to-image", "image-to-image"), steps=4, unused_fields=unused)


def _read(folder: ModelFolder, family: Family, *, guidance_scale: float) -> Traits:
    folder.require(_COMPONENTS)
    encoders = _text_encoders(folder)
    unet, vae = folder.config("unet", UNetConfig), folder.config("vae", VaeConfig)
    height, width = _native_latents(unet)
    return Traits(
        family=family,
        tasks=_tasks(unet, vae, refiner=folder.index.get("requires_aesthetics_score") is True),
        unused_fields=() if unet.time_cond_proj_dim is None else ("negative_prompt",),
        vae_scale_factor=vae.factor,
        size_step_px=math.lcm(vae.factor, _DIFFUSERS_STEP_PX),
        native_width_px=width * vae.factor,
        native_height_px=height * vae.factor,
        max_prompt_tokens=min(encoder.max_position_embeddings for encoder in encoders) - _MARKS,
        guidance_scale=guidance_scale,
    )


def _older_family(folder: ModelFolder) -> Family:
    """Tell SD 2.x by its text encoder, OpenCLIP's, which is exact GELU; OpenAI's is not, in whatever size."""
    return "sd2" if _text_encoders(folder)[0].hidden_act == "gelu" else "sd1"


def _text_encoders(folder: ModelFolder) -> list[TextEncoderConfig]:
    names = {name: kind for name, kind in sorted(folder.components.items()) if "text_encoder" in name}
    for name, class_name in names.items():
        if not class_name.startswith("CLIPTextModel"):
            raise UnusableModel(f"The {name} is {class_name}, not a CLIPTextModel. {SUPPORTED}")
    if not names:
        raise UnusableModel(f"model_index.json names no text encoder. {SUPPORTED}")
    return [folder.config(name, TextEncoderConfig) for name in names]


def _tasks(unet: UNetConfig, vae: VaeConfig, *, refiner: bool) -> tuple[Task, ...]:
    if vae.latent_channels != 4 or unet.out_channels != 4:
        raise UnusableModel(f"Its latents have {vae.latent_channels} channels, not 4. {SUPPORTED}")
    if unet.in_channels == 9:
        return ("inpaint",)
    if unet.in_channels == 4:
        return ("image-to-image", "inpaint") if refiner else ALL_TASKS
    raise UnusableModel(f"Its denoiser takes {unet.in_channels} channels. {SUPPORTED}")


def _native_latents(unet: UNetConfig) -> tuple[int, int]:
    """Return height and width of the latents that the model was made for."""
    size = unet.sample_size
    if not isinstance(size, int):
        return size
    # Configs from before 0.9 carry the size of an early training stage; diffusers corrects them in the same way.
    version = tuple(int(part) for part in re.findall(r"\d+", unet.diffusers_version)[:2])
    if version < (0, 9) and size < 64:
        size = 64
    return size, size
