"""In float32 the engine draws exactly what plain diffusers draws: every sampler, every family, every task."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.contract.schedulers import SCHEDULERS
from tests.fidelity.cases import TASKS, Case
from tests.fidelity.engine import EngineSide, assert_equal
from tests.fidelity.reference import SAMPLERS, SPACED, Reference
from tests.models import LIBRARY_WARNINGS

pytestmark = LIBRARY_WARNINGS

FAMILIES = ("sd15", "sd21", "sdxl")

EngineSides = Callable[[str], EngineSide]
References = Callable[[str], Reference]


def test_every_public_sampler_is_compared() -> None:
    for_noise = {name: row for name, row in SCHEDULERS.items() if not row.flow}
    assert set(SAMPLERS) == set(for_noise)
    assert set(SPACED) == {name for name, row in for_noise.items() if row.spacings}


@pytest.mark.parametrize("scheduler", SAMPLERS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", FAMILIES)
def test_every_sampler_equals_diffusers(
    engine_side: EngineSides, reference: References, model: str, task: str, scheduler: str
) -> None:
    case = Case().but(task=task, scheduler=scheduler, negative_prompt="a dog, blurred")
    assert_equal(engine_side(model), reference(model), case)


@pytest.mark.parametrize("scheduler", SAMPLERS)
@pytest.mark.parametrize("model", ["sd_inpaint", "sdxl_inpaint"])
def test_every_sampler_equals_diffusers_with_nine_channels(
    engine_side: EngineSides, reference: References, model: str, scheduler: str
) -> None:
    assert_equal(engine_side(model), reference(model), Case(task="inpaint", scheduler=scheduler))


@pytest.mark.parametrize("sigmas", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("scheduler", SPACED)
@pytest.mark.parametrize("model", FAMILIES)
def test_every_spacing_of_noise_levels_equals_diffusers(
    engine_side: EngineSides, reference: References, model: str, scheduler: str, sigmas: str
) -> None:
    assert_equal(engine_side(model), reference(model), Case(scheduler=scheduler, sigmas=sigmas))


@pytest.mark.parametrize("model", FAMILIES)
def test_no_two_samplers_or_spacings_draw_the_same(engine_side: EngineSides, model: str) -> None:
    engine = engine_side(model)
    cases = [Case(scheduler=name) for name in SAMPLERS]
    cases += [Case(scheduler=name, sigmas=sigmas) for name in SPACED for sigmas in ("karras", "exponential", "beta")]
    drawn = {engine.latents(case).numpy().tobytes(): case for case in cases}
    assert len(drawn) == len(cases)
