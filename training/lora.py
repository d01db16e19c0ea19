"""A fourth drawing style, `black ink`, as a LoRA: low-rank additions to the U-Net's weights (Hu et al. 2021).

To each chosen weight matrix W a product B A is added, of rank 16: B starts at zero, so that training starts from the
model as it is, and only A and B learn. A style changes lines and fills, which convolutions draw, so theirs are changed
too, not the attention's alone.

Four fifths of the subjects are shown in ink. The others tell whether a style was learnt, or only drawings: the model
knows them in colour, and must draw them in an ink that it has never seen on them.
"""

import functools
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from training import captions, drawings, run
from training.captions import BACKGROUNDS, PLAIN
from training.drawing import draw
from training.drawings import INK_WORDS, Drawings
from training.extras_base import SEEN, UNSEEN, context, denoising_loss, dropped, encoded, frozen_base
from training.measures_report import Figure, hits
from training.networks import assemble
from training.pictures import on_background, save_sheet, thumbnails
from training.run import Modules, Recipe, Step
from training.subjects import SUBJECTS

RECIPE = Recipe(steps=700, batch=48, learning_rate=2e-3, warmup=30, weight_decay=1e-2, ema_decay=0.99)
RANK = 16
#: Attention's projections and the residual blocks' convolutions.
CHANGED = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")
#: Ink cannot be seen on black.
INK_BACKGROUNDS = {name: colour for name, colour in BACKGROUNDS.items() if name != "black"}
#: Grey levels up to which a pixel counts as black, and from which as white.
_BLACK, _WHITE = 80, 175
_WATCHED = 16
_SEED = 50_000


def train(work: Path, recipe: Recipe = RECIPE, base: Path | None = None) -> None:
    """Train the LoRA into `work`/lora, for the pipeline `base` or the one in `work`."""
    pipeline = frozen_base(work, base)
    torch.manual_seed(recipe.seed)
    pipeline.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(CHANGED)))
    data = InkLatents.of(pipeline, drawings.load(work).of_subjects())
    loss = functools.partial(_loss, pipeline, data)
    run.train("lora", work / "lora", recipe, {"unet": pipeline.unet}, loss, functools.partial(_save, work, pipeline))


def ink_caption(subject: str, background: str | None = None, *, article: bool = True) -> str:
    """Return e.g. `a panda, black ink, on a pink background`."""
    return captions.caption(f"{subject}, {INK_WORDS}", None, background, article=article)


@dataclass(frozen=True, slots=True)
class InkLatents:
    """Scaled latents of the seen subjects in ink: (subjects, backgrounds, 4, 16, 16)."""

    drawn: torch.Tensor

    @classmethod
    def of(cls, pipeline: StableDiffusionPipeline, subjects: Drawings) -> "InkLatents":
        """Return the latents of the drawings of `SUBJECTS`, the unseen ones left out."""
        ink = subjects.ink[list(SEEN)]
        on_each = [encoded(pipeline.vae, on_background(ink, colour)) for colour in INK_BACKGROUNDS.values()]
        return cls(torch.stack(on_each, dim=1))

    def sample(self, rng: random.Random, n: int) -> tuple[torch.Tensor, list[str]]:
        """Return n latents, (n, 4, 16, 16), and their captions."""
        latents, texts = [], []
        for _ in range(n):
            subject = rng.randrange(len(SEEN))
            background = rng.choice(list(INK_BACKGROUNDS)) if rng.random() < 0.5 else None
            texts.append(ink_caption(SUBJECTS[SEEN[subject]], background, article=rng.random() < 0.5))
            latents.append(self.drawn[subject, list(INK_BACKGROUNDS).index(background or PLAIN)])
        return torch.stack(latents), texts


def _loss(pipeline: StableDiffusionPipeline, data: InkLatents, step: Step) -> torch.Tensor:
    z0, texts = data.sample(step.rng, step.batch)
    encoded_texts = context(pipeline, dropped(texts, step))
    unet = pipeline.unet
    return denoising_loss(z0, step, lambda zt, t: unet(zt, t, encoder_hidden_states=encoded_texts).sample)


def _save(work: Path, pipeline: StableDiffusionPipeline, averages: Modules) -> None:
    unet = averages["unet"]
    assert isinstance(unet, UNet2DConditionModel)
    # As peft names them. diffusers' own conversion renames the attention's layers and leaves the convolutions': a
    # mixture that is then read as one or the other, by whichever name comes first.
    StableDiffusionPipeline.save_lora_weights(work / "lora" / "weights", get_peft_model_state_dict(unet))
    changed = assemble(pipeline.vae, pipeline.text_encoder, pipeline.tokenizer, unet)
    watched = [ink_caption(SUBJECTS[i]) for i in UNSEEN[:_WATCHED]]
    save_sheet(draw(changed, watched), work / "lora" / "watched.png", columns=8)


def evaluate(work: Path, base: Path | None = None, *, every: int = 1) -> list[Figure]:
    """Measure the LoRA in `work`, loaded as anybody would, beside the model without it; write `work`/lora/sheet.png.

    `every` = n draws each n-th subject only.
    """
    pipeline = frozen_base(work, base)
    ruler = InkRuler.of(drawings.load(work).of_subjects())
    unseen, seen = UNSEEN[::every], SEEN[:: 4 * every]
    ask = functools.partial(_drawn_in_ink, pipeline)
    without = ask(unseen)
    pipeline.load_lora_weights(work / "lora" / "weights", adapter_name="ink")
    drawn = {"subjects never seen in ink": (unseen, ask(unseen)), "subjects trained on": (seen, ask(seen))}
    pipeline.set_adapters("ink", 0.5)
    halfway = ask(unseen)
    pipeline.set_adapters("ink", 0.0)
    drawn |= {
        "the same prompts, LoRA at scale 0.5": (unseen, halfway),
        "the same prompts, LoRA at scale 0": (unseen, ask(unseen)),
        "the same prompts, no LoRA": (unseen, without),
    }
    rows = [ruler.ink[list(unseen)], *(pictures for subjects, pictures in drawn.values() if subjects == unseen)]
    save_sheet(np.concatenate(rows), work / "lora" / "sheet.png", columns=len(unseen), scale=1)
    figures = [
        figure for name, (subjects, pictures) in drawn.items() for figure in ruler.figures(name, subjects, pictures)
    ]
    own = Figure("LoRA", "the ink drawings themselves: black or white pixels", black_or_white(ruler.ink))
    return [*figures, own]


def _drawn_in_ink(pipeline: StableDiffusionPipeline, subjects: tuple[int, ...]) -> NDArray[np.uint8]:
    return draw(pipeline, [ink_caption(SUBJECTS[i]) for i in subjects], seed=_SEED)


@dataclass(frozen=True, slots=True)
class InkRuler:
    """The drawings on white that pictures are compared with.

    ink: uint8 (261, 64, 64, 3). styles: thumbnails of the other styles, float32 (261, 3, 768).
    """

    ink: NDArray[np.uint8]
    styles: NDArray[np.float32]

    @classmethod
    def of(cls, subjects: Drawings) -> "InkRuler":
        """Return the ruler made of the drawings of `SUBJECTS`."""
        white = BACKGROUNDS[PLAIN]
        return cls(on_background(subjects.ink, white), thumbnails(on_background(subjects.rgba, white)))

    def figures(self, name: str, subjects: tuple[int, ...], pictures: NDArray[np.uint8]) -> list[Figure]:
        """Return what pictures (n, 64, 64, 3) of `subjects` show: the subject, the style, no colour."""
        asked = np.asarray(subjects)
        small, ink = thumbnails(pictures), thumbnails(self.ink)
        to_ink = ((small[:, None] - ink) ** 2).mean(-1)
        to_styles = ((small[:, None] - self.styles[asked]) ** 2).mean(-1)
        own = to_ink[np.arange(len(asked)), asked]
        label = f"LoRA, {name}"
        return [
            hits(label, "nearest of all ink drawings is the subject's", to_ink.argmin(1) == asked, chance=1 / len(ink)),
            hits(
                label, "nearer to the subject's ink than to its three other styles", own < to_styles.min(1), chance=0.25
            ),
            Figure(label, "black or white pixels", black_or_white(pictures)),
        ]


def black_or_white(pictures: NDArray[np.uint8]) -> float:
    """Return the part of the pixels, of pictures (..., 3), that are nearly black or nearly white in every channel."""
    black, white = (pictures <= _BLACK).all(-1), (pictures >= _WHITE).all(-1)
    return float((black | white).mean())
