"""Shapes drawn by rule, with captions whose truth can be checked pixel by pixel."""

import math
import random
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.drawings import PX

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (250, 220, 40),
    "purple": (140, 50, 180),
    "orange": (250, 140, 20),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
KINDS = ("circle", "square", "triangle", "star", "cross", "ring")
#: Words -> centre, as parts of the edge; no word is the middle.
PLACES = {
    "": (0.5, 0.5),
    "in the top left": (0.3, 0.3),
    "in the top right": (0.7, 0.3),
    "in the bottom left": (0.3, 0.7),
    "in the bottom right": (0.7, 0.7),
}
#: Word -> circumscribed radius as a part of the edge; no word is the middle size.
SIZES = {"": 0.26, "small": 0.16, "big": 0.36}
#: Away from the middle a shape is drawn smaller, so that even a big one stays inside.
_OFF_CENTRE = 0.75
#: Drawn this much larger, then scaled down: smooth edges.
_OVERSAMPLING = 2


@dataclass(frozen=True, slots=True)
class Shape:
    """What a picture of a shape shows; words are keys of the tables above."""

    kind: str
    colour: str
    background: str
    place: str = ""
    size: str = ""

    @property
    def caption(self) -> str:
        """The one spelling of it, e.g. `a small red star in the top left on a blue background`."""
        words = ("a", self.size, self.colour, self.kind, self.place, "on a", self.background, "background")
        return " ".join(word for word in words if word)

    def but(self, **changes: str) -> "Shape":
        """Return the same shape with some of its words changed."""
        return Shape(**{**asdict(self), **changes})

    def draw(self) -> NDArray[np.uint8]:
        """Return the picture, uint8 (64, 64, 3)."""
        edge = PX * _OVERSAMPLING
        x, y = (part * edge for part in PLACES[self.place])
        radius = SIZES[self.size] * edge * (_OFF_CENTRE if self.place else 1)
        picture = Image.new("RGB", (edge, edge), COLOURS[self.background])
        _draw(ImageDraw.Draw(picture), self, x, y, radius)
        return np.asarray(picture.resize((PX, PX), Image.Resampling.LANCZOS))


def random_shape(rng: random.Random) -> Shape:
    """Return any shape, half of them in the middle."""
    colour, background = rng.sample(sorted(COLOURS), 2)
    place = rng.choice([""] * 4 + [place for place in PLACES if place])
    return Shape(rng.choice(KINDS), colour, background, place, rng.choice(list(SIZES)))


def _draw(draw: ImageDraw.ImageDraw, shape: Shape, x: float, y: float, radius: float) -> None:
    colour = COLOURS[shape.colour]

    def box(half_width: float, half_height: float) -> tuple[float, float, float, float]:
        return x - half_width, y - half_height, x + half_width, y + half_height

    match shape.kind:
        case "circle":
            draw.ellipse(box(radius, radius), fill=colour)
        case "ring":
            draw.ellipse(box(radius, radius), fill=colour)
            draw.ellipse(box(radius / 2, radius / 2), fill=COLOURS[shape.background])
        case "square":
            draw.rectangle(box(0.88 * radius, 0.88 * radius), fill=colour)
        case "cross":
            draw.rectangle(box(0.3 * radius, radius), fill=colour)
            draw.rectangle(box(radius, 0.3 * radius), fill=colour)
        case "triangle":
            draw.polygon(_corners(x, y, [radius] * 3), fill=colour)
        case "star":
            draw.polygon(_corners(x, y, [radius, 0.42 * radius] * 5), fill=colour)
        case _:
            raise ValueError(f"no such shape: {shape.kind}")


def _corners(x: float, y: float, radii: list[float]) -> list[tuple[float, float]]:
    """Return points around (x, y), evenly by angle from the top, at these distances."""
    turns = [2 * math.pi * i / len(radii) for i in range(len(radii))]
    return [(x + r * math.sin(a), y - r * math.cos(a)) for a, r in zip(turns, radii, strict=True)]
