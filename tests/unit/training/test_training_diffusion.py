"""The forward process is Stable Diffusion's: diffusers, which will draw with the model, computes the same numbers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from training import diffusion
from training.networks import new_scheduler


def triple(n: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z0, eps = torch.randn(2, n, 4, 16, 16, generator=generator)
    return z0, eps, torch.linspace(0, diffusion.TIMESTEPS - 1, n).long()


def test_schedule_is_that_of_the_published_scheduler() -> None:
    assert torch.equal(diffusion.ALPHAS_CUMPROD, new_scheduler().alphas_cumprod)


def test_add_noise_and_velocity_equal_diffusers_bit_for_bit() -> None:
    reference = DDPMScheduler.from_config(new_scheduler().config)
    z0, eps, t = triple()
    assert torch.equal(diffusion.add_noise(z0, eps, t), reference.add_noise(z0, eps, t))
    assert torch.equal(diffusion.velocity(z0, eps, t), reference.get_velocity(z0, eps, t))


def test_true_velocity_gives_the_clean_latents_back() -> None:
    z0, eps, t = triple()
    zt, v = diffusion.add_noise(z0, eps, t), diffusion.velocity(z0, eps, t)
    torch.testing.assert_close(diffusion.clean_latents(zt, v, t), z0, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n", [1, 50, 64])
def test_timesteps_of_a_batch_cover_the_schedule_evenly(n: int) -> None:
    t = diffusion.random_timesteps(n, torch.Generator().manual_seed(1))
    assert t.dtype == torch.int64
    assert t.shape == (n,)
    width = diffusion.TIMESTEPS / n
    strata = torch.arange(n) * width
    in_order = t.sort().values
    assert bool(((in_order >= strata.floor()) & (in_order < strata + width)).all())


def test_timesteps_come_in_no_order_and_differ_from_draw_to_draw() -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = (diffusion.random_timesteps(64, generator) for _ in range(2))
    assert not torch.equal(first, first.sort().values)
    assert not torch.equal(first.sort().values, second.sort().values)


def test_loss_weight_is_one_in_noise_and_fades_in_clean_pictures() -> None:
    weight = diffusion.loss_weight(torch.arange(diffusion.TIMESTEPS))
    snr = diffusion.ALPHAS_CUMPROD / (1 - diffusion.ALPHAS_CUMPROD)
    assert bool((weight.diff() >= 0).all())
    assert bool((weight[snr + 1 < diffusion.GAMMA] == 1).all())
    clean = snr + 1 > diffusion.GAMMA
    torch.testing.assert_close(weight[clean] * (snr[clean] + 1), torch.full_like(snr[clean], diffusion.GAMMA))


def test_sampler_starts_where_the_training_ended() -> None:
    scheduler = new_scheduler()
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == diffusion.TIMESTEPS - 1
    assert len(scheduler.timesteps) == 20
