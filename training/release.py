"""Write what was trained into the package: float16 weights, and the figures into the model card."""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_of

from training.networks import load_pipeline

#: Where the package keeps its models.
MODELS = Path(__file__).resolve().parents[1] / "worker" / "models"
BASE = "tiny-emoji"
#: Stage -> folder of what it adds to the model.
EXTRAS = {"lora": "tiny-emoji-ink", "controlnet": "tiny-emoji-edges", "textual_inversion": "tiny-emoji-turquoise"}
#: Folder that a part was read from, how, and how its last text was padded.
_OF_THE_MACHINE = frozenset(
    {
        *("_name_or_path", "is_local", "local_files_only"),
        *("max_length", "pad_to_multiple_of", "pad_token_type_id", "padding_side"),
        *("stride", "truncation_side", "truncation_strategy"),
    }
)
_FIGURES = re.compile(r"(<!-- figures[^>]*-->\n).*?(<!-- end of figures -->)", re.DOTALL)


class NothingToRelease(Exception):
    """What is to be released was not trained yet."""


def release(work: Path, models: Path = MODELS, base: Path | None = None) -> list[Path]:
    """Write the model and every extra that `work` holds into `models`; return the folders that were written.

    `base` is the pipeline, if not the trained one. Cards, notices and licences that are there stay; the part of the
    card between its figures' marks is replaced by the table of the last evaluation.

    Raises:
        NothingToRelease: there is no trained model.
    """
    base = base or work / "denoiser" / "pipeline"
    if not (base / "model_index.json").exists():
        raise NothingToRelease(f"no pipeline in {base}; run the stages before this one")
    written = [models / BASE]
    pipeline = load_pipeline(base)
    # Through a folder of its own: save_pretrained writes a README over the card.
    with tempfile.TemporaryDirectory() as fresh:
        pipeline.to(torch.float16).save_pretrained(fresh)
        _take_over(Path(fresh), models / BASE)
    _show_figures(work / "evaluation", models / BASE)
    for stage, name in EXTRAS.items():
        weights = work / stage / "weights"
        if weights.exists():
            _take_over(weights, models / name)
            _show_figures(work / stage, models / name)
            written.append(models / name)
    return written


def _show_figures(measured: Path, model: Path) -> None:
    figures, card = measured / "figures.md", model / "README.md"
    if figures.exists() and card.exists():
        card.write_text(with_figures(card.read_text("utf-8"), figures.read_text("utf-8")), "utf-8")


def with_figures(card: str, table: str) -> str:
    """Return the card with the table between its marks.

    Raises:
        NothingToRelease: the card has no marks.
    """
    new, count = _FIGURES.subn(lambda marks: f"{marks[1]}\n{table.strip()}\n\n{marks[2]}", card)
    if count != 1:
        raise NothingToRelease("the model card has no place for the figures: two comments, 'figures' and their end")
    return new


def _take_over(source: Path, target: Path) -> None:
    """Copy a folder's configs and its weights, these in float16; Markdown stays as it is in the target."""
    for file in sorted(path for path in source.rglob("*") if path.is_file() and path.suffix != ".md"):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            halves = {name: halved(tensor) for name, tensor in load_file(file).items()}
            place.write_bytes(safetensors_of(halves, {"format": "pt"}))  # `save_file` would make it its owner's alone
        elif file.name.endswith("config.json") or file.name == "model_index.json":
            place.write_text(json.dumps(published(json.loads(file.read_text("utf-8"))), indent=2) + "\n", "utf-8")
        else:
            shutil.copyfile(file, place)


def published(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config without what saving adds of the machine and of the last call."""
    return {name: value for name, value in config.items() if name not in _OF_THE_MACHINE}


def halved(tensor: torch.Tensor) -> torch.Tensor:
    """Return floating-point numbers as float16, anything else as it is."""
    return tensor.to(torch.float16).contiguous() if tensor.is_floating_point() else tensor.contiguous()
