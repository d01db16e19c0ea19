"""Every sampler can be built from every other's config and stays what its name says."""

from __future__ import annotations

import copy
import inspect
import json
from functools import cache
from typing import Any

import diffusers
import pytest
import torch

from service.contract.catalog import Family
from service.contract.errors import FailureCode
from service.contract.schedulers import SCHEDULERS
from service.contract.steps import denoiser_calls, steps_run
from tests.models import LIBRARY_WARNINGS
from worker.pipelines import schedulers
from worker.pipelines.errors import Refusal

pytestmark = LIBRARY_WARNINGS

#: Settings by which two samplers of one class differ; they must not leak from one model's config into another sampler.
CHARACTER = ("algorithm_type", "clip_sample", "skip_prk_steps", "thresholding")


#: Of models that learnt to remove noise, and of those that learnt a flow; neither draws with the other's.
NOISE = [name for name, row in SCHEDULERS.items() if not row.flow]
FLOW = [name for name, row in SCHEDULERS.items() if row.flow]


def own_of(name: str, **settings: Any) -> Any:
    """Return a scheduler as a model folder gives it: every setting written out, whoever wrote it."""
    return copy.deepcopy(_made(name, tuple(settings.items())))


@cache
def _made(name: str, settings: tuple[tuple[str, Any], ...]) -> Any:
    row = SCHEDULERS[name]
    kind = getattr(diffusers, row.diffusers_class)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"} if not row.flow else {}
    return kind.from_config(json.loads(kind(**schedule | row.config | dict(settings)).to_json_string()))


def build(name: str, own: Any, **options: Any) -> Any:
    return schedulers.build(name, own, **{"sigmas": None, "seed": 1} | options)


@pytest.mark.parametrize(
    ("name", "own"), [(name, own) for name in NOISE for own in NOISE] + [(name, "flow_euler") for name in FLOW]
)
def test_a_sampler_is_the_same_whatever_sampler_the_model_came_with(name: str, own: str) -> None:
    built = build(name, own_of(own))
    assert type(built).__name__ == SCHEDULERS[name].diffusers_class
    assert schedulers.own_name(type(built).__name__, built.config) == name
    expected = own_of(name).config
    taken = [key for key in CHARACTER if key in inspect.signature(type(built).__init__).parameters]
    assert {key: built.config[key] for key in taken} == {key: expected[key] for key in taken}
    built.set_timesteps(4)
    sample = torch.zeros(1, 4, 8, 8)
    for t in built.timesteps:
        scaled = sample if name in FLOW else built.scale_model_input(sample, t)
        sample = built.step(torch.zeros_like(sample), t, scaled).prev_sample
    assert torch.isfinite(sample).all()


@pytest.mark.parametrize("name", [n for n in [*NOISE, "flow_euler"] if n != "dpmpp_sde"])
def test_a_models_own_sampler_runs_with_its_config_unchanged(name: str) -> None:
    oddities = {"dpmpp_2s": {"solver_order": 1}, "flow_euler": {"shift": 2.5}}
    own = own_of(name, **oddities.get(name, {"timestep_spacing": "trailing"}))
    assert build(name, own) is own


def test_the_brownian_sampler_draws_its_noise_from_the_seed() -> None:
    assert build("dpmpp_sde", own_of("dpmpp_sde"), seed=5).config.noise_sampler_seed == 5
    assert build("dpmpp_sde", own_of("euler"), seed=6).config.noise_sampler_seed == 6


def test_an_asked_spacing_replaces_the_models_own() -> None:
    own = own_of("euler", use_karras_sigmas=True)
    assert build("euler", own).config.use_karras_sigmas
    built = build("euler", own, sigmas="beta")
    assert built.config.use_beta_sigmas
    assert not built.config.use_karras_sigmas


def test_a_class_that_is_in_the_table_twice_is_told_apart_by_its_algorithm() -> None:
    kind = "DPMSolverMultistepScheduler"
    assert schedulers.own_name(kind, {}) == "dpmpp_2m"
    assert schedulers.own_name(kind, {"algorithm_type": "sde-dpmsolver++"}) == "dpmpp_2m_sde"
    assert schedulers.own_name(kind, {"algorithm_type": "dpmsolver"}) == "dpmpp_2m"
    assert schedulers.own_name(kind, {"use_flow_sigmas": True}) == "flow_dpmpp_2m"
    assert schedulers.own_name("FlowMatchEulerDiscreteScheduler", {}) == "flow_euler"
    assert schedulers.own_name("FlowMatchLCMScheduler", {}) is None


@pytest.mark.parametrize("name", ["flow_dpmpp_2m", "flow_unipc"])
def test_a_solver_takes_the_shift_of_a_flow_and_leaves_spacings_of_noise(name: str) -> None:
    own = own_of("flow_euler", shift=3.0, use_karras_sigmas=True)
    built = build(name, own)
    assert built.config.flow_shift == 3.0
    assert not built.config.use_karras_sigmas
    built.set_timesteps(4)
    own_levels = [1.0, 0.9, 0.75, 0.5, 0.0]  # 3 σ / (1 + 2 σ), σ = 1, 3/4, 1/2, 1/4
    assert built.sigmas.tolist() == pytest.approx(own_levels, abs=1e-3)


@pytest.mark.parametrize(
    ("config", "always_shifts", "offered"),
    [
        ({}, False, FLOW),
        ({"use_dynamic_shifting": True}, False, ["flow_euler", "flow_dpmpp_2m", "flow_unipc"]),
        ({"use_dynamic_shifting": True}, True, ["flow_euler", "flow_dpmpp_2m", "flow_unipc"]),
        ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, False, ["flow_euler"]),
        ({}, True, ["flow_euler"]),
    ],
)
def test_flow_samplers_are_offered_where_diffusers_pipelines_can_call_them(
    config: dict[str, Any], always_shifts: bool, offered: list[str]
) -> None:
    assert list(schedulers.runnable_flows(config, always_shifts=always_shifts)) == offered
    for name in offered:
        built = build(name, own_of("flow_euler", **config))
        built.set_timesteps(4, **({"mu": 0.7} if always_shifts or config else {}))
        assert len(built.timesteps) == 4 + 3 * (name == "flow_heun")


def test_a_spacing_that_a_sampler_does_not_have_is_refused_with_those_it_has() -> None:
    schedulers.check_spacing("euler", "karras")
    schedulers.check_spacing("ddim", None)
    with pytest.raises(Refusal, match="none but its own"):
        schedulers.check_spacing("ddim", "karras")


@pytest.mark.parametrize(
    ("family", "name", "steps", "strength", "calls"),
    [
        ("sd1", "ddim", 10, None, 10),
        ("sd1", "pndm", 10, None, 11),
        ("sd1", "heun", 10, None, 19),
        ("sd1", "ddim", 10, 0.75, 7),
        ("sd1", "ddim", 10, 1.0, 10),
        ("sd1", "heun", 10, 0.5, 9),
        # 0.29 × 100 is 28.999… in binary; diffusers rounds down, and so do we.
        ("sd1", "ddim", 100, 0.29, 28),
        ("sd3", "flow_euler", 10, 0.75, 8),
        ("flux", "flow_euler", 10, 0.01, 1),
        ("sd3", "flow_heun", 10, 0.5, 9),
        ("lcm", "lcm", 4, 0.3, 4),
    ],
)
def test_denoiser_calls_are_counted_as_the_sampler_makes_them(
    family: Family, name: str, steps: int, strength: float | None, calls: int
) -> None:
    assert schedulers.count_calls(own_of(name), family=family, steps=steps, strength=strength) == calls


@pytest.mark.parametrize(("name", "steps", "strength"), [("ddim", 4, 0.2), ("lcm", 60, None), ("ddim", 0, None)])
def test_requests_without_a_step_to_run_are_refused(name: str, steps: int, strength: float | None) -> None:
    with pytest.raises(Refusal) as refused:
        schedulers.count_calls(own_of(name), family="sd1", steps=steps, strength=strength)
    assert refused.value.code == FailureCode.INVALID_REQUEST


@pytest.mark.parametrize("name", [*NOISE, *FLOW])
@pytest.mark.parametrize("strength", [None, 0.5])
def test_the_calls_of_a_sampler_are_known_without_it(name: str, strength: float | None) -> None:
    family: Family = "sd3" if SCHEDULERS[name].flow else "sd1"
    built = build(name, own_of("flow_euler" if SCHEDULERS[name].flow else "euler"))
    counted = schedulers.count_calls(built, family=family, steps=20, strength=strength)
    assert denoiser_calls(name, run=steps_run(family, steps=20, strength=strength)) == counted
