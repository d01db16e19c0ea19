"""From an entry of the catalogue to a warm model, in two parts.

`prepare` finds the files, downloads them, reads every byte for the checksum: minutes, on whatever thread. `assemble`
makes modules of them and brings these to the device: seconds, on the engine's thread, because diffusers and
transformers change settings of the whole process while they build a module (torch's default number format among them).
It stops between the parts of a model, so that others are served meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import torch
import transformers
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from service.contract.catalog import CatalogEntry, DType, ModelCard
from worker.pipelines.abilities import read_abilities
from worker.pipelines.capabilities import Capabilities
from worker.pipelines.card import make_card
from worker.pipelines.errors import UnusableModel
from worker.pipelines.families.table import FAMILIES
from worker.pipelines.fingerprint import fingerprint, model_files
from worker.pipelines.offload import attach, check_offload, taken_bytes
from worker.pipelines.options import apply_options, check_execution, check_options
from worker.pipelines.previews import Preview, fit, locate_decoder, read_decoder
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
    #: None where there are no previews.
    preview: Preview | None = None
    #: What the engine keeps beside it: encoded prompts, compiled and recorded calls. Emptied (`clear`) whenever weights
    #: move or change, it is made anew.
    kept: dict[str, Any] = field(default_factory=dict)


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


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model whose files were found, checked and read once; nothing of it is in memory."""

    entry: CatalogEntry
    card: ModelCard
    abilities: Capabilities
    folder: Path
    device: torch.device
    dtype: torch.dtype
    #: Size and time of change (ns) of every file that the checksum was taken over.
    stamps: dict[Path, tuple[int, int]]
    #: The folder that the catalogue's `preview_decoder` names.
    preview_decoder: Path | None = None

    @property
    def home(self) -> torch.device:
        """Where its modules lie when they do not compute."""
        return self.device if self.entry.options.offload == "none" else torch.device("cpu")

    @property
    def weights_bytes(self) -> int:
        """What the weights take in their files: about what they will take of the device's memory."""
        parts: defaultdict[str, int] = defaultdict(int)
        for path, (size, _) in self.stamps.items():
            parts[path.parent.name] += size if path.suffix == ".safetensors" else 0
        return taken_bytes(parts.values(), self.entry.options.offload)

    def is_current(self) -> bool:
        """Return whether the files are still those that were read."""
        try:
            return _stamps(self.stamps) == self.stamps
        except OSError:
            return False


def prepare(entry: CatalogEntry) -> Prepared:
    """Find, fetch and check a model's files. Raises `UnusableModel` with what to do about it."""
    device = resolve_device(entry.device)
    check_options(entry.options, device)
    check_offload(entry.options.offload, device)
    dtype = resolve_dtype(entry.dtype, device)
    folder = _locate(entry)
    abilities = read_abilities(folder)
    files = model_files(folder, abilities.components, entry.variant)
    stamps = _stamps(files)
    card = make_card(entry, abilities, dtype=dtype, sha256=fingerprint(folder, files))
    check_execution(entry.options, card.execution)
    return Prepared(
        entry=entry,
        card=card,
        abilities=abilities,
        folder=folder,
        device=device,
        dtype=getattr(torch, dtype),
        stamps=stamps,
        preview_decoder=locate_decoder(entry.preview_decoder) if entry.preview_decoder else None,
    )


def assemble(prepared: Prepared, between: Callable[[], None] = lambda: None) -> LoadedModel:
    """Read a prepared model into memory on its device; `between` is called between its parts.

    Only safetensors are read and no code from the folder is run. Raises `UnusableModel` with what to do about it.
    """
    modules = dict(_modules(prepared, between))
    with _reading():
        pipeline = _pipeline(prepared, modules)
        folder = prepared.folder
        scheduler = type(pipeline.scheduler).from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    apply_options(prepared.entry.options, pipeline)
    pipeline.to(prepared.home)
    attach(pipeline, prepared.entry.options.offload, prepared.device)
    pipeline.set_progress_bar_config(disable=True)
    return LoadedModel(
        entry=prepared.entry,
        card=prepared.card,
        pipeline=pipeline,
        scheduler=scheduler,
        device=prepared.device,
        dtype=prepared.dtype,
        preview=_preview(prepared, pipeline, between),
    )


def load(entry: CatalogEntry) -> LoadedModel:
    """Prepare and assemble a model. Raises `UnusableModel`."""
    return assemble(prepare(entry))


def _preview(prepared: Prepared, pipeline: Pipeline, between: Callable[[], None]) -> Preview | None:
    """Return what makes previews.

    Nothing does for a model with a safety checker: it would show what is withheld. Nor for one that draws whole
    requests: its latents are its own, or its autoencoder is elsewhere than they are.
    """
    if prepared.card.safety_checker or prepared.card.execution == "whole":
        return None
    if prepared.preview_decoder is not None:
        return read_decoder(prepared.preview_decoder, pipeline.vae, prepared.device, prepared.dtype)
    return fit(pipeline.vae, between)


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
        read_abilities(Path(configs))
        downloaded = DiffusionPipeline.download(
            entry.source, revision=entry.revision, variant=entry.variant, use_safetensors=True
        )
    except (OSError, ValueError) as err:
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise UnusableModel(f"{entry.source} is neither a folder here nor to be had from the hub: {reason}") from err
    return Path(downloaded)


def _modules(prepared: Prepared, between: Callable[[], None]) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the modules of the model by name, each read from its files and brought to where it lies."""
    index = json.loads((prepared.folder / "model_index.json").read_bytes())
    libraries = {"diffusers": diffusers, "transformers": transformers}
    for name in prepared.abilities.components:
        library, class_name = index[name]
        kind = getattr(libraries.get(library), class_name, None)
        if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
            continue  # tokenizers and the like, and classes that only their pipeline knows: read with the pipeline
        between()
        reader: Any = kind
        with _reading():
            module: torch.nn.Module = reader.from_pretrained(
                prepared.folder / name,
                # Always given: without it transformers reads a text encoder in its file's format and diffusers the
                # denoiser in float32, and the first linear layer between them fails.
                dtype=prepared.dtype,
                use_safetensors=True,
                local_files_only=True,
                **_variant(prepared, name),
            )
        for child in module.children():
            between()
            child.to(prepared.home)
        yield name, module.to(prepared.home)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turn what the libraries raise about files into `UnusableModel`; a device that fails raises its own."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as err:
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise UnusableModel(f"The model's files cannot be loaded: {reason}") from err


def _variant(prepared: Prepared, component: str) -> dict[str, str]:
    """Return the variant's argument for a component that has files of it; others are read from their plain ones."""
    variant = prepared.entry.variant
    files = [path.name for path in prepared.stamps if path.parent.name == component]
    has_it = variant is not None and any(f".{variant}." in name or f".{variant}-" in name for name in files)
    return {"variant": variant} if has_it and variant else {}


def _pipeline(prepared: Prepared, modules: dict[str, torch.nn.Module]) -> Pipeline:
    index = json.loads((prepared.folder / "model_index.json").read_bytes())
    # Left out of the folder on purpose, such as SD 3's T5: diffusers wants to hear it for what it holds necessary.
    absent = {name: None for name, value in index.items() if value == [None, None]}
    family = FAMILIES.get(prepared.abilities.family)
    return DiffusionPipeline.from_pretrained(
        prepared.folder,
        dtype=prepared.dtype,
        variant=prepared.entry.variant,
        use_safetensors=True,
        local_files_only=True,
        **modules,
        **absent,
        **(family.loading_options if family else {}),
    )


def _stamps(files: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    found = {path: path.stat() for path in files}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}
