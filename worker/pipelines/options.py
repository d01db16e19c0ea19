"""The catalogue's options of memory and speed that are settled when a model is loaded."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir

from service.contract.catalog import EngineOptions, Execution
from worker.pipelines.errors import UnusableModel

#: What torch's compiler calls for the kernels of a CPU.
_CPU_COMPILERS = ("g++", "clang++")


def check_options(options: EngineOptions, device: torch.device) -> None:
    """Raise `UnusableModel` for options that this device or this machine cannot have."""
    if options.graphs and device.type != "cuda":
        raise UnusableModel(f"options.graphs records CUDA graphs; on {device.type} leave it false.")
    if options.compile and device.type not in {"cuda", "cpu"}:
        raise UnusableModel(f"options.compile works on cuda and cpu; on {device.type} leave it false.")
    if options.compile and device.type == "cpu" and not any(map(shutil.which, _CPU_COMPILERS)):
        raise UnusableModel(
            f"options.compile needs {' or '.join(_CPU_COMPILERS)} on a CPU; install one or leave it false."
        )
    if options.compile:
        private_cache()
    if options.compile and device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UnusableModel("options.compile needs the package triton, which torch for CUDA brings; or leave it false.")


def check_execution(options: EngineOptions, execution: Execution) -> None:
    """Raise `UnusableModel` for options that would do nothing, because the model shares no call."""
    useless = [name for name in ("compile", "graphs") if getattr(options, name)]
    if execution == "whole" and useless:
        names = " and ".join(f"options.{name}" for name in useless)
        raise UnusableModel(f"{names}: this model draws whole requests, whose calls are not shared. Leave it false.")


def private_cache() -> Path:
    """Return the folder of compiled code, made ours alone: what lies there is run, unasked.

    Raises `UnusableModel` where it is another user's.
    """
    folder = Path(cache_dir())
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UnusableModel(
            "options.compile keeps code in TORCHINDUCTOR_CACHE_DIR, which is another user's folder. Name one of yours."
        )
    folder.chmod(0o700)
    return folder


def apply_options(options: EngineOptions, pipeline: Any) -> None:
    """Arrange the weights of a pipeline that was read as its options say, in place."""
    if options.channels_last:
        for name in ("unet", "transformer", "vae"):
            module = getattr(pipeline, name, None)
            if module is not None:
                module.to(memory_format=torch.channels_last)
