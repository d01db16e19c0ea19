"""The autoencoder: pictures to latents a sixteenth in size (4 × 16 × 16 for 3 × 64 × 64) and back.

As in Rombach et al. 2022, without the discriminator: at 64 px a reconstruction loss that looks at edges is sharp
enough. Two things are of this model's own. The first three latent channels are pulled towards the picture's 4 × 4
averages, so that latents stay smooth, which makes them easy to denoise, and show a preview by themselves. And the
posterior starts narrow (`networks.start_narrow`): the KL term is there to keep it from collapsing, not to make latents
normal; their scale is set to unit variance at the end (`scaling_factor`), which is what the noise schedule counts on.
"""

import functools
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch.nn import functional

from training import drawings, run
from training.captions import BACKGROUNDS, PLAIN
from training.drawings import Drawings
from training.networks import DOWNSAMPLING, new_autoencoder, start_narrow
from training.pictures import on_background, to_tensor
from training.run import Modules, Recipe, Step
from training.shapes import random_shape

RECIPE = Recipe(steps=5000, batch=16, learning_rate=2e-3, weight_decay=1e-4, betas=(0.9, 0.99), ema_decay=0.997)
#: Every twelfth drawing that is of no subject is kept for measuring.
_HELD_OUT_EVERY = 12
_EDGE_WEIGHT = 0.5
_KL_WEIGHT = 5e-4
_ANCHOR_WEIGHT = (0.5, 0.15)


def train(work: Path, recipe: Recipe = RECIPE, start: Path | None = None) -> None:
    """Train the autoencoder into `work`/autoencoder, from `start` (a folder of weights) or from nothing."""
    rendered = drawings.load(work)
    torch.manual_seed(recipe.seed)
    vae = new_autoencoder()
    if start is not None:
        vae = AutoencoderKL.from_pretrained(start)
        start_narrow(vae)
    loss = functools.partial(_loss, vae.train(), _Pictures(rendered))
    run.train("autoencoder", work / "autoencoder", recipe, {"vae": vae}, loss, functools.partial(_save, work, rendered))


def held_out(rendered: Drawings) -> torch.Tensor:
    """Return drawings that no stage trains on, on mixed backgrounds: (n, 3, 64, 64)."""
    rng = random.Random(1)
    colours = list(BACKGROUNDS.values())
    chosen = rendered.others().rgba[_HELD_OUT_EVERY // 2 :: _HELD_OUT_EVERY]
    flat = chosen.reshape(-1, *chosen.shape[2:])
    return to_tensor(np.stack([on_background(rgba, rng.choice(colours)) for rgba in flat]))


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, pictures: torch.Tensor) -> float:
    """Return the mean peak signal-to-noise ratio of decoding what was encoded, dB."""
    decoded = torch.cat([vae.decode(vae.encode(x).latent_dist.mode()).sample for x in pictures.split(32)])
    error = (decoded.clamp(-1, 1) - pictures).pow(2).flatten(1).mean(1)
    return float((10 * torch.log10(4 / error)).mean())


def _loss(vae: AutoencoderKL, pictures: "_Pictures", step: Step) -> torch.Tensor:
    x = to_tensor(np.stack([pictures.draw(step.rng) for _ in range(step.batch)]))
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(x).latent_dist
        eps = torch.randn(posterior.mean.shape, generator=step.generator)
        error = vae.decode(posterior.mean + posterior.std * eps).sample.float() - x
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    off_average = (mean[:, :3] - functional.avg_pool2d(x, DOWNSAMPLING)).abs().mean()
    first, last = _ANCHOR_WEIGHT
    anchor = max(first - step.fraction, last)
    return error.abs().mean() + error.pow(2).mean() + _EDGE_WEIGHT * edges + _KL_WEIGHT * kl + anchor * off_average


class _Pictures:
    """Every kind of picture that the model will be asked to encode."""

    def __init__(self, rendered: Drawings) -> None:
        others = rendered.others()
        kept = [i for i in range(len(others.labels)) if i % _HELD_OUT_EVERY != _HELD_OUT_EVERY // 2]
        subjects = rendered.of_subjects()
        # Subjects count double: they are what will be drawn.
        self._coloured = np.concatenate([subjects.rgba, subjects.rgba, others.take(kept).rgba])
        self._ink = subjects.ink

    def draw(self, rng: random.Random) -> NDArray[np.uint8]:
        """Return one picture, uint8 (64, 64, 3)."""
        if rng.random() < 0.2:
            return random_shape(rng).draw()
        if rng.random() < 0.1:
            rgba = rng.choice(self._ink)
        else:
            rgba = rng.choice(self._coloured)[rng.randrange(len(drawings.STYLES))]
        if rng.random() < 0.5:
            rgba = rgba[:, ::-1]
        shift = rng.randint(-drawings.MARGIN, drawings.MARGIN), rng.randint(-drawings.MARGIN, drawings.MARGIN)
        return on_background(np.roll(rgba, shift, (0, 1)), _any_background(rng))  # the margin is empty: a shift


def _any_background(rng: random.Random) -> tuple[int, int, int]:
    kind = rng.random()
    if kind < 0.3:
        return BACKGROUNDS[PLAIN]
    if kind < 0.8:
        return rng.choice(list(BACKGROUNDS.values()))
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


@torch.no_grad()
def _save(work: Path, rendered: Drawings, averages: Modules) -> None:
    vae = averages["vae"]
    assert isinstance(vae, AutoencoderKL)
    pictures, rng = _Pictures(rendered), random.Random(2)
    latents = vae.encode(to_tensor(np.stack([pictures.draw(rng) for _ in range(400)]))).latent_dist
    vae.register_to_config(scaling_factor=round(1 / latents.mean.std().item(), 4))
    vae.save_pretrained(work / "autoencoder" / "weights")
    psnr = reconstruction_psnr(vae, held_out(rendered))
    print(f"held-out PSNR {psnr:.2f} dB, posterior std {latents.std.mean():.4f} of {latents.mean.std():.3f}")
