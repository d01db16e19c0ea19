"""A pipeline of the model's shape but tiny and untrained, in a folder, and drawings to train its extras on."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTokenizer

from tests.models import BOXED_MODEL
from tests.unit.training import patterns
from training.networks import CONTEXT_WIDTH, assemble, new_text_encoder
from training.run import Recipe

#: A rate at which a few steps leave a mark.
RECIPE = Recipe(steps=3, batch=4, learning_rate=1e-2, warmup=1, ema_decay=0.5)


def save_pipeline(folder: Path) -> Path:
    """Write the pipeline into `folder` and return it."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(BOXED_MODEL / "tokenizer")
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=64,
        mid_block_add_attention=False,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=CONTEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    assemble(vae, new_text_encoder(tokenizer), tokenizer, unet).save_pretrained(folder)
    return folder


def prepare(work: Path) -> Path:
    """Write drawings and a pipeline to train extras with into `work` and return the pipeline's folder."""
    patterns.write(work)
    return save_pipeline(work / "denoiser" / "pipeline")
