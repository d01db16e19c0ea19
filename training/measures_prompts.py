"""What the evaluation asks the model for: seeded choices, the same for every model, none of them picked by eye."""

import random
from dataclasses import dataclass

from training.captions import BACKGROUNDS, PLAIN, caption
from training.drawings import STYLES
from training.latents import held_out_shapes
from training.subjects import SUBJECTS

#: Rows of the sheet that are drawings; the last row is held-out shapes.
SHEET_COLUMNS = 12
_SHEET_DRAWING_ROWS = 7


@dataclass(frozen=True, slots=True)
class SubjectPrompt:
    """A drawing that is asked for; `style` is a key of `STYLES`."""

    subject: str
    style: str
    background: str | None = None

    @property
    def text(self) -> str:
        """The prompt."""
        return caption(self.subject, self.style, self.background)

    @property
    def meant_background(self) -> str:
        """The background that the prompt means: plain white if it names none."""
        return self.background or PLAIN


def subject_prompts(n: int = 200) -> list[SubjectPrompt]:
    """Return prompts of n different subjects in random order, each in a random style."""
    rng = random.Random(5)
    return [SubjectPrompt(subject, rng.choice(list(STYLES))) for subject in rng.sample(SUBJECTS, n)]


def background_prompts(n: int = 48) -> list[SubjectPrompt]:
    """Return prompts that name a background, every background in turn."""
    rng = random.Random(6)
    names = list(BACKGROUNDS)
    return [
        SubjectPrompt(subject, rng.choice(list(STYLES)), names[i % len(names)])
        for i, subject in enumerate(rng.sample(SUBJECTS, n))
    ]


def sheet_prompts() -> list[str]:
    """Return the 96 prompts of the sheet: different subjects, a third on a named background, and held-out shapes."""
    rng = random.Random(7)
    drawings = [
        SubjectPrompt(
            subject, rng.choice(list(STYLES)), rng.choice(list(BACKGROUNDS)) if rng.random() < 1 / 3 else None
        ).text
        for subject in rng.sample(SUBJECTS, SHEET_COLUMNS * _SHEET_DRAWING_ROWS)
    ]
    return drawings + [shape.caption for shape in rng.sample(held_out_shapes(), SHEET_COLUMNS)]
