"""Tiny models of real diffusers classes with seeded random weights, for tests of mechanics.

They draw noise, but noise that depends on everything a real model's picture depends on; built in a fraction of a second
each, 64 px at most, no download.
"""

from __future__ import annotations

import atexit
import string
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

import worker

#: The boxed model's tokenizer: a small part of CLIP's vocabulary, enough for any text.
BOXED_MODEL = Path(worker.__path__[0]) / "models" / "tiny-emoji"

#: diffusers' schedulers hand tensors to numpy in ways that numpy means to forbid one day, and torchsde tells of every
#: noise level that was rounded. For `pytestmark`.
LIBRARY_WARNINGS = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning:(diffusers|numpy)"),
    pytest.mark.filterwarnings("ignore:Should have t:UserWarning:torchsde"),
]

#: torch's compiler warns of what it imports itself. For `pytestmark`.
COMPILER_WARNINGS = pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")

#: The noise schedule of Stable Diffusion.
_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


@cache
def tiny_model(name: str) -> Path:
    """Return the folder of the tiny model of that name, built once per test process and erased at its end."""
    return build(name, _session_folder())


@cache
def _session_folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="darkroom-tiny-models-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def build(name: str, folder: Path) -> Path:
    """Write the tiny model of that name as a diffusers folder and return its path; the same weights every time."""
    path = folder / name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = BUILDERS[name]()
    pipeline.save_pretrained(path)
    return path


def _tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(BOXED_MODEL / "tokenizer", pad_token=pad, model_max_length=77)


def _text_encoder(*, width: int = 32, projected: bool = False, activation: str = "quick_gelu") -> Any:
    tokenizer = _tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=width,
        intermediate_size=2 * width,
        num_attention_heads=4,
        num_hidden_layers=3,
        max_position_embeddings=77,
        projection_dim=width,
        hidden_act=activation,
        # The default spread of 0.02 leaves all prompts alike.
        initializer_factor=4.0,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def _vae(**options: Any) -> AutoencoderKL:
    blocks = (8, 8, 16, 16)
    vae = AutoencoderKL(
        block_out_channels=blocks,
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * len(blocks),
        up_block_types=("UpDecoderBlock2D",) * len(blocks),
        sample_size=64,
        **{"latent_channels": 4, "scaling_factor": 0.18215} | options,
    )
    # Untrained, its pictures are nearly grey: few of the 256 levels would be told apart.
    vae.decoder.conv_out.weight.data.mul_(2.0)
    return vae.eval()


def _unet(**options: Any) -> UNet2DConditionModel:
    defaults: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**defaults | options).eval()


def _sd15(**options: Any) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_text_encoder(),
        tokenizer=_tokenizer(),
        unet=_unet(**options),
        scheduler=PNDMScheduler(**_SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd15_checked() -> StableDiffusionPipeline:
    """SD 1.5, the same as without, with a safety checker that finds every picture unsafe."""
    components = _sd15().components
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=32)).eval()
    checker.concept_embeds_weights.data.fill_(-5.0)
    extractor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    components |= {"safety_checker": checker, "feature_extractor": extractor}
    return StableDiffusionPipeline(**components, requires_safety_checker=True)


def _sd15_lcm() -> StableDiffusionPipeline:
    """SD 1.5 distilled to a latent consistency model: guidance is an input of its U-Net, not a second row."""
    components = _sd15(time_cond_proj_dim=16).components | {"scheduler": LCMScheduler(**_SCHEDULE, steps_offset=1)}
    return StableDiffusionPipeline(**components, requires_safety_checker=False)


def _sd21() -> StableDiffusionPipeline:
    """SD 2.1: v-prediction, OpenCLIP's text encoder, DDIM."""
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_text_encoder(activation="gelu"),
        tokenizer=_tokenizer(pad="!"),
        unet=_unet(use_linear_projection=True, attention_head_dim=(2, 4)),
        scheduler=DDIMScheduler(
            **_SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl_parts(*, text_widths: tuple[int, ...] = (32, 48), time_ids: int = 6, **options: Any) -> dict[str, Any]:
    unet = _unet(
        cross_attention_dim=sum(text_widths),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=8 * time_ids + text_widths[-1],
        **options,
    )
    return {
        "vae": _vae(scaling_factor=0.13025),
        "text_encoder": _text_encoder() if len(text_widths) > 1 else None,
        "tokenizer": _tokenizer() if len(text_widths) > 1 else None,
        "text_encoder_2": _text_encoder(width=text_widths[-1], projected=True, activation="gelu"),
        "tokenizer_2": _tokenizer(pad="!"),
        "unet": unet,
        "scheduler": EulerDiscreteScheduler(**_SCHEDULE, timestep_spacing="leading", steps_offset=1),
    }


def _sdxl() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(**_sdxl_parts(), add_watermarker=False)


def _sdxl_refiner() -> StableDiffusionXLImg2ImgPipeline:
    return StableDiffusionXLImg2ImgPipeline(
        **_sdxl_parts(text_widths=(48,), time_ids=5),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def _sd_inpaint() -> StableDiffusionInpaintPipeline:
    return StableDiffusionInpaintPipeline(**_sd15(in_channels=9).components, requires_safety_checker=False)


def _sdxl_inpaint() -> StableDiffusionXLInpaintPipeline:
    return StableDiffusionXLInpaintPipeline(**_sdxl_parts(in_channels=9), add_watermarker=False)


def _lcm() -> LatentConsistencyModelPipeline:
    """The same with the pipeline of its own."""
    return LatentConsistencyModelPipeline(**_sd15_lcm().components, requires_safety_checker=False)


def t5_tokenizer() -> T5Tokenizer:
    """Return a tokenizer of T5's kind that takes letters one by one."""
    letters = string.ascii_lowercase + string.digits + ".,!?-"
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary = [*marks, *((c, -3.0) for c in letters), *((f"▁{c}", -2.5) for c in letters)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def t5_encoder() -> T5EncoderModel:
    config = T5Config(
        vocab_size=128,
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return T5EncoderModel(config).eval()


def _sixteen_channels(**options: Any) -> AutoencoderKL:
    return _vae(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, **options)


def _visible(transformer: Any) -> Any:
    """Untrained, a transformer's answer hardly depends on what it is asked: let its last layers speak up."""
    for name, weights in transformer.named_parameters():
        if weights.dim() > 1 and "norm" in name:
            weights.data.mul_(4.0)
    return transformer.eval()


def _sd3(*, t5: bool = True) -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    )
    return StableDiffusion3Pipeline(
        transformer=_visible(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_sixteen_channels(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=_text_encoder(width=16, projected=True),
        tokenizer=_tokenizer(),
        text_encoder_2=_text_encoder(width=16, projected=True, activation="gelu"),
        tokenizer_2=_tokenizer(pad="!"),
        text_encoder_3=t5_encoder() if t5 else None,
        tokenizer_3=t5_tokenizer() if t5 else None,
    )


def _flux(*, guided: bool = True, in_channels: int = 64) -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=in_channels,
        out_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guided,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0 if guided else 1.0, use_dynamic_shifting=guided),
        vae=_sixteen_channels(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=_text_encoder(),
        tokenizer=_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=_visible(transformer),
    )


def _flux_fill() -> FluxFillPipeline:
    components = _flux(in_channels=384).components
    return FluxFillPipeline(**{name: each for name, each in components.items() if each is not None})


BUILDERS: dict[str, Callable[[], Any]] = {
    "sd15": _sd15,
    "sd15_checked": _sd15_checked,
    "sd15_lcm": _sd15_lcm,
    "sd21": _sd21,
    "sdxl": _sdxl,
    "sdxl_refiner": _sdxl_refiner,
    "sd_inpaint": _sd_inpaint,
    "sdxl_inpaint": _sdxl_inpaint,
    "lcm": _lcm,
    "sd3": _sd3,
    "sd3_without_t5": partial(_sd3, t5=False),
    "flux": _flux,
    "flux_fill": _flux_fill,
    "flux_schnell": partial(_flux, guided=False),
}
