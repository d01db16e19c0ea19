"""A new word, `<turquoise>`, as a textual inversion (Gal et al. 2022): one row of the embedding table, no more.

The model has eleven backgrounds; turquoise is none of them, and no mean of two words' rows makes it: green and blue
make teal. The row of a token that the vocabulary did not have is learnt from drawings on turquoise, through a text
encoder and a U-Net that stay as they are: what is searched for is a word that makes this model do what no word of its
own does. It starts as a copy of `blue`'s row.

Every fifth subject is left out, and asked for on turquoise afterwards.
"""

import functools
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTokenizer

from training import drawings, measures, run
from training.captions import BACKGROUNDS, caption
from training.denoiser import token_ids
from training.drawing import draw
from training.drawings import STYLES, Drawings
from training.extras_base import SEEN, UNSEEN, denoising_loss, encoded, frozen_base
from training.measures_report import Figure, hits
from training.pictures import on_background, save_sheet
from training.run import Modules, Recipe, Step
from training.subjects import SUBJECTS

RECIPE = Recipe(steps=500, batch=32, learning_rate=1e-2, warmup=20, weight_decay=0.0, ema_decay=0.98)
TOKEN = "<turquoise>"  # noqa: S105 - a word, no secret
COLOUR = (0, 200, 210)
#: The word whose row the new one starts from.
INITIAL = "blue"
#: Words whose rows' mean is what one would guess without training.
_MIXED = ("green", "blue")
FILE = "learned_embeds.safetensors"
_SEED = 60_000


class NewToken(nn.Module):
    """The embedding of one more token, (128,)."""

    def __init__(self, initial: torch.Tensor) -> None:
        super().__init__()
        self.vector = nn.Parameter(initial.detach().clone())


def train(work: Path, recipe: Recipe = RECIPE, base: Path | None = None) -> None:
    """Train the token's row into `work`/textual_inversion, for the pipeline `base` or the one in `work`."""
    pipeline = frozen_base(work, base)
    token = NewToken(word_row(pipeline, INITIAL))
    data = TurquoiseLatents.of(pipeline, drawings.load(work).of_subjects())
    pipeline.tokenizer.add_tokens(TOKEN)
    folder = work / "textual_inversion"
    loss = functools.partial(_loss, pipeline, token, data)
    run.train("textual inversion", folder, recipe, {"token": token}, loss, functools.partial(_save, folder / "weights"))


def word_row(pipeline: StableDiffusionPipeline, word: str) -> torch.Tensor:
    """Return the embedding (128,) of a word that is one token."""
    _, index, _ = pipeline.tokenizer(word).input_ids
    return pipeline.text_encoder.get_input_embeddings().weight[index].detach()


def context_with(pipeline: StableDiffusionPipeline, token: NewToken, captions: list[str]) -> torch.Tensor:
    """Return encoded captions (n, 77, 128), the embedding table being one row longer by `token`."""
    encoder, tokenizer = pipeline.text_encoder, pipeline.tokenizer
    assert isinstance(tokenizer, CLIPTokenizer)
    table = encoder.get_input_embeddings().weight
    (name,) = (name for name, parameter in encoder.named_parameters() if parameter is table)
    longer = torch.cat([table, token.vector[None]])
    return torch.func.functional_call(encoder, {name: longer}, (token_ids(tokenizer, captions),)).last_hidden_state


@dataclass(frozen=True, slots=True)
class TurquoiseLatents:
    """Scaled latents of the seen subjects on turquoise: (subjects, styles, 4, 16, 16)."""

    drawn: torch.Tensor

    @classmethod
    def of(cls, pipeline: StableDiffusionPipeline, subjects: Drawings) -> "TurquoiseLatents":
        """Return the latents of the drawings of `SUBJECTS`, the unseen ones left out."""
        shown = on_background(subjects.rgba[list(SEEN)], COLOUR)
        return cls(encoded(pipeline.vae, shown.reshape(-1, *shown.shape[2:])).unflatten(0, (len(SEEN), len(STYLES))))

    def sample(self, rng: random.Random, n: int) -> tuple[torch.Tensor, list[str]]:
        """Return n latents, (n, 4, 16, 16), and their captions, all of which have the new word."""
        latents, texts = [], []
        for _ in range(n):
            subject, style = rng.randrange(len(SEEN)), rng.randrange(len(STYLES))
            named_style = list(STYLES)[style] if rng.random() < 0.9 else None
            texts.append(caption(SUBJECTS[SEEN[subject]], named_style, TOKEN, article=rng.random() < 0.5))
            latents.append(self.drawn[subject, style])
        return torch.stack(latents), texts


def _loss(pipeline: StableDiffusionPipeline, token: NewToken, data: TurquoiseLatents, step: Step) -> torch.Tensor:
    z0, texts = data.sample(step.rng, step.batch)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = context_with(pipeline, token, texts)
    return denoising_loss(z0, step, lambda zt, t: pipeline.unet(zt, t, encoder_hidden_states=hidden).sample)


def _save(folder: Path, averages: Modules) -> None:
    token = averages["token"]
    assert isinstance(token, NewToken)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({TOKEN: token.vector.detach()[None].contiguous()}, folder / FILE, {"format": "pt"})


def evaluate(work: Path, base: Path | None = None, *, every: int = 1) -> list[Figure]:
    """Measure the word in `work`, loaded as anybody would; write `work`/textual_inversion/sheet.png.

    Beside it: the word that it started from, the untrained word, and the mean of two colours' rows, which costs
    nothing to make. `every` = n draws each n-th subject only.
    """
    folder = work / "textual_inversion"
    pipeline = frozen_base(work, base)
    mixture = torch.stack([word_row(pipeline, word) for word in _MIXED]).mean(0, keepdim=True)
    pipeline.load_textual_inversion({"<mixture>": mixture})
    pipeline.load_textual_inversion(folder / "weights" / FILE)
    words = {
        f"the learnt {TOKEN}": TOKEN,
        "the untrained word turquoise": "turquoise",
        f"{INITIAL}, which it started from": INITIAL,
        f"the mean of the rows of {' and '.join(_MIXED)}": "<mixture>",
    }
    asked = [(SUBJECTS[i], list(STYLES)[place % len(STYLES)]) for place, i in enumerate(UNSEEN[::every])]
    figures, rows = [], []
    for name, word in words.items():
        pictures = draw(pipeline, [caption(subject, style, word) for subject, style in asked], seed=_SEED)
        rows.append(pictures)
        figures += figures_of(name, np.stack([measures.background_colour(picture) for picture in pictures]))
    save_sheet(np.concatenate(rows), folder / "sheet.png", columns=len(asked), scale=1)
    return figures


def figures_of(name: str, seen: NDArray[np.floating]) -> list[Figure]:
    """Return what background colours, (n, 3) of n pictures, say of the word `name` that was to make them turquoise."""
    table = {**BACKGROUNDS, TOKEN: COLOUR}
    label = "textual inversion, backgrounds of subjects never seen on turquoise"
    nearest = [measures.nearest_colour(colour, table) == TOKEN for colour in seen]
    off = float(np.linalg.norm(seen - np.asarray(COLOUR), axis=1).mean())
    return [
        hits(label, f"{name}: nearest of twelve colours is turquoise", nearest, chance=1 / len(table)),
        Figure(label, f"{name}: distance from turquoise", off, "of 255, RGB", len(seen)),
    ]
