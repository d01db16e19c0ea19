"""What a model can do is read from its configs, and what cannot be served is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.contract.catalog import CatalogEntry, Limits, SamplingDefaults
from service.contract.schedulers import SCHEDULERS
from tests.models import BOXED_MODEL, tiny_model
from worker.pipelines.capabilities import read_capabilities
from worker.pipelines.card import make_card
from worker.pipelines.errors import UnusableModel

ALL = ("text-to-image", "image-to-image", "inpaint")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny SD 1.5 model whose configs a test may change."""
    return shutil.copytree(tiny_model("sd15"), tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    """Set fields of a JSON file; None removes."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.mark.parametrize(
    ("name", "family", "tasks", "scheduler"),
    [
        ("sd15", "sd1", ALL, "pndm"),
        ("sd21", "sd2", ALL, "ddim"),
        ("sdxl", "sdxl", ALL, "euler"),
        ("sdxl_refiner", "sdxl", ("image-to-image", "inpaint"), "euler"),
        ("sd_inpaint", "sd1", ("inpaint",), "pndm"),
        ("sdxl_inpaint", "sdxl", ("inpaint",), "euler"),
    ],
)
def test_family_tasks_and_sampler_come_from_the_configs(
    name: str, family: str, tasks: tuple[str, ...], scheduler: str
) -> None:
    abilities = read_capabilities(tiny_model(name))
    assert (abilities.family, abilities.tasks, abilities.scheduler) == (family, tasks, scheduler)
    assert abilities.schedulers == tuple(name for name, row in SCHEDULERS.items() if not row.flow)
    assert (abilities.native_width_px, abilities.native_height_px) == (64, 64)
    assert abilities.max_prompt_tokens == 75
    assert not abilities.safety_checker


def test_the_boxed_models_latent_pixel_has_four_pixels_a_side() -> None:
    abilities = read_capabilities(BOXED_MODEL)
    assert abilities.vae_scale_factor == 4
    assert abilities.size_step_px == 8
    assert (abilities.native_width_px, abilities.native_height_px) == (64, 64)


def test_a_safety_checker_is_seen() -> None:
    assert read_capabilities(tiny_model("sd15_checked")).safety_checker


def test_native_sizes_need_not_be_square(folder: Path) -> None:
    edit(folder / "unet" / "config.json", sample_size=[64, 96])
    abilities = read_capabilities(folder)
    assert (abilities.native_height_px, abilities.native_width_px) == (512, 768)


def test_native_sizes_of_configs_from_before_diffusers_0_9_are_corrected_as_diffusers_does(folder: Path) -> None:
    edit(folder / "unet" / "config.json", sample_size=32, _diffusers_version="0.6.0")
    assert read_capabilities(folder).native_width_px == 512


def test_a_zero_terminal_snr_schedule_is_offered_only_samplers_that_know_it(folder: Path) -> None:
    edit(
        folder / "scheduler" / "scheduler_config.json",
        _class_name="DDIMScheduler",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    abilities = read_capabilities(folder)
    assert abilities.scheduler == "ddim"
    assert {"ddpm", "euler", "dpmpp_2m"} <= set(abilities.schedulers)
    assert not {"pndm", "lms", "heun", "deis"} & set(abilities.schedulers)


def test_a_model_that_predicts_neither_noise_nor_velocity_is_offered_its_own_sampler_only(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler", prediction_type="sample")
    assert read_capabilities(folder).schedulers == ("ddim",)


@pytest.mark.parametrize(
    ("name", "family", "unused", "native_px", "tokens", "steps", "guidance_scale"),
    [
        ("sd3", "sd3", set(), 64, 255, 28, 7.0),
        ("sd3_without_t5", "sd3", set(), 64, 75, 28, 7.0),
        ("flux", "flux", {"negative_prompt"}, 1024, 511, 28, 3.5),
        ("flux_schnell", "flux", {"negative_prompt", "guidance_scale"}, 1024, 255, 4, 0.0),
    ],
)
def test_flow_matching_models_are_told_by_their_transformer_and_text_encoders(
    name: str, family: str, unused: set[str], native_px: int, tokens: int, steps: int, guidance_scale: float
) -> None:
    abilities = read_capabilities(tiny_model(name))
    assert (abilities.family, abilities.tasks) == (family, ALL)
    assert set(abilities.unused_fields) == {"guidance_rescale", "eta"} | unused
    assert (abilities.native_width_px, abilities.native_height_px) == (native_px, native_px)
    assert (abilities.size_step_px, abilities.vae_scale_factor) == (16, 8)
    assert (abilities.max_prompt_tokens, abilities.steps, abilities.guidance_scale) == (tokens, steps, guidance_scale)
    assert abilities.scheduler == "flow_euler"
    assert not {row.name for row in SCHEDULERS.values() if not row.flow} & set(abilities.schedulers)


def test_flux_fill_repaints_and_does_nothing_else() -> None:
    abilities = read_capabilities(tiny_model("flux_fill"))
    assert (abilities.family, abilities.tasks) == ("flux_fill", ("inpaint",))
    assert (abilities.steps, abilities.guidance_scale, abilities.strength) == (50, 30.0, 1.0)
    assert abilities.schedulers == ("flow_euler",)


@pytest.mark.parametrize("kind", ["", "Img2Img"])
def test_a_latent_consistency_folder_is_known_by_its_pipeline(tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(tiny_model("lcm"), tmp_path / "model")
    edit(folder / "model_index.json", _class_name=f"LatentConsistencyModel{kind}Pipeline")
    abilities = read_capabilities(folder)
    assert (abilities.family, abilities.schedulers) == ("lcm", ("lcm",))
    assert set(abilities.unused_fields) == {"negative_prompt", "guidance_rescale", "eta"}
    assert abilities.tasks == ("text-to-image", "image-to-image")
    assert (abilities.steps, abilities.guidance_scale) == (4, 8.5)


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        (
            "sd3",
            lambda f: edit(f / "transformer" / "config.json", in_channels=33),
            "takes 33 channels, not 16",
        ),
        ("flux", lambda f: edit(f / "transformer" / "config.json", in_channels=384), "takes 384 channels, not 64"),
        ("flux_fill", lambda f: edit(f / "transformer" / "config.json", in_channels=64), "takes 64 channels, not 384"),
        ("flux", lambda f: edit(f / "vae" / "config.json", shift_factor=None), "shift_factor is missing"),
        (
            "sd3",
            lambda f: edit(f / "model_index.json", text_encoder_3=["transformers", "UMT5EncoderModel"]),
            "UMT5EncoderModel, not T5EncoderModel",
        ),
        ("flux", lambda f: edit(f / "model_index.json", text_encoder_2=[None, None]), "text_encoder_2 is missing"),
        (
            "flux",
            lambda f: edit(f / "scheduler" / "scheduler_config.json", _class_name="EulerDiscreteScheduler"),
            "EulerDiscreteScheduler. Supported are FlowMatchEulerDiscreteScheduler",
        ),
        (
            "lcm",
            lambda f: edit(f / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler"),
            "DDIMScheduler. Supported are LCMScheduler",
        ),
    ],
)
def test_what_a_family_does_not_come_with_is_refused_by_name(
    tmp_path: Path, name: str, change: Callable[[Path], Any], found: str
) -> None:
    folder = shutil.copytree(tiny_model(name), tmp_path / "model")
    change(folder)
    with pytest.raises(UnusableModel, match=found):
        read_capabilities(folder)


def test_limits_end_where_the_denoiser_has_no_positions() -> None:
    abilities = read_capabilities(tiny_model("sd3"))
    card = make_card(CatalogEntry(id="m", source="x"), abilities, dtype="float32", sha256="0" * 64)
    assert card.limits == Limits(max_side_px=256)
    narrower = CatalogEntry(id="m", source="x", limits=Limits(max_side_px=128))
    assert make_card(narrower, abilities, dtype="float32", sha256="0" * 64).limits.max_side_px == 128


@pytest.mark.parametrize(
    ("change", "found"),
    [
        pytest.param(
            lambda f: edit(f / "model_index.json", _class_name="FluxControlPipeline"), "FluxControlPipeline", id="flux"
        ),
        pytest.param(
            lambda f: edit(f / "model_index.json", _class_name="StableDiffusion3Pipeline"),
            "transformer is missing, not SD3Transformer2DModel",
            id="sd3 by name alone",
        ),
        pytest.param(
            lambda f: edit(f / "model_index.json", _class_name="LatentConsistencyModelPipeline"),
            "time_cond_proj_dim None",
            id="lcm by name alone",
        ),
        pytest.param(lambda f: edit(f / "model_index.json", _class_name=None), "None", id="no class"),
        pytest.param(lambda f: edit(f / "unet" / "config.json", in_channels=8), "8 channels", id="pix2pix"),
        pytest.param(lambda f: edit(f / "unet" / "config.json", in_channels=7), "7 channels", id="upscaler"),
        pytest.param(lambda f: edit(f / "unet" / "config.json", sample_size=None), "sample_size", id="no size"),
        pytest.param(lambda f: edit(f / "vae" / "config.json", latent_channels=16), "16 channels", id="latents"),
        pytest.param(lambda f: edit(f / "model_index.json", vae=["diffusers", "AutoencoderTiny"]), "Tiny", id="vae"),
        pytest.param(lambda f: edit(f / "model_index.json", unet=["my_code", "MyUNet"]), "MyUNet", id="custom code"),
        pytest.param(lambda f: edit(f / "model_index.json", unet=[None, None]), "unet is missing", id="no denoiser"),
        pytest.param(
            lambda f: edit(f / "model_index.json", text_encoder=["transformers", "T5EncoderModel"]), "T5", id="t5"
        ),
        pytest.param(
            lambda f: edit(f / "model_index.json", text_encoder=[None, None]), "no text encoder", id="no text encoder"
        ),
        pytest.param(
            lambda f: edit(f / "scheduler" / "scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"),
            "FlowMatchEulerDiscreteScheduler",
            id="flow matching",
        ),
        pytest.param(lambda f: (f / "model_index.json").unlink(), "model_index.json is missing", id="no index"),
        pytest.param(lambda f: (f / "vae" / "config.json").unlink(), "vae/config.json is missing", id="no config"),
        pytest.param(lambda f: (f / "unet" / "config.json").write_text("[]"), "unet/config.json", id="a list"),
        pytest.param(lambda f: (f / "unet" / "config.json").write_bytes(b"\xff\xfe{"), "unet/config.json", id="bytes"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(folder: Path, change: Callable[[Path], Any], found: str) -> None:
    change(folder)
    with pytest.raises(UnusableModel, match=found):
        read_capabilities(folder)


def test_the_card_fills_in_what_the_operator_left_open() -> None:
    entry = CatalogEntry(id="m", source="x", pool="large", default=True, description="One.")
    card = make_card(entry, read_capabilities(tiny_model("sdxl")), dtype="bfloat16", sha256="0" * 64)
    assert (card.width, card.height, card.steps, card.guidance_scale) == (64, 64, 30, 5.0)
    assert (card.scheduler, card.strength, card.dtype, card.pool) == ("euler", 0.8, "bfloat16", "large")
    assert card.default
    assert card.description == "One."


def test_the_operators_defaults_win() -> None:
    defaults = SamplingDefaults(width=128, height=96, steps=7, guidance_scale=0.0, scheduler="plms", strength=0.5)
    card = make_card(
        CatalogEntry(id="m", source="x", defaults=defaults),
        read_capabilities(tiny_model("sd15")),
        dtype="float32",
        sha256="0" * 64,
    )
    assert (card.width, card.height, card.steps, card.guidance_scale) == (128, 96, 7, 0.0)
    assert (card.scheduler, card.strength) == ("pndm", 0.5)


@pytest.mark.parametrize(
    ("defaults", "limits", "found"),
    [
        (SamplingDefaults(width=100), Limits(), "multiple of the model's step of 8 px"),
        (SamplingDefaults(), Limits(min_side_px=128), "outside limits"),
        (SamplingDefaults(height=2048), Limits(), "outside limits"),
        (SamplingDefaults(), Limits(max_pixels=1000), "max_pixels"),
        (SamplingDefaults(steps=200), Limits(), "max_steps"),
        (SamplingDefaults(scheduler="quicksort"), Limits(), "quicksort"),
        (SamplingDefaults(strength=0.0), Limits(), "strength"),
    ],
)
def test_a_catalogue_that_contradicts_the_model_is_refused_by_field(
    defaults: SamplingDefaults, limits: Limits, found: str
) -> None:
    entry = CatalogEntry(id="m", source="x", defaults=defaults, limits=limits)
    with pytest.raises(UnusableModel, match=found):
        make_card(entry, read_capabilities(tiny_model("sd15")), dtype="float32", sha256="0" * 64)
