"""The samplers by their public names. Data only: the worker turns a row into a diffusers object."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict

from service.contract.generation import SigmaSpacing, Task

_ALL_TASKS: tuple[Task, ...] = ("text-to-image", "image-to-image", "inpaint")


class SchedulerSpec(BaseModel):
    """One sampler: a diffusers class and the settings that make it what its name says."""

    model_config = ConfigDict(frozen=True)

    name: str
    #: As people know it.
    title: str
    #: Class name in `diffusers`.
    diffusers_class: str
    #: Settings laid over the model's scheduler config where that was written for another class.
    config: dict[str, Any]
    #: Accepted values of `sigmas`.
    spacings: tuple[SigmaSpacing, ...] = ()
    #: For models trained by flow matching (Lipman et al. 2022); the others are for those that learnt to remove noise.
    flow: bool = False
    #: Tasks that it can do; some cannot begin from a picture.
    tasks: tuple[Task, ...] = _ALL_TASKS


#: A scheduler built from a PNDM config would keep `clip_sample=True`, which clips latents and ruins pictures.
_UNCLIPPED: dict[str, Any] = {"clip_sample": False, "steps_offset": 1}
_SIGMAS: tuple[SigmaSpacing, ...] = ("karras", "exponential", "beta")


def _row(
    name: str, title: str, cls: str, config: dict[str, Any] | None = None, spacings: tuple[SigmaSpacing, ...] = ()
) -> tuple[str, SchedulerSpec]:
    return name, SchedulerSpec(name=name, title=title, diffusers_class=cls, config=config or {}, spacings=spacings)


def _flow_row(
    name: str,
    title: str,
    cls: str,
    config: dict[str, Any] | None = None,
    *,
    spacings: tuple[SigmaSpacing, ...] = (),
    tasks: tuple[Task, ...] = _ALL_TASKS,
) -> tuple[str, SchedulerSpec]:
    spec = SchedulerSpec(
        name=name, title=title, diffusers_class=cls, config=config or {}, spacings=spacings, flow=True, tasks=tasks
    )
    return name, spec


#: Solvers that learnt of flows later: they cannot mix a picture with noise, as every task but text-to-image asks for.
_FLOW_SOLVER: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
_FROM_NOISE: tuple[Task, ...] = ("text-to-image",)


#: Solvers name their `algorithm_type`, UniPC its last step: one taken over from a config for another solver fails,
#: is another sampler, or ends in NaN.
SCHEDULERS: MappingProxyType[str, SchedulerSpec] = MappingProxyType(
    dict(
        [
            _row("ddim", "DDIM", "DDIMScheduler", _UNCLIPPED),
            _row("ddpm", "DDPM", "DDPMScheduler", _UNCLIPPED),
            _row("pndm", "PNDM (PLMS)", "PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
            _row("lms", "LMS", "LMSDiscreteScheduler", None, _SIGMAS),
            _row("euler", "Euler", "EulerDiscreteScheduler", None, _SIGMAS),
            _row("euler_a", "Euler a", "EulerAncestralDiscreteScheduler"),
            _row("heun", "Heun", "HeunDiscreteScheduler", None, _SIGMAS),
            _row("dpm2", "DPM2", "KDPM2DiscreteScheduler", None, _SIGMAS),
            _row("dpm2_a", "DPM2 a", "KDPM2AncestralDiscreteScheduler", None, _SIGMAS),
            _row("dpmpp_2m", "DPM++ 2M", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}, _SIGMAS),
            _row(
                "dpmpp_2m_sde",
                "DPM++ 2M SDE",
                "DPMSolverMultistepScheduler",
                {"algorithm_type": "sde-dpmsolver++"},
                _SIGMAS,
            ),
            _row("dpmpp_2s", "DPM++ 2S", "DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++"}, _SIGMAS),
            _row("dpmpp_sde", "DPM++ SDE", "DPMSolverSDEScheduler", None, _SIGMAS),
            _row("unipc", "UniPC", "UniPCMultistepScheduler", {"lower_order_final": True}, _SIGMAS),
            _row("deis", "DEIS", "DEISMultistepScheduler", {"algorithm_type": "deis"}, _SIGMAS),
            _row("sa_solver", "SA-Solver", "SASolverScheduler", {"algorithm_type": "data_prediction"}, _SIGMAS),
            _row("lcm", "LCM", "LCMScheduler", {"clip_sample": False}),
            _row("tcd", "TCD", "TCDScheduler", {"clip_sample": False}),
            _flow_row("flow_euler", "Flow Euler", "FlowMatchEulerDiscreteScheduler", spacings=_SIGMAS),
            _flow_row("flow_heun", "Flow Heun", "FlowMatchHeunDiscreteScheduler"),
            _flow_row(
                "flow_dpmpp_2m",
                "Flow DPM++ 2M",
                "DPMSolverMultistepScheduler",
                {"algorithm_type": "dpmsolver++"} | _FLOW_SOLVER,
                tasks=_FROM_NOISE,
            ),
            _flow_row("flow_unipc", "Flow UniPC", "UniPCMultistepScheduler", _FLOW_SOLVER, tasks=_FROM_NOISE),
        ]
    )
)

#: Other names that people use for a row above.
ALIASES: MappingProxyType[str, str] = MappingProxyType({"plms": "pndm"})

#: A model's own sampler where no row above is of its class: drawn with as its folder has it, or not at all.
OWN_SCHEDULER = "default"
