"""Decodes one hostile picture and exits: `python -m worker.agent.decoder`, started and spoken to by `inputs`.

By the time it reads the first byte of a picture it has imported all it needs and given up everything else: an empty
environment, no open file but its two pipes and no way to open another, no new process or thread, no network, bounded
memory and time. What it answers is numbers and pixels; the texts for people are in `inputs`.

    request   format (p, j or w) · mode (R or L) · width · height (0 × 0: as it is) · length · the file
    reply     a `Verdict` · width · height · length · pixels, rows from the top, RGB or grey, uint8
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import resource
import struct
from enum import IntEnum

from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from worker.agent import seccomp

REQUEST = struct.Struct(">ccIIQ")
REPLY = struct.Struct(">BIIQ")

#: Written once it is ready: with the system-call filter, or with resource limits alone.
READY_FILTERED, READY_LIMITED = b"F", b"L"

MAX_PIXELS = 4096 * 4096
MAX_SIDE_PX = 8192
MAX_ASPECT = 16

#: 4096² pixels take 64 MiB in Pillow; conversion, compositing and turning hold up to five such copies.
_MEMORY_BYTES = 1 << 30
_CPU_S = 30

_OPENERS = {
    b"p": PngImagePlugin.PngImageFile,
    b"j": JpegImagePlugin.JpegImageFile,
    b"w": WebPImagePlugin.WebPImageFile,
}

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: 2 × 1 px with an EXIF orientation: decoding them makes Pillow import what it imports late.
_SAMPLES = {
    b"p": "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAYAAAD0In+KAAAAGmVYSWZNTQAqAAAACAABARIAAwAAAAEABgAAAAAAANZnS2kAAAALSURBVHic"
    "Y2CAAgAACQAB+1K4qQAAAABJRU5ErkJggg==",
    b"j": "/9j/4AAQSkZJRgABAQAAAQABAAD/4QAiRXhpZgAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAD/2wBDAP//////////////////"
    "////////////////////////////////////////////////////////////////////wAALCAABAAIBAREA/8QAFAABAAAAAAAA"
    "AAAAAAAAAAAAA//EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAIAQEAAD8AN//Z",
    b"w": "UklGRk4AAABXRUJQVlA4WAoAAAAYAAAAAQAAAAAAVlA4TA0AAAAvAQAAEAcQERGIiP4HAEVYSUYaAAAATU0AKgAAAAgAAQESAAMAAAABAAYA"
    "AAAAAAA=",
}


class Verdict(IntEnum):
    """How a decoding ended."""

    DECODED = 0
    UNREADABLE = 1
    ANIMATED = 2
    TOO_LARGE = 3
    TOO_NARROW = 4
    OUT_OF_MEMORY = 5


class _Refused(Exception):
    def __init__(self, outcome: Verdict) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def check_size(width_px: int, height_px: int) -> Verdict:
    """Return DECODED for sizes that may be decoded, else why not."""
    longer, shorter = max(width_px, height_px), min(width_px, height_px)
    if shorter < 1:
        return Verdict.UNREADABLE
    if longer > MAX_SIDE_PX or longer * shorter > MAX_PIXELS:
        return Verdict.TOO_LARGE
    return Verdict.TOO_NARROW if longer > MAX_ASPECT * shorter else Verdict.DECODED


def lock_down() -> bool:
    """Give up all that decoding does not need, for good; returns whether the system-call filter is on."""
    limit_resources()
    return seccomp.install()


def limit_resources() -> None:
    """Bar new files and sockets and much memory or time; except for root, processes too. Works on any Unix."""
    limits = {
        resource.RLIMIT_AS: _MEMORY_BYTES,
        resource.RLIMIT_CPU: _CPU_S,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: 0,
    }
    for limit, most in limits.items():
        with contextlib.suppress(ValueError, OSError):  # macOS takes no RLIMIT_AS; a lower limit may stand already
            resource.setrlimit(limit, (most, most))


def decode(data: bytes, image_format: bytes, *, grey: bool, size: tuple[int, int] | None) -> Image.Image:
    """Return the picture upright, in RGB or L, at `size` (width, height in px; None = its own).

    Transparent parts lie on white, on black for a grey picture (a mask: not painted = not repainted). 16-bit samples
    lose their low byte. ICC profiles are dropped, not applied: diffusers does not apply them either. Resizing is what
    diffusers' VaeImageProcessor does: Lanczos, the whole picture, no crop.
    """
    image: Image.Image = _OPENERS[image_format](io.BytesIO(data))
    outcome = check_size(*image.size)
    if outcome is not Verdict.DECODED:
        raise _Refused(outcome)
    if getattr(image, "n_frames", 1) != 1:
        raise _Refused(Verdict.ANIMATED)
    image.load()  # before the notes: PngImageFile.getexif loads too, and its failure would be taken for one of theirs
    turn = _UPRIGHT.get(_orientation(image))
    image = _opaque(image, backdrop="black" if grey else "white")
    if turn is not None:
        image = image.transpose(turn)
    if size is not None and size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return image.convert("L" if grey else "RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - a picture with unreadable notes is still a picture
        return 1


def _opaque(image: Image.Image, backdrop: str) -> Image.Image:
    """Return it in RGB, or in L where it is grey."""
    if image.mode.startswith("I;16"):
        high = slice(0, None, 2) if image.mode.endswith("B") else slice(1, None, 2)
        return Image.frombytes("L", image.size, image.tobytes()[high])
    if image.has_transparency_data:
        whole = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", whole.size, backdrop), whole).convert("RGB")
    return image.convert("L" if image.mode in {"1", "L"} else "RGB")


def main() -> None:
    """Answer one request."""
    os.environ.clear()  # noqa: TID251 - not read: forgotten
    for image_format, sample in _SAMPLES.items():
        for grey in (False, True):
            decode(base64.b64decode(sample), image_format, grey=grey, size=(3, 3))
    # From here on nothing that a picture provokes can reach a log.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    os.close(silence)
    os.write(1, READY_FILTERED if lock_down() else READY_LIMITED)
    head = _read(REQUEST.size)
    if len(head) == REQUEST.size:
        image_format, mode, width, height, length = REQUEST.unpack(head)
        _answer(image_format, grey=mode == b"L", size=(width, height) if width and height else None, length=length)
    os._exit(0)


def _answer(image_format: bytes, *, grey: bool, size: tuple[int, int] | None, length: int) -> None:
    outcome, width, height, pixels = Verdict.UNREADABLE, 0, 0, b""
    try:
        image = decode(_read(length), image_format, grey=grey, size=size)
        outcome, (width, height), pixels = Verdict.DECODED, image.size, image.tobytes()
    except _Refused as refused:
        outcome = refused.outcome
    except MemoryError:
        outcome, pixels = Verdict.OUT_OF_MEMORY, b""
    except Exception:  # noqa: BLE001 - whatever a decoder raises about hostile bytes: its text must not leave this process
        outcome, pixels = Verdict.UNREADABLE, b""
    _write(REPLY.pack(outcome, width, height, len(pixels)))
    _write(pixels)


def _read(length: int) -> bytes:
    """Read from the pipe until `length` bytes are there or it ends."""
    parts: list[bytes] = []
    while length and (part := os.read(0, min(length, 1 << 20))):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    main()
