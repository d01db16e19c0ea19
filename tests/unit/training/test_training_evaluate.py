"""The evaluation runs from a folder to its table: on an untrained model, whose figures only have to be there."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTokenizer

from tests.models import BOXED_MODEL, LIBRARY_WARNINGS
from tests.unit.training import patterns
from training import classifier, evaluate, networks

pytestmark = LIBRARY_WARNINGS


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def untrained_pipeline() -> StableDiffusionPipeline:
    tokens = CLIPTokenizer.from_pretrained(BOXED_MODEL / "tokenizer")
    unet = UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=networks.CONTEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return networks.assemble(networks.new_autoencoder(), networks.new_text_encoder(tokens), tokens, unet)


def test_control_judges_every_picture_by_the_prompt_of_another() -> None:
    for n in (2, 3, 5, 19, 57, 60, 200):
        turned = evaluate._turned(range(n))
        assert sorted(turned) == list(range(n))
        assert [i for i, other in enumerate(turned) if other == i] == []


def test_evaluation_measures_a_published_folder_and_writes_table_figures_and_sheets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, work, out = tmp_path / "published", tmp_path / "work", tmp_path / "out"
    untrained_pipeline().to(torch.float16).save_pretrained(folder)
    work.mkdir()
    patterns.write(work)
    classifier.train(work, dataclasses.replace(classifier.RECIPE, steps=1, batch=8))
    threads = torch.get_num_threads()

    result = evaluate.evaluate(folder, work, out, every=40)

    assert torch.get_num_threads() == threads
    table = (out / "figures.md").read_text("utf-8")
    assert table in capsys.readouterr().out
    written = json.loads((out / "figures.json").read_text("utf-8"))
    assert [figure["name"] for figure in written["figures"]] == [figure.name for figure in result.figures]
    assert [figure.name for figure in result.figures if f"| {figure.name} | " not in table] == []
    assert [figure.name for figure in result.figures if not math.isfinite(figure.value)] == []
    aims = {figure["name"]: figure["aim"] for figure in written["figures"] if figure["aim"] is not None}
    assert aims == {
        "background colour": 0.98,
        "object's colour": 0.98,
        "place": 0.98,
        "size": 0.9,
        "kind of shape": 0.85,
        "nearest subject by thumbnail": 0.85,
        "named by the classifier": 0.75,
        "asked style nearest": 0.8,
        "one picture, 20 steps, one thread, median": 2.0,
    }
    assert set(written["details"]["shapes: seen as"]) == {"background", "colour", "place", "size", "kind"}
    for name in ("sheet.png", "shapes.png"):
        with Image.open(out / name) as sheet:
            assert sheet.width > 128
