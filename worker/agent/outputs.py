"""Pixels to files. The same pixels and parameters give the same bytes: no times, no names, no versions inside."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image, PngImagePlugin

from service.contract.errors import FailureCode, GenerationFailed
from service.contract.generation import CONTENT_TYPES, ImageFormat, Output
from service.storage.keys import EXTENSIONS

#: Where the caller names none. At 92 a JPEG's loss is hard to see; WebP's scale is its own.
_DEFAULT_QUALITY: dict[ImageFormat, int] = {"jpeg": 92, "webp": 90}
#: From here on JPEG keeps colour at full resolution (4:4:4), which text and thin red lines need.
_FULL_COLOUR_QUALITY = 90
#: zlib's 1: at 1024² 0.1 s where Pillow's own 6 takes 0.26 s, for files some percent larger.
_PNG_LEVEL = 1

#: Exif 2.3: the Exif directory, its UserComment, and the comment's character code.
_EXIF_DIRECTORY, _USER_COMMENT, _UNICODE = 0x8769, 0x9286, b"UNICODE\0"
#: A JPEG segment has 16 bits for its length; the EXIF around the comment takes less than 100 bytes.
_MAX_JPEG_COMMENT_BYTES = 0xFFFF - 100


@dataclass(frozen=True, slots=True)
class Encoded:
    """A picture file."""

    data: bytes
    content_type: str
    #: Lower-case hex over `data`.
    sha256: str
    #: File name extension without the dot.
    ext: str


def encode(pixels: bytes, width_px: int, height_px: int, output: Output, parameters: str | None = None) -> Encoded:
    """Return the file of height × width × 3 pixels (uint8 RGB, rows from the top).

    `parameters` are written into it only where `output.embed_parameters` asks for that: as the text chunk `parameters`
    of a PNG, as the EXIF user comment of a JPEG or WebP, which is where AUTOMATIC1111 and its readers look.
    Raises ValueError for pixels of another length, `GenerationFailed` for parameters that no JPEG can hold.
    """
    if len(pixels) != width_px * height_px * 3:
        msg = f"{len(pixels)} bytes are no picture of {width_px} × {height_px} RGB pixels"
        raise ValueError(msg)
    image = Image.frombytes("RGB", (width_px, height_px), pixels)
    options = _options(output)
    if output.embed_parameters and parameters is not None:
        options |= _notes(output.format, parameters)
    file = io.BytesIO()
    image.save(file, output.format.upper(), **options)
    data = file.getvalue()
    return Encoded(
        data=data,
        content_type=CONTENT_TYPES[output.format],
        sha256=hashlib.sha256(data).hexdigest(),
        ext=EXTENSIONS[output.format],
    )


def _options(output: Output) -> dict[str, Any]:
    if output.format == "png":
        return {"compress_level": _PNG_LEVEL}
    quality = output.quality if output.quality is not None else _DEFAULT_QUALITY[output.format]
    if output.format == "jpeg":
        return {"quality": quality, "subsampling": "4:4:4" if quality >= _FULL_COLOUR_QUALITY else "4:2:0"}
    return {"quality": quality}


def _notes(image_format: ImageFormat, parameters: str) -> dict[str, Any]:
    if image_format == "png":
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", parameters)  # tEXt, or iTXt for what Latin-1 cannot say
        return {"pnginfo": info}
    comment = _UNICODE + parameters.encode("utf-16-be")
    if image_format == "jpeg" and len(comment) > _MAX_JPEG_COMMENT_BYTES:
        raise GenerationFailed(
            FailureCode.INVALID_REQUEST,
            "The parameters are too long to be embedded in a JPEG. PNG and WebP hold them.",
        )
    exif = Image.Exif()
    exif.get_ifd(_EXIF_DIRECTORY)[_USER_COMMENT] = comment
    return {"exif": exif}
