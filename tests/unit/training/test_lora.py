"""The ink LoRA learns in its own layers alone, and is read back whole by diffusers' own loader."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file

from tests.models import LIBRARY_WARNINGS
from tests.unit.training import extras_pipeline, patterns
from training import lora
from training.drawing import draw
from training.drawings import Drawings
from training.extras_base import SEEN, UNSEEN
from training.lora import InkLatents, InkRuler
from training.networks import load_pipeline
from training.subjects import SUBJECTS

pytestmark = LIBRARY_WARNINGS

PROMPTS = ["a panda, black ink", "an owl, black ink, on a pink background"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("lora")
    with torch.random.fork_rng(devices=[]):
        extras_pipeline.prepare(folder)
        lora.train(folder, extras_pipeline.RECIPE)
        yield folder


def test_every_layer_of_the_file_is_loaded(work: Path) -> None:
    saved = load_file(work / "lora" / "weights" / "pytorch_lora_weights.safetensors")
    pipeline = load_pipeline(work / "denoiser" / "pipeline")
    pipeline.load_lora_weights(work / "lora" / "weights", adapter_name="ink")
    loaded = get_peft_model_state_dict(pipeline.unet, adapter_name="ink")
    assert {f"unet.{name}" for name in loaded} == set(saved)
    assert all(torch.equal(value, saved[f"unet.{name}"]) for name, value in loaded.items())
    for part in lora.CHANGED:
        learnt = [value for name, value in saved.items() if f".{part}.lora_B" in name]
        assert learnt, f"no layer of {part}"
        assert all(value.abs().max() > 0 for value in learnt), f"a layer of {part} has not learnt"


def test_scale_0_draws_as_the_model_without_it_and_scale_1_does_not(work: Path) -> None:
    pipeline = load_pipeline(work / "denoiser" / "pipeline")
    before = draw(pipeline, PROMPTS, steps=2)
    pipeline.load_lora_weights(work / "lora" / "weights", adapter_name="ink")
    changed = draw(pipeline, PROMPTS, steps=2)
    pipeline.set_adapters("ink", 0.0)
    np.testing.assert_array_equal(draw(pipeline, PROMPTS, steps=2), before)
    assert (changed != before).any()


def test_examples_are_of_seen_subjects_in_ink_on_what_ink_shows_on() -> None:
    shown = len(SEEN), len(lora.INK_BACKGROUNDS)
    drawn = torch.arange(shown[0] * shown[1]).float().reshape(*shown, 1, 1, 1).expand(*shown, 4, 16, 16)
    latents, texts = InkLatents(drawn).sample(random.Random(0), 300)
    unseen = {SUBJECTS[i] for i in UNSEEN}
    for one, text in zip(latents, texts, strict=True):
        subject, background = divmod(int(one[0, 0, 0]), shown[1])
        name, colour = SUBJECTS[SEEN[subject]], list(lora.INK_BACKGROUNDS)[background]
        assert name not in unseen
        end = f"{name}, black ink" + (f", on a {colour} background" if "background" in text else "")
        assert text in {end, f"a {end}", f"an {end}"}
        assert "background" in text or colour == "white"
    assert not any("on a black background" in text for text in texts)


def ink_drawings() -> Drawings:
    """Return the patterns with an ink drawing of each: its left columns black, as many as its number says."""
    made = patterns.drawings().of_subjects()
    ink = np.zeros_like(made.ink)
    for i, one in enumerate(ink):
        rows, columns = divmod(i, 60)
        one[10 * rows + 2 : 10 * rows + 10, 2 : 3 + columns, 3] = 255
    return Drawings(made.labels, made.rgba, ink)


def test_ink_drawings_are_found_nearest_and_coloured_ones_are_not() -> None:
    ruler = InkRuler.of(ink_drawings())
    inked = ruler.figures("inked", UNSEEN, ruler.ink[list(UNSEEN)])
    assert [figure.value for figure in inked] == [1.0, 1.0, 1.0]
    others = np.roll(ruler.ink, 1, axis=0)[list(UNSEEN)]
    assert ruler.figures("of others", UNSEEN, others)[0].value == 0.0
    red = np.full((len(UNSEEN), 64, 64, 3), (220, 30, 30), np.uint8)
    assert ruler.figures("red", UNSEEN, red)[2].value == 0.0


def test_black_or_white_is_told_from_grey_and_from_colours() -> None:
    row = np.array([[10, 10, 10], [250, 250, 250], [128, 128, 128], [250, 220, 40]], np.uint8)
    assert lora.black_or_white(row[None]) == 0.5
