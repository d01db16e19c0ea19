"""What a picture shows, read from its pixels alone: nothing here knows what was asked for.

Pictures are uint8 (height, width, 3).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from training.shapes import COLOURS

Picture = NDArray[np.uint8]

#: Width of the border that shows the background: no shape reaches into it.
_FRAME_PX = 4
#: Distance in RGB from the background at which a pixel belongs to the object; half of it is an edge's blend.
_AWAY = 80.0


def nearest_colour(rgb: NDArray[np.generic]) -> str:
    """Return the word of the colour, of those that captions name, that is nearest in RGB."""
    return min(COLOURS, key=lambda word: math.dist(COLOURS[word], rgb))


def background(picture: Picture) -> str:
    """Return the colour all around."""
    return nearest_colour(_background_rgb(picture))


def object_colour(picture: Picture) -> str:
    """Return the colour of what stands on the background, or `nothing`."""
    found = _object(picture)
    return nearest_colour(np.median(picture[found], axis=0)) if found.any() else "nothing"


def object_centre(picture: Picture) -> tuple[float, float]:
    """Return the centre of what stands on the background, as parts of width and height; nan where there is nothing."""
    found = _object(picture)
    if not found.any():
        return math.nan, math.nan
    rows, columns = np.nonzero(found)
    height, width = found.shape
    return float((columns.mean() + 0.5) / width), float((rows.mean() + 0.5) / height)


def share_of(picture: Picture, *words: str) -> float:
    """Return the part of the pixels, (..., 3), whose nearest colour is one of these."""
    table = np.asarray(list(COLOURS.values()), np.float32)
    nearest = ((picture[..., None, :].astype(np.float32) - table) ** 2).sum(-1).argmin(-1)
    return float(np.isin(nearest, [list(COLOURS).index(word) for word in words]).mean())


def distance(one: Picture, other: Picture) -> float:
    """Return the mean absolute difference, 0 … 255."""
    return float(np.abs(one.astype(np.int16) - other).mean())


def _background_rgb(picture: Picture) -> NDArray[np.floating]:
    inner = np.zeros(picture.shape[:2], bool)
    inner[_FRAME_PX:-_FRAME_PX, _FRAME_PX:-_FRAME_PX] = True
    return np.median(picture[~inner], axis=0)


def _object(picture: Picture) -> NDArray[np.bool_]:
    return np.linalg.norm(picture - _background_rgb(picture), axis=-1) > _AWAY
