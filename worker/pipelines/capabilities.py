"""What a model can do, read from the JSON configs of its folder; no weight is touched."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from service.contract.catalog import Family
from service.contract.generation import Task
from service.contract.schedulers import SCHEDULERS
from worker.pipelines import schedulers
from worker.pipelines.errors import UnusableModel

SUPPORTED = "Supported are Stable Diffusion 1.x, 2.x and XL folders in diffusers layout, with 4 or 9 input channels."

#: The task that a class is named for says nothing: its modules serve every task that their channels allow.
_SD_CLASSES = frozenset(f"StableDiffusion{task}Pipeline" for task in ("", "Img2Img", "Inpaint"))
_SDXL_CLASSES = frozenset(f"StableDiffusionXL{task}Pipeline" for task in ("", "Img2Img", "Inpaint"))

#: diffusers checks prompts-only sizes against 8 px whatever the autoencoder; the others against its factor.
_DIFFUSERS_STEP_PX = 8

#: The start and end marks take two places of the text encoder.
_MARKS = 2

_ALL_TASKS: tuple[Task, ...] = ("text-to-image", "image-to-image", "inpaint")

C = TypeVar("C", bound=BaseModel)


class _Config(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _UNetConfig(_Config):
    in_channels: int = 4
    out_channels: int = 4
    sample_size: int | tuple[int, int]
    diffusers_version: str = "0.42.1"


class _VaeConfig(_Config):
    block_out_channels: tuple[int, ...]
    latent_channels: int = 4


class _TextEncoderConfig(_Config):
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """A model's abilities as its configs state them."""

    family: Family
    pipeline_class: str
    tasks: tuple[Task, ...]
    #: Side of one latent pixel in px.
    vae_scale_factor: int
    #: Sides must be multiples of this.
    size_step_px: int
    native_width_px: int
    native_height_px: int
    #: Start and end marks not counted.
    max_prompt_tokens: int
    safety_checker: bool
    #: The model's own sampler by its public name.
    scheduler: str
    schedulers: tuple[str, ...]
    #: Subfolders that hold the model, in alphabetical order.
    components: tuple[str, ...]


def read_capabilities(folder: Path) -> Capabilities:
    """Return what the model in a folder of diffusers layout can do.

    Raises `UnusableModel` for anything that this version does not serve, naming what it found.
    """
    index = _read(folder / "model_index.json", TypeAdapter(dict[str, JsonValue]))
    pipeline_class = str(index.get("_class_name"))
    xl = pipeline_class in _SDXL_CLASSES
    if not xl and pipeline_class not in _SD_CLASSES:
        raise UnusableModel(f"model_index.json names the pipeline {pipeline_class}. {SUPPORTED}")
    components = _components(index)
    unet = _config(folder, "unet", _UNetConfig)
    vae = _config(folder, "vae", _VaeConfig)
    encoders = [_config(folder, name, _TextEncoderConfig) for name in sorted(components) if "text_encoder" in name]
    if not encoders:
        raise UnusableModel(f"model_index.json names no text encoder. {SUPPORTED}")
    scheduler, runnable = _samplers(folder)
    factor = 2 ** (len(vae.block_out_channels) - 1)
    height, width = _native_latents(unet)
    return Capabilities(
        family="sdxl" if xl else _family_of(encoders[0]),
        pipeline_class=pipeline_class,
        tasks=_tasks(unet, vae, refiner=index.get("requires_aesthetics_score") is True),
        vae_scale_factor=factor,
        size_step_px=math.lcm(factor, _DIFFUSERS_STEP_PX),
        native_width_px=width * factor,
        native_height_px=height * factor,
        max_prompt_tokens=min(e.max_position_embeddings for e in encoders) - _MARKS,
        safety_checker="safety_checker" in components,
        scheduler=scheduler,
        schedulers=runnable,
        components=tuple(sorted(components)),
    )


def _components(index: dict[str, JsonValue]) -> dict[str, str]:
    """Return the class name of every component that the folder really has; refuse unknown kinds."""
    found: dict[str, str] = {}
    for name, value in index.items():
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str):
            found[name] = value[1]
    expected = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    for name, class_name in expected.items():
        if found.get(name) != class_name:
            raise UnusableModel(f"The {name} is {found.get(name, 'missing')}, not {class_name}. {SUPPORTED}")
    for name, class_name in found.items():
        if "text_encoder" in name and not class_name.startswith("CLIPTextModel"):
            raise UnusableModel(f"The {name} is {class_name}, not a CLIPTextModel. {SUPPORTED}")
    return found


def _family_of(encoder: _TextEncoderConfig) -> Family:
    """Tell SD 2.x by its text encoder, OpenCLIP's, which is exact GELU; OpenAI's is not, in whatever size."""
    return "sd2" if encoder.hidden_act == "gelu" else "sd1"


def _tasks(unet: _UNetConfig, vae: _VaeConfig, *, refiner: bool) -> tuple[Task, ...]:
    if vae.latent_channels != 4 or unet.out_channels != 4:
        raise UnusableModel(f"Its latents have {vae.latent_channels} channels, not 4. {SUPPORTED}")
    if unet.in_channels == 9:
        return ("inpaint",)
    if unet.in_channels == 4:
        return ("image-to-image",) if refiner else _ALL_TASKS
    raise UnusableModel(f"Its denoiser takes {unet.in_channels} channels. {SUPPORTED}")


def _native_latents(unet: _UNetConfig) -> tuple[int, int]:
    """Return height and width of the latents that the model was made for."""
    size = unet.sample_size
    if not isinstance(size, int):
        return size
    # Configs from before 0.9 carry the size of an early training stage; diffusers corrects them in the same way.
    version = tuple(int(part) for part in re.findall(r"\d+", unet.diffusers_version)[:2])
    if version < (0, 9) and size < 64:
        size = 64
    return size, size


def _samplers(folder: Path) -> tuple[str, tuple[str, ...]]:
    config = _read(folder / "scheduler" / "scheduler_config.json", TypeAdapter(dict[str, JsonValue]))
    class_name = str(config.get("_class_name"))
    own = schedulers.own_name(class_name, config)
    if own is None:
        known = ", ".join(sorted({row.diffusers_class for row in SCHEDULERS.values()}))
        raise UnusableModel(f"Its scheduler is {class_name}. Supported are {known}.")
    return own, schedulers.runnable(class_name, config)


def _config(folder: Path, component: str, kind: type[C]) -> C:
    values = _read(folder / component / "config.json", TypeAdapter(dict[str, JsonValue]))
    if "_diffusers_version" in values:
        values["diffusers_version"] = values["_diffusers_version"]
    try:
        return kind.model_validate(values)
    except ValidationError as err:
        first = err.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UnusableModel(f"{component}/config.json: {field}: {first['msg']}.") from err


def _read(path: Path, shape: TypeAdapter[dict[str, JsonValue]]) -> dict[str, JsonValue]:
    name = "/".join(path.parts[-2:]) if path.name != "model_index.json" else path.name
    try:
        return shape.validate_json(path.read_bytes())
    except FileNotFoundError as err:
        raise UnusableModel(f"{name} is missing. {SUPPORTED}") from err
    except (OSError, ValidationError) as err:
        raise UnusableModel(f"{name} cannot be read as a JSON object.") from err
