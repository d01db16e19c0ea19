"""In float32 the engine draws exactly what plain diffusers draws, for everything that a request can ask for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from service.contract.generation import SEED_MAX, Task
from tests.fidelity.cases import MODELS_AND_TASKS, TASKS, Case
from tests.fidelity.engine import EngineSide, assert_equal, steps_of
from tests.fidelity.reference import Reference
from tests.models import BOXED_MODEL, LIBRARY_WARNINGS

pytestmark = LIBRARY_WARNINGS

EngineSides = Callable[[str], EngineSide]
References = Callable[[str], Reference]

FAMILIES = ("sd15", "sd21", "sdxl")
TEXT = Case()
IMAGE = Case(task="image-to-image")
INPAINT = Case(task="inpaint")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(TEXT.but(guidance_scale=1.0), id="without guidance"),
        pytest.param(TEXT.but(guidance_scale=0.0), id="guidance 0"),
        pytest.param(TEXT.but(guidance_scale=12.5), id="strong guidance"),
        pytest.param(TEXT.but(guidance_rescale=0.7), id="guidance rescale"),
        pytest.param(TEXT.but(negative_prompt="a dog, blurred"), id="negative prompt"),
        pytest.param(TEXT.but(prompt=""), id="empty prompt"),
        pytest.param(TEXT.but(prompt="Ein Äpfelchen, 苹果 🍎 \n\t <b>&amp;</b>"), id="any script"),
        pytest.param(TEXT.but(eta=0.5), id="eta"),
        pytest.param(TEXT.but(eta=1.0), id="full eta"),
        pytest.param(TEXT.but(eta=1.0, scheduler="euler"), id="eta of a sampler without"),
        pytest.param(TEXT.but(width=96, height=64), id="wide"),
        pytest.param(TEXT.but(width=64, height=128), id="tall"),
        pytest.param(TEXT.but(width=72, height=88), id="odd latents"),
        pytest.param(TEXT.but(steps=1), id="one step"),
        pytest.param(TEXT.but(steps=11), id="odd steps"),
        pytest.param(TEXT.but(seed=0), id="seed 0"),
        pytest.param(TEXT.but(seed=SEED_MAX), id="largest seed"),
        pytest.param(TEXT.but(seed=SEED_MAX, scheduler="dpmpp_sde"), id="largest seed of the Brownian sampler"),
        pytest.param(IMAGE.but(strength=1.0), id="image, full strength"),
        pytest.param(IMAGE.but(strength=0.25), id="image, one step"),
        pytest.param(IMAGE.but(guidance_scale=1.0), id="image, without guidance"),
        pytest.param(IMAGE.but(width=96, height=72), id="image, wide"),
        pytest.param(IMAGE.but(eta=1.0), id="image, eta"),
        pytest.param(INPAINT.but(strength=1.0), id="inpaint, full strength"),
        pytest.param(INPAINT.but(strength=0.25), id="inpaint, one step"),
        pytest.param(INPAINT.but(guidance_scale=1.0), id="inpaint, without guidance"),
        pytest.param(INPAINT.but(width=72, height=96), id="inpaint, tall"),
        pytest.param(INPAINT.but(scheduler="euler_a", strength=1.0), id="inpaint, ancestral noise"),
    ],
)
@pytest.mark.parametrize("model", FAMILIES)
def test_every_setting_equals_diffusers(
    engine_side: EngineSides, reference: References, model: str, case: Case
) -> None:
    assert_equal(engine_side(model), reference(model), case)


@pytest.mark.parametrize("task", ["image-to-image", "inpaint"])
def test_guidance_rescale_equals_diffusers_in_every_task_of_sdxl(
    engine_side: EngineSides, reference: References, task: str
) -> None:
    assert_equal(engine_side("sdxl"), reference("sdxl"), TEXT.but(task=task, guidance_rescale=0.7))


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("model", ["sd_inpaint", "sdxl_inpaint"])
def test_nine_channels_equal_diffusers_at_every_strength(
    engine_side: EngineSides, reference: References, model: str, strength: float
) -> None:
    case = INPAINT.but(strength=strength, width=96, guidance_scale=1.0, scheduler="ddpm")
    assert_equal(engine_side(model), reference(model), case)


@pytest.mark.parametrize("task", TASKS[1:])
def test_an_sdxl_refiner_equals_diffusers(engine_side: EngineSides, reference: References, task: Task) -> None:
    case = IMAGE.but(task=task, scheduler="euler", negative_prompt="a dog")
    assert_equal(engine_side("sdxl_refiner"), reference("sdxl_refiner"), case)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 8.0])
def test_a_latent_consistency_model_equals_diffusers(
    engine_side: EngineSides, reference: References, task: str, guidance_scale: float
) -> None:
    """Guidance reaches its U-Net as a number, and takes no second row."""
    case = Case(task=task, scheduler="lcm", guidance_scale=guidance_scale, negative_prompt="a dog")
    assert_equal(engine_side("sd15_lcm"), reference("sd15_lcm"), case)


@pytest.mark.parametrize("task", TASKS)
def test_the_boxed_model_equals_diffusers(boxed_engine: EngineSide, task: str) -> None:
    assert_equal(boxed_engine, Reference(BOXED_MODEL), Case(task=task, prompt="a red apple, 3d render"))


@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "dpmpp_sde", "heun"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", FAMILIES)
def test_image_i_of_several_is_what_its_seed_alone_gives(
    engine_side: EngineSides, reference: References, model: str, task: str, scheduler: str
) -> None:
    case = Case(task=task, scheduler=scheduler, eta=1.0)
    pictures, messages = engine_side(model).draw(case, num_images=3)
    alone = [reference(model).draw(case.but(seed=case.seed + i)) for i in range(3)]
    for picture, expected in zip(pictures, alone, strict=True):
        assert np.array_equal(picture, expected.pixels)
    assert not np.array_equal(pictures[0], pictures[1])
    calls = sum(expected.calls for expected in alone)
    assert [(m.step, m.steps) for m in steps_of(messages)] == [(n + 1, calls) for n in range(calls)]


@pytest.mark.parametrize(("model", "task"), MODELS_AND_TASKS)
def test_the_tiny_models_see_everything_that_is_asked_of_them(reference: References, model: str, task: str) -> None:
    """Were a picture the same with another prompt, the equalities above would prove nothing."""
    case = Case(task=task, negative_prompt="a dog")
    others = [
        case.but(prompt="a blue car"),
        case.but(negative_prompt="a cat"),
        case.but(negative_prompt=""),
        case.but(guidance_scale=7.0),
        case.but(guidance_scale=1.0),
        case.but(seed=case.seed + 1),
        case.but(steps=5),
        case.but(eta=1.0),
    ]
    if task == "text-to-image":
        others.append(case.but(guidance_rescale=0.7))
    else:
        others += [case.but(picture=1), case.but(strength=0.6)]
    if task == "inpaint":
        others.append(case.but(mask=1))
    pictures = {reference(model).draw(each).pixels.tobytes() for each in [case, *others]}
    assert len(pictures) == 1 + len(others)


@pytest.mark.parametrize("model", FAMILIES)
def test_the_same_request_gives_the_same_bytes_again(engine_side: EngineSides, model: str) -> None:
    case = IMAGE.but(scheduler="euler_a")
    first, _ = engine_side(model).draw(case)
    engine_side(model).draw(case.but(prompt="something between", scheduler="dpmpp_2m"))
    again, _ = engine_side(model).draw(case)
    assert first[0].tobytes() == again[0].tobytes()


def test_latents_are_finite_and_of_the_models_scale(engine_side: EngineSides) -> None:
    latents = engine_side("sdxl").latents(TEXT.but(width=96))
    assert latents.shape == (1, 4, 8, 12)
    assert torch.isfinite(latents).all()
