from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from training import gallery
from training.contact_sheet import contact_sheet
from training.drawings import STYLES
from training.subjects import SUBJECTS


def test_every_prompt_is_one_that_the_model_was_taught() -> None:
    drawings = [prompt for prompt in gallery.PROMPTS if any(words in prompt for words in STYLES.values())]
    shapes = [prompt for prompt in gallery.PROMPTS if prompt not in drawings]
    assert {re.sub("^an? ", "", prompt.split(",")[0]) for prompt in drawings} <= set(SUBJECTS)
    assert [sum(words in prompt for prompt in drawings) for words in STYLES.values()] == [len(drawings) // 3] * 3
    assert all(prompt.endswith(" background") for prompt in shapes)
    assert len(shapes) >= 6
    assert len(set(gallery.PROMPTS)) == len(gallery.PROMPTS)


@pytest.mark.parametrize("prompt", gallery.PROMPTS)
def test_no_prompt_is_wider_than_its_picture(prompt: str) -> None:
    whole = contact_sheet([Image.new("RGB", (64, 64), "white")], [prompt], columns=1, smooth=True)
    inked = np.nonzero((np.asarray(whole.convert("L")) < 200).any(0))[0]
    assert inked.min() >= 4
    assert inked.max() < 8 + 128 + 4


def test_a_sheet_that_would_be_too_large_is_coarser_by_hardly_anything() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)

    def decoded(data: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data)), np.int16)

    whole = gallery.encoded(Image.fromarray(noise))
    fitted = gallery.encoded(Image.fromarray(noise), most_bytes=len(whole) - 1)
    least = gallery.encoded(Image.fromarray(noise), most_bytes=1)
    assert np.array_equal(decoded(whole), noise)
    assert len(least) < len(fitted) <= len(whole) - 1
    assert np.abs(decoded(fitted) - noise).max() <= 3
    assert np.abs(decoded(least) - noise).max() <= 5
    assert (decoded(least)[noise == 255] == 255).all()
