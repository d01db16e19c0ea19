"""How many denoising steps a request runs, exactly as diffusers counts them."""

from __future__ import annotations

from service.contract.catalog import Family


def steps_run(family: Family, *, steps: int, strength: float | None) -> int:
    """Return the denoising steps that run of those asked for; less than 1 where `strength` leaves none.

    Without a strength all run. Families differ by how they round what `strength` leaves: Stable Diffusion 1.x to XL
    down, SD 3 and FLUX up. A latent consistency model always runs all: strength decides where they begin.
    """
    if strength is None or family == "lcm":
        return steps
    if family in ("sd3", "flux", "flux_fill"):
        return steps - int(max(steps - min(steps * strength, steps), 0))
    return min(int(steps * strength), steps)


def most_steps(family: Family, *, most: int, strength: float | None) -> int:
    """Return how many steps may be asked for of a sampler that can do `most` where all of them run.

    A latent consistency model takes its steps from those of its distillation, of which strength leaves only the last.
    """
    return most if strength is None or family != "lcm" else int(most * strength)


#: Samplers that look twice at each step but the last, and how many looks others take beyond one a step.
_SECOND_ORDER = frozenset({"heun", "dpm2", "dpm2_a", "dpmpp_sde", "flow_heun"})
_EXTRA_CALLS = {"pndm": 1}


def denoiser_calls(scheduler: str, *, run: int) -> int:
    """Return how many denoiser calls a sampler makes for an image of which `run` steps are run."""
    return 2 * run - 1 if scheduler in _SECOND_ORDER else run + _EXTRA_CALLS.get(scheduler, 0)
