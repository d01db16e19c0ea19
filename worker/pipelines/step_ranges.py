"""How many steps each sampler can do with a model, found by asking diffusers' own classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from service.contract.catalog import StepRange
from worker.pipelines import schedulers
from worker.pipelines.errors import Refusal

#: Steps that a request may ask for at all.
_MOST = 1000
#: Samplers that refuse numbers of steps; every other does any (a test holds them to it). Those distilled from others
#: have no more than their distillation had, Runge-Kutta starts (PNDM) need some, the rest end at the training's.
_PARTICULAR = frozenset({"ddim", "ddpm", "pndm", "lcm", "tcd"})


def step_ranges(names: Sequence[str], config: Mapping[str, Any]) -> dict[str, StepRange]:
    """Return, of the samplers named, those that cannot do every number of steps up to 1 000, and what they can.

    `config` is that of the model's own sampler. Takes some 10 ms. A sampler that can do no number is left out: its
    requests are refused when they are drawn.
    """
    found: dict[str, StepRange] = {}
    for name in (name for name in names if name in _PARTICULAR):
        own = schedulers.from_config(config)
        sampler = schedulers.build(name, own, sigmas=None, seed=0)
        probed = _range(lambda steps, sampler=sampler: _can(sampler, steps))
        if probed is not None and (probed.min_steps, probed.max_steps) != (1, _MOST):
            found[name] = probed
    return found


def _can(sampler: schedulers.Scheduler, steps: int) -> bool:
    try:
        schedulers.count_calls(sampler, family="sd1", steps=steps, strength=None)
    except Refusal:
        return False
    return True


def _range(can: Callable[[int], bool]) -> StepRange | None:
    """Return the steps that can be done: all from one number to another, the first of them 10 at most."""
    least = next((steps for steps in range(1, 11) if can(steps)), None)
    if least is None:
        return None
    most, too_many = least, _MOST + 1
    while too_many - most > 1:
        middle = (most + too_many) // 2
        most, too_many = (middle, too_many) if can(middle) else (most, middle)
    return StepRange(min_steps=least, max_steps=most)
