"""What the evaluation decides of a picture: pure functions of arrays, nothing here draws or reads.

Two rules keep the measures honest. A picture of a shape is compared with drawings that differ in one word alone, so
each word is judged by itself. And what is nearest is nearest of all that could have been asked for, not of a few.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.pictures import on_background, thumbnails
from training.shapes import COLOURS, KINDS, PLACES, SIZES, Colour, Shape

#: The words of a shape that are told by comparing drawings, and all that each could be.
COMPARED = {"place": tuple(PLACES), "size": tuple(SIZES), "kind": KINDS}
#: Edge of the corner squares that show a background, px: no drawing reaches into them.
_CORNER_PX = 3


def nearest_colour(colour: NDArray[np.floating], table: Mapping[str, Colour]) -> str:
    """Return the name of the table's colour that is nearest in RGB."""
    return min(table, key=lambda name: float(((np.asarray(table[name]) - colour) ** 2).sum()))


def background_colour(picture: NDArray[np.uint8]) -> NDArray[np.floating]:
    """Return the mean colour of a picture's four corners, (3,)."""
    edge = np.r_[0:_CORNER_PX, -_CORNER_PX:0]
    return picture[np.ix_(edge, edge)].reshape(-1, 3).mean(0)


def object_colour(picture: NDArray[np.uint8], asked: Shape) -> NDArray[np.floating]:
    """Return the median colour, (3,), of the pixels where the drawing of `asked` has its object."""
    drawn = asked.draw().astype(np.float32)
    to_object, to_background = (
        ((drawn - np.asarray(COLOURS[name], np.float32)) ** 2).sum(-1) for name in (asked.colour, asked.background)
    )
    return np.median(picture[to_object < to_background], axis=0)


def seen_shape(picture: NDArray[np.uint8], asked: Shape, *, by_thumbnail: bool = False) -> Shape:
    """Return the shape that a picture shows, uint8 (64, 64, 3), each word judged with the others as asked.

    The compared words are those of the drawing that is nearest in mean squared RGB at full size, or by 16 × 16
    thumbnails: these forgive a pixel's shift, and in turn see little of a small object.
    """
    words = {
        "background": nearest_colour(background_colour(picture), COLOURS),
        "colour": nearest_colour(object_colour(picture, asked), COLOURS),
    }
    for word, options in COMPARED.items():
        drawn = np.stack([asked.but(**{word: option}).draw() for option in options])
        words[word] = options[_nearest(picture, drawn, by_thumbnail=by_thumbnail)]
    return asked.but(**words)


def _nearest(picture: NDArray[np.uint8], drawn: NDArray[np.uint8], *, by_thumbnail: bool) -> int:
    if by_thumbnail:
        picture_, drawn_ = thumbnails(picture), thumbnails(drawn)
    else:
        picture_, drawn_ = picture.reshape(-1).astype(np.float32), drawn.reshape(len(drawn), -1).astype(np.float32)
    return int(((drawn_ - picture_) ** 2).mean(-1).argmin())


@dataclass(frozen=True, slots=True)
class References:
    """The subjects' drawings on one background, as thumbnails: float32 (subjects, styles, 768)."""

    thumbnails: NDArray[np.float32]

    @classmethod
    def of(cls, rgba: NDArray[np.uint8], background: Colour) -> "References":
        """Return the references of drawings, uint8 (subjects, styles, 64, 64, 4)."""
        return cls(thumbnails(on_background(rgba, background)))

    def ranking(self, picture: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the subjects, nearest first; a subject is as near as the nearest of its styles."""
        return self._distances(picture).min(1).argsort(kind="stable")

    def nearest_style(self, picture: NDArray[np.uint8], subject: int) -> int:
        """Return which of one subject's drawings is nearest."""
        return int(self._distances(picture)[subject].argmin())

    def _distances(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        return ((self.thumbnails - thumbnails(picture)) ** 2).mean(-1)


def ranking_of(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the subjects that logits (..., subjects) speak for, likeliest first."""
    return (-logits).argsort(-1, kind="stable")


def confusions(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Return how often each asked word was seen as which, commonest first, of (asked, seen) pairs."""
    table: dict[str, Counter[str]] = {}
    for asked, seen in pairs:
        table.setdefault(asked, Counter())[seen] += 1
    return {asked: dict(counts.most_common()) for asked, counts in table.items()}


def share(hits: Iterable[bool]) -> float | None:
    """Return the part that is true, None of nothing."""
    counted = list(hits)
    return sum(counted) / len(counted) if counted else None
