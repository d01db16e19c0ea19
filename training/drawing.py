"""Pictures drawn by a pipeline for a list of prompts, as the training stages and the evaluation need them."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from tqdm import tqdm

STEPS = 25
GUIDANCE_SCALE = 4.0
_BATCH = 20


def draw(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    *,
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """Return one picture a prompt, uint8 (n, 64, 64, 3); picture i starts from the noise of seed + i."""
    pictures = []
    with tqdm(total=len(prompts), desc="drawing", unit="picture", leave=False, disable=len(prompts) <= _BATCH) as bar:
        for first in range(0, len(prompts), _BATCH):
            part = list(prompts[first : first + _BATCH])
            noise = [torch.Generator().manual_seed(seed + first + i) for i in range(len(part))]
            drawn = pipeline(
                part, num_inference_steps=steps, guidance_scale=guidance_scale, generator=noise, output_type="np"
            ).images
            pictures.append((drawn * 255).round().astype(np.uint8))
            bar.update(len(part))
    return np.concatenate(pictures)
