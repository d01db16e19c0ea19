"""The forward process, and what the denoiser learns to undo.

Notation: z0 clean latents; eps noise, N(0, 1); zt what the denoiser sees at timestep t; shapes (n, 4, 16, 16), t (n,).
"""

import torch

TIMESTEPS = 1000
#: Stable Diffusion's "scaled linear" schedule (Rombach et al. 2022): evenly spaced square roots of the betas.
BETA_START, BETA_END = 0.00085, 0.012
#: Cap of a timestep's weight in the loss, see `loss_weight`.
GAMMA = 5.0

_BETAS = torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMESTEPS) ** 2
#: Part of z0's variance that is left in zt, (1000,), falling from 0.9991 to 0.0047.
ALPHAS_CUMPROD = torch.cumprod(1 - _BETAS, 0)


def random_timesteps(n: int, generator: torch.Generator) -> torch.Tensor:
    """Return n timesteps, int64 (n,), spread evenly over the schedule: a stratified draw has less variance."""
    strata = (torch.arange(n) + torch.rand(n, generator=generator)) * (TIMESTEPS / n)
    return strata.long().clamp(max=TIMESTEPS - 1)[torch.randperm(n, generator=generator)]


def add_noise(z0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return zt = sqrt(a) z0 + sqrt(1 - a) eps, a = alphas_cumprod[t] (Ho et al. 2020, eq. 4)."""
    signal, noise = _coefficients(t, z0)
    return signal * z0 + noise * eps


def velocity(z0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return v = sqrt(a) eps - sqrt(1 - a) z0, the target (Salimans and Ho 2022, appendix D).

    At t = 0 it is the noise, at the last timestep nearly -z0: always of unit variance, and never a quantity that zt
    already shows. Predicting eps instead would leave the noisiest timesteps, where a prompt decides what the picture
    becomes, with next to nothing to learn.
    """
    signal, noise = _coefficients(t, z0)
    return signal * eps - noise * z0


def clean_latents(zt: torch.Tensor, v: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return z0 = sqrt(a) zt - sqrt(1 - a) v: what a prediction means."""
    signal, noise = _coefficients(t, zt)
    return signal * zt - noise * v


def loss_weight(t: torch.Tensor) -> torch.Tensor:
    """Return each timestep's weight in the mean squared error of v, (n,): min(SNR + 1, gamma) / (SNR + 1).

    After Min-SNR weighting (Hang et al. 2023), whose own form for v is min(SNR, gamma) / (SNR + 1). Like it, this
    fades towards t = 0, where the error is of fine grain that decides nothing and would fill the gradient. Unlike it,
    it stays at 1 while noise prevails: there the caption alone decides what the picture becomes, and that is what is
    to be learnt.
    """
    a = ALPHAS_CUMPROD[t]
    snr = a / (1 - a)
    return (snr + 1).clamp(max=GAMMA) / (snr + 1)


def _coefficients(t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    a = ALPHAS_CUMPROD[t].to(like).view(-1, 1, 1, 1)
    return a.sqrt(), (1 - a).sqrt()
