"""Drawings and shapes moved, turned, mirrored and scaled: pictures whose layout no caption tells.

The model knows every drawing in one place and at one size, so on those a ControlNet would have nothing to learn that
the prompt does not say already. Here only the edges say where a thing is, how large, and which way it faces.
"""

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from training.captions import BACKGROUNDS, random_caption
from training.drawings import PX, STYLES, Drawings
from training.pictures import on_background
from training.shapes import COLOURS, Shape, random_shape
from training.subjects import SUBJECTS

#: Longer side of what is drawn, as parts of the picture's edge.
SCALES = (0.4, 0.95)
#: Turned by up to this, either way.
TURN_DEGREES = 30
SHAPE_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class PosedPicture:
    """A picture, uint8 (64, 64, 3), and a caption that does not say where in it the object is.

    covered: float32 (64, 64), how much of each pixel is the object. shape: the caption's words, if it is of a shape;
    place and size are not among them.
    """

    caption: str
    picture: NDArray[np.uint8]
    covered: NDArray[np.float32]
    shape: Shape | None = None


def random_posed(rng: random.Random, subjects: Drawings) -> PosedPicture:
    """Return a posed shape, or a posed drawing of `subjects` (those of `SUBJECTS`)."""
    return random_posed_shape(rng) if rng.random() < SHAPE_SHARE else random_posed_drawing(rng, subjects)


def random_posed_drawing(rng: random.Random, subjects: Drawings) -> PosedPicture:
    """Return a drawing of one of `SUBJECTS` in some style, on some background."""
    subject, style = rng.randrange(len(SUBJECTS)), rng.randrange(len(STYLES))
    caption, background = random_caption(rng, SUBJECTS[subject], list(STYLES)[style])
    rgba = posed(subjects.rgba[subject, style], rng)
    return PosedPicture(caption, on_background(rgba, BACKGROUNDS[background]), _covered(rgba))


def random_posed_shape(rng: random.Random) -> PosedPicture:
    """Return a shape of any kind and colours."""
    shape = random_shape(rng).but(place="", size="")
    rgba = posed(_cut_out(shape), rng)
    return PosedPicture(shape.caption, on_background(rgba, COLOURS[shape.background]), _covered(rgba), shape)


def posed(rgba: NDArray[np.uint8], rng: random.Random) -> NDArray[np.uint8]:
    """Return what is drawn in an RGBA picture (64, 64, 4) somewhere else, whole, at another size and angle."""
    picture = Image.fromarray(rgba)
    if rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
    picture = picture.rotate(rng.uniform(-TURN_DEGREES, TURN_DEGREES), Image.Resampling.BICUBIC, expand=True)
    picture = picture.crop(picture.getchannel("A").getbbox())
    scale = rng.uniform(*SCALES) * PX / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    canvas = Image.new("RGBA", (PX, PX))
    corner = rng.randint(0, PX - width), rng.randint(0, PX - height)
    canvas.paste(picture.resize((width, height), Image.Resampling.LANCZOS), corner)
    return np.asarray(canvas)


def _cut_out(shape: Shape) -> NDArray[np.uint8]:
    """Return a shape without its background: drawn white on black, what is white is opaque."""
    drawn = shape.but(colour="white", background="black", size="big").draw()[..., 0].astype(np.float32)
    low, high = COLOURS["black"][0], COLOURS["white"][0]
    alpha = ((drawn - low) / (high - low)).clip(0, 1) * 255
    filled = np.full((PX, PX, 3), COLOURS[shape.colour], np.uint8)
    return np.dstack([filled, alpha.round().astype(np.uint8)])


def _covered(rgba: NDArray[np.uint8]) -> NDArray[np.float32]:
    return rgba[..., 3].astype(np.float32) / 255
