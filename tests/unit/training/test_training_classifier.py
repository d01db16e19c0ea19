"""The classifier: what it learns from, what it is measured on, and that it comes back as it was saved."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.unit.training import patterns
from training import classifier
from training.captions import BACKGROUNDS, PLAIN
from training.classifier import HELD_OUT, TRAINED, Ranges, SubjectClassifier
from training.drawings import STYLES, Drawings
from training.pictures import from_tensor, on_background
from training.subjects import SUBJECTS

AS_IT_IS = Ranges((1, 1), (0, 0), (0, 0), half=1, plain=1, gain=(1, 1), blur=(0, 0), grain=(0, 0))


@pytest.fixture(autouse=True)
def _own_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture(scope="module")
def subjects() -> Drawings:
    return patterns.drawings().of_subjects()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class CentreColour(nn.Module):
    """Names the subject whose disc has the colour that is left of the picture's middle."""

    def __init__(self, subjects: Drawings) -> None:
        super().__init__()
        self.colours = torch.from_numpy(subjects.rgba[:, 0, 32, 16, :3] / 127.5 - 1).float()

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return -torch.cdist(pictures[:, :, 28:36, 19:22].mean((2, 3)), self.colours)


def test_unchanged_drawing_is_the_drawing_on_white(subjects: Drawings) -> None:
    layers = classifier.layered(subjects)[:9]
    drawn = from_tensor(classifier.augment(layers, AS_IT_IS, seeded()))
    expected = on_background(subjects.rgba[:3].reshape(9, 64, 64, 4), BACKGROUNDS[PLAIN])
    assert np.abs(drawn.astype(int) - expected).max() <= 1


def test_drawings_are_layered_subject_by_subject_and_style_by_style(subjects: Drawings) -> None:
    layers = classifier.layered(subjects)
    assert layers.shape == (len(SUBJECTS) * len(STYLES), 4, 64, 64)
    expected = torch.from_numpy(subjects.rgba[100, 2]).permute(2, 0, 1) / 255
    expected[:3] *= expected[3:]
    torch.testing.assert_close(layers[100 * len(STYLES) + 2], expected)


@pytest.mark.parametrize("ranges", [TRAINED, HELD_OUT])
def test_changed_drawings_are_pictures_and_each_changed_its_own_way(ranges: Ranges, subjects: Drawings) -> None:
    layers = classifier.layered(subjects)[:1].expand(16, -1, -1, -1)
    drawn = classifier.augment(layers, ranges, seeded())
    assert drawn.shape == (16, 3, 64, 64)
    assert drawn.min() >= -1
    assert drawn.max() <= 1
    assert len({picture.numpy().tobytes() for picture in drawn}) == 16
    assert torch.equal(drawn, classifier.augment(layers, ranges, seeded()))


def test_shift_and_scale_are_those_that_were_asked_for(subjects: Drawings) -> None:
    layers = classifier.layered(subjects)[:32]
    for scale, shift in ((0.5, 0), (1, 5)):
        ranges = dataclasses.replace(AS_IT_IS, scale=(scale, scale), shift_px=(shift, shift))
        drawn = classifier.augment(layers, ranges, seeded())
        inside = (drawn - drawn[:, :, :1, :1]).abs().sum(1) > 0.05
        columns = [row.any(0).nonzero().flatten() for row in inside]
        widths = {int(found[-1] - found[0]) + 1 for found in columns}
        middles = {float(found[-1] + found[0]) / 2 - 31.5 for found in columns}
        assert widths <= ({26, 25, 27, 28} if scale < 1 else {52, 51, 53})
        assert {round(middle) for middle in middles} <= {-shift, shift}
        assert len({round(middle) for middle in middles}) == len({-shift, shift})


def test_nothing_that_measures_was_trained_on() -> None:
    assert HELD_OUT.scale[1] <= TRAINED.scale[0]
    assert HELD_OUT.slant_degrees[0] >= TRAINED.slant_degrees[1]
    assert HELD_OUT.shift_px[0] >= TRAINED.shift_px[1]
    for ranges in (TRAINED, HELD_OUT):
        colours = classifier.random_backgrounds(500, ranges, seeded())
        assert (classifier.half_of(colours.int()) == ranges.half).all()
        assert colours.min() >= 0
        assert colours.max() <= 255
        plain = (colours == torch.tensor(BACKGROUNDS[PLAIN])).all(1).float().mean()
        assert plain.item() == pytest.approx(ranges.plain, abs=0.08)


def test_accuracy_counts_right_names_only(subjects: Drawings) -> None:
    knows = CentreColour(subjects)
    assert classifier.held_out_accuracy(knows, subjects) > 0.3
    knows.colours = knows.colours.roll(1, 0)
    assert classifier.held_out_accuracy(knows, subjects) < 0.15


def test_classifier_is_small() -> None:
    assert sum(p.numel() for p in SubjectClassifier().parameters()) < 1_500_000


def test_trained_classifier_comes_back_as_it_was_saved(tmp_path: Path, subjects: Drawings) -> None:
    patterns.write(tmp_path)
    classifier.train(tmp_path, dataclasses.replace(classifier.RECIPE, steps=2, batch=8))
    first = classifier.load(tmp_path)
    pictures = on_background(subjects.rgba[:40, 0], BACKGROUNDS[PLAIN])
    said = classifier.logits(first, pictures)
    assert said.shape == (40, len(SUBJECTS))
    assert np.array_equal(said, classifier.logits(classifier.load(tmp_path), pictures))
    torch.manual_seed(classifier.RECIPE.seed)
    untrained = SubjectClassifier().state_dict()
    assert not torch.equal(untrained["head.3.weight"], first.state_dict()["head.3.weight"])


def test_classifier_of_other_subjects_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "classifier" / "weights"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"subjects": ["an apple"]}))
    with pytest.raises(ValueError, match="Train the classifier again"):
        classifier.load(tmp_path)


def test_it_learns_which_drawing_is_which(subjects: Drawings) -> None:
    torch.manual_seed(0)
    few = subjects.take(list(range(0, 256, 32)))
    network, layers = SubjectClassifier(), classifier.layered(few)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    answers = torch.arange(len(few.labels)).repeat_interleave(len(STYLES))
    for step in range(40):
        loss = nn.functional.cross_entropy(network(classifier.augment(layers, TRAINED, seeded(step))), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    said = network(classifier.augment(layers, TRAINED, seeded(99))).argmax(1)
    assert (said == answers).float().mean() > 0.4
