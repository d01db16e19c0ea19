"""What a picture file says about itself in its header. Nothing is decoded: this is safe and quick on any bytes.

PNG: W3C Portable Network Graphics, third edition (which holds APNG). JPEG: ITU-T T.81, annex B. WebP: RFC 9649.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from service.contract.generation import ImageFormat

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"

#: Start of frame: baseline to lossless, Huffman and arithmetic; C4, C8 and CC in between are other things.
_SOF = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
#: Markers without a length: TEM, RST0 … RST7.
_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
_SOS, _EOI, _SOI = 0xDA, 0xD9, 0xD8

#: Chunks looked at before the first pixel; real files have some dozens (an ICC profile in a JPEG up to 255).
_MAX_CHUNKS = 4096
_FILL = re.compile(rb"\xff*")

#: How other files begin: (offset, bytes, name).
_OTHERS = (
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (4, b"ftypavif", "an AVIF"),
    (4, b"ftypavis", "an AVIF"),
    (4, b"ftyphei", "a HEIC"),
    (4, b"ftypmif1", "a HEIC"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (0, b"\xff\x0a", "a JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (0, b"\0\0\1\0", "an icon"),
    (0, b"<svg", "an SVG"),
    (0, b"<?xml", "an SVG or other XML"),
    (0, b"%PDF", "a PDF"),
    (0, b"%!PS", "a PostScript"),
    (0, b"8BPS", "a Photoshop"),
    (0, b"SIMPLE  =", "a FITS"),
)


class NotAPicture(ValueError):
    """The bytes are no picture that is taken here; the message says what is, and never quotes the bytes."""


@dataclass(frozen=True, slots=True)
class PictureHeader:
    """A picture as its header describes it; whether the rest keeps to that is for the decoder to find out."""

    format: ImageFormat
    #: As stored: an EXIF orientation, which the decoder applies, may swap the two.
    width_px: int
    height_px: int
    #: 1 for a still picture.
    frames: int = 1


def sniff(data: bytes) -> PictureHeader:
    """Return the header of a PNG, JPEG or WebP file, within a few milliseconds whatever the bytes.

    Raises `NotAPicture` for all else, for files that end before their first pixel, and for pictures without pixels.
    """
    if data.startswith(_PNG):
        header = _png(data)
    elif data.startswith(_JPEG):
        header = _jpeg(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        header = _webp(data)
    else:
        found = next((f" file; this is {name}" for at, magic, name in _OTHERS if data.startswith(magic, at)), " file")
        raise NotAPicture(f"must be a PNG, JPEG or WebP{found}")
    if header.width_px < 1 or header.height_px < 1 or header.frames < 1:
        raise NotAPicture("must be a picture with at least one pixel")
    return header


def _damaged(name: str) -> NotAPicture:
    return NotAPicture(f"must be a whole picture; this {name} is cut off or damaged")


def _png(data: bytes) -> PictureHeader:
    if len(data) < 33 or data[8:16] != b"\0\0\0\rIHDR":
        raise _damaged("PNG")
    width, height = struct.unpack_from(">II", data, 16)
    frames = 1
    at = 33
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            break
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            return PictureHeader("png", width, height, frames)
        if kind == b"acTL" and size == 8 and at + 16 <= len(data):  # counts only before the first IDAT
            (frames,) = struct.unpack_from(">I", data, at + 8)
        at += 12 + size
    raise _damaged("PNG")


def _jpeg(data: bytes) -> PictureHeader:
    at = 2
    for _ in range(_MAX_CHUNKS):
        if data[at : at + 1] != b"\xff":
            break
        at = _end_of_fill(data, at) - 1
        if at + 4 > len(data):
            break
        marker = data[at + 1]
        if marker in _BARE:
            at += 2
            continue
        if marker in {0x00, _SOI, _EOI, _SOS}:
            break
        (size,) = struct.unpack_from(">H", data, at + 2)
        if marker in _SOF:
            if size < 8 or at + 2 + size > len(data):
                break
            height, width = struct.unpack_from(">HH", data, at + 5)
            return PictureHeader("jpeg", width, height)
        if size < 2:
            break
        at += 2 + size
    raise _damaged("JPEG")


def _end_of_fill(data: bytes, at: int) -> int:
    found = _FILL.match(data, at)
    return at if found is None else found.end()


def _webp(data: bytes) -> PictureHeader:
    """Find the canvas (VP8X, else the first picture) and count the frames of an animation, up to 4096."""
    canvas: tuple[int, int] | None = None
    animated, frames, at = False, 0, 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            break
        kind = data[at : at + 4]
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : at + 8 + min(size, 10)]
        if kind == b"VP8X" and at == 12 and len(body) == 10:
            animated = bool(body[0] & 0x02)
            canvas = 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
        elif kind == b"ANMF" and animated:
            frames += 1
        elif kind in {b"VP8 ", b"VP8L"} and not animated:
            width, height = canvas or _webp_size(kind, body)
            return PictureHeader("webp", width, height)
        at += 8 + size + size % 2
    if canvas is not None and frames:
        return PictureHeader("webp", *canvas, frames)
    raise _damaged("WebP")


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int]:
    if kind == b"VP8 " and len(body) == 10 and not body[0] & 1 and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    raise _damaged("WebP")
