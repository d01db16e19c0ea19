"""What a request will cost, from what calls were measured to cost."""

from __future__ import annotations

from typing import Any

import pytest

from service.contract.costs import CallCost
from service.contract.generation import GenerationSpec
from service.generations.estimate import estimate_engine_s
from tests.costs import cost
from tests.gateway import SHAPES

#: Of the model SHAPES.
OURS: dict[str, Any] = {"model": "shapes", "sha256": "0" * 12}


def spec(**changes: Any) -> GenerationSpec:
    values: dict[str, Any] = {
        "task": "text-to-image",
        "model": "shapes",
        "prompt": "a circle",
        "width": 64,
        "height": 64,
        "steps": 10,
        "guidance_scale": 3.0,
        "scheduler": "ddim",
        "seed": 1,
    }
    return GenerationSpec.model_validate(values | changes)


def step(rows: int, seconds: float, **fields: Any) -> CallCost:
    return cost(rows, seconds, **OURS | fields)


def decoding(rows: int, seconds: float, **fields: Any) -> CallCost:
    return step(rows, seconds, kind="decode", tokens=0, rows_each=16, **fields)


STEPS = [step(2, 0.02)]
ALL = [
    *STEPS,
    decoding(32, 0.4),
    step(3, 0.03, kind="prompts", width_px=0, height_px=0, tokens=150),
    step(16, 0.1, kind="encode", tokens=0, rows_each=16),
]


def test_steps_prompts_and_pictures_are_added_up() -> None:
    """10 steps of two rows at 10 ms a row, one of three prompts at 30 ms, one of two pictures at 0.4 s."""
    assert estimate_engine_s(spec(), SHAPES, ALL) == pytest.approx(0.2 + 0.01 + 0.2)


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        pytest.param({"guidance_scale": 1.0}, 0.1, id="no second row"),
        pytest.param({"num_images": 3}, 0.6, id="three images"),
        pytest.param({"steps": 20}, 0.4, id="twice the steps"),
        pytest.param({"scheduler": "heun"}, 0.38, id="a sampler that looks twice"),
        pytest.param({"task": "image-to-image", "strength": 0.5}, 0.1, id="half of the steps"),
        pytest.param({"width": 128}, 0.4, id="twice the area"),
    ],
)
def test_what_the_request_asks_for_decides(changes: dict[str, Any], seconds: float) -> None:
    assert estimate_engine_s(spec(**changes), SHAPES, STEPS) == pytest.approx(seconds)


def test_every_image_is_decoded_and_the_prompts_are_encoded_once() -> None:
    assert estimate_engine_s(spec(num_images=3), SHAPES, ALL) == pytest.approx(3 * (0.2 + 0.2) + 0.01)


@pytest.mark.parametrize(("task", "pictures"), [("image-to-image", 1), ("inpaint", 2)])
def test_input_pictures_are_encoded_for_each_image(task: str, pictures: int) -> None:
    found = estimate_engine_s(spec(task=task, strength=1.0, num_images=2), SHAPES, ALL)
    assert found == pytest.approx(2 * (0.2 + 0.1 * pictures + 0.2) + 0.01)


def test_a_row_costs_what_it_does_at_the_widths_that_are_usual() -> None:
    """100 calls of eight rows at 5 ms a row outweigh one of a single row at 20 ms."""
    mixed = [step(8, 0.04, calls=100), step(1, 0.02)]
    assert estimate_engine_s(spec(), SHAPES, mixed) == pytest.approx(20 * (100 * 0.04 + 0.02) / 801)


def test_a_size_that_was_never_measured_costs_as_the_nearest_by_area() -> None:
    sizes = [step(2, 0.02), step(2, 0.5, width_px=512, height_px=512)]
    assert estimate_engine_s(spec(width=512, height=512), SHAPES, sizes) == pytest.approx(5.0)
    assert estimate_engine_s(spec(width=256, height=512), SHAPES, sizes) == pytest.approx(2.5)
    assert estimate_engine_s(spec(width=64, height=96), SHAPES, sizes) == pytest.approx(0.3)


def test_a_model_that_was_never_measured_has_no_estimate() -> None:
    others = [cost(2, 0.1), step(2, 0.1, sha256="f" * 12), decoding(16, 0.1)]
    assert estimate_engine_s(spec(), SHAPES, others) is None
    assert estimate_engine_s(spec(), SHAPES, []) is None
