"""In float32 the engine draws exactly what plain diffusers draws: SD 3, FLUX.1 and latent consistency models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from service.contract.catalog import CatalogEntry, DType
from service.contract.schedulers import SCHEDULERS
from tests.fidelity.cases import TASKS, Case
from tests.fidelity.engine import EngineSide, assert_equal
from tests.fidelity.reference import FLOW_SAMPLERS, Reference
from tests.models import LIBRARY_WARNINGS, tiny_model
from worker.pipelines.loading import load

pytestmark = LIBRARY_WARNINGS

EngineSides = Callable[[str], EngineSide]
References = Callable[[str], Reference]

#: Model → samplers that begin from a picture too, and those that begin from noise only.
SAMPLERS = {
    "sd3": (("flow_euler", "flow_heun"), ("flow_dpmpp_2m", "flow_unipc")),
    "flux": (("flow_euler",), ("flow_dpmpp_2m", "flow_unipc")),
    "flux_schnell": (("flow_euler",), ()),
    "lcm": (("lcm",), ()),
}
TEXT = Case(scheduler="flow_euler")
IMAGE = TEXT.but(task="image-to-image")
INPAINT = TEXT.but(task="inpaint")

SETTINGS = [
    pytest.param(TEXT.but(guidance_scale=1.0), id="guidance 1"),
    pytest.param(TEXT.but(guidance_scale=0.0), id="guidance 0"),
    pytest.param(TEXT.but(prompt=""), id="empty prompt"),
    pytest.param(TEXT.but(prompt=" ".join(["a red apple on a green field"] * 5)), id="longer than CLIP reads"),
    pytest.param(TEXT.but(width=96, height=64), id="wide"),
    pytest.param(TEXT.but(width=80, height=112), id="odd latents"),
    pytest.param(TEXT.but(steps=1), id="one step"),
    pytest.param(TEXT.but(eta=1.0), id="eta means nothing"),
    pytest.param(TEXT.but(sigmas="karras"), id="karras"),
    pytest.param(TEXT.but(sigmas="exponential"), id="exponential"),
    pytest.param(TEXT.but(sigmas="beta"), id="beta"),
    pytest.param(IMAGE.but(strength=1.0), id="image, full strength"),
    pytest.param(IMAGE.but(strength=0.01), id="image, as little as can be"),
    pytest.param(IMAGE.but(width=96, guidance_scale=1.0), id="image, wide"),
    pytest.param(INPAINT.but(strength=1.0), id="inpaint, full strength"),
    pytest.param(INPAINT.but(strength=0.3, height=96), id="inpaint, tall"),
]


def test_every_flow_sampler_is_compared() -> None:
    assert set(FLOW_SAMPLERS) == {name for name, row in SCHEDULERS.items() if row.flow}
    assert {name for name, row in SCHEDULERS.items() if row.tasks != TASKS} == {"flow_dpmpp_2m", "flow_unipc"}


@pytest.mark.parametrize("model", SAMPLERS)
def test_every_sampler_that_is_offered_equals_diffusers_in_every_task(
    engine_side: EngineSides, reference: References, model: str
) -> None:
    engine = engine_side(model)
    anywhere, from_noise = SAMPLERS[model]
    assert set(engine.model.card.schedulers) == {*anywhere, *from_noise}
    for task in engine.model.card.tasks:
        for sampler in (*anywhere, *from_noise) if task == "text-to-image" else anywhere:
            case = Case(task=task, scheduler=sampler, negative_prompt="a dog", strength=0.6)
            assert_equal(engine, reference(model), case)


def test_stable_diffusion_3_without_t5_equals_diffusers(engine_side: EngineSides, reference: References) -> None:
    assert_equal(engine_side("sd3_without_t5"), reference("sd3_without_t5"), TEXT.but(negative_prompt="a dog"))


@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize("model", ["sd3", "flux"])
def test_every_setting_equals_diffusers(
    engine_side: EngineSides, reference: References, model: str, case: Case
) -> None:
    assert_equal(engine_side(model), reference(model), case)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("model", ["sd3", "flux", "lcm"])
def test_halves_equal_diffusers_in_the_same_format(model: str, dtype: DType) -> None:
    folder = tiny_model(model)
    engine = EngineSide(load(CatalogEntry(id=model, source=str(folder), dtype=dtype)))
    plain = Reference(folder, getattr(torch, dtype))
    for task in ("text-to-image", "image-to-image"):
        sampler = engine.model.card.scheduler
        assert_equal(engine, plain, TEXT.but(task=task, scheduler=sampler, strength=0.6, steps=3))


@pytest.mark.parametrize("task", ["text-to-image", "image-to-image"])
@pytest.mark.parametrize(("guidance_scale", "strength"), [(0.0, 0.8), (1.0, 0.3), (8.5, 1.0)])
def test_a_latent_consistency_pipeline_equals_diffusers(
    engine_side: EngineSides, reference: References, task: str, guidance_scale: float, strength: float
) -> None:
    case = Case(task=task, scheduler="lcm", guidance_scale=guidance_scale, strength=strength, steps=5)
    assert_equal(engine_side("lcm"), reference("lcm"), case)


@pytest.mark.parametrize(
    ("model", "task"), [(model, task) for model in SAMPLERS for task in TASKS if (model, task) != ("lcm", "inpaint")]
)
def test_the_tiny_models_see_everything_that_is_asked_of_them(reference: References, model: str, task: str) -> None:
    """Were a picture the same with another prompt, the equalities above would prove nothing."""
    # At full strength, to which these round up 0.8 of 4 steps, nothing of the picture is left.
    case = TEXT.but(task=task, scheduler="lcm" if model == "lcm" else "flow_euler", negative_prompt="dog", strength=0.5)
    others = [case.but(prompt="a blue car"), case.but(seed=case.seed + 1), case.but(steps=5)]
    if model == "sd3":
        others += [case.but(negative_prompt="a cat"), case.but(negative_prompt="")]
    if model != "flux_schnell":
        others += [case.but(guidance_scale=7.0), case.but(guidance_scale=1.0)]
    if task != "text-to-image":
        others += [case.but(picture=1), case.but(strength=0.9)]
    if task == "inpaint":
        others.append(case.but(mask=1))
    pictures = {reference(model).draw(each).pixels.tobytes() for each in [case, *others]}
    assert len(pictures) == 1 + len(others)


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_flux_fill_equals_diffusers(engine_side: EngineSides, reference: References, strength: float) -> None:
    case = INPAINT.but(width=96, guidance_scale=30.0, strength=strength)
    assert_equal(engine_side("flux_fill"), reference("flux_fill"), case)
    others = [case.but(mask=1), case.but(picture=1), case.but(guidance_scale=3.5)]
    assert len({reference("flux_fill").draw(each).pixels.tobytes() for each in [case, *others]}) == 4


def test_latents_of_flux_are_unpacked(engine_side: EngineSides) -> None:
    latents = engine_side("flux").latents(TEXT.but(width=96))
    assert latents.shape == (1, 16, 8, 12)
    assert torch.isfinite(latents).all()
