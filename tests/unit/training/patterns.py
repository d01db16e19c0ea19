"""Drawings that need no package: for each label a disc of its own colour, with a mark that is the style's."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.drawings import PX, STYLES, Drawings
from training.subjects import SUBJECTS

#: Far enough apart to be told after a change of tint: 288 of them.
COLOURS = list(itertools.product(range(10, 250, 34), range(10, 250, 40), range(10, 250, 40)))
_OTHERS = tuple(f"thing {i}" for i in range(24))


def drawings() -> Drawings:
    """Return drawings of every subject and of 24 things that are none."""
    labels = (*_OTHERS, *SUBJECTS)
    y, x = np.mgrid[:PX, :PX] - (PX - 1) / 2
    disc = np.hypot(x, y) < 26
    rgba = np.zeros((len(labels), len(STYLES), PX, PX, 4), np.uint8)
    rgba[..., 3] = 255 * disc
    rgba[..., :3] = np.array(COLOURS[: len(labels)])[:, None, None, None]
    for style in range(len(STYLES)):
        rgba[:, style, 8 + 16 * style : 16 + 16 * style, 28:36, :3] ^= 128
    return Drawings(labels, rgba, rgba[:, 0])


def write(work: Path) -> None:
    """Write them as the rendering stage would."""
    made = drawings()
    np.savez_compressed(work / "drawings.npz", labels=np.array(made.labels), rgba=made.rgba, ink=made.ink)


def blurred(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture averaged over 3 × 3 pixels."""
    padded = np.pad(picture.astype(np.float32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width, _ = picture.shape
    shifted = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.mean(shifted, axis=0).round().astype(np.uint8)
