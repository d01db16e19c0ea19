"""The picture that a denoiser has in mind at a step, from the call alone.

Whatever the sampler, a denoiser of Stable Diffusion is called with x = √ā·x₀ + √(1-ā)·ε, where ā is the training
schedule's product of alphas at the timestep (samplers of other scales bring their latents to this one for the call),
and one of a flow model with x = (1-σ)·x₀ + σ·ε. So x₀ follows from what goes in and what comes out of the call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

#: Names of a denoiser's latents: U-Nets, transformers.
_LATENTS = ("sample", "hidden_states")


@torch.no_grad()
def predicted_latents(
    scheduler: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: torch.Tensor, guidance_scale: float
) -> torch.Tensor | None:
    """Return the latents without noise, of one row, that a denoiser's output amounts to; None where nobody knows.

    `args` and `kwargs` are the call's: one row, or two of which the second is the guided one, as pipelines give them.
    Nothing waits for the device.
    """
    named = dict(zip(("sample", "timestep"), args, strict=False)) | dict(kwargs)
    given = next((named[name] for name in _LATENTS if name in named), None)
    if given is None or given.shape[0] not in (1, 2):
        return None
    # What pipelines append to the channels (a mask, a picture) has no prediction. Packed, channels come last.
    noisy = given[..., : output.shape[-1]] if given.dim() == 3 else given[:, : output.shape[1]]
    noisy, output = noisy.float(), output.float()
    timestep = torch.as_tensor(named["timestep"], device=output.device).float().reshape(-1)[:1]
    clean = _clean(scheduler, noisy, timestep, output)
    if clean is None or clean.shape[0] == 1:
        return clean
    plain, guided = clean.chunk(2)
    return plain + guidance_scale * (guided - plain)


def _clean(scheduler: Any, noisy: torch.Tensor, timestep: torch.Tensor, output: torch.Tensor) -> torch.Tensor | None:
    """Return x₀ of every row."""
    match scheduler.config.get("prediction_type", "flow_prediction"):
        case "sample":
            return output
        case "flow_prediction":
            # FLUX, the one whose latents come packed (rows, patches, channels), is given σ itself.
            sigma = timestep if noisy.dim() == 3 else timestep / scheduler.config.num_train_timesteps
            return noisy - sigma * output
        case "epsilon":
            signal, noise = _levels(scheduler, timestep)
            return (noisy - noise * output) / signal
        case "v_prediction":
            signal, noise = _levels(scheduler, timestep)
            return signal * noisy - noise * output
        case _:
            return None


def _levels(scheduler: Any, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return √ā and √(1-ā) at a timestep; those of spaced samplers lie between two whole ones."""
    alphas = scheduler.alphas_cumprod.to(timestep.device)
    last = len(alphas) - 1
    below = timestep.floor().long().clamp(0, last)
    alpha = torch.lerp(alphas[below], alphas[(below + 1).clamp(max=last)], timestep - below)
    # With zero terminal SNR the first step has no signal at all.
    return alpha.clamp(min=1e-6).sqrt(), (1 - alpha).sqrt()
