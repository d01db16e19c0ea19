"""Pictures along given edges: a ControlNet (Zhang et al. 2023) for the frozen model.

A copy of the U-Net's encoder sees the same noisy latents and, through a few convolutions of its own, a picture of
edges. What it makes of them is added to the U-Net's skip connections by convolutions that start at zero: the first step
changes nothing, and the copy learns to say what the original lacks. Stock code throughout; only the convolutions that
bring the 64 px of the edges to the 16 of the latents have two strides instead of three.

Three captions in ten are dropped, more than the denoiser's one: edges have to suffice where words are silent.
"""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from tqdm import tqdm

from training import drawings, edges, measures, run
from training.drawing import GUIDANCE_SCALE, STEPS
from training.drawings import Drawings
from training.extras_base import base_folder, context, denoising_loss, dropped, encoded, frozen_base
from training.extras_poses import PosedPicture, random_posed, random_posed_drawing, random_posed_shape
from training.measures_report import Figure, hits
from training.pictures import from_tensor, save_sheet
from training.run import Modules, Recipe, Step
from training.shapes import COLOURS

RECIPE = Recipe(steps=2000, batch=32, learning_rate=6e-4, warmup=100, weight_decay=1e-2, ema_decay=0.995)
PROMPT_DROP = 0.3
#: Widths on the way from edges to latents; each step to the next halves the edge length, 64 to 16 px.
EDGE_WIDTHS = (16, 32, 64)
#: Pictures that are posed and encoded once; each is then seen a few times, with other noise.
_POOL = 12_000
_POOL_SEED, _MEASURED_SEED = 4, 5
#: Pictures of each kind that the figures are measured on.
_MEASURED = 48
_WATCHED = 16
_BATCH = 20
_SEED = 70_000


def train(work: Path, recipe: Recipe = RECIPE, base: Path | None = None, *, pool: int = _POOL) -> None:
    """Train the ControlNet into `work`/controlnet, for the pipeline `base` or the one in `work`."""
    pipeline = frozen_base(work, base)
    torch.manual_seed(recipe.seed)
    net = new_controlnet(pipeline.unet).train()
    subjects = drawings.load(work).of_subjects()
    data = EdgePool.of(pipeline, subjects, pool)
    loss = functools.partial(_loss, net, pipeline, data)
    save = functools.partial(_save, work, base_folder(work, base), watched(subjects))
    run.train("controlnet", work / "controlnet", recipe, {"controlnet": net}, loss, save)


def new_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """Return a copy of the U-Net's encoder that adds nothing yet, 2.8 M parameters, all to be trained."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=EDGE_WIDTHS).requires_grad_(True)


@dataclass(frozen=True, slots=True)
class EdgePool:
    """Posed pictures: scaled latents (n, 4, 16, 16), edges uint8 (n, 64, 64), and captions."""

    latents: torch.Tensor
    edges: NDArray[np.uint8]
    captions: tuple[str, ...]

    @classmethod
    def of(cls, pipeline: StableDiffusionPipeline, subjects: Drawings, n: int) -> "EdgePool":
        """Return n pictures, encoded."""
        rng = random.Random(_POOL_SEED)
        made = [random_posed(rng, subjects) for _ in tqdm(range(n), desc="posed pictures", leave=False)]
        pictures = np.stack([one.picture for one in made])
        parts = [
            encoded(pipeline.vae, pictures[first : first + 64])
            for first in tqdm(range(0, n, 64), desc="latents of posed pictures", unit="batch", leave=False)
        ]
        return cls(torch.cat(parts), edges.canny(pictures), tuple(one.caption for one in made))

    def sample(self, rng: random.Random, n: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """Return n latents (n, 4, 16, 16), conditions (n, 3, 64, 64), and captions."""
        chosen = rng.choices(range(len(self.captions)), k=n)
        return self.latents[chosen], edges.as_condition(self.edges[chosen]), [self.captions[i] for i in chosen]


def _loss(net: ControlNetModel, pipeline: StableDiffusionPipeline, data: EdgePool, step: Step) -> torch.Tensor:
    z0, condition, texts = data.sample(step.rng, step.batch)
    hidden = context(pipeline, dropped(texts, step, PROMPT_DROP))

    def predict(zt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        down, mid = net(zt, t, encoder_hidden_states=hidden, controlnet_cond=condition, return_dict=False)
        return pipeline.unet(
            zt, t, hidden, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample

    return denoising_loss(z0, step, predict)


def load_controlled(folder: Path, base: Path) -> StableDiffusionControlNetPipeline:
    """Return the pipeline `base` with the ControlNet in `folder`, both loaded as anybody would, in float32."""
    net = ControlNetModel.from_pretrained(folder, dtype=torch.float32)
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(base, controlnet=net, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_along(
    pipeline: StableDiffusionControlNetPipeline,
    prompts: Sequence[str],
    asked: NDArray[np.uint8],
    *,
    scale: float = 1.0,
    steps: int = STEPS,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """Return one picture, uint8 (64, 64, 3), for each prompt and its edges; see `drawing.draw`."""
    pictures = []
    for first in tqdm(range(0, len(prompts), _BATCH), desc="drawing along edges", unit="batch", leave=False):
        part = list(prompts[first : first + _BATCH])
        drawn = pipeline(
            part,
            edges.as_condition(asked[first : first + _BATCH]),
            controlnet_conditioning_scale=scale,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE_SCALE,
            generator=[torch.Generator().manual_seed(seed + first + i) for i in range(len(part))],
            output_type="np",
        ).images
        pictures.append((drawn * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def watched(subjects: Drawings) -> list[PosedPicture]:
    """Return the posed pictures whose edges are drawn along at each checkpoint, to look at."""
    rng = random.Random(_MEASURED_SEED + 1)
    half = _WATCHED // 2
    drawn = [random_posed_drawing(rng, subjects) for _ in range(half)]
    return [*drawn, *(random_posed_shape(rng) for _ in range(_WATCHED - half))]


def _save(work: Path, base: Path, examples: list[PosedPicture], averages: Modules) -> None:
    net = averages["controlnet"]
    assert isinstance(net, ControlNetModel)
    folder = work / "controlnet"
    net.save_pretrained(folder / "weights")
    asked = edges.canny(np.stack([one.picture for one in examples]))
    drawn = draw_along(load_controlled(folder / "weights", base), [one.caption for one in examples], asked)
    save_sheet(np.concatenate([_as_pictures(asked), drawn]), folder / "watched.png", columns=_WATCHED)


def evaluate(work: Path, base: Path | None = None, *, every: int = 1) -> list[Figure]:
    """Measure the ControlNet in `work` on poses that it has not seen; write `work`/controlnet/sheet.png.

    At scale 0 the same pipeline draws what the prompt alone says: what edges agree then agree by the subject or by
    chance. The autoencoder's copy of the picture that the edges are of is the best that could be drawn. `every` = n
    draws each n-th picture only.
    """
    pipeline = load_controlled(work / "controlnet" / "weights", base_folder(work, base))
    subjects, rng = drawings.load(work).of_subjects(), random.Random(_MEASURED_SEED)
    figures: list[Figure] = []
    sheets = []
    for kind in ("drawings", "shapes"):
        every_one = [
            random_posed_drawing(rng, subjects) if kind == "drawings" else random_posed_shape(rng)
            for _ in range(_MEASURED)
        ]
        examples = every_one[::every]
        originals = np.stack([one.picture for one in examples])
        asked, prompts = edges.canny(originals), [one.caption for one in examples]
        draw_at = functools.partial(draw_along, pipeline, prompts, asked, seed=_SEED)
        drawn = {
            "along the edges": draw_at(scale=1.0),
            "at half scale": draw_at(scale=0.5),
            "at scale 0, by the prompt alone": draw_at(scale=0.0),
            "along the edges, no prompt": draw_along(pipeline, [""] * len(prompts), asked, seed=_SEED),
            "encoded and decoded, the best possible": _reconstructed(pipeline, originals),
        }
        for name, pictures in drawn.items():
            label = f"ControlNet, {kind} {name}"
            figures += _figures(label, pictures, asked, examples)
        sheets += [_as_pictures(asked), *drawn.values()]
    save_sheet(np.concatenate(sheets), work / "controlnet" / "sheet.png", columns=len(examples), scale=1)
    return figures


def _figures(
    label: str, pictures: NDArray[np.uint8], asked: NDArray[np.uint8], examples: Sequence[PosedPicture]
) -> list[Figure]:
    agreed = edges.agreement(edges.canny(pictures), asked)
    figures = [Figure(label, "F1 of the edges, 1 px apart at most", float(agreed.mean()), "", len(pictures))]
    pairs = [(picture, one) for picture, one in zip(pictures, examples, strict=True) if one.shape is not None]
    if pairs:
        overlap = [overlap_of(picture, one) for picture, one in pairs]
        right = [colours_are_right(picture, one) for picture, one in pairs]
        chance = 1 / (len(COLOURS) * (len(COLOURS) - 1))
        figures += [
            Figure(label, "overlap with the shape (IoU)", float(np.mean(overlap)), "", len(pairs)),
            hits(label, "both colours as the prompt says", right, chance=chance),
        ]
    return figures


def overlap_of(picture: NDArray[np.uint8], asked: PosedPicture) -> float:
    """Return the intersection over union of a shape and the pixels nearer to its colour than to the background's."""
    assert asked.shape is not None
    to_object, to_background = (
        ((picture.astype(np.float32) - np.asarray(COLOURS[name], np.float32)) ** 2).sum(-1)
        for name in (asked.shape.colour, asked.shape.background)
    )
    drawn, wanted = to_object < to_background, asked.covered > 0.5
    return float((drawn & wanted).sum() / max(1, (drawn | wanted).sum()))


def colours_are_right(picture: NDArray[np.uint8], asked: PosedPicture) -> bool:
    """Return whether the median colours within a shape and outside it are nearest to those that its caption names."""
    assert asked.shape is not None
    inside, outside = (np.median(picture[where], axis=0) for where in (asked.covered > 0.9, asked.covered < 0.1))
    seen = measures.nearest_colour(inside, COLOURS), measures.nearest_colour(outside, COLOURS)
    return seen == (asked.shape.colour, asked.shape.background)


@torch.no_grad()
def _reconstructed(pipeline: StableDiffusionControlNetPipeline, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    vae = pipeline.vae
    return from_tensor(vae.decode(encoded(vae, pictures) / vae.config.scaling_factor).sample)


def _as_pictures(asked: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(asked[..., None], 3, axis=-1)
