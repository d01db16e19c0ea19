"""What a model of any kind can do: of those that are batched, or drawn whole."""

from __future__ import annotations

from pathlib import Path

from worker.pipelines.capabilities import Capabilities, is_batched, read_capabilities
from worker.pipelines.folder import open_folder
from worker.pipelines.whole_folder import read_whole


def read_abilities(folder: Path) -> Capabilities:
    """Return what the model in a folder of diffusers layout can do. Raises `UnusableModel` naming what it found."""
    return read_capabilities(folder) if is_batched(open_folder(folder).pipeline_class) else read_whole(folder)
