"""The ruler's second scale: a small network that names the subject of a picture.

It judges the model, so it must not be of the model: it learns from the drawings alone and never sees a picture that the
autoencoder or the denoiser made. Whatever a drawn picture may differ in without ceasing to show its subject (place,
scale, slant, background, tint, softness, grain) is drawn anew for every picture that it learns from.

How good it is gets measured on drawings changed in ways that it never learnt from: see `HELD_OUT`.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from training import drawings, run
from training.captions import BACKGROUNDS, PLAIN
from training.drawings import STYLES, Drawings
from training.pictures import to_tensor
from training.run import Modules, Recipe, Step
from training.subjects import SUBJECTS

RECIPE = Recipe(steps=2000, batch=128, learning_rate=3e-3, weight_decay=0.05, ema_decay=0.995)
_LABEL_SMOOTHING = 0.05
_CONFIG = {"format": "darkroom subject classifier", "subjects": list(SUBJECTS)}


@dataclass(frozen=True, slots=True)
class Ranges:
    """How far a drawing is changed; each value is drawn evenly, slant and shift with either sign."""

    scale: tuple[float, float]
    slant_degrees: tuple[float, float]
    shift_px: tuple[float, float]
    #: Which half of the colour cube backgrounds are from, see `random_backgrounds`.
    half: int
    #: Part of the backgrounds that are plain white.
    plain: float
    #: Factor on each colour channel of the drawing.
    gain: tuple[float, float] = (0.9, 1.1)
    #: From the picture itself to one blurred by a 5 × 5 binomial kernel.
    blur: tuple[float, float] = (0.0, 1.0)
    #: Standard deviation of the grain, of colours in -1..1.
    grain: tuple[float, float] = (0.0, 0.12)


TRAINED = Ranges(scale=(0.86, 1.12), slant_degrees=(0, 10), shift_px=(0, 4), half=1, plain=0.4)
#: Smaller, more slanted, further off and on other colours than anything in `TRAINED`, all at once.
HELD_OUT = Ranges(scale=(0.78, 0.86), slant_degrees=(10, 14), shift_px=(4, 6), half=0, plain=0.0)


class SubjectClassifier(nn.Module):
    """Pictures (n, 3, 64, 64) in -1..1 to logits (n, 261), in the order of `SUBJECTS`; 0.72 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        # Every convolution halves the edge: at full size nearly all of the time would go where least is seen.
        # Groups rather than batches are normalised, so that the averaged weights need no statistics of their own.
        self.features = nn.Sequential(
            *_halving(3, 32, kernel=5), *_halving(32, 64), *_halving(64, 128), *_halving(128, 256)
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(256 * 4, 256), nn.SiLU(), nn.Linear(256, len(SUBJECTS)))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.head(functional.avg_pool2d(self.features(pictures), 2))


def _halving(inputs: int, outputs: int, kernel: int = 3) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, kernel, 2, kernel // 2), nn.GroupNorm(8, outputs), nn.SiLU()


def train(work: Path, recipe: Recipe = RECIPE) -> None:
    """Train the classifier into `work`/classifier."""
    torch.manual_seed(recipe.seed)
    classifier = SubjectClassifier()
    subjects = drawings.load(work).of_subjects()
    loss = functools.partial(_loss, classifier.train(), layered(subjects))
    save = functools.partial(_save, work, subjects)
    run.train("classifier", work / "classifier", recipe, {"classifier": classifier}, loss, save)


def load(work: Path) -> SubjectClassifier:
    """Return the trained classifier.

    Raises:
        ValueError: it was trained for another list of subjects.
    """
    folder = work / "classifier" / "weights"
    if json.loads((folder / "config.json").read_text("utf-8")) != _CONFIG:
        raise ValueError(f"{folder} names other subjects than subjects.txt. Train the classifier again.")
    classifier = SubjectClassifier()
    classifier.load_state_dict(load_file(folder / "classifier.safetensors"))
    return classifier.eval()


@torch.no_grad()
def logits(classifier: nn.Module, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what it says of pictures, uint8 (n, 64, 64, 3): (n, 261)."""
    return torch.cat([classifier(part) for part in to_tensor(pictures).split(128)]).numpy()


def held_out_accuracy(classifier: nn.Module, subjects: Drawings, *, seed: int = 1) -> float:
    """Return the part of drawings, changed as in `HELD_OUT`, that it names rightly; each drawing is asked once."""
    generator = torch.Generator().manual_seed(seed)
    answers = np.arange(len(SUBJECTS)).repeat(len(STYLES))
    parts = layered(subjects).split(128)
    with torch.no_grad():
        said = torch.cat([classifier(augment(part, HELD_OUT, generator)).argmax(1) for part in parts])
    return float((said.numpy() == answers).mean())


def layered(subjects: Drawings) -> torch.Tensor:
    """Return drawings as colour × alpha, and alpha: float32 (3n, 4, height, width) in 0..1, style by style.

    Colours that are multiplied by alpha can be moved and mixed without a rim of what is not drawn.
    """
    flat = torch.from_numpy(subjects.rgba.reshape(-1, *subjects.rgba.shape[2:])).permute(0, 3, 1, 2).float() / 255
    return torch.cat([flat[:, :3] * flat[:, 3:], flat[:, 3:]], 1)


def augment(layers: torch.Tensor, ranges: Ranges, generator: torch.Generator) -> torch.Tensor:
    """Return pictures (n, 3, height, width) in -1..1 of drawings (n, 4, height, width), each changed its own way."""

    def uniform(low_high: tuple[float, float], *shape: int) -> torch.Tensor:
        low, high = low_high
        return low + (high - low) * torch.rand(len(layers), *shape, generator=generator)

    def signed(low_high: tuple[float, float]) -> torch.Tensor:
        return uniform(low_high) * (torch.randint(0, 2, (len(layers),), generator=generator) * 2 - 1)

    angle, zoom = torch.deg2rad(signed(ranges.slant_degrees)), 1 / uniform(ranges.scale)
    x, y = (signed(ranges.shift_px) * 2 / layers.shape[-1] for _ in range(2))
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    where = torch.stack([torch.stack([cos, -sin, x], 1), torch.stack([sin, cos, y], 1)], 1)
    grid = functional.affine_grid(where, list(layers.shape), align_corners=False)
    moved = functional.grid_sample(layers, grid, align_corners=False)
    colours = moved[:, :3] * uniform(ranges.gain, 3, 1, 1)
    backgrounds = random_backgrounds(len(layers), ranges, generator)[:, :, None, None] / 255
    pictures = colours + (1 - moved[:, 3:]) * backgrounds
    pictures = torch.lerp(pictures, _blurred(pictures), uniform(ranges.blur, 1, 1, 1))
    grain = torch.randn(pictures.shape, generator=generator) * uniform(ranges.grain, 1, 1, 1)
    return (pictures * 2 - 1 + grain).clamp(-1, 1)


def random_backgrounds(n: int, ranges: Ranges, generator: torch.Generator) -> torch.Tensor:
    """Return colours (n, 3) in 0..255 from one half of the colour cube, some of them plain white.

    The cube is cut into cells 32 wide, coloured like a chessboard: the halves are alike, yet share no colour.
    """
    colours = torch.randint(0, 256, (n, 3), generator=generator)
    colours[:, 0] = (colours[:, 0] + 32 * (half_of(colours) != ranges.half)) % 256
    plain = torch.rand(n, generator=generator) < ranges.plain
    return torch.where(plain[:, None], torch.tensor(BACKGROUNDS[PLAIN]), colours).float()


def half_of(colours: torch.Tensor) -> torch.Tensor:
    """Return which half of the colour cube colours, (n, 3) in 0..255, are of: 0 or 1."""
    return (colours // 32).sum(1) % 2


def _blurred(pictures: torch.Tensor) -> torch.Tensor:
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = torch.outer(line, line).expand(3, 1, 5, 5)
    return functional.conv2d(functional.pad(pictures, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)


def _loss(classifier: SubjectClassifier, layers: torch.Tensor, step: Step) -> torch.Tensor:
    chosen = torch.randint(0, len(layers), (step.batch,), generator=step.generator)
    pictures = augment(layers[chosen], TRAINED, step.generator)
    with torch.autocast("cpu", torch.bfloat16):
        said = classifier(pictures)
    return functional.cross_entropy(said.float(), chosen // len(STYLES), label_smoothing=_LABEL_SMOOTHING)


def _save(work: Path, subjects: Drawings, averages: Modules) -> None:
    classifier = averages["classifier"]
    folder = work / "classifier" / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(classifier.state_dict(), folder / "classifier.safetensors")
    (folder / "config.json").write_text(json.dumps(_CONFIG, indent=1) + "\n", "utf-8")
    print(f"named rightly among held-out changes: {held_out_accuracy(classifier, subjects):.1%}")
