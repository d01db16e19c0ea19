"""Pictures as arrays and tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from training.pictures import from_tensor, on_background, save_sheet, thumbnails, to_tensor


def test_every_value_survives_the_way_to_a_tensor_and_back() -> None:
    picture = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    tensor = to_tensor(picture)
    assert tensor.shape == (1, 3, 16, 16)
    assert (tensor.min().item(), tensor.max().item()) == (-1, 1)
    assert np.array_equal(from_tensor(tensor), picture)


def test_values_outside_the_range_are_clipped() -> None:
    assert from_tensor(torch.tensor([-3.0, 3.0, 0.0]).view(1, 3, 1, 1)).tolist() == [[[[0, 255, 128]]]]


def test_channels_stay_in_their_order() -> None:
    picture = np.zeros((1, 2, 2, 3), np.uint8)
    picture[0, 0, 1] = (10, 20, 30)
    assert torch.allclose((to_tensor(picture)[0, :, 0, 1] + 1) * 127.5, torch.tensor([10.0, 20.0, 30.0]), atol=1e-4)


def test_background_shows_where_nothing_is_drawn() -> None:
    rgba = np.array([[[200, 100, 0, 0], [200, 100, 0, 255], [200, 100, 0, 51]]], np.uint8)
    assert on_background(rgba, (0, 50, 250)).tolist() == [[[0, 50, 250], [200, 100, 0], [40, 60, 200]]]


def test_thumbnails_are_averages_of_four_by_four_pixels() -> None:
    pictures = np.zeros((2, 64, 64, 3), np.uint8)
    pictures[1, 0:4, 4:8, 2] = 160
    pictures[1, 0, 4, 2] = 0
    thumbs = thumbnails(pictures)
    assert thumbs.shape == (2, 768)
    as_picture = thumbs[1].reshape(16, 16, 3)
    assert as_picture[0, 1, 2] == 150
    assert thumbs.sum() == 150


def test_sheet_has_the_pictures_row_by_row_and_white_after_the_last(tmp_path: Path) -> None:
    pictures = np.stack([np.full((8, 8, 3), 20 * (i + 1), np.uint8) for i in range(5)])
    save_sheet(pictures, tmp_path / "new" / "sheet.png", columns=3)
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    assert sheet.shape == (2 * 16, 3 * 16, 3)
    middles = [sheet[8 + 16 * row, 8 + 16 * column, 0] for row in range(2) for column in range(3)]
    assert middles == [20, 40, 60, 80, 100, 255]
