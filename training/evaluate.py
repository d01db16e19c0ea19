"""How good the model is: every figure of its card, measured on pictures that it draws, and the sheets to look at.

    shapes      200 captions that it was never trained on: is each word in the picture?
    subjects    200 prompts: is what was drawn nearer to the subject asked for than to the 260 others? Told by a
                thumbnail, which sees colours and outlines, and by a classifier, which sees details (`classifier.py`)
    samplers    the same prompts by other samplers and at a higher guidance scale
    autoencoder drawings that no stage was trained on
    speed       one picture on one core

What a stranger would name is another question, and answered by looking at the sheet.
"""

import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionPipeline,
)
from numpy.typing import NDArray
from PIL import Image

from training import autoencoder, classifier, drawings, measures, measures_prompts, measures_report
from training.captions import BACKGROUNDS, PLAIN
from training.classifier import SubjectClassifier
from training.contact_sheet import contact_sheet
from training.drawing import GUIDANCE_SCALE, STEPS, draw
from training.drawings import STYLES, Drawings
from training.latents import held_out_shapes
from training.measures import References
from training.measures_prompts import SubjectPrompt
from training.measures_report import Figure, hits
from training.networks import load_pipeline
from training.pictures import from_tensor, on_background, save_sheet, to_tensor
from training.shapes import COLOURS, KINDS, PLACES, SIZES, Shape
from training.subjects import SUBJECTS

#: A word of a shape -> what it is called, its aim, how many words it could be.
_SHAPE_WORDS = {
    "background": ("background colour", 0.98, len(COLOURS)),
    "colour": ("object's colour", 0.98, len(COLOURS)),
    "place": ("place", 0.98, len(PLACES)),
    "size": ("size", 0.90, len(SIZES)),
    "kind": ("kind of shape", 0.85, len(KINDS)),
}
#: Prompts, of the 200, that are drawn again by other samplers.
_AGAIN = 60
_HIGH_GUIDANCE = 7.0
_TIMED_STEPS = 20
_TIMED_PICTURES = 5
#: Far enough that few words of a turned list of shapes, sorted by place, are the same.
_TURN = 57
#: The noise that each part starts from: no two parts share a picture's.
_SEEDS = {"shapes": 10_000, "subjects": 20_000, "backgrounds": 30_000, "sheet": 40_000}
_NOTE = f"""\
Drawn in float32 with {STEPS} steps of the model's own sampler at guidance scale {GUIDANCE_SCALE:g}, unless said. Seeds
and prompts are fixed; none was picked. Shapes: the two colours by the corners and by the median of the object's pixels;
place, size and kind by which drawing is nearest in RGB at full size, of those that differ in that word alone.
Thumbnails are 16 × 16 RGB, and nearest means among {len(SUBJECTS)} subjects in {len(STYLES)} styles. The classifier
learnt from drawings, never from this model's pictures. That the rulers can say no is seen where the same pictures are
judged by another prompt. To be nearest, or named by a classifier, is less than to be recognised by a person: look at
the sheet."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All figures in the order of the table, and what is behind them: confusions, and each subject's verdict."""

    figures: tuple[Figure, ...]
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Ruler:
    """Everything that pictures of subjects are measured with."""

    references: dict[str, References]
    classifier: SubjectClassifier
    subjects: Drawings

    @classmethod
    def of(cls, work: Path, rendered: Drawings) -> "_Ruler":
        subjects = rendered.of_subjects()
        references = {name: References.of(subjects.rgba, colour) for name, colour in BACKGROUNDS.items()}
        return cls(references, classifier.load(work), subjects)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What one picture of a subject was taken for; each ranking is of all subjects, nearest first."""

    prompt: SubjectPrompt
    by_thumbnail: NDArray[np.int64]
    by_classifier: NDArray[np.int64]
    style: str
    background: str

    def among(self, ranking: NDArray[np.int64], first: int) -> bool:
        return SUBJECTS.index(self.prompt.subject) in ranking[:first]

    @property
    def nearest(self) -> bool:
        return self.among(self.by_thumbnail, 1)

    @property
    def named(self) -> bool:
        return self.among(self.by_classifier, 1)


def evaluate(folder: Path, work: Path, out: Path, *, every: int = 1) -> Evaluation:
    """Measure the pipeline in `folder`; print the table, and write it, the figures and the sheets into `out`.

    `work` holds the drawings and the trained classifier. Six minutes on two cores; `every` = n draws each n-th prompt
    only, for a hint in less time.
    """
    pipeline = load_pipeline(folder)
    rendered = drawings.load(work)
    ruler = _Ruler.of(work, rendered)
    out.mkdir(parents=True, exist_ok=True)
    parts = (
        _shapes(pipeline, held_out_shapes()[::every], out),
        _subjects(pipeline, ruler, measures_prompts.subject_prompts()[::every]),
        _samplers(pipeline, ruler, measures_prompts.subject_prompts()[:_AGAIN:every]),
        _backgrounds(pipeline, ruler, measures_prompts.background_prompts()[::every]),
        _autoencoder(pipeline.vae, autoencoder.held_out(rendered)[::every]),
        _ruler(pipeline.vae, ruler, every),
        _speed(pipeline),
    )
    _sheet(pipeline, out, every)
    result = Evaluation(
        tuple(figure for figures, _ in parts for figure in figures),
        {key: value for _, details in parts for key, value in details.items()},
    )
    _write(result, out)
    return result


_Part = tuple[list[Figure], dict[str, Any]]
_Asked = TypeVar("_Asked")


def _turned(asked: Sequence[_Asked]) -> list[_Asked]:
    """Return each prompt in another's place: what a ruler says by them must be no more than chance."""
    by = _TURN % len(asked) or 1
    return [*asked[by:], *asked[:by]]


def _shapes(pipeline: StableDiffusionPipeline, asked: Sequence[Shape], out: Path) -> _Part:
    pictures = draw(pipeline, [shape.caption for shape in asked], seed=_SEEDS["shapes"])
    save_sheet(pictures, out / "shapes.png", columns=20)
    seen = [measures.seen_shape(picture, shape) for picture, shape in zip(pictures, asked, strict=True)]
    coarse = [
        measures.seen_shape(picture, shape, by_thumbnail=True) for picture, shape in zip(pictures, asked, strict=True)
    ]

    def right(word: str, answers: Sequence[Shape], which: Callable[[Shape], bool] = lambda _: True) -> list[bool]:
        pairs = zip(asked, answers, strict=True)
        return [getattr(a, word) == getattr(s, word) for a, s in pairs if which(a)]

    figures = [
        hits("shapes never trained on", name, right(word, seen), aim=aim, chance=1 / options)
        for word, (name, aim, options) in _SHAPE_WORDS.items()
    ]
    others = _turned(asked)
    taken_for = [measures.seen_shape(picture, other) for picture, other in zip(pictures, others, strict=True)]
    figures += [
        hits(
            "the same pictures, judged by another prompt",
            name,
            [getattr(o, word) == getattr(t, word) for o, t in zip(others, taken_for, strict=True)],
            chance=1 / options,
        )
        for word, (name, _, options) in _SHAPE_WORDS.items()
    ]
    details = {
        "shapes: seen as": {
            word: measures.confusions((getattr(a, word), getattr(s, word)) for a, s in zip(asked, seen, strict=True))
            for word in _SHAPE_WORDS
        },
        "shapes: right by size": {
            word: {size: measures.share(right(word, seen, lambda a, s=size: a.size == s)) for size in SIZES}
            for word in _SHAPE_WORDS
        },
        "shapes: right by kind": {
            word: {kind: measures.share(right(word, seen, lambda a, k=kind: a.kind == k)) for kind in KINDS}
            for word in _SHAPE_WORDS
        },
        "shapes: right by 16 x 16 thumbnails": {word: measures.share(right(word, coarse)) for word in _SHAPE_WORDS},
    }
    return figures, details


def _subjects(pipeline: StableDiffusionPipeline, ruler: _Ruler, prompts: Sequence[SubjectPrompt]) -> _Part:
    verdicts = _judge(ruler, prompts, draw(pipeline, [p.text for p in prompts], seed=_SEEDS["subjects"]))
    chance = 1 / len(SUBJECTS)
    figure = functools.partial(hits, "subjects")
    figures = [
        figure("nearest subject by thumbnail", [v.nearest for v in verdicts], aim=0.85, chance=chance),
        figure(
            "among the five nearest by thumbnail", [v.among(v.by_thumbnail, 5) for v in verdicts], chance=5 * chance
        ),
        figure("named by the classifier", [v.named for v in verdicts], aim=0.75, chance=chance),
        figure("among the classifier's first five", [v.among(v.by_classifier, 5) for v in verdicts], chance=5 * chance),
        figure("asked style nearest", [v.style == v.prompt.style for v in verdicts], aim=0.8, chance=1 / len(STYLES)),
        figure(
            "white background when none is named",
            [v.background == PLAIN for v in verdicts],
            chance=1 / len(BACKGROUNDS),
        ),
    ]
    for style, words in STYLES.items():
        of_style = [v for v in verdicts if v.prompt.style == style]
        figures.append(figure(f"{words}: nearest subject by thumbnail", [v.nearest for v in of_style], chance=chance))
        figures.append(figure(f"{words}: named by the classifier", [v.named for v in of_style], chance=chance))
    others = [dataclasses.replace(v, prompt=p) for v, p in zip(verdicts, _turned(prompts), strict=True)]
    control = functools.partial(hits, "the same pictures, judged by another prompt", chance=chance)
    figures.append(control("nearest subject by thumbnail", [v.nearest for v in others]))
    figures.append(control("named by the classifier", [v.named for v in others]))
    wrong = [v for v in verdicts if not (v.nearest and v.named)]
    details = {
        "subjects: style seen as": measures.confusions((v.prompt.style, v.style) for v in verdicts),
        "subjects: taken for others": [
            {
                "prompt": v.prompt.text,
                "nearest by thumbnail": SUBJECTS[v.by_thumbnail[0]],
                "named by the classifier": SUBJECTS[v.by_classifier[0]],
            }
            for v in wrong
        ],
    }
    return figures, details


def _samplers(pipeline: StableDiffusionPipeline, ruler: _Ruler, prompts: Sequence[SubjectPrompt]) -> _Part:
    """Draw the same prompts from the same noise, each time with one thing changed."""
    own = pipeline.scheduler
    ways: dict[str, tuple[Any, float]] = {
        "as above": (own, GUIDANCE_SCALE),
        "DPM++ 2M": (DPMSolverMultistepScheduler.from_config(own.config), GUIDANCE_SCALE),
        "Euler ancestral": (EulerAncestralDiscreteScheduler.from_config(own.config), GUIDANCE_SCALE),
        f"guidance {_HIGH_GUIDANCE:g}": (own, _HIGH_GUIDANCE),
    }
    figures = []
    for name, (scheduler, guidance_scale) in ways.items():
        pipeline.scheduler = scheduler
        texts = [p.text for p in prompts]
        pictures = draw(pipeline, texts, guidance_scale=guidance_scale, seed=_SEEDS["subjects"])
        verdicts = _judge(ruler, prompts, pictures)
        chance, group = 1 / len(SUBJECTS), f"the first {_AGAIN} subjects, by thumbnail and by the classifier"
        figures.append(hits(group, f"{name}: nearest", [v.nearest for v in verdicts], chance=chance))
        figures.append(hits(group, f"{name}: named", [v.named for v in verdicts], chance=chance))
    pipeline.scheduler = own
    return figures, {}


def _backgrounds(pipeline: StableDiffusionPipeline, ruler: _Ruler, prompts: Sequence[SubjectPrompt]) -> _Part:
    verdicts = _judge(ruler, prompts, draw(pipeline, [p.text for p in prompts], seed=_SEEDS["backgrounds"]))
    asked_and_seen = [(v.prompt.meant_background, v.background) for v in verdicts]
    chance, group = 1 / len(SUBJECTS), "subjects on a named background"
    figures = [
        hits(group, "background colour", [a == s for a, s in asked_and_seen], chance=1 / len(BACKGROUNDS)),
        hits(group, "nearest subject by thumbnail", [v.nearest for v in verdicts], chance=chance),
        hits(group, "named by the classifier", [v.named for v in verdicts], chance=chance),
    ]
    return figures, {"named backgrounds: seen as": measures.confusions(asked_and_seen)}


def _judge(ruler: _Ruler, prompts: Sequence[SubjectPrompt], pictures: NDArray[np.uint8]) -> list[_Verdict]:
    rankings = measures.ranking_of(classifier.logits(ruler.classifier, pictures))
    verdicts = []
    for prompt, picture, by_classifier in zip(prompts, pictures, rankings, strict=True):
        references = ruler.references[prompt.meant_background]
        style = list(STYLES)[references.nearest_style(picture, SUBJECTS.index(prompt.subject))]
        background = measures.nearest_colour(measures.background_colour(picture), BACKGROUNDS)
        verdicts.append(_Verdict(prompt, references.ranking(picture), by_classifier, style, background))
    return verdicts


@torch.no_grad()
def _autoencoder(vae: AutoencoderKL, pictures: torch.Tensor) -> _Part:
    latents = vae.encode(pictures).latent_dist
    group, n = "autoencoder, on drawings never trained on", len(pictures)
    return [
        Figure(group, "reconstruction", autoencoder.reconstruction_psnr(vae, pictures), "dB PSNR", n),
        Figure(
            group, "noise of the latents, as a part of their spread", float(latents.std.mean() / latents.mean.std())
        ),
    ], {}


def _ruler(vae: AutoencoderKL, ruler: _Ruler, every: int) -> _Part:
    """Measure what pictures of subjects are measured with."""
    rgba = ruler.subjects.rgba
    asked = np.arange(len(SUBJECTS)).repeat(len(STYLES))[::every]
    pictures = on_background(rgba.reshape(-1, *rgba.shape[2:])[::every], BACKGROUNDS[PLAIN])
    with torch.no_grad():
        coded = [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in to_tensor(pictures).split(32)]
    named = classifier.logits(ruler.classifier, from_tensor(torch.cat(coded))).argmax(1) == asked
    changed = classifier.held_out_accuracy(ruler.classifier, ruler.subjects)
    chance, group = 1 / len(SUBJECTS), "the classifier itself, on the drawings"
    return [
        Figure(
            group, "changed as never trained on", changed, n=len(SUBJECTS) * len(STYLES), chance=chance, counted=True
        ),
        hits(group, "encoded and decoded: the best that could be drawn", named.tolist(), chance=chance),
    ], {}


def _speed(pipeline: StableDiffusionPipeline) -> _Part:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = []
    try:
        for _ in range(1 + _TIMED_PICTURES):  # the first one warms up
            start = time.perf_counter()
            draw(pipeline, ["a red apple, 3d render"], steps=_TIMED_STEPS)
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    median = statistics.median(seconds[1:])
    name = f"one picture, {_TIMED_STEPS} steps, one thread, median"
    return [Figure("speed", name, median, "s", _TIMED_PICTURES, aim=2.0, less_is_better=True)], {}


def _sheet(pipeline: StableDiffusionPipeline, out: Path, every: int) -> None:
    prompts = measures_prompts.sheet_prompts()[::every]
    pictures = draw(pipeline, prompts, seed=_SEEDS["sheet"])
    shown = [Image.fromarray(picture) for picture in pictures]
    sheet = contact_sheet(shown, prompts, columns=measures_prompts.SHEET_COLUMNS, smooth=False)
    sheet.save(out / "sheet.png", optimize=True)


def _write(result: Evaluation, out: Path) -> None:
    table = measures_report.markdown(result.figures, _NOTE)
    (out / "figures.md").write_text(table, "utf-8")
    written = {
        "figures": [{**asdict(figure), "met": figure.met} for figure in result.figures],
        "details": result.details,
    }
    (out / "figures.json").write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(table)
