"""What a pipeline that is not batched can do: read from its class in diffusers and from the configs of its folder.

Nothing of the folder is run: neither a pipeline nor a component may be of its own code.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from pydantic import JsonValue

from service.contract.catalog import UnusedField
from service.contract.schedulers import OWN_SCHEDULER
from worker.pipelines import schedulers
from worker.pipelines.capabilities import Capabilities
from worker.pipelines.errors import UnusableModel
from worker.pipelines.folder import read_json
from worker.pipelines.step_ranges import step_ranges

DRAWN_WHOLE = "Drawn whole are diffusers' own text-to-image pipelines that need no more than a prompt."

_NEEDED = ("prompt", "width", "height", "num_inference_steps", "generator", "output_type")
#: Arguments by which a pipeline takes more than text, or makes more than pictures …
_MEDIA = re.compile(r"image|mask|video|frame|audio")
#: … and those that only sound like it.
_HARMLESS = re.compile(r"num_images_per_prompt|(negative_)?ip_adapter_image(_embeds)?|.*(attention|prompt\w*)_mask\w*")
#: Pictures that a text-to-image pipeline may be given, and may go without.
_OPTIONAL_MEDIA = frozenset({"image", "images"})

_DENOISERS = ("transformer", "unet")
_AUTOENCODERS = ("vae", "movq", "vqvae")
_PRIORS = ("prior", "prior_prior")

#: px; what a pipeline of two stages rounds sizes to, and what fits every autoencoder whose factor is not told.
_STEP_OF_TWO_STAGES_PX = 128
_STEP_WITHOUT_FACTOR_PX = 64
#: diffusers checks sizes against 8 px whatever the autoencoder.
_DIFFUSERS_STEP_PX = 8
#: Transformers read squares of at least 2 × 2 latent pixels as one token, whether their configs say so or not.
_LEAST_PATCH = 2

#: Places of a text encoder whose pipeline does not say how many it fills; start and end mark take two.
_PLACES = 77
_MARKS = 2
#: Tokenizers without a limit have one of 10^30.
_NO_LIMIT = 100_000


def read_whole(folder: Path) -> Capabilities:
    """Return what the model of a folder can do. Raises `UnusableModel` with what was found."""
    index = read_json(folder / "model_index.json")
    kind = _pipeline_class(index.get("_class_name"))
    takes = inspect.signature(kind.__call__).parameters
    _check_call(kind, takes)
    components = _components(kind, index)
    sampling = _sampler(folder, components)
    scheduler = schedulers.own_name(str(sampling.get("_class_name")), sampling) or OWN_SCHEDULER
    factor, step = _factor_and_step(folder, components)
    width, height = _native_size(folder, components, takes, factor)
    unused: list[UnusedField] = ["guidance_rescale", "eta", "sigmas"]
    if "negative_prompt" not in takes:
        unused.append("negative_prompt")
    if not takes_number(takes, "guidance_scale"):
        unused.append("guidance_scale")
    return Capabilities(
        family="other",
        pipeline_class=kind.__name__,
        tasks=("text-to-image",),
        vae_scale_factor=factor or 1,
        size_step_px=step,
        native_width_px=width,
        native_height_px=height,
        max_prompt_tokens=_prompt_tokens(folder, components, takes),
        safety_checker="safety_checker" in components,
        scheduler=scheduler,
        schedulers=(scheduler,),
        step_ranges={} if scheduler == OWN_SCHEDULER else step_ranges([scheduler], sampling),
        rescaled_tasks=(),
        components=tuple(sorted(components)),
        unused_fields=tuple(unused),
        steps=takes["num_inference_steps"].default,
        guidance_scale=float(takes["guidance_scale"].default) if "guidance_scale" not in unused else 1.0,
    )


def takes_number(parameters: Mapping[str, inspect.Parameter], name: str) -> bool:
    """Return whether a pipeline's call has a number by that name, and uses it: None is how others switch it off."""
    return name in parameters and isinstance(parameters[name].default, (int, float))


def _pipeline_class(name: JsonValue) -> type[Any]:
    if not isinstance(name, str):
        reason = "names a pipeline of the folder's own code, which is not run"
        raise UnusableModel(f"model_index.json {reason}. {DRAWN_WHOLE}")
    kind = getattr(diffusers, name, None) if name.endswith("Pipeline") else None
    if not (isinstance(kind, type) and issubclass(kind, DiffusionPipeline)):
        raise UnusableModel(
            f"model_index.json names the pipeline {name}, which diffusers {diffusers.__version__} does not have. "
            f"{DRAWN_WHOLE}"
        )
    return kind


def _check_call(kind: type[Any], takes: Mapping[str, inspect.Parameter]) -> None:
    """Refuse pipelines that need more than a prompt, or make no pictures."""
    text_to_image = kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()
    lacking = [name for name in _NEEDED if name not in takes]
    media = {name for name in takes if _MEDIA.search(name) and not _HARMLESS.fullmatch(name)}
    if text_to_image:
        media -= _OPTIONAL_MEDIA
    needed = [name for name, each in takes.items() if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
    needed = [name for name in needed if name not in ("self", "prompt")]
    if "controlnet" in inspect.signature(kind.__init__).parameters:
        needed.append("controlnet")
    reason = None
    if lacking:
        reason = f"does not take {', '.join(lacking)}"
    elif needed:
        reason = f"needs {', '.join(needed)}"
    elif media:
        reason = f"works with {', '.join(sorted(media))}"
    elif not (text_to_image or _makes_images(kind)):
        reason = "makes no images"
    if reason:
        raise UnusableModel(f"model_index.json names the pipeline {kind.__name__}, which {reason}. {DRAWN_WHOLE}")


def _makes_images(kind: type[Any]) -> bool:
    """Return whether the pipeline's file has a result with images; many do not annotate what they return."""
    names = vars(sys.modules[kind.__module__])
    results = [each for name, each in names.items() if name.endswith("Output") and dataclasses.is_dataclass(each)]
    return any("images" in {field.name for field in dataclasses.fields(each)} for each in results)


def _components(kind: type[Any], index: Mapping[str, JsonValue]) -> dict[str, str]:
    """Return the class name of every component that the folder has; refuse those of its own code."""
    found: dict[str, str] = {}
    for name, value in index.items():
        library, class_name = value if isinstance(value, list) and len(value) == 2 else (None, None)
        if not isinstance(class_name, str):
            continue
        known = library in ("diffusers", "transformers") or hasattr(diffusers.pipelines, str(library))
        # Auto classes take the class from the component's config, which may name code of its own.
        if not known or re.match(r"Auto[A-Z]", class_name):
            raise UnusableModel(
                f"The {name} is {library}.{class_name}. Components are classes of diffusers or transformers; code that "
                "comes with a model is not run."
            )
        found[name] = class_name
    parameters = inspect.signature(kind.__init__).parameters
    required = {name for name, each in parameters.items() if each.default is each.empty and name != "self"}
    missing = sorted(required - set(found) - set(getattr(kind, "_optional_components", ())))
    if missing:
        raise UnusableModel(f"model_index.json names the pipeline {kind.__name__}, but no {', '.join(missing)}.")
    return found


def _sampler(folder: Path, components: Mapping[str, str]) -> Mapping[str, Any]:
    """Return the config of the folder's sampler."""
    if "scheduler" not in components:
        raise UnusableModel("model_index.json names no scheduler; a model draws with its own.")
    return read_json(folder / "scheduler" / "scheduler_config.json")


def _factor_and_step(folder: Path, components: Mapping[str, str]) -> tuple[int | None, int]:
    """Return the side of one latent pixel in px, None where it is not told, and what sides are multiples of."""
    factor: int | None = 1
    for name in _AUTOENCODERS:
        if name in components:
            config = read_json(folder / name / "config.json")
            blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels")
            factor = 2 ** (len(blocks) - 1) if isinstance(blocks, list) else None
    if any(name in components for name in _PRIORS):
        return factor, _STEP_OF_TWO_STAGES_PX
    if factor is None:
        return None, _STEP_WITHOUT_FACTOR_PX
    patch = 1
    if "transformer" in components:
        told = read_json(folder / "transformer" / "config.json").get("patch_size")
        patch = max(_LEAST_PATCH, told if isinstance(told, int) else _LEAST_PATCH)
    return factor, math.lcm(_DIFFUSERS_STEP_PX, factor * patch)


def _native_size(
    folder: Path, components: Mapping[str, str], takes: Mapping[str, inspect.Parameter], factor: int | None
) -> tuple[int | None, int | None]:
    """Return width and height in px: the pipeline's own default, or what its denoiser was made for; else None."""
    width, height = takes["width"].default, takes["height"].default
    if isinstance(width, int) and isinstance(height, int):
        return width, height
    for name in _DENOISERS:
        size = read_json(folder / name / "config.json").get("sample_size") if name in components else None
        if isinstance(size, int) and factor:
            return size * factor, size * factor
    return None, None


def _prompt_tokens(folder: Path, components: Mapping[str, str], takes: Mapping[str, inspect.Parameter]) -> int:
    """Return how many tokens every text encoder reads; where nobody says, what the shortest of them do."""
    told = takes["max_sequence_length"].default if "max_sequence_length" in takes else None
    places = [told if isinstance(told, int) else _PLACES]
    for name in components:
        path = folder / name / "tokenizer_config.json"
        if "tokenizer" in name and path.is_file():
            limit = read_json(path).get("model_max_length")
            if isinstance(limit, int) and limit < _NO_LIMIT:
                places.append(limit)
    return min(places) - _MARKS
