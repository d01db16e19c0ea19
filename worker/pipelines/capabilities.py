"""What a model can do, read from the JSON configs of its folder; no weight is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from service.contract.catalog import StepRange
from service.contract.generation import Task
from service.contract.schedulers import SCHEDULERS
from worker.pipelines.errors import UnusableModel
from worker.pipelines.families.family import ALL_TASKS, Traits
from worker.pipelines.families.table import FAMILIES, READERS
from worker.pipelines.folder import SUPPORTED, open_folder
from worker.pipelines.step_ranges import step_ranges


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities(Traits):
    """A model's abilities as its configs state them."""

    pipeline_class: str
    safety_checker: bool
    #: The model's own sampler by its public name.
    scheduler: str
    schedulers: tuple[str, ...]
    #: Samplers that cannot do every number of steps, and what they can.
    step_ranges: Mapping[str, StepRange] = field(default_factory=dict)
    #: Tasks in which `guidance_rescale` does something.
    rescaled_tasks: tuple[Task, ...] = ALL_TASKS
    #: Subfolders that hold the model, in alphabetical order.
    components: tuple[str, ...]


def is_batched(pipeline_class: str) -> bool:
    """Return whether requests to pipelines of that class share their calls."""
    return pipeline_class in READERS


def read_capabilities(folder: Path) -> Capabilities:
    """Return what the model in a folder of diffusers layout can do.

    Raises `UnusableModel` for anything that this version does not serve, naming what it found.
    """
    found = open_folder(folder)
    read = READERS.get(found.pipeline_class)
    if read is None:
        raise UnusableModel(f"model_index.json names the pipeline {found.pipeline_class}. {SUPPORTED}")
    traits = read(found)
    family = FAMILIES[traits.family]
    scheduler, runnable = family.samplers(found.scheduler())
    offered = tuple(name for name in runnable if set(SCHEDULERS[name].tasks) & set(traits.tasks))
    return Capabilities(
        **{each.name: getattr(traits, each.name) for each in fields(Traits)},
        pipeline_class=found.pipeline_class,
        safety_checker="safety_checker" in found.components,
        scheduler=scheduler,
        schedulers=offered,
        step_ranges=step_ranges(offered, found.scheduler()),
        rescaled_tasks=tuple(task for task in traits.tasks if task in family.rescaled_tasks),
        components=tuple(sorted(found.components)),
    )
