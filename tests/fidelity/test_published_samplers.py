"""Every sampler of ours takes the steps whose outcome diffusers' own tests publish, all of them in one batch.

The denoiser of those tests is `sample · t / (t + 1)`, the sample four rows of a ramp. A sampler is made as for a model
that came with another one (DDPM's config says the betas alone), but for those whose settings the tests choose: these
are the model's own. DPM++ 2M SDE and the samplers of flows have no published outcome.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import diffusers
import pytest
import torch

from service.contract.generation import SigmaSpacing
from service.contract.schedulers import SCHEDULERS
from tests.models import LIBRARY_WARNINGS
from tests.sums import DeviceLost
from worker.engine.batch import batch_for
from worker.engine.calls import DenoiserCall
from worker.engine.strands import share
from worker.pipelines import schedulers

pytestmark = LIBRARY_WARNINGS

_LINEAR: dict[str, Any] = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
_SHORT: dict[str, Any] = _LINEAR | {"num_train_timesteps": 1000}
_LONG: dict[str, Any] = _LINEAR | {"num_train_timesteps": 1100}
_SCALED: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_V: dict[str, Any] = {"prediction_type": "v_prediction"}
_MULTISTEP: dict[str, Any] = _SHORT | {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
_LAST_SIGMA: dict[str, Any] = _SHORT | {"final_sigmas_type": "sigma_min"}


@dataclass(frozen=True, eq=False)
class FullLoop:
    """One of diffusers' tests: 0.40.0, commit d035dcd7cc7c."""

    scheduler: str
    #: Of `tests/schedulers`, behind `test_scheduler_`.
    file: str
    config: dict[str, Any]
    #: Mean absolute value of the last sample as published, or its sum over all numbers.
    mean: float | None = None
    sum: float | None = None
    #: How far from it diffusers' own test may be, where its digits are not met.
    within: float | None = None
    steps: int = 10
    sigmas: SigmaSpacing | None = None
    #: The config is of this sampler, not only of the betas.
    own: bool = False

    def __str__(self) -> str:
        return f"{self.scheduler}-{self.sum or self.mean}"

    def sampler(self) -> Any:
        """Return the sampler as the engine makes it."""
        cls = SCHEDULERS[self.scheduler].diffusers_class if self.own else "DDPMScheduler"
        return schedulers.build(self.scheduler, getattr(diffusers, cls)(**self.config), sigmas=self.sigmas, seed=0)


LOOPS = [
    FullLoop("ddim", "ddim", _SHORT | {"clip_sample": True}, sum=172.0067, own=True),
    FullLoop("ddim", "ddim", _SHORT | _V | {"clip_sample": True}, sum=52.5302, own=True),
    FullLoop("ddpm", "ddpm", _SHORT, sum=258.9606, steps=1000, own=True),
    FullLoop("pndm", "pndm", _SHORT, sum=198.1318, own=True),
    FullLoop("pndm", "pndm", _SHORT | _V, sum=67.3986, own=True),
    FullLoop("lms", "lms", _LONG, sum=1006.388),
    FullLoop("lms", "lms", _LONG, sum=3812.9927, sigmas="karras"),
    FullLoop("euler", "euler", _LONG, sum=10.0807),
    FullLoop("euler", "euler", _LONG, sum=124.52299499511719, sigmas="karras"),
    FullLoop("euler_a", "euler_ancestral", _LONG, sum=152.3192),
    FullLoop("euler_a", "euler_ancestral", _LONG | _V, sum=108.4439),
    FullLoop("heun", "heun", _LONG, sum=0.1233),
    FullLoop("dpm2", "kdpm2_discrete", _LONG, sum=20.4125),
    FullLoop("dpm2_a", "kdpm2_ancestral", _LONG, sum=13979.9433),
    FullLoop("dpm2_a", "kdpm2_ancestral", _LONG | _V, sum=331.8133),
    FullLoop("dpmpp_2m", "dpm_multi", _MULTISTEP, mean=0.3301, own=True),
    FullLoop("dpmpp_2m", "dpm_multi", _MULTISTEP | _V, mean=0.2251, own=True),
    FullLoop("dpmpp_2m", "dpm_multi", _MULTISTEP | _V, mean=0.2096, within=1e-3, sigmas="karras", own=True),
    FullLoop("dpmpp_2s", "dpm_single", _LAST_SIGMA, mean=0.2791, own=True),
    FullLoop("dpmpp_2s", "dpm_single", _LAST_SIGMA, mean=0.2248, sigmas="karras", own=True),
    FullLoop("dpmpp_2s", "dpm_single", _LAST_SIGMA | _V, mean=0.1453, own=True),
    FullLoop("unipc", "unipc", _LAST_SIGMA, mean=0.2464, own=True),
    FullLoop("unipc", "unipc", _LAST_SIGMA, mean=0.2925, sigmas="karras", own=True),
    FullLoop("unipc", "unipc", _LAST_SIGMA | _V, mean=0.1014, own=True),
    FullLoop("dpmpp_sde", "dpm_sde", _LONG, sum=162.52383422851562),
    FullLoop("dpmpp_sde", "dpm_sde", _LONG, sum=170.3135223388672, sigmas="karras"),
    FullLoop("dpmpp_sde", "dpm_sde", _LONG | _V, sum=119.8487548828125),
    FullLoop("deis", "deis", _SHORT, mean=0.23916),
    FullLoop("deis", "deis", _SHORT | _V, mean=0.091),
    FullLoop("sa_solver", "sasolver", _LONG, sum=337.394287109375),
    FullLoop("sa_solver", "sasolver", _LONG, sum=837.2554931640625, sigmas="karras"),
    FullLoop("sa_solver", "sasolver", _LONG | _V, sum=193.1467742919922),
    FullLoop("lcm", "lcm", _SCALED, sum=18.7097, steps=1),
    FullLoop("lcm", "lcm", _SCALED, sum=197.7616),
    FullLoop("tcd", "tcd", _SCALED, sum=29.8715, steps=1),
    FullLoop("tcd", "tcd", _SCALED, sum=181.2040),
]


class Ramp(torch.nn.Module):
    """The denoiser of diffusers' tests."""

    def __init__(self) -> None:
        super().__init__()
        #: Rows of every call.
        self.widths: list[int] = []

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.widths.append(len(sample))
        t = timestep.reshape(-1, 1, 1, 1).to(sample.dtype)
        return sample * t / (t + 1)


def draw(loop: FullLoop, denoiser: torch.nn.Module) -> torch.Tensor:
    """Return the last sample, (4, 3, 8, 8), stepped as a pipeline of diffusers steps it."""
    sampler = loop.sampler()
    sampler.set_timesteps(loop.steps)
    taken = inspect.signature(sampler.step).parameters
    offered: dict[str, Any] = {"eta": 0.0, "generator": torch.Generator().manual_seed(0)}
    options = {name: value for name, value in offered.items() if name in taken}
    numbers = torch.arange(4 * 3 * 8 * 8) / (4 * 3 * 8 * 8)
    sample = numbers.reshape(3, 8, 8, 4).permute(3, 0, 1, 2) * sampler.init_noise_sigma
    for t in sampler.timesteps:
        sample = sampler.scale_model_input(sample, t)
        noise = share(DenoiserCall(denoiser, (sample, t), {}, alone=False))
        sample = sampler.step(noise, t, sample, **options).prev_sample
    return sample


@cache
def drawn() -> tuple[dict[FullLoop, torch.Tensor], list[int]]:
    """Return the last sample of every loop, all of them strands of one batch, and the rows of each call."""
    samples: dict[FullLoop, torch.Tensor] = {}
    denoiser = Ramp()

    def lost(error: Exception) -> None:
        raise DeviceLost from error

    with torch.no_grad():
        batch = batch_for(torch.device("cpu"), lost=lost)
        for loop in LOOPS:
            batch.hub.start(lambda loop=loop: samples.update({loop: draw(loop, denoiser)}))
        while batch.busy:
            batch.tick()
    return samples, denoiser.widths


@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_a_sampler_ends_where_diffusers_published_that_it_ends(loop: FullLoop) -> None:
    sizes = drawn()[0][loop].abs()
    if loop.sum is not None:
        assert abs(float(sizes.sum()) - loop.sum) < (loop.within or 1e-3)
    if loop.mean is not None:
        assert abs(float(sizes.mean()) - loop.mean) < (loop.within or 1e-4)


def test_the_samplers_really_shared_their_calls() -> None:
    assert sum(rows > 4 for rows in drawn()[1]) >= 10
    assert max(drawn()[1]) >= 4 * 8


def test_every_sampler_with_a_published_outcome_is_compared() -> None:
    without = {name for name, row in SCHEDULERS.items() if row.flow} | {"dpmpp_2m_sde"}
    assert {loop.scheduler for loop in LOOPS} == set(SCHEDULERS) - without
