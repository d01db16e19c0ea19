"""Tiny models of pipelines that are not batched, each of another way to tell of its steps; see `tests.models`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    LDMTextToImagePipeline,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPAGPipeline,
)
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

from tests import models

#: Side of the pictures that `pixart` was made for, px: no smaller one is known to its pipeline's table of sizes.
PIXART_SIDE_PX = 256


@cache
def exotic_model(name: str) -> Path:
    """Return the folder of the tiny model of that name, built once per test process and erased at its end."""
    path = models._session_folder() / name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = BUILDERS[name]()
    pipeline.save_pretrained(path)
    return path


def _pixart() -> PixArtAlphaPipeline:
    """PixArt-α: a transformer that T5 speaks to; a callback of the old kind."""
    tokenizer, encoder = models.t5_tokenizer(), models.t5_encoder()
    transformer = PixArtTransformer2DModel(
        sample_size=32,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        use_additional_conditions=False,
    )
    # Untrained it hardly listens to its prompt.
    transformer.proj_out.weight.data.mul_(20.0)
    return PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder.eval(),
        vae=models._vae(),
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )


def _pag() -> StableDiffusionPAGPipeline:
    """Stable Diffusion with perturbed attention: the modules of SD 1.5, a third row, a callback of today's kind."""
    parts = models.BUILDERS["sd15"]().components | {"image_encoder": None}
    parts["scheduler"] = DDIMScheduler.from_config(parts["scheduler"].config, clip_sample=False)
    return StableDiffusionPAGPipeline(**parts, requires_safety_checker=False)


def _ldm() -> LDMTextToImagePipeline:
    """The first latent diffusion model: no callback, no negative prompt."""
    parts: dict[str, Any] = models.BUILDERS["sd15"]().components
    config = LDMBertConfig(
        vocab_size=len(parts["tokenizer"]),
        encoder_layers=2,
        encoder_ffn_dim=37,
        encoder_attention_heads=4,
        d_model=32,
        max_position_embeddings=77,
    )
    return LDMTextToImagePipeline(
        vqvae=models._vae(),
        bert=LDMBertModel(config).eval(),
        tokenizer=parts["tokenizer"],
        unet=parts["unet"],
        scheduler=DDIMScheduler.from_config(parts["scheduler"].config, clip_sample=False),
    )


BUILDERS: dict[str, Callable[[], Any]] = {"pixart": _pixart, "pag": _pag, "ldm": _ldm}
