"""How a drawing is asked for: the grammar of the training captions."""

import random

from training.drawings import STYLES
from training.shapes import COLOURS, Colour

#: Backgrounds of drawings.
BACKGROUNDS: dict[str, Colour] = {
    **COLOURS,
    "light blue": (170, 215, 250),
    "pink": (250, 170, 200),
    "gray": (128, 128, 128),
}
#: The background that is meant when none is named.
PLAIN = "white"


def caption(subject: str, style: str | None = None, background: str | None = None, *, article: bool = True) -> str:
    """Return e.g. `an owl, 3d render, on a light blue background`; `style` is a key of `STYLES`."""
    words = f"{'an' if subject[0] in 'aeiou' else 'a'} {subject}" if article else subject
    if style is not None:
        words += f", {STYLES[style]}"
    if background is not None:
        words += f", on a {background} background"
    return words


def random_caption(rng: random.Random, subject: str, style: str) -> tuple[str, str]:
    """Return a caption of a drawing and the background that it means.

    Half name a background, half have an article, a tenth leave the style open: each is a way in which people ask.
    """
    background = rng.choice(sorted(BACKGROUNDS)) if rng.random() < 0.5 else None
    named_style = style if rng.random() < 0.9 else None
    return caption(subject, named_style, background, article=rng.random() < 0.5), background or PLAIN
