"""Reads models.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from service.contract.catalog import CatalogEntry


class CatalogError(Exception):
    """models.yaml cannot be used; the message is one line for the operator."""


class _Catalog(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[CatalogEntry, ...]


def packaged_catalog() -> Path:
    """Return the models.yaml that comes with Darkroom."""
    return Path(__file__).resolve().parent.parent / "models.yaml"


def read_catalog(path: Path) -> tuple[CatalogEntry, ...]:
    """Return the entries of a models.yaml, their folders made absolute. Raises `CatalogError`."""
    try:
        content: Any = yaml.safe_load(path.read_text("utf-8"))
        catalog = _Catalog.model_validate(content)
    except OSError as err:
        msg = f"{path}: {err.strerror or 'cannot be read'}"
        raise CatalogError(msg) from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        msg = f"{path}: is not YAML"
        raise CatalogError(msg) from err
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        msg = f"{path}: {where}: {first['msg']}"
        raise CatalogError(msg) from err
    _check(path, catalog.models)
    return tuple(_resolved(entry, path.parent) for entry in catalog.models)


def _check(path: Path, entries: tuple[CatalogEntry, ...]) -> None:
    ids = [entry.id for entry in entries]
    repeated = sorted({each for each in ids if ids.count(each) > 1})
    defaults = [entry.id for entry in entries if entry.default]
    if not entries:
        msg = f"{path}: names no model"
    elif repeated:
        msg = f"{path}: the id {repeated[0]!r} is used twice"
    elif len(defaults) != 1:
        msg = f"{path}: exactly one model must have `default: true`, not {len(defaults)}"
    else:
        return
    raise CatalogError(msg)


def _resolved(entry: CatalogEntry, folder: Path) -> CatalogEntry:
    """Make folders' paths absolute; what names no folder beside the file stays a hub id."""
    named = {"source": entry.source, "preview_decoder": entry.preview_decoder}
    beside = {field: (folder / Path(name).expanduser()).resolve() for field, name in named.items() if name}
    return entry.model_copy(update={field: str(path) for field, path in beside.items() if path.is_dir()})
