"""What a picture looks like while it is drawn: latents to small RGB pictures, without the autoencoder.

The latents of Stable Diffusion, of XL, of SD 3 and of FLUX are nearly a small picture already: colours are close to a
linear function of the channels. It is fitted to each autoencoder when its model is loaded, to what the encoder makes of
a few blurred colour patches; on the model in the box its pixels correlate by 0.99 with the decoder's, averaged to the
same size. A fit to the decoder's output for random latents is worse (0.96 to 0.98): those are nobody's pictures.
An `AutoencoderTiny` (TAESD and its kin), where the catalogue names one, shows more than colours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import huggingface_hub
import structlog
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch.nn.functional import interpolate

from service.contract.previews import PREVIEW_SIDE_PX
from worker.pipelines.errors import UnusableModel

log = structlog.get_logger()

#: The patches that are fitted to: noise of so many cells a side, so many of each, blurred to so many latents a side.
_CELLS, _OF_EACH, _SIDE = (2, 4, 8), 2, 8


class Preview(Protocol):
    """Makes previews of one model's latents."""

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Return latents (1, channels, h, w), as the denoiser has them, as (height, width, 3) uint8 RGB.

        The result lies on the latents' device; nothing waits for it. Neither side is over `PREVIEW_SIDE_PX`.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LinearPreview:
    """One pixel a latent."""

    #: (channels + 1, 3) float32, the last row added to each pixel; RGB in [-1, 1] of latents as the denoiser has them.
    weights: torch.Tensor

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """See the protocol."""
        weights = self.weights.to(latents.device)
        rows = _shrunk(latents.float(), PREVIEW_SIDE_PX)[0].permute(1, 2, 0)
        return _to_uint8(rows @ weights[:-1] + weights[-1])


@dataclass(frozen=True, slots=True, eq=False)
class TinyPreview:
    """As an `AutoencoderTiny` decodes it."""

    decoder: AutoencoderTiny

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """See the protocol."""
        config: Any = self.decoder.config
        factor = config.upsampling_scaling_factor ** (len(config.decoder_block_out_channels) - 1)
        small = _shrunk(latents.float(), PREVIEW_SIDE_PX // factor).to(self.decoder.dtype)
        picture: Any = self.decoder.decode(small / config.scaling_factor + config.shift_factor, return_dict=False)
        return _to_uint8(picture[0][0].permute(1, 2, 0).float())


def locate_decoder(source: str) -> Path:
    """Return the folder of an `AutoencoderTiny`, downloaded where a hub id names it. Raises `UnusableModel`."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=["config.json", "*.safetensors"]))
    except (OSError, ValueError) as err:
        message = f"preview_decoder {source} is neither a folder here nor to be had from the hub: {type(err).__name__}."
        raise UnusableModel(message) from err


def read_decoder(folder: Path, vae: Any, device: torch.device, dtype: torch.dtype) -> TinyPreview:
    """Return previews by a folder's `AutoencoderTiny`, for the latents of an autoencoder. Raises `UnusableModel`."""
    try:
        decoder: Any = AutoencoderTiny.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as err:
        message = f"preview_decoder: {folder.name} does not read as an AutoencoderTiny in safetensors."
        raise UnusableModel(message) from err
    channels, wanted = decoder.config.latent_channels, vae.config.latent_channels
    if channels != wanted:
        message = f"preview_decoder: it decodes {channels} channels; the latents of this model have {wanted}."
        raise UnusableModel(message)
    return TinyPreview(decoder.to(device).eval())


@torch.no_grad()
def fit(vae: Any, between: Callable[[], None] = lambda: None) -> LinearPreview | None:
    """Return the linear preview of an autoencoder, the same every time; None where there is none to be had.

    Takes 3 calls of the encoder, in float32, with 2 pictures of 8 × 8 latents each, 64 px for a factor of 8; `between`
    is called before each. Larger pictures, or more of them, make no better fit.
    """
    try:
        patches = _patches(vae)
        parts: list[torch.Tensor] = []
        for part in patches.split(_OF_EACH):
            between()
            parts.append(_as_the_denoiser_has_them(vae, _encoded(vae, part.to(vae.device))).double().cpu())
        latents = torch.cat(parts)
        colours = interpolate(patches.double(), size=latents.shape[-2:], mode="area")
        inputs = latents.permute(0, 2, 3, 1).flatten(0, 2)
        inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], dim=1)
        weights = torch.linalg.lstsq(inputs, colours.permute(0, 2, 3, 1).flatten(0, 2)).solution
    except Exception as err:  # noqa: BLE001 - a model without previews draws all the same
        log.warning("no_previews", autoencoder=type(vae).__name__, error=type(err).__name__, reason=str(err)[:200])
        return None
    if not torch.isfinite(weights).all():
        log.warning("no_previews", autoencoder=type(vae).__name__, reason="the fit is not finite")
        return None
    return LinearPreview(weights.float().to(vae.device))


def _patches(vae: Any) -> torch.Tensor:
    """Return blurred colours, (pictures, 3, side, side) in [-1, 1]."""
    side_px = _SIDE * 2 ** (len(vae.config.block_out_channels) - 1)
    generator = torch.Generator("cpu").manual_seed(0)
    noise = (torch.randn(_OF_EACH, 3, cells, cells, generator=generator) for cells in _CELLS)
    return torch.cat([interpolate(n, size=(side_px, side_px), mode="bicubic") for n in noise]).clamp(-1, 1)


def _encoded(vae: Any, pictures: torch.Tensor) -> torch.Tensor:
    """Return the means of the pictures' latents. In float32: some encoders overflow in float16."""
    dtype = vae.dtype
    if dtype == torch.float32:
        return vae.encode(pictures).latent_dist.mode()
    try:
        vae.to(dtype=torch.float32)
        return vae.encode(pictures).latent_dist.mode()
    finally:
        vae.to(dtype=dtype)


def _as_the_denoiser_has_them(vae: Any, encoded: torch.Tensor) -> torch.Tensor:
    """Return latents scaled as pipelines scale them: by a factor, around a shift or around means of the channels."""
    config = vae.config

    def per_channel(value: Any) -> Any:
        return value if isinstance(value, (int, float)) else encoded.new_tensor(value).view(1, -1, 1, 1)

    mean = getattr(config, "latents_mean", None) or getattr(config, "shift_factor", None) or 0.0
    std = getattr(config, "latents_std", None) or 1.0
    return (encoded - per_channel(mean)) * config.scaling_factor / per_channel(std)


def _shrunk(latents: torch.Tensor, max_side: int) -> torch.Tensor:
    """Return latents whose longer side is at most `max_side`, averaged over areas."""
    height, width = latents.shape[-2:]
    ratio = max_side / max(height, width)
    if ratio >= 1:
        return latents
    return interpolate(latents, size=(max(1, int(height * ratio)), max(1, int(width * ratio))), mode="area")


def _to_uint8(picture: torch.Tensor) -> torch.Tensor:
    return ((picture * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).contiguous()
