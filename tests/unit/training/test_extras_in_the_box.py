"""What ships beside the model loads as anybody would load it, and does what its card says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from safetensors.torch import load_file

from tests.models import BOXED_MODEL, LIBRARY_WARNINGS
from training import edges, measures, textual_inversion
from training.captions import caption
from training.controlnet import draw_along
from training.drawing import draw
from training.lora import black_or_white, ink_caption
from training.networks import load_pipeline
from training.release import BASE, EXTRAS
from training.shapes import COLOURS, Shape

pytestmark = LIBRARY_WARNINGS

MODELS = BOXED_MODEL.parent
#: Enough to see what is drawn.
STEPS = 8
MOST_BYTES = 25_000_000


@pytest.fixture
def pipeline() -> StableDiffusionPipeline:
    return load_pipeline(BOXED_MODEL)


def test_the_lora_draws_in_ink_what_the_model_draws_in_colour(pipeline: StableDiffusionPipeline) -> None:
    prompts = [ink_caption(subject) for subject in ("panda", "strawberry", "red apple", "fire engine")]
    coloured = draw(pipeline, prompts, steps=STEPS)
    pipeline.load_lora_weights(MODELS / EXTRAS["lora"], adapter_name="ink")
    inked = draw(pipeline, prompts, steps=STEPS)
    assert black_or_white(inked) > black_or_white(coloured) + 0.15
    pipeline.set_adapters("ink", 0.0)
    assert np.abs(draw(pipeline, prompts, steps=STEPS).astype(int) - coloured).max() <= 1


def test_the_controlnet_draws_along_edges_that_no_prompt_describes() -> None:
    net = ControlNetModel.from_pretrained(MODELS / EXTRAS["controlnet"], dtype=torch.float32)
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(BOXED_MODEL, controlnet=net, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    asked = Shape("square", "red", "white", "in the bottom right", "big")
    prompts = ["a red square on a white background"]
    drawings = {
        scale: draw_along(pipeline, prompts, edges.canny(asked.draw()[None]), scale=scale, steps=STEPS)[0]
        for scale in (0.0, 1.0)
    }
    assert measures.seen_shape(drawings[1.0], asked) == asked
    assert measures.seen_shape(drawings[0.0], asked).place == ""


def test_the_new_word_is_a_colour_that_no_word_of_the_model_names(pipeline: StableDiffusionPipeline) -> None:
    pipeline.load_textual_inversion(MODELS / EXTRAS["textual_inversion"] / textual_inversion.FILE)
    table = {**COLOURS, "turquoise": textual_inversion.COLOUR}
    for word, named in ((textual_inversion.TOKEN, "turquoise"), ("green", "green")):
        (picture,) = draw(pipeline, [caption("owl", "3d", word)], steps=STEPS)
        assert measures.nearest_colour(measures.background_colour(picture), table) == named


def test_everything_in_the_box_is_small_float16_and_has_a_card() -> None:
    folders = [MODELS / name for name in (BASE, *EXTRAS.values())]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 3 + len(EXTRAS)
    for path in weights:
        assert {tensor.dtype for tensor in load_file(path).values()} <= {torch.float16, torch.int64}, path
    assert all((folder / "README.md").exists() for folder in folders)


def test_no_config_in_the_box_names_a_place_on_a_machine() -> None:
    configs = sorted(MODELS.rglob("*.json"))
    assert configs
    assert [path.name for path in configs if "_name_or_path" in path.read_text("utf-8")] == []


def test_cards_tell_what_was_measured() -> None:
    for name in (BASE, *EXTRAS.values()):
        card = Path(MODELS / name / "README.md").read_text("utf-8")
        table = card.partition("<!-- figures")[2].partition("<!-- end of figures -->")[0]
        assert table.count("\n|") > 5, name
