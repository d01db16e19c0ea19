"""Shapes: every word of a caption is in its picture, where the evaluation will look for it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from training.drawings import PX
from training.latents import every_shape, held_out_shapes, trained_shapes
from training.shapes import COLOURS, KINDS, PLACES, SIZES, Shape

WORDS = {
    "kind": KINDS,
    "colour": [name for name in COLOURS if name != "blue"],
    "background": [name for name in COLOURS if name != "red"],
    "place": list(PLACES),
    "size": list(SIZES),
}
RED_CIRCLE = Shape("circle", "red", "blue")


def object_of(shape: Shape) -> NDArray[np.bool_]:
    drawn = shape.draw().astype(int)
    to_object, to_background = (
        ((drawn - np.array(COLOURS[name])) ** 2).sum(-1) for name in (shape.colour, shape.background)
    )
    return to_object < to_background


def test_picture_is_64_px_rgb() -> None:
    assert RED_CIRCLE.draw().shape == (PX, PX, 3)
    assert RED_CIRCLE.draw().dtype == np.uint8


@pytest.mark.parametrize("word", WORDS)
def test_every_word_changes_the_picture(word: str) -> None:
    pictures = {RED_CIRCLE.but(**{word: value}).draw().tobytes() for value in WORDS[word]}
    assert len(pictures) == len(WORDS[word])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ring"])
@pytest.mark.parametrize("place", PLACES)
def test_object_has_its_colour_at_its_place_and_the_corners_have_the_background(kind: str, place: str) -> None:
    drawn = RED_CIRCLE.but(kind=kind, place=place, size="big").draw()
    x, y = (int(part * PX) for part in PLACES[place])
    assert tuple(drawn[y, x]) == COLOURS["red"]
    corners = drawn[np.ix_([0, 1, 2, -3, -2, -1], [0, 1, 2, -3, -2, -1])].reshape(-1, 3)
    assert np.abs(corners.astype(int) - COLOURS["blue"]).max() <= 3  # scaling down leaves a faint ripple


def test_ring_is_open_in_its_middle() -> None:
    drawn = RED_CIRCLE.but(kind="ring").draw()
    assert tuple(drawn[PX // 2, PX // 2]) == COLOURS["blue"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_small_is_smaller_and_big_is_bigger_wherever_it_is(kind: str, place: str) -> None:
    areas = [object_of(RED_CIRCLE.but(kind=kind, place=place, size=size)).sum() for size in ("small", "", "big")]
    assert areas[0] < areas[1] < areas[2]
    assert areas[0] >= 12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_whole_object_is_inside_the_picture(kind: str, size: str) -> None:
    for place in PLACES:
        border = np.ones((PX, PX), bool)
        border[1:-1, 1:-1] = False
        assert not (object_of(RED_CIRCLE.but(kind=kind, size=size, place=place)) & border).any()


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="hexagon"):
        Shape("hexagon", "red", "blue").draw()


def test_shapes_are_either_trained_on_or_held_out() -> None:
    trained, held_out = trained_shapes(), held_out_shapes()
    assert len(held_out) == 200
    assert set(trained).isdisjoint(held_out)
    assert set(trained) | set(held_out) == set(every_shape())


def test_held_out_shapes_are_the_same_each_time_and_of_every_word() -> None:
    held_out = held_out_shapes()
    assert held_out == held_out_shapes()
    assert [sum(shape.place == place for shape in held_out) for place in PLACES] == [40] * 5
    for word, values in WORDS.items():
        assert {getattr(shape, word) for shape in held_out} >= set(values)
