"""A model folder in diffusers layout, as its JSON configs describe it; no weight is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from worker.pipelines.errors import UnusableModel

SUPPORTED = (
    "Supported are folders in diffusers layout of Stable Diffusion 1.x, 2.x and XL with 4 or 9 input channels, "
    "Stable Diffusion 3, FLUX.1 and latent consistency models, and other text-to-image pipelines of diffusers."
)


class ComponentConfig(BaseModel):
    """What is read of a component's config."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class VaeConfig(ComponentConfig):
    """Of an autoencoder."""

    block_out_channels: tuple[int, ...]
    latent_channels: int = 4
    shift_factor: float | None = None

    @property
    def factor(self) -> int:
        """Side of one latent pixel in px."""
        return 2 ** (len(self.block_out_channels) - 1)


C = TypeVar("C", bound=ComponentConfig)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The folder with its index."""

    path: Path
    index: Mapping[str, JsonValue]

    @property
    def pipeline_class(self) -> str:
        """The diffusers pipeline that the folder was saved from."""
        return str(self.index.get("_class_name"))

    @property
    def components(self) -> dict[str, str]:
        """Class names of the components that the folder really has, by subfolder."""
        return {
            name: value[1]
            for name, value in self.index.items()
            if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)
        }

    def require(self, expected: Mapping[str, str]) -> None:
        """Raise `UnusableModel` unless each component named is of the class named."""
        found = self.components
        for name, class_name in expected.items():
            if found.get(name) != class_name:
                raise UnusableModel(f"The {name} is {found.get(name, 'missing')}, not {class_name}. {SUPPORTED}")

    def config(self, component: str, kind: type[C]) -> C:
        """Return a component's config. Raises `UnusableModel` naming the field that is wrong."""
        values = read_json(self.path / component / "config.json")
        if "_diffusers_version" in values:
            values["diffusers_version"] = values["_diffusers_version"]
        try:
            return kind.model_validate(values)
        except ValidationError as err:
            first = err.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise UnusableModel(f"{component}/config.json: {field}: {first['msg']}.") from err

    def scheduler(self) -> dict[str, Any]:
        """Return the config of the folder's own sampler."""
        return read_json(self.path / "scheduler" / "scheduler_config.json")


def open_folder(path: Path) -> ModelFolder:
    """Return the folder. Raises `UnusableModel` where it has no index that can be read."""
    return ModelFolder(path=path, index=read_json(path / "model_index.json"))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a folder's file. Raises `UnusableModel` naming the file."""
    name = "/".join(path.parts[-2:]) if path.name != "model_index.json" else path.name
    try:
        return TypeAdapter(dict[str, JsonValue]).validate_json(path.read_bytes())
    except FileNotFoundError as err:
        raise UnusableModel(f"{name} is missing. {SUPPORTED}") from err
    except (OSError, ValidationError) as err:
        raise UnusableModel(f"{name} cannot be read as a JSON object.") from err
