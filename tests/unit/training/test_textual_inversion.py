"""One row of the embedding table is learnt, and diffusers' own loader makes it a word of the prompt."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.models import LIBRARY_WARNINGS
from tests.unit.training import extras_pipeline
from training import textual_inversion
from training.captions import BACKGROUNDS
from training.extras_base import SEEN, context, frozen_base
from training.networks import load_pipeline
from training.subjects import SUBJECTS
from training.textual_inversion import FILE, TOKEN, NewToken, TurquoiseLatents

pytestmark = LIBRARY_WARNINGS

CAPTIONS = ["an owl, 3d render, on a <turquoise> background", "a panda, on a green background"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("textual_inversion")
    with torch.random.fork_rng(devices=[]):
        extras_pipeline.prepare(folder)
        textual_inversion.train(folder, extras_pipeline.RECIPE)
        yield folder


def test_the_file_is_one_row_that_has_moved_from_where_it_started(work: Path) -> None:
    saved = load_file(work / "textual_inversion" / "weights" / FILE)
    assert list(saved) == [TOKEN]
    assert saved[TOKEN].shape == (1, 128)
    start = textual_inversion.word_row(load_pipeline(work / "denoiser" / "pipeline"), textual_inversion.INITIAL)
    assert (saved[TOKEN][0] - start).abs().max() > 1e-3


def test_the_loaded_word_means_what_was_trained_and_no_other_word_changes(work: Path) -> None:
    saved = load_file(work / "textual_inversion" / "weights" / FILE)
    trained, loaded = frozen_base(work, None), frozen_base(work, None)
    trained.tokenizer.add_tokens(TOKEN)
    before = context(load_pipeline(work / "denoiser" / "pipeline"), CAPTIONS)
    loaded.load_textual_inversion(work / "textual_inversion" / "weights" / FILE)
    after = context(loaded, CAPTIONS)
    torch.testing.assert_close(
        after, textual_inversion.context_with(trained, NewToken(saved[TOKEN][0]), CAPTIONS), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(after[1], before[1], rtol=0, atol=1e-6)
    assert (after[0] - before[0]).abs().max() > 1e-3


def test_every_example_has_the_word_and_a_seen_subject() -> None:
    drawn = torch.arange(len(SEEN) * 3).float().reshape(-1, 3, 1, 1, 1).expand(-1, 3, 4, 16, 16)
    latents, texts = TurquoiseLatents(drawn).sample(random.Random(0), 200)
    for one, text in zip(latents, texts, strict=True):
        assert text.endswith(f", on a {TOKEN} background")
        name = SUBJECTS[SEEN[int(one[0, 0, 0]) // 3]]
        assert text.removeprefix("an ").removeprefix("a ").startswith(name) or text.startswith(name)


def test_turquoise_is_told_from_every_colour_that_the_model_has() -> None:
    pictures = np.array([textual_inversion.COLOUR, *BACKGROUNDS.values()], np.float64)
    right, off = textual_inversion.figures_of("all", pictures)
    assert right.value == pytest.approx(1 / len(pictures))
    assert off.value > 50
    assert textual_inversion.figures_of("turquoise", pictures[:1])[1].value == 0.0
