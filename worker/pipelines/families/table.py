"""Which families there are, and which pipeline classes a folder of each may name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from service.contract.catalog import Family
from worker.pipelines.families.family import PipelineFamily, Traits
from worker.pipelines.families.flow import (
    Flux,
    FluxFill,
    StableDiffusion3,
    read_flux,
    read_flux_fill,
    read_stable_diffusion_3,
)
from worker.pipelines.families.stable_diffusion import (
    LatentConsistency,
    StableDiffusion,
    StableDiffusionXL,
    read_latent_consistency,
    read_stable_diffusion,
    read_stable_diffusion_xl,
)
from worker.pipelines.folder import ModelFolder

_OLDER = StableDiffusion()

FAMILIES: Mapping[Family, PipelineFamily] = MappingProxyType(
    {
        "sd1": _OLDER,
        "sd2": _OLDER,
        "sdxl": StableDiffusionXL(),
        "lcm": LatentConsistency(),
        "sd3": StableDiffusion3(),
        "flux": Flux(),
        "flux_fill": FluxFill(),
    }
)

#: The task that a class is named for says nothing: its modules serve every task that their channels allow.
_NAMES = {
    "StableDiffusion{}Pipeline": read_stable_diffusion,
    "StableDiffusionXL{}Pipeline": read_stable_diffusion_xl,
    "LatentConsistencyModel{}Pipeline": read_latent_consistency,
    "StableDiffusion3{}Pipeline": read_stable_diffusion_3,
    "Flux{}Pipeline": read_flux,
}

READERS: Mapping[str, Callable[[ModelFolder], Traits]] = MappingProxyType(
    {name.format(task): read for name, read in _NAMES.items() for task in ("", "Img2Img", "Inpaint")}
    | {"FluxFillPipeline": read_flux_fill}
)
