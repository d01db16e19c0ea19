"""A head start for the text encoder: from a caption alone, guess the picture's 16 × 16 thumbnail.

A denoiser and a text encoder that both know nothing teach each other slowly: the denoiser cannot use words that mean
nothing yet, so the words get no gradient. A throw-away head that reads the hidden states as the U-Net will (queries,
one a patch, cross-attend to the 77 tokens) gives the words their meaning first, at a twentieth of the cost of a
denoising step. The head is then dropped.
"""

import functools
import random
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from training import drawings, run, tokenizer
from training.captions import BACKGROUNDS, random_caption
from training.drawings import STYLES, Drawings
from training.latents import SHAPE_SHARE, held_out_shapes
from training.networks import CONTEXT_WIDTH, new_text_encoder
from training.pictures import THUMBNAIL_PX, on_background, thumbnails
from training.run import Modules, Recipe, Step
from training.shapes import random_shape
from training.subjects import SUBJECTS

RECIPE = Recipe(steps=3000, batch=48, learning_rate=1.5e-3, warmup=50)
#: Edge of the patch that one query paints, thumbnail px.
_PATCH_PX = 2


class ThumbnailHead(nn.Module):
    """Hidden states (n, tokens, 128) to thumbnails (n, 3, 16, 16) in [-1, 1]."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        width = CONTEXT_WIDTH
        self.queries = nn.Parameter(torch.randn((THUMBNAIL_PX // _PATCH_PX) ** 2, width) * 0.05)
        self.layers = nn.ModuleList(_ReadingLayer(width) for _ in range(layers))
        self.paint = nn.Linear(width, 3 * _PATCH_PX**2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = self.queries.expand(len(hidden), -1, -1)
        for layer in self.layers:
            x = layer(x, hidden)
        return nn.functional.pixel_shuffle(
            self.paint(x).transpose(1, 2).unflatten(2, (THUMBNAIL_PX // _PATCH_PX, -1)), _PATCH_PX
        )


class _ReadingLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm(x), hidden, hidden, need_weights=False)[0]
        return x + self.mlp(x)


def train(work: Path, recipe: Recipe = RECIPE) -> None:
    """Train a text encoder into `work`/text_encoder."""
    torch.manual_seed(recipe.seed)
    tokens = tokenizer.build(work)
    encoder, head = new_text_encoder(tokens).train(), ThumbnailHead().train()
    loss = functools.partial(_loss, encoder, head, tokens, _Examples(drawings.load(work)))
    save = functools.partial(_save, work)
    run.train("text encoder", work / "text_encoder", recipe, {"text_encoder": encoder, "head": head}, loss, save)


def _loss(
    encoder: CLIPTextModel, head: ThumbnailHead, tokens: CLIPTokenizer, examples: "_Examples", step: Step
) -> torch.Tensor:
    pairs = [examples.draw(step.rng) for _ in range(step.batch)]
    # As many tokens as the longest caption has: padding follows, and a causal encoder does not look ahead.
    ids = torch.tensor(tokens([caption for caption, _ in pairs], padding="longest")["input_ids"])
    target = torch.from_numpy(np.stack([thumbnail for _, thumbnail in pairs]))
    return (head(encoder(ids).last_hidden_state) - target).pow(2).mean()


class _Examples:
    def __init__(self, rendered: Drawings) -> None:
        subjects = rendered.of_subjects().rgba
        #: (261, 3, 11, 3, 16, 16)
        self._drawn = np.stack([_as_target(on_background(subjects, c)) for c in BACKGROUNDS.values()], axis=2)
        self._left_out = set(held_out_shapes())

    def draw(self, rng: random.Random) -> tuple[str, np.ndarray]:
        """Return a caption and its picture's thumbnail, float32 (3, 16, 16) in [-1, 1]."""
        if rng.random() < SHAPE_SHARE:
            while (shape := random_shape(rng)) in self._left_out:
                pass
            return shape.caption, _as_target(shape.draw())
        subject, style = rng.randrange(len(SUBJECTS)), rng.randrange(len(STYLES))
        caption, background = random_caption(rng, SUBJECTS[subject], list(STYLES)[style])
        return caption, self._drawn[subject, style, list(BACKGROUNDS).index(background)]


def _as_target(pictures: np.ndarray) -> np.ndarray:
    small = thumbnails(pictures).reshape(*pictures.shape[:-3], THUMBNAIL_PX, THUMBNAIL_PX, 3)
    return np.moveaxis(small, -1, -3) / 127.5 - 1


def _save(work: Path, averages: Modules) -> None:
    encoder = averages["text_encoder"]
    assert isinstance(encoder, CLIPTextModel)
    encoder.save_pretrained(work / "text_encoder" / "weights")
