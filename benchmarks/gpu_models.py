"""Full-size models with random weights, made where they run: nothing is downloaded, nothing is read from a disk.

The time of a step does not depend on the weights. The tokenizer is the boxed model's, a small part of CLIP's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import worker
from service.contract.catalog import CatalogEntry, DType, EngineOptions, Limits, ModelCard
from worker.pipelines.loading import LoadedModel
from worker.pipelines.options import check_options

_TOKENIZER = Path(worker.__path__[0]) / "models" / "tiny-emoji" / "tokenizer"

_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
_SD15_UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
_SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
#: Width, layers and heads of CLIP-L and of OpenCLIP's bigG.
_CLIP_L, _CLIP_G = (768, 12, 12), (1280, 32, 20)


def build(name: str, device: torch.device, *, tiny: bool) -> LoadedModel:
    """Return Stable Diffusion 1.5 (`sd15`) or XL (`sdxl`); `tiny`: of the same structure, for a trial on a CPU."""
    xl = name == "sdxl"
    dtype: DType = "float32" if tiny else "bfloat16"
    torch.manual_seed(0)
    with device:
        modules = _modules(xl, tiny)
    for module in modules.values():
        module.to(dtype=getattr(torch, dtype)).eval()
    tokenizers = {f"tokenizer{suffix}": _tokenizer() for suffix in ("", "_2")[: 1 + xl]}
    scheduler = EulerDiscreteScheduler(**_SCHEDULE)
    parts = {**modules, **tokenizers, "scheduler": scheduler}
    pipeline = (
        StableDiffusionXLPipeline(**parts, add_watermarker=False)
        if xl
        else StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    )
    pipeline.set_progress_bar_config(disable=True)
    size_px = 64 if tiny else 1024 if xl else 512
    return LoadedModel(
        entry=CatalogEntry(id=name, source=name),
        card=_card(name, size_px, dtype),
        pipeline=pipeline,
        scheduler=scheduler,
        device=device,
        dtype=getattr(torch, dtype),
    )


def with_options(model: LoadedModel, **options: Any) -> LoadedModel:
    """Return the same modules under other options; raises `UnusableModel` for those that this device cannot have."""
    chosen = EngineOptions.model_validate(options)
    check_options(chosen, model.device)
    form = torch.channels_last if chosen.channels_last else torch.contiguous_format
    for module in (model.pipeline.unet, model.pipeline.vae):
        module.to(memory_format=form)
    return replace(model, entry=model.entry.model_copy(update={"options": chosen}), kept={})


def _modules(xl: bool, tiny: bool) -> dict[str, torch.nn.Module]:
    width, levels = (32, 32) if tiny else (768, 128)
    unet = _tiny_unet(xl) if tiny else _SDXL_UNET if xl else _SD15_UNET
    vae = AutoencoderKL(
        block_out_channels=(levels, 2 * levels, 4 * levels, 4 * levels),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.13025 if xl else 0.18215,
        force_upcast=False,
    )
    # An untrained decoder's pictures are nearly black, which the engine would take for a fault.
    vae.decoder.conv_out.bias.data.fill_(0.5)
    modules: dict[str, torch.nn.Module] = {"unet": UNet2DConditionModel(**unet), "vae": vae}
    modules["text_encoder"] = CLIPTextModel(_text_config((width, 2, 2) if tiny else _CLIP_L))
    if xl:
        modules["text_encoder_2"] = CLIPTextModelWithProjection(_text_config((width, 2, 2) if tiny else _CLIP_G))
    return modules


def _tiny_unet(xl: bool) -> dict[str, Any]:
    unet: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 64 if xl else 32,
        "attention_head_dim": 4,
    }
    if xl:
        unet |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 8 * 6 + 32,
        }
    return unet


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(_TOKENIZER, model_max_length=77)


def _text_config(size: tuple[int, int, int]) -> CLIPTextConfig:
    width, layers, heads = size
    tokenizer = _tokenizer()
    return CLIPTextConfig(
        vocab_size=max(49_408, len(tokenizer)),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=77,
        projection_dim=width,
    )


def _card(name: str, size_px: int, dtype: DType) -> ModelCard:
    return ModelCard(
        id=name,
        family="sdxl" if name == "sdxl" else "sd1",
        pool="default",
        tasks=("text-to-image",),
        size_step_px=8,
        width=size_px,
        height=size_px,
        steps=30,
        guidance_scale=5.0,
        scheduler="euler",
        schedulers=("euler",),
        limits=Limits(),
        dtype=dtype,
        sha256="0" * 64,
    )
