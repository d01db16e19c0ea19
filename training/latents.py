"""What the denoiser learns from: captions and latents of every drawing and shape, encoded once.

The autoencoder is fixed by now, so each picture is encoded a single time: 261 subjects × 3 styles × 11 backgrounds, and
all 5 040 shapes but those that the evaluation asks for, which are never shown to the model.
"""

import itertools
import random
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from training.captions import BACKGROUNDS, random_caption
from training.drawings import STYLES, Drawings
from training.pictures import on_background, to_tensor
from training.shapes import COLOURS, KINDS, PLACES, SIZES, Shape, random_shape
from training.subjects import SUBJECTS

#: Part of a batch that is shapes.
SHAPE_SHARE = 0.3
#: Shapes that only the evaluation asks for.
HELD_OUT_SHAPES = 200


@dataclass(frozen=True, slots=True)
class Latents:
    """Scaled means of the posterior, float32.

    drawn: (261, 3, 11, 4, 16, 16) by subject, style and background. shapes: (n, 4, 16, 16), `index` finds one.
    """

    drawn: torch.Tensor
    shapes: torch.Tensor
    index: dict[Shape, int]

    def sample(self, rng: random.Random, n: int) -> tuple[torch.Tensor, list[str]]:
        """Return n latents, (n, 4, 16, 16), and their captions."""
        pairs = [self._shape(rng) if rng.random() < SHAPE_SHARE else self._drawing(rng) for _ in range(n)]
        return torch.stack([latents for latents, _ in pairs]), [caption for _, caption in pairs]

    def _drawing(self, rng: random.Random) -> tuple[torch.Tensor, str]:
        subject, style = rng.randrange(len(SUBJECTS)), rng.randrange(len(STYLES))
        caption, background = random_caption(rng, SUBJECTS[subject], list(STYLES)[style])
        return self.drawn[subject, style, list(BACKGROUNDS).index(background)], caption

    def _shape(self, rng: random.Random) -> tuple[torch.Tensor, str]:
        while (shape := random_shape(rng)) not in self.index:
            pass
        return self.shapes[self.index[shape]], shape.caption


def every_shape() -> list[Shape]:
    """Return all shapes that a caption can name."""
    pairs = itertools.permutations(COLOURS, 2)
    words = itertools.product(KINDS, pairs, PLACES, SIZES)
    return [Shape(kind, colour, back, place, size) for kind, (colour, back), place, size in words]


def held_out_shapes() -> list[Shape]:
    """Return the shapes that are never trained on: a fifth for each place, every colour pair nearly as often."""
    rng = random.Random(3)
    by_place = {place: [s for s in every_shape() if s.place == place] for place in PLACES}
    return [s for shapes in by_place.values() for s in rng.sample(shapes, HELD_OUT_SHAPES // len(PLACES))]


def trained_shapes() -> list[Shape]:
    """Return all other shapes."""
    left_out = set(held_out_shapes())
    return [shape for shape in every_shape() if shape not in left_out]


@torch.no_grad()
def encode(vae: AutoencoderKL, drawings: Drawings) -> Latents:
    """Return the latents of everything that is trained on; takes about half a minute on two cores."""
    subjects = drawings.of_subjects()
    drawn = torch.stack(
        [
            torch.stack(
                [
                    _encode(vae, np.stack([on_background(rgba, colour) for colour in BACKGROUNDS.values()]))
                    for rgba in styles
                ]
            )
            for styles in tqdm(subjects.rgba, desc="latents of drawings", unit="subject", leave=False)
        ]
    )
    shown = trained_shapes()
    parts = [shown[i : i + 64] for i in range(0, len(shown), 64)]
    shapes = torch.cat(
        [
            _encode(vae, np.stack([shape.draw() for shape in part]))
            for part in tqdm(parts, desc="latents of shapes", unit="batch", leave=False)
        ]
    )
    return Latents(drawn, shapes, {shape: i for i, shape in enumerate(shown)})


def _encode(vae: AutoencoderKL, pictures: np.ndarray) -> torch.Tensor:
    return vae.encode(to_tensor(pictures)).latent_dist.mode() * vae.config.scaling_factor
