"""What a device is called, so that what was measured on one is of use to others of its kind."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

_MOST_CHARACTERS = 160


def device_name(device: torch.device) -> str:
    """Return the kind of a device. Threads are part of a CPU's: half as many take twice as long."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)[:_MOST_CHARACTERS]
    processor = _processor()[:_MOST_CHARACTERS]
    return f"{device.type}: {processor}, {torch.get_num_threads()} threads" if device.type == "cpu" else processor


def _processor() -> str:
    """Return the CPU's name; on Apple silicon it names the GPU, too."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
