"""Which files make up a model, and their checksum."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from worker.pipelines.errors import UnusableModel

#: Components that are configs alone.
_WEIGHTLESS = re.compile(r"(prior_)?(scheduler|tokenizer|feature_extractor|processor|image_processor)")

#: `model.safetensors`, `model-00001-of-00002.safetensors`: weights without a variant.
_PLAIN_WEIGHTS = re.compile(r"[^.]+\.safetensors")

#: Without one of these transformers makes an empty vocabulary and says nothing.
_VOCABULARIES = frozenset({"tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model"})

_CONFIG_SUFFIXES = frozenset({".json", ".txt", ".model"})


def model_files(folder: Path, components: Iterable[str], variant: str | None) -> list[Path]:
    """Return every file that is read when the model is loaded, in an order that depends on names alone.

    A component without files of the variant is loaded from its plain ones, as diffusers does. Raises `UnusableModel`
    where a component has no vocabulary, or no safetensors weights: others may hold code, which runs when they are read.
    """
    found = [folder / "model_index.json"]
    for component in sorted(components):
        files = sorted(path for path in (folder / component).glob("*") if path.is_file())
        found += [path for path in files if path.suffix in _CONFIG_SUFFIXES and ".index." not in path.name]
        if "tokenizer" in component and not any(path.name in _VOCABULARIES for path in files):
            raise UnusableModel(f"{component} has no vocabulary ({' or '.join(sorted(_VOCABULARIES))}).")
        if _WEIGHTLESS.match(component):
            continue
        weights = [path for path in files if path.suffix == ".safetensors"]
        of_variant = [path for path in weights if variant and re.search(rf"\.{re.escape(variant)}[.-]", path.name)]
        chosen = of_variant or [path for path in weights if _PLAIN_WEIGHTS.fullmatch(path.name)]
        if not chosen:
            raise UnusableModel(_missing_weights(component, files, variant))
        found += chosen
    return found


def fingerprint(folder: Path, files: Iterable[Path]) -> str:
    """Return the SHA-256, as lower-case hex, over names and contents of the files, read in pieces."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").digest()
        whole.update(path.relative_to(folder).as_posix().encode() + b"\0" + content)
    return whole.hexdigest()


def _missing_weights(component: str, files: list[Path], variant: str | None) -> str:
    if any(path.suffix == ".safetensors" for path in files):
        asked = f"of the variant {variant} or without one" if variant else "without a variant; name one of them"
        names = ", ".join(path.name for path in files if path.suffix == ".safetensors")
        return f"{component} has no weights {asked}; it has {names}."
    if any(path.suffix in {".bin", ".ckpt", ".pt"} for path in files):
        return f"{component} has pickled weights only. Only safetensors are loaded: convert them first."
    return f"{component} has no weights."
