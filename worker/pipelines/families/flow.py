"""Stable Diffusion 3 and FLUX.1: transformers trained by flow matching, read by prompts through CLIP and T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux_fill import FluxFillPipeline
from diffusers.pipelines.flux.pipeline_flux_img2img import FluxImg2ImgPipeline
from diffusers.pipelines.flux.pipeline_flux_inpaint import FluxInpaintPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_img2img import StableDiffusion3Img2ImgPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_inpaint import StableDiffusion3InpaintPipeline

from service.contract.catalog import UnusedField
from service.contract.generation import Task
from worker.pipelines import schedulers
from worker.pipelines.errors import UnusableModel
from worker.pipelines.families.family import ALL_TASKS, PipelineFamily, Traits
from worker.pipelines.folder import SUPPORTED, ComponentConfig, ModelFolder, VaeConfig

_UNUSED: tuple[UnusedField, ...] = ("guidance_rescale", "eta")
#: Channels of the latents; the stock pipelines for inpainting have the number in their code.
_CHANNELS = 16
#: Sides of the squares of latent pixels that the transformer reads as one token.
_PATCH = 2
#: CLIP's 77 places without start and end mark.
_CLIP_TOKENS = 75
#: Places of T5, of which the end mark takes one. FLUX.1 schnell was trained with the fewer.
_SD3_T5_PLACES = 256
_FLUX_T5_PLACES = 512
_SCHNELL_T5_PLACES = 256
#: Of FLUX, whose configs do not tell; its pipelines have it in their code.
_FLUX_NATIVE_LATENTS = 128


class Sd3TransformerConfig(ComponentConfig):
    """Of SD 3's denoiser."""

    in_channels: int = 16
    sample_size: int = 128
    patch_size: int = 2
    #: Side of the grid of tokens that have a position.
    pos_embed_max_size: int = 96


class FluxTransformerConfig(ComponentConfig):
    """Of FLUX's denoiser."""

    in_channels: int = 64
    guidance_embeds: bool = False


class FlowMatching(PipelineFamily):
    """What both have in common."""

    #: Whether its pipelines shift the noise levels by the picture's size (`mu`) whatever the sampler's config says.
    always_shifts = False

    def own_samplers(self) -> frozenset[str]:
        """See the base class."""
        return frozenset({"flow_euler"})

    def runnable_samplers(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """See the base class."""
        return schedulers.runnable_flows(config, always_shifts=self.always_shifts)

    def timestep_options(self, scheduler: Any, strength: float | None) -> dict[str, Any]:
        """See the base class: any shift makes as many steps as another."""
        del strength
        return {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}

    def unscaled(self, latents: torch.Tensor, vae: Any, task: Task) -> torch.Tensor:
        """See the base class."""
        del task
        return (latents / vae.config.scaling_factor) + vae.config.shift_factor


class StableDiffusion3(FlowMatching):
    """Stable Diffusion 3 and 3.5; T5 may be left out."""

    pipelines: Mapping[Task, type[Any]] = {
        "text-to-image": StableDiffusion3Pipeline,
        "image-to-image": StableDiffusion3Img2ImgPipeline,
        "inpaint": StableDiffusion3InpaintPipeline,
    }
    embeddings = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )

    def tokenizers(self, pipeline: Any) -> list[Any]:
        """See the base class: what T5 reads, CLIP need not, whose part ends at 77 places by design."""
        return [pipeline.tokenizer_3 or pipeline.tokenizer]

    def encode(
        self,
        pipeline: Any,
        prompts: list[str],
        negative_prompts: list[str] | None,
        *,
        guided: bool,
        device: torch.device,
    ) -> Sequence[torch.Tensor | None]:
        """See the base class."""
        return pipeline.encode_prompt(
            prompt=prompts,
            prompt_2=None,
            prompt_3=None,
            device=device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided,
            negative_prompt=negative_prompts,
            max_sequence_length=_SD3_T5_PLACES,
        )

    def unscaled(self, latents: torch.Tensor, vae: Any, task: Task) -> torch.Tensor:
        """See the base class. The pipeline for inpainting of diffusers 0.42 leaves the shift out, and so does this."""
        if task == "inpaint":
            return latents / vae.config.scaling_factor
        return super().unscaled(latents, vae, task)


class Flux(FlowMatching):
    """FLUX.1 dev and schnell: one row per picture, latents packed in squares of four."""

    pipelines: Mapping[Task, type[Any]] = {
        "text-to-image": FluxPipeline,
        "image-to-image": FluxImg2ImgPipeline,
        "inpaint": FluxInpaintPipeline,
    }
    embeddings = ("prompt_embeds", "pooled_prompt_embeds")
    always_shifts = True

    def tokenizers(self, pipeline: Any) -> list[Any]:
        """See the base class: of CLIP the pooled summary alone is used."""
        return [pipeline.tokenizer_2]

    def encode(
        self,
        pipeline: Any,
        prompts: list[str],
        negative_prompts: list[str] | None,
        *,
        guided: bool,
        device: torch.device,
    ) -> Sequence[torch.Tensor | None]:
        """See the base class; there are no negative prompts, and the position ids are the pipeline's to make."""
        del negative_prompts, guided
        embeds, pooled, _ = pipeline.encode_prompt(
            prompt=prompts,
            prompt_2=None,
            device=device,
            num_images_per_prompt=1,
            max_sequence_length=_flux_t5_places(guided=pipeline.transformer.config.guidance_embeds),
        )
        return embeds, pooled

    def unpacked(self, latents: torch.Tensor, pipeline: Any, *, width_px: int, height_px: int) -> torch.Tensor:
        """See the base class; packed they are (n, tokens, 4 × channels)."""
        return pipeline._unpack_latents(latents, height_px, width_px, pipeline.vae_scale_factor)  # noqa: SLF001


class FluxFill(Flux):
    """FLUX.1 Fill: its denoiser also takes the picture around the hole, and the hole."""

    pipelines: Mapping[Task, type[Any]] = {"inpaint": FluxFillPipeline}


def read_stable_diffusion_3(folder: ModelFolder) -> Traits:
    """Return the traits of a folder of Stable Diffusion 3."""
    clip = dict.fromkeys(("text_encoder", "text_encoder_2"), "CLIPTextModelWithProjection")
    folder.require({"transformer": "SD3Transformer2DModel", "vae": "AutoencoderKL"} | clip)
    has_t5 = "text_encoder_3" in folder.components
    if has_t5:
        folder.require({"text_encoder_3": "T5EncoderModel"})
    transformer = folder.config("transformer", Sd3TransformerConfig)
    vae = _vae(folder)
    _check_channels(transformer.in_channels, _CHANNELS)
    step_px = vae.factor * transformer.patch_size
    return Traits(
        family="sd3",
        tasks=ALL_TASKS,
        unused_fields=_UNUSED,
        vae_scale_factor=vae.factor,
        size_step_px=step_px,
        native_width_px=transformer.sample_size * vae.factor,
        native_height_px=transformer.sample_size * vae.factor,
        max_side_px=transformer.pos_embed_max_size * step_px,
        max_prompt_tokens=_SD3_T5_PLACES - 1 if has_t5 else _CLIP_TOKENS,
        steps=28,
        guidance_scale=7.0,
    )


def read_flux(folder: ModelFolder) -> Traits:
    """Return the traits of a folder of FLUX.1: one without guidance embeddings is schnell, made for 4 steps."""
    traits, channels = _read_flux(folder)
    _check_channels(channels, _PATCH**2 * _CHANNELS)
    return traits


def read_flux_fill(folder: ModelFolder) -> Traits:
    """Return the traits of a folder of FLUX.1 Fill."""
    traits, channels = _read_flux(folder)
    # Per token: latents, latents of the picture, and a mask that has a channel for every pixel.
    _check_channels(channels, 2 * _PATCH**2 * _CHANNELS + (_PATCH * traits.vae_scale_factor) ** 2)
    return replace(traits, family="flux_fill", tasks=("inpaint",), steps=50, guidance_scale=30.0, strength=1.0)


def _read_flux(folder: ModelFolder) -> tuple[Traits, int]:
    """Return the traits that every FLUX.1 has, and the channels of a token that its denoiser takes."""
    folder.require(
        {
            "transformer": "FluxTransformer2DModel",
            "vae": "AutoencoderKL",
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "T5EncoderModel",
        }
    )
    transformer = folder.config("transformer", FluxTransformerConfig)
    vae = _vae(folder)
    guided = transformer.guidance_embeds
    traits = Traits(
        family="flux",
        tasks=ALL_TASKS,
        unused_fields=(*_UNUSED, "negative_prompt") if guided else (*_UNUSED, "negative_prompt", "guidance_scale"),
        vae_scale_factor=vae.factor,
        size_step_px=vae.factor * _PATCH,
        native_width_px=_FLUX_NATIVE_LATENTS * vae.factor,
        native_height_px=_FLUX_NATIVE_LATENTS * vae.factor,
        max_prompt_tokens=_flux_t5_places(guided=guided) - 1,
        steps=28 if guided else 4,
        guidance_scale=3.5 if guided else 0.0,
    )
    return traits, transformer.in_channels


def _flux_t5_places(*, guided: bool) -> int:
    return _FLUX_T5_PLACES if guided else _SCHNELL_T5_PLACES


def _check_channels(found: int, expected: int) -> None:
    """Raise `UnusableModel` for a denoiser that was made for another task than its pipeline's."""
    if found != expected:
        raise UnusableModel(f"Its denoiser takes {found} channels, not {expected}. {SUPPORTED}")


def _vae(folder: ModelFolder) -> VaeConfig:
    """Return the autoencoder's config."""
    vae = folder.config("vae", VaeConfig)
    if vae.latent_channels != _CHANNELS:
        raise UnusableModel(f"Its latents have {vae.latent_channels} channels, not {_CHANNELS}. {SUPPORTED}")
    if vae.shift_factor is None:
        raise UnusableModel("vae/config.json: shift_factor is missing.")
    return vae
