"""The ControlNet starts by changing nothing, learns alone, and is measured by what its edges bring about."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.models import LIBRARY_WARNINGS
from tests.unit.training import extras_pipeline, patterns
from training import controlnet, edges, extras_poses
from training.captions import BACKGROUNDS
from training.drawing import draw
from training.extras_base import frozen_base
from training.networks import load_pipeline
from training.shapes import COLOURS, Shape

pytestmark = LIBRARY_WARNINGS

PROMPTS = ["a red circle on a blue background", "a panda, 3d render"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("controlnet")
    with torch.random.fork_rng(devices=[]):
        extras_pipeline.prepare(folder)
        controlnet.train(folder, extras_pipeline.RECIPE, pool=8)
        yield folder


def squares(*corners: int) -> NDArray[np.uint8]:
    """Return edges, (n, 64, 64), of squares of 20 px at these corners."""
    edge = np.zeros((len(corners), 64, 64), np.uint8)
    for one, at in zip(edge, corners, strict=True):
        one[at : at + 21, [at, at + 20]] = one[[at, at + 20], at : at + 21] = 255
    return edge


def test_an_untrained_controlnet_adds_nothing_at_every_place_that_the_unet_takes_it(work: Path) -> None:
    unet = frozen_base(work, None).unet
    zt, t, hidden = torch.randn(2, 4, 16, 16), torch.tensor([10, 900]), torch.randn(2, 77, 128)
    net = controlnet.new_controlnet(unet)
    with torch.no_grad():
        down, mid = net(
            zt, t, encoder_hidden_states=hidden, controlnet_cond=torch.rand(2, 3, 64, 64), return_dict=False
        )
        plain = unet(zt, t, hidden).sample
        added = unet(zt, t, hidden, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    assert torch.equal(added, plain)
    assert not any(residual.any() for residual in (*down, mid))
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_scale_0_draws_as_the_model_alone_and_scale_1_by_the_edges(work: Path) -> None:
    base = work / "denoiser" / "pipeline"
    pipeline = controlnet.load_controlled(work / "controlnet" / "weights", base)
    plain = draw(load_pipeline(base), PROMPTS, steps=2)
    one, other = squares(5, 5), squares(30, 30)
    np.testing.assert_array_equal(controlnet.draw_along(pipeline, PROMPTS, one, scale=0.0, steps=2), plain)
    along = controlnet.draw_along(pipeline, PROMPTS, one, steps=2)
    assert (along != plain).any()
    assert (along != controlnet.draw_along(pipeline, PROMPTS, other, steps=2)).any()


def test_edges_agree_within_a_pixel_and_not_further() -> None:
    asked = squares(10)
    agreed = [edges.agreement(squares(at), asked)[0] for at in (10, 11, 14)]
    assert agreed[:2] == [1.0, 1.0]
    assert agreed[2] < 0.3
    assert edges.agreement(np.zeros_like(asked), asked)[0] == 0.0
    assert edges.agreement(np.full_like(asked, 255), asked)[0] < 0.3  # all of it drawn is not along it


def test_colours_of_one_brightness_have_an_edge_between_them() -> None:
    for colour, background in (("red", "purple"), ("orange", "yellow"), ("white", "yellow"), ("green", "blue")):
        found = edges.canny(Shape("square", colour, background).draw()[None])
        assert found.shape == (1, 64, 64)
        assert 60 < (found > 0).sum() < 300, (colour, background)
    condition = edges.as_condition(squares(3))
    assert condition.shape == (1, 3, 64, 64)
    assert condition.unique().tolist() == [0, 1]


def test_posed_pictures_are_whole_and_differ_in_place_and_size() -> None:
    rng, subjects = random.Random(0), patterns.drawings().of_subjects()
    made = [extras_poses.random_posed(rng, subjects) for _ in range(60)]
    boxes = [np.argwhere(one.covered > 0.5) for one in made]
    sides = [float(np.ptp(box, axis=0).max()) + 1 for box in boxes]
    assert min(sides) < 32
    assert max(sides) > 50
    assert np.ptp([box.mean(0)[0] for box in boxes]) > 15
    assert {one.shape is None for one in made} == {True, False}
    for one in made:
        words = one.caption.split(" on a ")[-1].removesuffix(" background") if " on a " in one.caption else "white"
        outside = one.picture[one.covered == 0]
        assert (outside == BACKGROUNDS[words]).all()
        assert one.shape is None or (one.shape.place, one.shape.size) == ("", "")


def test_shapes_are_measured_where_the_edges_put_them() -> None:
    rng = random.Random(1)
    for _ in range(20):
        asked = extras_poses.random_posed_shape(rng)
        assert asked.shape is not None
        assert controlnet.overlap_of(asked.picture, asked) > 0.9
        assert controlnet.colours_are_right(asked.picture, asked)
        assert controlnet.overlap_of(np.full_like(asked.picture, COLOURS[asked.shape.background]), asked) == 0.0
        assert not controlnet.colours_are_right(255 - asked.picture, asked)
