"""Modules that wait in the machine's memory and come to the device to compute, by the hooks of accelerate.

A model then fits on a device that is smaller than it is, and pays with time: its weights cross the bus again for every
picture (`model`) or for every step (`sequential`). The hooks belong to the modules, not to a request, and end for all
requests at once: whoever draws has to be alone with the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from service.contract.catalog import Offload
from worker.pipelines.errors import UnusableModel


def check_offload(how: Offload, device: torch.device) -> None:
    """Raise `UnusableModel` where there is nothing to offload from."""
    if how != "none" and device.type == "cpu":
        raise UnusableModel(
            f"options.offload {how}: the model runs on the CPU, where its modules lie already. "
            "Offloading needs a GPU (device cuda or mps); leave it at none here."
        )


def attach(pipeline: DiffusionPipeline, how: Offload, device: torch.device) -> None:
    """Let the pipeline's modules, which lie in the machine's memory, come to the device when they compute.

    Raises `UnusableModel` for a pipeline that does not say in which order it uses them.
    """
    if how == "model":
        try:
            pipeline.enable_model_cpu_offload(device=device)
        except ValueError as err:
            name = type(pipeline).__name__
            raise UnusableModel(f"options.offload model: {name} does not support it; sequential may do.") from err
    elif how == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)


def taken_bytes(modules: Iterable[int], how: Offload) -> int:
    """Return what modules of these sizes take of the device's memory: at most one is there at a time, or a layer."""
    sizes = list(modules)
    return {"none": sum(sizes), "model": max(sizes, default=0), "sequential": 0}[how]


def release(pipeline: DiffusionPipeline) -> None:
    """Send back whatever module is on the device still; does nothing where nothing is offloaded."""
    for part in stages_of(pipeline):
        part.maybe_free_model_hooks()


def stages_of(pipeline: DiffusionPipeline) -> Iterator[DiffusionPipeline]:
    """Yield the pipeline and those that it is made of: some draw in two stages, each a pipeline of its own."""
    yield pipeline
    for value in vars(pipeline).values():
        if isinstance(value, DiffusionPipeline):
            yield from stages_of(value)
