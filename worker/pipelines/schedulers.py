"""Samplers: from the public names of `SCHEDULERS` to diffusers objects, and back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import diffusers

from service.contract.catalog import Family
from service.contract.errors import FailureCode
from service.contract.generation import SigmaSpacing
from service.contract.schedulers import SCHEDULERS
from service.contract.steps import steps_run
from worker.pipelines.errors import Refusal

#: diffusers keeps its scheduler base classes untyped: `config`, `timesteps`, `set_timesteps()`, `order` are relied on.
Scheduler = Any

_CLASSES: dict[str, Any] = {row.diffusers_class: getattr(diffusers, row.diffusers_class) for row in SCHEDULERS.values()}

# diffusers imports a scheduler's relatives when it first reads a config: a second, which no request should wait for.
_ = _CLASSES["DDIMScheduler"]().compatibles

_SPACING_SETTINGS: dict[SigmaSpacing, str] = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
}

#: Settings that change the noise schedule a model was trained on: a sampler that does not take them draws noise.
_SCHEDULE_SETTINGS = ("trained_betas", "rescale_betas_zero_snr")

#: What every sampler of the table can read from a denoiser.
_COMMON_PREDICTIONS = frozenset({"epsilon", "v_prediction"})


@cache
def _settings(class_name: str) -> Mapping[str, Any]:
    """Return the settings that a diffusers scheduler class takes, with their defaults."""
    parameters = inspect.signature(_CLASSES[class_name].__init__).parameters
    return {name: p.default for name, p in parameters.items() if name != "self"}


def own_name(class_name: str, config: Mapping[str, Any]) -> str | None:
    """Return the public name of a model's own sampler, or None where the table has none of its class.

    Several names may share a class (DPM++ 2M, its SDE form and that for flows) and then differ in `use_flow_sigmas` and
    `algorithm_type`; one that is none of them goes by the first.
    """
    flow = class_name.startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))
    rows = [row for row in SCHEDULERS.values() if row.diffusers_class == class_name and row.flow == flow]
    if not rows:
        return None
    algorithm = config.get("algorithm_type", _settings(class_name).get("algorithm_type"))
    for row in rows:
        if row.config.get("algorithm_type") == algorithm:
            return row.name
    return rows[0].name


def runnable(class_name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of all samplers that draw what a model that predicts noise was trained for, given its own."""
    own = own_name(class_name, config)
    needed = [name for name in _SCHEDULE_SETTINGS if config.get(name)]
    uncommon = config.get("prediction_type", "epsilon") not in _COMMON_PREDICTIONS
    return tuple(
        row.name
        for row in SCHEDULERS.values()
        if not row.flow
        and (row.name == own or (not uncommon and all(name in _settings(row.diffusers_class) for name in needed)))
    )


def runnable_flows(config: Mapping[str, Any], *, always_shifts: bool) -> tuple[str, ...]:
    """Return the names of all samplers for a model trained by flow matching, given the config of its own.

    `always_shifts`: its pipelines hand over a shift by the picture's size even where the config asks for none, which
    solvers refuse. Where it is asked for, Heun knows of none, and solvers know the exponential one alone.
    """
    asked = bool(config.get("use_dynamic_shifting"))
    exponential = config.get("time_shift_type", "exponential") == "exponential"
    fits = {
        "flow_euler": True,
        "flow_heun": not asked and not always_shifts,
        "flow_dpmpp_2m": exponential if asked else not always_shifts,
        "flow_unipc": exponential if asked else not always_shifts,
    }
    return tuple(row.name for row in SCHEDULERS.values() if row.flow and fits[row.name])


def from_config(config: Mapping[str, Any]) -> Scheduler:
    """Return the sampler that a folder's `scheduler_config.json` describes; its class is one of the table."""
    return _CLASSES[str(config["_class_name"])].from_config(dict(config))


def build(name: str, own: Scheduler, *, sigmas: SigmaSpacing | None, seed: int) -> Scheduler:
    """Return a sampler of that name, unused.

    `own` is the scheduler that the model came with, unused so far. Asked for by its own name it is returned itself,
    so that the model's config applies unchanged; any other is built from its config with the row's settings on top.
    `seed` reaches the one class that draws its noise from a seed instead of a generator (`takes_seed`).
    """
    row = SCHEDULERS[name]
    taken = _settings(row.diffusers_class)
    overrides: dict[str, Any] = {}
    is_own = own_name(type(own).__name__, own.config) == name
    if not is_own:
        overrides |= {key: value for key, value in row.config.items() if key in taken}
        if row.flow and "flow_shift" in taken:
            # The same number under another name; and spacings of noise would win over those of flows.
            overrides |= {"flow_shift": own.config.get("shift", 1.0)} | dict.fromkeys(_SPACING_SETTINGS.values(), False)
    if sigmas is not None:
        # All three are set: a model's own config may already choose another, and diffusers refuses two.
        overrides |= {key: spacing == sigmas for spacing, key in _SPACING_SETTINGS.items() if key in taken}
    if takes_seed(name):
        overrides["noise_sampler_seed"] = seed
    if is_own and not overrides:
        return own
    return _CLASSES[row.diffusers_class].from_config(own.config, **overrides)


def takes_seed(name: str) -> bool:
    """Return whether samplers of that name are made for one seed, and so for one image."""
    return "noise_sampler_seed" in _settings(SCHEDULERS[name].diffusers_class)


def check_spacing(name: str, sigmas: SigmaSpacing | None) -> None:
    """Raise `Refusal` when the sampler of that name does not offer this spacing of noise levels."""
    row = SCHEDULERS[name]
    if sigmas is not None and sigmas not in row.spacings:
        allowed = f"Allowed: {', '.join(row.spacings)}." if row.spacings else "It has none but its own."
        raise Refusal(FailureCode.INVALID_REQUEST, f"The scheduler {name} does not take sigmas {sigmas}. {allowed}")


def count_calls(
    scheduler: Scheduler,
    *,
    family: Family,
    steps: int,
    strength: float | None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> int:
    """Return how many denoiser calls one image takes: one per timestep, which is not always one per step.

    `options` are what the pipeline gives the scheduler besides the number of steps. Uses the scheduler up. Raises
    `Refusal` for step counts that the sampler cannot do, or none left by `strength`.
    """
    try:
        scheduler.set_timesteps(steps, **options)
    except (ValueError, IndexError, ZeroDivisionError, AssertionError) as err:
        name = own_name(type(scheduler).__name__, scheduler.config)
        raise Refusal(
            FailureCode.INVALID_REQUEST,
            f"The scheduler {name} cannot do {steps} steps with this model"
            f"{'' if strength is None else f' at strength {strength:g}'}.",
        ) from err
    if strength is None:
        return len(scheduler.timesteps)
    kept = steps_run(family, steps=steps, strength=strength)
    if kept < 1:
        message = f"strength {strength:g} of {steps} steps leaves none to run; raise one of them."
        raise Refusal(FailureCode.INVALID_REQUEST, message)
    return len(scheduler.timesteps[(steps - kept) * scheduler.order :])
