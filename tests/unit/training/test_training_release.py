"""What is published says nothing of the machine that it was made on, and keeps what people wrote beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import BOXED_MODEL
from training.release import BASE, EXTRAS, NothingToRelease, release, with_figures

CARD = "# A card\n\n<!-- figures: by a command -->\nold\n<!-- end of figures -->\n\nThe end.\n"


def test_figures_replace_what_stood_between_their_marks_and_nothing_else() -> None:
    new = with_figures(CARD, "| a | b |\n")
    assert new == CARD.replace("old\n", "\n| a | b |\n\n")
    assert with_figures(new, "| a | b |\n") == new


def test_a_card_without_marks_is_refused() -> None:
    with pytest.raises(NothingToRelease, match="no place for the figures"):
        with_figures("# A card\n", "| a |")


def test_nothing_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NothingToRelease, match="no pipeline"):
        release(tmp_path, models=tmp_path / "models")


def test_a_released_model_is_what_is_in_the_box(tmp_path: Path) -> None:
    """Released again from the package itself, nothing changes: weights, configs and tokenizer are all as published."""
    written = release(tmp_path, models=tmp_path, base=BOXED_MODEL)
    assert written == [tmp_path / BASE]
    for file in sorted(path for path in written[0].rglob("*") if path.is_file()):
        published = BOXED_MODEL / file.relative_to(written[0])
        if file.suffix == ".safetensors":
            ours, theirs = load_file(file), load_file(published)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        elif file.suffix == ".json":
            assert json.loads(file.read_text("utf-8")) == json.loads(published.read_text("utf-8")), file.name


def test_extras_are_halved_and_their_card_stays(tmp_path: Path) -> None:
    work, models = tmp_path / "work", tmp_path / "models"
    stage, name = next(iter(EXTRAS.items()))
    weights = work / stage / "weights"
    weights.mkdir(parents=True)
    save_file({"a": torch.ones(3), "n": torch.tensor([1])}, weights / "weights.safetensors")
    (weights / "config.json").write_text('{"_name_or_path": "a folder", "kept": 1}', "utf-8")
    (models / name).mkdir(parents=True)
    (models / name / "README.md").write_text("by hand", "utf-8")
    assert models / name in release(work, models=models, base=BOXED_MODEL)
    tensors = load_file(models / name / "weights.safetensors")
    assert tensors["a"].dtype == torch.float16
    assert tensors["n"].dtype == torch.int64
    assert json.loads((models / name / "config.json").read_text("utf-8")) == {"kept": 1}
    assert (models / name / "README.md").read_text("utf-8") == "by hand"
