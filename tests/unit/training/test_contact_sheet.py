"""Every picture of a sheet is in its place, and its caption beneath it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from training.contact_sheet import contact_sheet

WHITE = (255, 255, 255)


def test_pictures_come_in_order_with_ink_beneath() -> None:
    greys = [(10 * n, 0, 255 - 10 * n) for n in range(8)]
    captions = ["a red apple, 3d render, on a light blue background", *["a fox"] * 7]
    pictures = [Image.new("RGB", (64, 64), colour) for colour in greys]
    whole = np.asarray(contact_sheet(pictures, captions, columns=6, smooth=True))
    assert whole.shape[1] == 6 * (128 + 8) + 8
    assert [tuple(whole[20, 20 + 136 * n]) for n in range(6)] == greys[:6]
    assert tuple(whole[-100, 20]) == greys[6]
    assert tuple(whole[-100, 156]) == greys[7]
    assert tuple(whole[-100, 300]) == WHITE
    assert whole[140:150, 8:136].min() < 128


def test_a_row_is_as_high_as_its_longest_caption() -> None:
    pictures = [Image.new("RGB", (64, 64), (value,) * 3) for value in (0, 90, 180)]
    captions = ["a", "a purple ring in the bottom right on a yellow background", "c"]
    whole = np.asarray(contact_sheet(pictures, captions, columns=2, smooth=False))
    assert whole.shape == ((128 + 16 + 3 * 14) + (128 + 16 + 14) + 8, 2 * (128 + 8) + 8, 3)
    assert (whole[8:136, 8:136] == 0).all()
    assert (whole[8:136, 144:272] == 90).all()
    assert (whole[-158:-30, 8:136] == 180).all()
    beneath = whole[140 : 140 + 3 * 14]
    written = [
        [bool((beneath[14 * line : 14 * line + 14, left : left + 128] < 128).any()) for line in range(3)]
        for left in (8, 144)
    ]
    assert written == [[True, False, False], [True, True, True]]
    assert (beneath[:, 136:144] == 255).all()
    assert (whole[:, -8:] == 255).all()


@pytest.mark.parametrize("smooth", [True, False])
def test_what_is_not_smooth_has_the_colours_of_the_picture_alone(smooth: bool) -> None:
    pixels = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (64, 64, 3))
    whole = np.asarray(contact_sheet([Image.fromarray(pixels)], [""], columns=1, smooth=smooth))
    shown = whole[8:136, 8:136]
    assert np.array_equal(shown, pixels.repeat(2, 0).repeat(2, 1)) is not smooth
