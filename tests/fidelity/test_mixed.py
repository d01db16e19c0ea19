"""Requests that share calls draw what plain diffusers draws for each alone, up to the rounding of wider sums.

How much that is, plain diffusers itself says: in the same run the same picture is drawn alone and among others in one
call of its pipeline. Who shares no call is equal to the bit.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from service.contract.generation import Task
from tests.fidelity.cases import MODELS_AND_TASKS, TASKS, Case
from tests.fidelity.engine import EngineSide
from tests.fidelity.mixed import Guest, Mix, Watch, watching
from tests.fidelity.reference import SAMPLERS, Reference
from tests.models import LIBRARY_WARNINGS
from worker.pipelines.errors import Refusal

pytestmark = LIBRARY_WARNINGS

EngineSides = Callable[[str], EngineSide]
References = Callable[[str], Reference]

#: Of the pixel range, which is 1.
MOST = 5e-5
#: Of what plain diffusers differs between one and `PLAIN_IMAGES` pictures a call.
TIMES = 3
PLAIN_IMAGES = 6
JOINING_PER_TICK = 4

#: An LCM takes guidance as a number beside each row.
LCM = [("sd15_lcm", task) for task in TASKS]
#: Transformers: SD 3 with two rows a guided request, FLUX with one and its guidance beside it.
FLOW = [(model, task) for model in ("sd3", "flux") for task in TASKS]
EVERY = [*MODELS_AND_TASKS, *LCM, *FLOW, ("flux_fill", "inpaint"), ("lcm", "text-to-image"), ("lcm", "image-to-image")]

#: Model → who takes part, where not every sampler does; several of one differ in everything else.
TAKING_PART = {
    ("sd3", "text-to-image"): ("flow_euler", "flow_heun", "flow_dpmpp_2m", "flow_unipc") * 2,
    ("sd3", "image-to-image"): ("flow_euler", "flow_heun") * 4,
    ("sd3", "inpaint"): ("flow_euler", "flow_heun") * 4,
    ("flux", "text-to-image"): ("flow_euler", "flow_dpmpp_2m", "flow_unipc", "flow_euler") * 2,
    ("flux", "image-to-image"): ("flow_euler",) * 8,
    ("flux", "inpaint"): ("flow_euler",) * 8,
    ("flux_fill", "inpaint"): ("flow_euler",) * 8,
    ("lcm", "text-to-image"): ("lcm",) * 8,
    ("lcm", "image-to-image"): ("lcm",) * 8,
}

GUIDANCES = (5.0, 1.0, 7.5)
NEGATIVES = ("", "a dog, blurred", "", "text")
STRENGTHS = (0.8, 1.0, 0.6)
#: Of those that round steps up, so that something of the picture is left.
SMALLER_STRENGTHS = (0.7, 1.0, 0.5)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def case_of(scheduler: str, task: Task, number: int) -> Case:
    """Return a request that differs from its neighbours in all that may differ within a call."""
    strengths = SMALLER_STRENGTHS if scheduler.startswith("flow") else STRENGTHS
    return Case(
        task=task,
        scheduler=scheduler,
        prompt=f"picture {number} of a {'red apple' if number % 2 else 'blue car'}",
        negative_prompt=NEGATIVES[number % len(NEGATIVES)],
        guidance_scale=GUIDANCES[number % len(GUIDANCES)],
        steps=3 + number % 2,
        seed=1000 + number,
        strength=strengths[number % len(strengths)],
        picture=number,
        mask=number % 3,
        eta=0.5 if scheduler == "ddim" else 0.0,
    )


@dataclass(frozen=True)
class Party:
    """Everybody who was in one mixed batch."""

    #: One for every sampler, or for every one in `TAKING_PART`.
    sharing: list[Guest]
    #: Their calls were shared with nobody: asked for, or of another size.
    apart: list[Guest]
    canceled: list[Guest]
    poisoned: Guest
    watch: Watch


@cache
def party(side: EngineSide, model: str, task: Task) -> Party:
    taking_part = TAKING_PART.get((model, task), tuple(SAMPLERS))
    # Who does more than share takes those of many samplers that remember most of their past, or what there is.
    ancestral, second, heun, plain, solver = (
        ("euler_a", "dpmpp_2m", "heun", "ddim", "unipc") if len(taking_part) > 8 else taking_part[:5]
    )
    size = {"width": 72, "height": 88} if len(taking_part) > 8 else {"width": 80, "height": 96}
    sharing = [Guest(case_of(name, task, number)) for number, name in enumerate(taking_part)]
    apart = [
        Guest(case_of(ancestral, task, 31).but(**size)),
        Guest(case_of(ancestral, task, 32).but(deterministic=True)),
        Guest(case_of(second, task, 33).but(deterministic=True)),
    ]
    canceled = [
        Guest(case_of(second, task, 41).but(steps=5), cancel_at_step=2),
        Guest(case_of(heun, task, 42).but(steps=5), stop_at_step=2),
        Guest(case_of(plain, task, 43).but(steps=5), num_images=2, stop_at_step=3),
    ]
    poisoned = Guest(case_of(solver, task, 51).but(prompt="poison", steps=5))
    mix = Mix(side)
    # Its prompts are encoded before anybody else has some.
    mix.join(apart[0])
    mix.tick()
    joining = [*apart[1:], *canceled, poisoned]
    for position, guest in enumerate(sharing):
        joining.insert(1 + 2 * position, guest)
    with watching(side, poison=poisoned.case, after=1, glitch_at=3) as watch:
        while joining:
            for _ in range(JOINING_PER_TICK):
                if joining:
                    mix.join(joining.pop(0))
            mix.tick()
        mix.finish()
    return Party(sharing, apart, canceled, poisoned, watch)


def rounding(reference: Reference, case: Case, alone: torch.Tensor) -> float:
    """Return how much plain diffusers differs on that picture between itself alone and among others in one call."""
    others = [
        case.but(prompt=f"{case.prompt}, {n}", seed=case.seed + n, picture=case.picture + n)
        for n in range(1, PLAIN_IMAGES)
    ]
    return distance(reference.pictures([case, *others])[:1], alone)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize(("model", "task"), EVERY)
def test_every_sampler_draws_in_mixed_company_what_diffusers_draws_alone(
    engine_side: EngineSides, reference: References, model: str, task: Task
) -> None:
    plain = reference(model)
    errors: list[float] = []
    plain_errors: list[float] = []
    guests = party(engine_side(model), model, task).sharing
    for guest in guests:
        assert guest.error is None
        alone = plain.pictures([guest.case])
        errors.append(distance(guest.pictures[0], alone))
        plain_errors.append(rounding(plain, guest.case, alone))
    typical = statistics.median(plain_errors)
    assert {guest.case.scheduler for guest in guests} == set(TAKING_PART.get((model, task), SAMPLERS))
    for guest, error, plain_error in zip(guests, errors, plain_errors, strict=True):
        assert error <= MOST, guest.case
        # A sampler's own measure, but for one that happened to hit upon exact sums.
        assert error <= TIMES * max(plain_error, typical), guest.case


@pytest.mark.parametrize(("model", "task"), EVERY)
def test_who_shares_no_call_is_equal_to_the_bit_in_whatever_company(
    engine_side: EngineSides, reference: References, model: str, task: Task
) -> None:
    for guest in party(engine_side(model), model, task).apart:
        assert guest.error is None
        expected = reference(model).draw(guest.case)
        assert torch.equal(guest.latents[0], expected.latents)
        assert torch.equal(guest.pictures[0], reference(model).pictures([guest.case]))
        assert (guest.pixels[0] == expected.pixels).all()


@pytest.mark.parametrize(("model", "task"), EVERY)
def test_who_is_canceled_or_fails_leaves_the_company_and_nobody_else_does(
    engine_side: EngineSides, model: str, task: Task
) -> None:
    everybody = party(engine_side(model), model, task)
    for guest in everybody.canceled:
        assert isinstance(guest.error, Refusal)
        assert guest.error.code == "canceled"
        assert not guest.pixels
        assert 2 <= guest.steps <= 4
    assert str(everybody.poisoned.error) == "poisoned"
    assert everybody.poisoned.steps == 1
    assert all(guest.error is None for guest in [*everybody.sharing, *everybody.apart])


@pytest.mark.parametrize(("model", "task"), EVERY)
def test_the_company_really_shared_its_calls(engine_side: EngineSides, model: str, task: Task) -> None:
    """Were every call of one request, the comparisons above would prove nothing."""
    widths = party(engine_side(model), model, task).watch.widths
    of_several = [rows for rows in widths if rows > 2]
    # Who meets whom follows from what calls were measured to cost. Where fewer take part, those who share with nobody,
    # and the calls made again after a failure, weigh more.
    widest, part = (8, 1 / 3) if (model, task) not in TAKING_PART else (5, 1 / 4)
    assert max(of_several) >= widest
    assert sum(of_several) > part * sum(widths)


@pytest.mark.parametrize("scheduler", SAMPLERS)
def test_a_request_in_an_empty_batch_is_equal_to_the_bit(
    engine_side: EngineSides, reference: References, scheduler: str
) -> None:
    mix = Mix(engine_side("sd15"))
    guest = mix.join(Guest(case_of(scheduler, "text-to-image", 3)))
    mix.finish()
    assert guest.error is None
    assert torch.equal(guest.pictures[0], reference("sd15").pictures([guest.case]))


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_images_of_a_request_that_share_calls_draw_what_their_seeds_draw_alone(
    engine_side: EngineSides, reference: References, model: str
) -> None:
    case = case_of("dpmpp_2m", "image-to-image", 6)
    mix = Mix(engine_side(model))
    with watching(engine_side(model)) as watch:
        guest = mix.join(Guest(case, num_images=3))
        mix.finish()
    assert set(watch.widths) == {6}
    for image in range(3):
        alone = reference(model).pictures([case.but(seed=case.seed + image)])
        assert distance(guest.pictures[image], guest.pictures[(image + 1) % 3]) > 0.01
        assert distance(guest.pictures[image], alone) <= MOST


@pytest.mark.parametrize("images", [2, 3])
def test_images_of_a_deterministic_request_share_no_call_either(
    engine_side: EngineSides, reference: References, images: int
) -> None:
    case = case_of("euler_a", "text-to-image", 6).but(deterministic=True)
    mix = Mix(engine_side("sd15"))
    guest = mix.join(Guest(case, num_images=images))
    mix.join(Guest(case_of("ddim", "text-to-image", 7)))
    mix.finish()
    for image in range(images):
        assert torch.equal(guest.pictures[image], reference("sd15").pictures([case.but(seed=case.seed + image)]))
