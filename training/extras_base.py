"""What the extras share: the frozen model that they are trained against, and the loss.

An extra is a small file that changes a model without changing its weights. So here only the extra's own parameters
require gradients; the model's are constants that gradients pass through.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from numpy.typing import NDArray

from training import diffusion
from training.denoiser import PROMPT_DROP, token_ids
from training.networks import load_pipeline
from training.pictures import to_tensor
from training.run import Step
from training.subjects import SUBJECTS

#: Every fifth subject, as indices: LoRA and textual inversion never see their drawings, and are judged by them.
UNSEEN = tuple(range(2, len(SUBJECTS), 5))
SEEN = tuple(i for i in range(len(SUBJECTS)) if i not in UNSEEN)
_ENCODED_AT_ONCE = 64

#: Latents zt (n, 4, 16, 16) and timesteps (n,) to the velocity that is predicted, like zt.
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def base_folder(work: Path, base: Path | None) -> Path:
    """Return the pipeline's folder: `base`, or the denoiser trained in `work`."""
    return base or work / "denoiser" / "pipeline"


def frozen_base(work: Path, base: Path | None) -> StableDiffusionPipeline:
    """Return the pipeline that an extra is for, none of its parameters trained."""
    pipeline = load_pipeline(base_folder(work, base))
    for module in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        module.requires_grad_(False).eval()
    return pipeline


@torch.no_grad()
def encoded(vae: AutoencoderKL, pictures: NDArray[np.uint8]) -> torch.Tensor:
    """Return scaled latents (n, 4, 16, 16) of pictures (n, 64, 64, 3)."""
    parts = np.split(pictures, range(_ENCODED_AT_ONCE, len(pictures), _ENCODED_AT_ONCE))
    return torch.cat([vae.encode(to_tensor(part)).latent_dist.mode() for part in parts]) * vae.config.scaling_factor


@torch.no_grad()
def context(pipeline: StableDiffusionPipeline, captions: Sequence[str]) -> torch.Tensor:
    """Return the encoded captions (n, 77, 128)."""
    return pipeline.text_encoder(token_ids(pipeline.tokenizer, list(captions))).last_hidden_state


def dropped(captions: Sequence[str], step: Step, part: float = PROMPT_DROP) -> list[str]:
    """Return the captions with a part of them empty: the prediction without a prompt is of the extra's kind as well."""
    return ["" if step.rng.random() < part else caption for caption in captions]


def denoising_loss(z0: torch.Tensor, step: Step, predict: Predict) -> torch.Tensor:
    """Return the denoiser's own loss (`denoiser.py`) of a prediction that an extra has changed."""
    eps = torch.randn(z0.shape, generator=step.generator)
    t = diffusion.random_timesteps(len(z0), step.generator)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = predict(diffusion.add_noise(z0, eps, t), t)
    error = (predicted.float() - diffusion.velocity(z0, eps, t)).pow(2).mean((1, 2, 3))
    return (diffusion.loss_weight(t) * error).mean()
