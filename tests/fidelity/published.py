"""The tiny models and requests behind the figures that diffusers' own tests publish, built anew.

diffusers seeds torch before each module, so that its random weights are the same everywhere, and keeps nine numbers of
the picture that they draw: the blue of the lower right corner. `published.json` holds these, each with file and test.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import diffusers
import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.fidelity.cases import Case

PROMPT = "A painting of a squirrel eating a burger"

#: What these prompts take of the vocabulary of `hf-internal-testing/tiny-random-clip` on the hub: 1000 pieces trained
#: on WikiText, the merged ones in the order of their merges. The figures below come out right with these ids only.
_LETTERS = {chr(code): code - ord("a") + 66 for code in range(ord("a"), ord("z") + 1)}
_LAST_LETTERS = {"a": 197, "l": 201, "h": 203, "r": 204, "s": 206, "f": 209, "g": 214}
_MERGED = {
    "i n": 358,
    "r e": 367,
    "a t": 372,
    "e r</w>": 374,
    "in g</w>": 383,
    "e s</w>": 388,
    "u r": 413,
    "i r": 453,
    "r i": 487,
    "q u": 546,
    "a in": 568,
    "c h</w>": 603,
    "t ing</w>": 676,
    "re n": 790,
    "at ing</w>": 922,
}
_VOCABULARY_SIZE = 1000

#: Which picture goes in: none, noise as floats of more than 8 bits, noise of 32 px scaled up under a white mask, black
#: under a black mask, black under a white mask with black left and upper borders.
Input = Literal["none", "floats", "noise", "untouched", "bordered"]

_SIDE_PX = 32


@dataclass(frozen=True, slots=True)
class PublishedCase(Case):
    """A request of diffusers' tests."""

    prompt: str = PROMPT
    steps: int = 2
    guidance_scale: float = 6.0
    seed: int = 0
    input: Input = "none"

    def floats(self) -> torch.Tensor:
        """Return the input picture in full, (1, 3, 32, 32) in [0.5, 1]."""
        return _noise() / 2 + 0.5

    def input_picture(self) -> PIL.Image.Image:
        if self.input == "floats":
            return _picture(self.floats()[0].permute(1, 2, 0) * 255)
        if self.input == "noise":
            return _picture(_noise()[0].permute(1, 2, 0) * 255).resize((self.width, self.height))
        return PIL.Image.new("RGB", (self.width, self.height))

    def input_mask(self) -> PIL.Image.Image:
        if self.input != "bordered":
            return PIL.Image.new("L", (self.width, self.height), 255 if self.input == "noise" else 4)
        mask = PIL.Image.new("L", (_SIDE_PX, _SIDE_PX))
        mask.paste(255, (8, 8, _SIDE_PX, _SIDE_PX))
        return mask.resize((self.width, self.height))


@dataclass(frozen=True)
class Figure:
    """Nine published numbers."""

    #: Of diffusers' repository.
    file: str
    test: str
    #: A name of `BUILDERS`.
    model: str
    case: PublishedCase
    #: Blue in [0, 1], the last three rows of the last three columns, four decimals.
    corner: torch.Tensor
    #: How far diffusers' test lets its own picture be, where that is needed: seven figures of before transformers 5,
    #: which draws the weights in another order, were not off by more and so not published anew. For two more, of
    #: inpainting with 9 channels, no reason was found.
    within: float | None

    def __str__(self) -> str:
        return f"{Path(self.file).stem}-{self.test}-{self.model}"


def figures() -> list[Figure]:
    """Return all published figures that are drawn again."""
    published = json.loads((Path(__file__).parent / "published.json").read_text())
    return [
        Figure(
            file=file,
            test=row["test"],
            model=row["model"],
            case=PublishedCase(**row["request"]),
            corner=torch.tensor(row["corner"]).reshape(3, 3),
            within=row.get("within"),
        )
        for file, rows in published["figures"].items()
        for row in rows
    ]


@cache
def _noise() -> torch.Tensor:
    """Return the picture of diffusers' tests, (1, 3, 32, 32) in [0, 1): Python's own random numbers."""
    source = random.Random(0)
    return torch.tensor([source.random() for _ in range(3 * _SIDE_PX**2)]).view(1, 3, _SIDE_PX, _SIDE_PX)


def _picture(levels: torch.Tensor) -> PIL.Image.Image:
    return PIL.Image.fromarray(levels.numpy().astype(np.uint8))


def _tokenizer() -> CLIPTokenizer:
    pieces = {"<|startoftext|>": 0, "<|endoftext|>": 1} | _LETTERS
    pieces |= {f"{letter}</w>": number for letter, number in _LAST_LETTERS.items()}
    pieces |= {merge.replace(" ", ""): number for merge, number in _MERGED.items()}
    used = set(pieces.values())
    pieces |= {f"<{number}>": number for number in range(_VOCABULARY_SIZE) if number not in used}
    merges: Any = [tuple(merge.split()) for merge in _MERGED]
    return CLIPTokenizer(vocab=pieces, merges=merges, model_max_length=77)


def _text_config(**options: Any) -> CLIPTextConfig:
    defaults: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_attention_heads": 4,
        "num_hidden_layers": 5,
        "layer_norm_eps": 1e-5,
        "vocab_size": _VOCABULARY_SIZE,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    return CLIPTextConfig(**defaults | options)


def _unet(**options: Any) -> UNet2DConditionModel:
    defaults: dict[str, Any] = {
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
    }
    torch.manual_seed(0)
    return UNet2DConditionModel(**defaults | options)


def _vae(**options: Any) -> AutoencoderKL:
    defaults: dict[str, Any] = {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
    }
    torch.manual_seed(0)
    return AutoencoderKL(**defaults | options)


def _text_encoder(config: CLIPTextConfig) -> CLIPTextModel:
    torch.manual_seed(0)
    return CLIPTextModel(config)


#: SD's betas, in schedulers that were given little else.
_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_UNCLIPPED: dict[str, Any] = _BETAS | {"clip_sample": False, "set_alpha_to_one": False}


def _ddim(**options: Any) -> Any:
    return diffusers.DDIMScheduler(**_UNCLIPPED | options)


def _pndm() -> Any:
    return diffusers.PNDMScheduler(skip_prk_steps=True)


def _sd(kind: str, scheduler: Any, unet: Any, vae: Any, text: CLIPTextConfig) -> Any:
    return getattr(diffusers, kind)(
        unet=unet,
        vae=vae,
        text_encoder=_text_encoder(text),
        tokenizer=_tokenizer(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _smallest(scheduler: Any, *, guidance_width: int | None = None) -> Any:
    sizes: dict[str, Any] = {"block_out_channels": (4, 8), "norm_num_groups": 2}
    unet = _unet(**sizes, layers_per_block=1, cross_attention_dim=8, time_cond_proj_dim=guidance_width)
    text = _text_config(hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2)
    return _sd("StableDiffusionPipeline", scheduler, unet, _vae(**sizes), text)


def _lcm() -> Any:
    sizes: dict[str, Any] = {"block_out_channels": (4, 8), "norm_num_groups": 2}
    unet = _unet(**sizes, layers_per_block=1, time_cond_proj_dim=32)
    text = _text_config(intermediate_size=64, num_attention_heads=8, num_hidden_layers=3)
    scheduler = diffusers.LCMScheduler(**_UNCLIPPED)
    return _sd("LatentConsistencyModelPipeline", scheduler, unet, _vae(**sizes), text)


def _image_to_image(scheduler: Any, *, guidance_width: int | None = None) -> Any:
    unet = _unet(time_cond_proj_dim=guidance_width)
    return _sd("StableDiffusionImg2ImgPipeline", scheduler, unet, _vae(), _text_config())


def _inpaint(*, channels: int, guidance_width: int | None = None) -> Any:
    unet = _unet(in_channels=channels, time_cond_proj_dim=guidance_width)
    return _sd("StableDiffusionInpaintPipeline", _pndm(), unet, _vae(), _text_config())


def _sd2(scheduler: Any, *, channels: int = 4) -> Any:
    unet = _unet(in_channels=channels, attention_head_dim=(2, 4), use_linear_projection=True)
    kind = "StableDiffusionPipeline" if channels == 4 else "StableDiffusionInpaintPipeline"
    return _sd(kind, scheduler, unet, _vae(sample_size=128), _text_config(hidden_act="gelu", projection_dim=512))


def _sdxl(kind: str = "", *, refiner: bool = False, guidance_width: int | None = None, **unet_options: Any) -> Any:
    """Return a pipeline of XL; all but text-to-image take an aesthetic score, a refiner one text encoder only."""
    unet = _unet(
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=8 * (5 if kind else 6) + 32,
        cross_attention_dim=32 if refiner else 64,
        time_cond_proj_dim=guidance_width,
        **unet_options,
    )
    vae = _vae(sample_size=128)
    config = _text_config(hidden_act="gelu", projection_dim=32)
    # Without a new seed between the two. A refiner's only one comes after the first in one file, not in the other.
    first = _text_encoder(config)
    if refiner and kind == "Img2Img":
        torch.manual_seed(0)
    second = CLIPTextModelWithProjection(config)
    return getattr(diffusers, f"StableDiffusionXL{kind}Pipeline")(
        unet=unet,
        vae=vae,
        text_encoder=None if refiner else first,
        tokenizer=None if refiner else _tokenizer(),
        text_encoder_2=second,
        tokenizer_2=_tokenizer(),
        scheduler=diffusers.EulerDiscreteScheduler(**_BETAS, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
        **({"requires_aesthetics_score": True} if kind else {}),
    )


#: Name in `published.json` → how its pipeline is built.
BUILDERS: Mapping[str, Callable[[], Any]] = {
    "sd": lambda: _smallest(_ddim()),
    "sd_pndm": lambda: _smallest(_pndm()),
    "sd_guided": lambda: _smallest(_ddim(), guidance_width=256),
    "sd_image": lambda: _image_to_image(_pndm()),
    "sd_image_lms": lambda: _image_to_image(diffusers.LMSDiscreteScheduler(**_BETAS)),
    "sd_image_guided": lambda: _image_to_image(_pndm(), guidance_width=256),
    "sd_inpaint": lambda: _inpaint(channels=9),
    "sd_inpaint_guided": lambda: _inpaint(channels=9, guidance_width=256),
    "sd_repaint": lambda: _inpaint(channels=4),
    "sd_repaint_guided": lambda: _inpaint(channels=4, guidance_width=256),
    "sd2": lambda: _sd2(_ddim()),
    "sd2_pndm": lambda: _sd2(_pndm()),
    "sd2_trailing": lambda: _sd2(_ddim(timestep_spacing="trailing")),
    "sd2_v": lambda: _sd2(_ddim(prediction_type="v_prediction")),
    "sd2_v_euler": lambda: _sd2(diffusers.EulerDiscreteScheduler(**_BETAS, prediction_type="v_prediction")),
    "sd2_inpaint": lambda: _sd2(_pndm(), channels=9),
    "lcm": _lcm,
    "sdxl": lambda: _sdxl(block_out_channels=(2, 4), norm_num_groups=1),
    "sdxl_guided": lambda: _sdxl(block_out_channels=(2, 4), norm_num_groups=1, guidance_width=256),
    "sdxl_image": lambda: _sdxl("Img2Img"),
    "sdxl_image_guided": lambda: _sdxl("Img2Img", guidance_width=256),
    "sdxl_image_refiner": lambda: _sdxl("Img2Img", refiner=True),
    "sdxl_inpaint": lambda: _sdxl("Inpaint"),
    "sdxl_inpaint_guided": lambda: _sdxl("Inpaint", guidance_width=256),
    "sdxl_inpaint_refiner": lambda: _sdxl("Inpaint", refiner=True),
}


def build(name: str, folder: Path) -> Path:
    """Write the model of that name as a diffusers folder and return its path.

    Its scheduler config says what diffusers' test says and no more: a sampler that is made from it has its own defaults
    then, and takes over those of another class where they were written out.
    """
    path = folder / name
    with torch.random.fork_rng(devices=[]):
        pipeline = BUILDERS[name]()
    pipeline.save_pretrained(path)
    config = path / "scheduler" / "scheduler_config.json"
    left_alone = pipeline.scheduler.config["_use_default_values"]
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k not in left_alone}))
    return path
