"""From an entry of the catalogue to a warm model."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from service.contract.catalog import CatalogEntry, DType, ModelCard
from worker.pipelines.capabilities import Capabilities, read_capabilities
from worker.pipelines.card import make_card
from worker.pipelines.errors import UnusableModel
from worker.pipelines.fingerprint import fingerprint, model_files
from worker.pipelines.schedulers import Scheduler

#: The pipeline classes of diffusers that this package serves share an untyped surface.
Pipeline = Any

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

_CONFIG_FILES = ["*.json", "*/*.json", "*/*.txt"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory. Its modules are shared by every request; its pipeline object itself never runs."""

    entry: CatalogEntry
    card: ModelCard
    pipeline: Pipeline
    #: As its folder has it. The pipeline's own copy was corrected by the constructor of its class; every task has its
    #: own idea of what to correct.
    scheduler: Scheduler
    device: torch.device
    dtype: torch.dtype
    #: Samplers that were made before, unused, by pipeline class, name and spacing.
    samplers: dict[tuple[str, str, str | None], Any] = field(default_factory=dict)


def resolve_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is the first of cuda, mps and cpu that is there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as err:
        raise UnusableModel(f"The device {name} is not available here. Allowed: auto, cpu, cuda, cuda:N, mps.") from err
    return device


def resolve_dtype(name: str, device: torch.device) -> DType:
    """Return the number format for that device; see `CatalogEntry.dtype`."""
    if name in ("float32", "float16", "bfloat16"):
        return name
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        # Below Ampere bfloat16 is emulated: it works, at a fraction of the speed.
        return "bfloat16" if major >= 8 else "float16"
    return "float16" if device.type == "mps" else "float32"


def load(entry: CatalogEntry) -> LoadedModel:
    """Read the model into memory on its device.

    Only safetensors are read and no code from the folder is run. Raises `UnusableModel` with what to do about it.
    """
    device = resolve_device(entry.device)
    dtype = resolve_dtype(entry.dtype, device)
    folder = _locate(entry)
    abilities = read_capabilities(folder)
    sha256 = fingerprint(folder, model_files(folder, abilities.components, entry.variant))
    card = make_card(entry, abilities, dtype=dtype, sha256=sha256)
    torch_dtype: torch.dtype = getattr(torch, dtype)
    pipeline = _read(folder, abilities, entry.variant, torch_dtype).to(device)
    pipeline.set_progress_bar_config(disable=True)
    scheduler = type(pipeline.scheduler).from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    return LoadedModel(entry=entry, card=card, pipeline=pipeline, scheduler=scheduler, device=device, dtype=torch_dtype)


def _locate(entry: CatalogEntry) -> Path:
    """Return the model's folder; a hub model is downloaded, or taken from the cache where the hub is offline."""
    folder = Path(entry.source).expanduser()
    if entry.source and folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(entry.source):
        raise UnusableModel(f"There is no folder {entry.source}, and it is no hub id (owner/name) either.")
    try:
        # The configs alone first: a model that is not supported is refused before gigabytes are downloaded.
        configs = huggingface_hub.snapshot_download(
            entry.source, revision=entry.revision, allow_patterns=_CONFIG_FILES, max_workers=1
        )
        read_capabilities(Path(configs))
        downloaded = DiffusionPipeline.download(
            entry.source, revision=entry.revision, variant=entry.variant, use_safetensors=True
        )
    except (OSError, ValueError) as err:
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise UnusableModel(f"{entry.source} is neither a folder here nor to be had from the hub: {reason}") from err
    return Path(downloaded)


def _read(folder: Path, abilities: Capabilities, variant: str | None, dtype: torch.dtype) -> Pipeline:
    options: dict[str, Any] = {"add_watermarker": False} if abilities.family == "sdxl" else {}
    try:
        return DiffusionPipeline.from_pretrained(
            folder,
            # Always given: without it transformers reads a text encoder in its file's format and diffusers the
            # denoiser in float32, and the first linear layer between them fails.
            dtype=dtype,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as err:
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise UnusableModel(f"The model's files cannot be loaded: {reason}") from err
