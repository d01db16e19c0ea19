"""Pictures as arrays and tensors: backgrounds, thumbnails, sheets."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from training.shapes import Colour

#: Edge of a thumbnail, px.
THUMBNAIL_PX = 16


def on_background(rgba: NDArray[np.uint8], colour: Colour) -> NDArray[np.uint8]:
    """Return drawings, uint8 (..., height, width, 4) with straight alpha, laid on a colour: (..., 3)."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return (rgba[..., :3] * alpha + np.asarray(colour, np.float32) * (1 - alpha)).round().astype(np.uint8)


def to_tensor(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """Return uint8 (n, height, width, 3) as float32 (n, 3, height, width) in [-1, 1], as the autoencoder takes it."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def from_tensor(pictures: torch.Tensor) -> NDArray[np.uint8]:
    """Return the reverse of `to_tensor`, clipped and rounded."""
    scaled = ((pictures.float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


def thumbnails(pictures: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return (..., 64, 64, 3) averaged to 16 × 16 and flattened: (..., 768) in 0..255."""
    *some, height, width, channels = pictures.shape
    blocks = (THUMBNAIL_PX, height // THUMBNAIL_PX, THUMBNAIL_PX, width // THUMBNAIL_PX, channels)
    averaged = pictures.astype(np.float32).reshape(*some, *blocks).mean((-4, -2))
    return averaged.reshape(*some, -1)


def save_sheet(pictures: NDArray[np.uint8], file: Path, *, columns: int, scale: int = 2) -> None:
    """Write pictures (n, height, width, 3), row by row, as one PNG."""
    n, height, width, _ = pictures.shape
    rows = -(-n // columns)
    sheet = np.full((rows, columns, height, width, 3), 255, np.uint8)
    sheet.reshape(-1, height, width, 3)[:n] = pictures
    whole = sheet.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    size = (whole.shape[1] * scale, whole.shape[0] * scale)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(whole).resize(size, Image.Resampling.NEAREST).save(file, optimize=True)
