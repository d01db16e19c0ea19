"""How much memory models may fill, and how much one takes."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from worker.pipelines.loading import LoadedModel
from worker.pipelines.offload import taken_bytes

#: Parts of all memory: on a GPU the rest is for what calls take, elsewhere it is the machine's, and others live there.
_GPU_SHARE, _MACHINE_SHARE = 0.7, 0.5
#: The limit of the container, where there is one (cgroup v2).
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def budget_bytes(device: torch.device) -> int:
    """Return how much models may fill on a device, where the operator has not said it."""
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        return int(_GPU_SHARE * total)
    return int(_MACHINE_SHARE * _machine_bytes())


def shelf_bytes(device: torch.device) -> int:
    """Return how much of the machine's memory evicted models may fill; none where the device has no other."""
    return int(_MACHINE_SHARE * _machine_bytes()) if device.type == "cuda" else 0


def _machine_bytes() -> int:
    """Return the memory of this machine, or of the container that this process lives in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(_CGROUP_LIMIT.read_text("ascii")))
    except (OSError, ValueError):  # no such file, or "max"
        return total


def size_bytes(model: LoadedModel) -> int:
    """Return what the weights of a model take of the device's memory."""
    modules = [part for part in model.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    counted: set[int] = set()
    sizes: list[int] = []
    for module in modules:
        own = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers()) if id(tensor) not in counted}
        counted |= own.keys()
        sizes.append(sum(tensor.numel() * tensor.element_size() for tensor in own.values()))
    return taken_bytes(sizes, model.entry.options.offload)
