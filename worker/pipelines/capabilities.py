"""What a model can do, read from the JSON configs of its folder; no weight is touched."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from worker.pipelines.errors import UnusableModel
from worker.pipelines.families.family import Traits
from worker.pipelines.families.table import FAMILIES, READERS
from worker.pipelines.folder import SUPPORTED, open_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities(Traits):
    """A model's abilities as its configs state them."""

    pipeline_class: str
    safety_checker: bool
    #: The model's own sampler by its public name.
    scheduler: str
    schedulers: tuple[str, ...]
    #: Subfolders that hold the model, in alphabetical order.
    components: tuple[str, ...]


def read_capabilities(folder: Path) -> Capabilities:
    """Return what the model in a folder of diffusers layout can do.

    Raises `UnusableModel` for anything that this version does not serve, naming what it found.
    """
    found = open_folder(folder)
    read = READERS.get(found.pipeline_class)
    if read is None:
        raise UnusableModel(f"model_index.json names the pipeline {found.pipeline_class}. {SUPPORTED}")
    traits = read(found)
    scheduler, runnable = FAMILIES[traits.family].samplers(found.scheduler())
    return Capabilities(
        **{field.name: getattr(traits, field.name) for field in fields(Traits)},
        pipeline_class=found.pipeline_class,
        safety_checker="safety_checker" in found.components,
        scheduler=scheduler,
        schedulers=runnable,
        components=tuple(sorted(found.components)),
    )
