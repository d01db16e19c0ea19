"""What a card says of a sampler's steps is what the sampler does."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import diffusers
import pytest

from service.contract.catalog import CatalogEntry, Limits, SamplingDefaults, StepRange
from service.contract.schedulers import SCHEDULERS
from service.contract.steps import most_steps
from tests.models import LIBRARY_WARNINGS, tiny_model
from worker.pipelines import schedulers
from worker.pipelines.capabilities import read_capabilities
from worker.pipelines.card import make_card
from worker.pipelines.errors import Refusal, UnusableModel
from worker.pipelines.quiet import quiet_libraries
from worker.pipelines.step_ranges import step_ranges

pytestmark = LIBRARY_WARNINGS

NOISE = [name for name, row in SCHEDULERS.items() if not row.flow]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_libraries()


def config_of(name: str, **settings: Any) -> dict[str, Any]:
    """Return a scheduler's config as a model folder has it."""
    kind = getattr(diffusers, SCHEDULERS[name].diffusers_class)
    return json.loads(kind(beta_schedule="scaled_linear", **settings).to_json_string())


def can(name: str, config: dict[str, Any], steps: int, **options: Any) -> bool:
    """Return whether the sampler takes this many steps."""
    sampler = schedulers.build(name, schedulers.from_config(config), sigmas=None, seed=0)
    try:
        schedulers.count_calls(sampler, **{"family": "sd1", "steps": steps, "strength": None} | options)
    except Refusal:
        return False
    return True


def as_pairs(names: list[str], config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {name: (each.min_steps, each.max_steps) for name, each in step_ranges(names, config).items()}


@pytest.mark.parametrize("name", NOISE)
def test_a_sampler_does_the_steps_that_are_said_and_no_others(name: str) -> None:
    config = config_of("pndm", skip_prk_steps=True)
    least, most = as_pairs(NOISE, config).get(name, (1, 1000))
    does = {steps: can(name, config, steps) for steps in (1, 2, 3, 50, 51, 150)}
    assert does == {steps: least <= steps <= most for steps in does}


@pytest.mark.parametrize(
    ("own", "settings", "ranges"),
    [
        ("ddim", {}, {"lcm": (1, 50), "tcd": (1, 50)}),
        ("pndm", {"skip_prk_steps": False}, {"pndm": (4, 1000), "lcm": (1, 50), "tcd": (1, 50)}),
        ("lcm", {"original_inference_steps": 20}, {"lcm": (1, 20), "tcd": (1, 20)}),
        (
            "ddim",
            {"num_train_timesteps": 100},
            {"ddim": (1, 100), "ddpm": (1, 100), "lcm": (1, 50), "tcd": (1, 50)},
        ),
    ],
)
def test_ranges_come_from_the_config_of_the_models_own_sampler(
    own: str, settings: dict[str, Any], ranges: dict[str, tuple[int, int]]
) -> None:
    config = config_of(own, **settings)
    found = as_pairs(NOISE, config)
    assert {name: found.get(name) for name in ranges} == ranges
    for name, (least, most) in ranges.items():
        assert can(name, config, least)
        assert can(name, config, most)
        assert not can(name, config, least - 1)
        assert most == 1000 or not can(name, config, most + 1)


@pytest.mark.parametrize("strength", [0.019, 0.02, 0.3, 0.5, 0.77, 1.0])
def test_a_latent_consistency_model_has_the_steps_that_strength_leaves(strength: float) -> None:
    config = config_of("lcm")
    most = most_steps("lcm", most=50, strength=strength)
    given = {"family": "lcm", "strength": strength, "options": {"strength": strength}}
    assert most == 0 or can("lcm", config, most, **given)
    assert not can("lcm", config, most + 1, **given)


def test_the_card_has_them_and_tells_where_guidance_rescale_does_something() -> None:
    card = make_card(
        CatalogEntry(id="a", source="a"), read_capabilities(tiny_model("sd15")), dtype="float32", sha256="0" * 64
    )
    assert {name: each.max_steps for name, each in card.step_ranges.items()} == {"lcm": 50, "tcd": 50}
    assert card.rescaled_tasks == ("text-to-image",)
    xl = read_capabilities(tiny_model("sdxl"))
    assert xl.rescaled_tasks == ("text-to-image", "image-to-image", "inpaint")


@pytest.mark.parametrize(("steps", "fits"), [(None, True), (50, True), (51, False)])
def test_the_default_steps_of_a_catalogue_are_within_what_its_default_sampler_does(
    steps: int | None, fits: bool
) -> None:
    entry = CatalogEntry(
        id="a", source="a", defaults=SamplingDefaults(steps=steps, scheduler="lcm"), limits=Limits(max_steps=150)
    )
    abilities = read_capabilities(tiny_model("sd15"))
    if fits:
        assert make_card(entry, abilities, dtype="float32", sha256="0" * 64).steps == (steps or 30)
    else:
        with pytest.raises(UnusableModel, match="does 1 to 50 with this model"):
            make_card(entry, abilities, dtype="float32", sha256="0" * 64)


def test_without_default_steps_a_sampler_of_few_gets_all_that_it_has() -> None:
    abilities = dataclasses.replace(
        read_capabilities(tiny_model("sd15")), step_ranges={"pndm": StepRange(min_steps=1, max_steps=8)}
    )
    assert make_card(CatalogEntry(id="a", source="a"), abilities, dtype="float32", sha256="0" * 64).steps == 8
