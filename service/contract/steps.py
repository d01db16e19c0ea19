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
    if family in ("sd3", "flux"):
        return steps - int(max(steps - min(steps * strength, steps), 0))
    return min(int(steps * strength), steps)
