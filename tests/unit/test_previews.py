"""Previews look like the pictures that they announce, whatever the sampler; a model without any draws all the same."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch.nn.functional import interpolate

from service.contract.catalog import CatalogEntry
from service.contract.generation import GenerationSpec
from service.contract.previews import PREVIEW_SIDE_PX
from tests.models import BOXED_MODEL, LIBRARY_WARNINGS, tiny_model
from worker.pipelines import stages, tasks
from worker.pipelines.errors import UnusableModel
from worker.pipelines.loading import LoadedModel, load
from worker.pipelines.prediction import predicted_latents
from worker.pipelines.previews import LinearPreview, TinyPreview, fit, read_decoder
from worker.pipelines.quiet import quiet_libraries

pytestmark = LIBRARY_WARNINGS

STEPS = 8
Course = tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]
GUIDANCE = 4.0


@pytest.fixture(autouse=True)
def _as_in_the_engine() -> Iterator[None]:
    quiet_libraries()
    with torch.no_grad():
        yield


@cache
def boxed() -> LoadedModel:
    return load(CatalogEntry(id="boxed", source=str(BOXED_MODEL)))


def drawn(prompt: str, scheduler: str = "ddim", sigmas: str | None = None) -> Course:
    """Return what the denoiser was given, what it had in mind, both by call, and the latents in the end."""
    model = boxed()
    asked = {"task": "text-to-image", "model": "boxed", "prompt": prompt, "width": 64, "height": 64, "seed": 3}
    sampling = {"steps": STEPS, "guidance_scale": GUIDANCE, "scheduler": scheduler, "sigmas": sigmas}
    spec = GenerationSpec.model_validate(asked | sampling)
    pipeline = tasks.task_pipeline(model, spec, seed=3)
    given: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []

    def call(denoiser: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = denoiser(*args, **kwargs)
        latents = predicted_latents(pipeline.scheduler, args, kwargs, output[0], GUIDANCE)
        assert latents is not None
        given.append(args[0][:1])
        seen.append(latents)
        return output

    latents = stages.denoise(
        pipeline,
        stages.encode_prompts(model, [spec])[0],
        tasks.call_arguments(model, spec, None, None),
        seed=3,
        call=call,
        encode=lambda picture: stages.encode_pictures(model, picture),
        on_step=lambda _: None,
    )
    return given, seen, latents


def decoded(latents: torch.Tensor) -> torch.Tensor:
    return stages.decode_unscaled(boxed(), stages.unscaled(boxed(), latents, "text-to-image"))


def averaged(picture: torch.Tensor, like: torch.Tensor) -> Any:
    small = interpolate(picture, size=like.shape[-2:], mode="area")
    return ((small[0].permute(1, 2, 0) * 0.5 + 0.5).clamp(0, 1) * 255).numpy()


def likeness(preview: torch.Tensor, picture: Any) -> float:
    return float(np.corrcoef(preview.numpy().astype(float).ravel(), picture.ravel())[0, 1])


@pytest.mark.parametrize("prompt", ["a red circle on a blue background", "a dog", "a rocket"])
def test_a_preview_of_latents_is_the_decoders_picture_made_small(prompt: str) -> None:
    _, _, latents = drawn(prompt)
    preview = boxed().preview
    assert isinstance(preview, LinearPreview)
    pixels = preview.pixels(latents)
    picture = averaged(decoded(latents), latents)
    assert pixels.dtype == torch.uint8
    assert tuple(pixels.shape) == (16, 16, 3)
    assert likeness(pixels, picture) > 0.985
    assert np.abs(pixels.numpy() - picture).mean() < 8


@pytest.mark.parametrize(
    ("scheduler", "sigmas"),
    [("ddim", None), ("euler", None), ("euler_a", None), ("heun", None), ("dpmpp_2m", "karras"), ("lcm", None)],
)
def test_half_way_the_preview_shows_what_the_picture_will_be(scheduler: str, sigmas: str | None) -> None:
    given, seen, latents = drawn("a green apple", scheduler, sigmas)
    preview = boxed().preview
    assert preview is not None
    picture = averaged(decoded(latents), latents)
    half = len(seen) // 2
    foreseen = likeness(preview.pixels(seen[half]), picture)
    assert foreseen > 0.9
    assert likeness(preview.pixels(given[half]), picture) < foreseen - 0.1
    assert likeness(preview.pixels(seen[-1]), picture) > 0.98


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow_prediction"])
@pytest.mark.parametrize("timestep", [1.0, 500.25, 999.0])
def test_a_perfect_denoiser_has_the_clean_latents_in_mind(prediction: str, timestep: float) -> None:
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    if prediction == "flow_prediction":
        scheduler: Any = FlowMatchEulerDiscreteScheduler()
        signal, share = 1 - timestep / 1000, timestep / 1000
        output = noise - clean
    else:
        scheduler = DDIMScheduler(beta_schedule="scaled_linear", prediction_type=prediction)
        alphas = scheduler.alphas_cumprod.double().numpy()
        alpha = float(np.interp(timestep, np.arange(len(alphas)), alphas))
        signal, share = alpha**0.5, (1 - alpha) ** 0.5
        output = {"epsilon": noise, "v_prediction": signal * noise - share * clean, "sample": clean}[prediction]
    noisy = signal * clean + share * noise
    given = (noisy.repeat(2, 1, 1, 1), torch.tensor(timestep))
    # The row without the prompt is off by one everywhere; guidance of 1 takes nothing of it.
    off = torch.cat([output + 1, output])
    found = predicted_latents(scheduler, given, {}, off, 1.0)
    assert found is not None
    assert torch.allclose(found, clean, atol=2e-3)
    # Guidance goes as far beyond the prompt's row as it says.
    plain = predicted_latents(scheduler, (noisy, torch.tensor(timestep)), {}, output + 1, 1.0)
    far = predicted_latents(scheduler, given, {}, off, 3.0)
    assert plain is not None
    assert far is not None
    assert torch.allclose(far, plain + 3 * (found - plain), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(far, found, atol=1e-3, rtol=1e-3)
    alone = predicted_latents(scheduler, (), {"sample": noisy, "timestep": timestep}, output, 7.5)
    assert alone is not None
    assert torch.allclose(alone, clean, atol=2e-3)
    # A mask and a picture behind the latents are no part of them.
    wide = torch.cat([noisy, torch.full((1, 5, 8, 8), 9.0)], dim=1)
    nine = predicted_latents(scheduler, (wide, torch.tensor(timestep)), {}, output, 7.5)
    assert nine is not None
    assert torch.equal(nine, alone)


def test_flux_is_told_the_noise_level_itself() -> None:
    clean, noise = torch.randn(2, 1, 16, 64, generator=torch.Generator().manual_seed(1))
    kwargs = {"hidden_states": 0.75 * clean + 0.25 * noise, "timestep": torch.tensor([0.25])}
    found = predicted_latents(FlowMatchEulerDiscreteScheduler(), (), kwargs, noise - clean, 3.5)
    assert found is not None
    assert torch.allclose(found, clean, atol=1e-5)
    # FLUX Fill's picture and mask behind the channels of each token are no part of them.
    kwargs["hidden_states"] = torch.cat([kwargs["hidden_states"], torch.full((1, 16, 320), 9.0)], dim=2)
    filled = predicted_latents(FlowMatchEulerDiscreteScheduler(), (), kwargs, noise - clean, 30.0)
    assert filled is not None
    assert torch.equal(filled, found)


def test_what_no_rule_is_known_for_has_no_prediction() -> None:
    scheduler = SimpleNamespace(config={"prediction_type": "something_new"})
    rows = torch.zeros(1, 4, 8, 8)
    assert predicted_latents(scheduler, (rows, torch.tensor(1.0)), {}, rows, 1.0) is None
    three = torch.zeros(3, 4, 8, 8)
    assert predicted_latents(DDIMScheduler(), (three, torch.tensor(1.0)), {}, three, 1.0) is None


def test_the_fit_is_the_same_every_time_and_draws_nothing_from_anybodys_generator() -> None:
    vae = boxed().pipeline.vae
    state = torch.get_rng_state()
    first, second = fit(vae), fit(vae)
    assert first is not None
    assert second is not None
    assert torch.equal(first.weights, second.weights)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_an_autoencoder_kept_in_float16_is_fitted_in_float32_and_stays_as_it_was(name: str) -> None:
    half = load(CatalogEntry(id="tiny", source=str(tiny_model(name)), dtype="float16"))
    before = {key: value.clone() for key, value in half.pipeline.vae.state_dict().items()}
    fitted = fit(half.pipeline.vae)
    assert fitted is not None
    assert half.pipeline.vae.dtype == torch.float16
    assert all(torch.equal(value, before[key]) for key, value in half.pipeline.vae.state_dict().items())
    exact = load(CatalogEntry(id="tiny", source=str(tiny_model(name)), dtype="float32")).preview
    assert isinstance(exact, LinearPreview)
    assert torch.allclose(fitted.weights, exact.weights, atol=0.02)


def test_latents_are_scaled_as_their_config_says() -> None:
    plain = load(CatalogEntry(id="tiny", source=str(tiny_model("sd15")))).pipeline.vae
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    before = fit(plain)
    plain.register_to_config(shift_factor=0.5)
    shifted = fit(plain)
    plain.register_to_config(shift_factor=None, latents_mean=[0.5] * 4, latents_std=[2.0] * 4)
    normal = fit(plain)
    assert before is not None
    assert shifted is not None
    assert normal is not None
    # The same picture, given as each of the three conventions has it.
    moved = latents - 0.5 * plain.config.scaling_factor
    for other, same in ((shifted, moved), (normal, moved / 2)):
        difference = before.pixels(latents).int() - other.pixels(same).int()
        assert difference.abs().max() <= 1


def test_an_autoencoder_that_cannot_be_fitted_leaves_the_model_without_previews() -> None:
    vae = load(CatalogEntry(id="tiny", source=str(tiny_model("sd15")))).pipeline.vae
    vae.encoder.conv_in.weight.data.fill_(float("nan"))
    assert fit(vae) is None
    assert fit(SimpleNamespace(dtype=torch.float32, device="cpu", config=SimpleNamespace())) is None


def test_a_model_with_a_safety_checker_has_no_previews() -> None:
    assert load(CatalogEntry(id="tiny", source=str(tiny_model("sd15")))).preview is not None
    assert load(CatalogEntry(id="tiny", source=str(tiny_model("sd15_checked")))).preview is None


def test_a_large_picture_has_a_small_preview() -> None:
    preview = boxed().preview
    assert preview is not None
    left = torch.cat([torch.zeros(1, 4, 300, 300), torch.ones(1, 4, 300, 300)], dim=3)
    pixels = preview.pixels(left)
    assert tuple(pixels.shape) == (PREVIEW_SIDE_PX // 2, PREVIEW_SIDE_PX, 3)
    assert torch.equal(pixels[:, :100], pixels[:1, :1].expand(128, 100, 3))
    assert not torch.equal(pixels[0, 0], pixels[0, -1])


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """A folder with an `AutoencoderTiny` of random weights."""
    blocks = {"block_out_channels": (8, 8, 8, 8), "blocks": (1, 1, 1, 1)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny = AutoencoderTiny(
            encoder_block_out_channels=blocks["block_out_channels"],
            decoder_block_out_channels=blocks["block_out_channels"],
            num_encoder_blocks=blocks["blocks"],
            num_decoder_blocks=blocks["blocks"],
            latent_channels=4,
        )
    tiny.save_pretrained(tmp_path / "taesd")
    return tmp_path / "taesd"


def test_a_named_decoder_makes_the_previews(decoder: Path) -> None:
    model = load(CatalogEntry(id="tiny", source=str(tiny_model("sd15")), preview_decoder=str(decoder)))
    assert isinstance(model.preview, TinyPreview)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    plain: Any = AutoencoderTiny.from_pretrained(decoder)
    expected = plain.decode(latents).sample
    assert np.array_equal(model.preview.pixels(latents).numpy(), stages.to_pixels(expected))
    assert max(model.preview.pixels(torch.zeros(1, 4, 96, 128)).shape) == PREVIEW_SIDE_PX


def test_a_decoder_of_other_latents_is_refused(decoder: Path) -> None:
    vae = SimpleNamespace(config=SimpleNamespace(latent_channels=16))
    with pytest.raises(UnusableModel, match="4 channels; the latents of this model have 16"):
        read_decoder(decoder, vae, torch.device("cpu"), torch.float32)


def test_a_pickled_decoder_is_refused(decoder: Path) -> None:
    tiny: Any = AutoencoderTiny.from_pretrained(decoder)
    (decoder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(tiny.state_dict(), decoder / "diffusion_pytorch_model.bin")
    with pytest.raises(UnusableModel, match="does not read as an AutoencoderTiny in safetensors"):
        load(CatalogEntry(id="tiny", source=str(tiny_model("sd15")), preview_decoder=str(decoder)))


def test_a_decoder_that_is_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnusableModel, match="preview_decoder nobody/nothing is neither a folder here nor"):
        load(CatalogEntry(id="tiny", source=str(tiny_model("sd15")), preview_decoder="nobody/nothing"))
