"""Input pictures: looked at by their headers, stored before the job is. Never rendered here."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Protocol

from service.contract.errors import Gone
from service.contract.generation import CONTENT_TYPES, ImageFormat, StoredInput
from service.net.pictures import NotAPicture, PictureHeader, sniff
from service.storage.errors import ObjectMissing
from service.storage.keys import input_key
from service.storage.s3 import ObjectStorage

#: Longer sides are no picture to draw from, and resize badly.
_MAX_ASPECT = 16


class PictureRefused(Exception):
    """An input picture is not one that is taken here; the message says what is."""


class InputPicture(Protocol):
    """A picture that can be stored as an input of a job."""

    def store(self, storage: ObjectStorage, prefix: str, index: int) -> StoredInput:
        """Store it below a job's prefix; blocks. Raises `PictureRefused` where it is gone by now."""
        ...


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """What an input picture may be."""

    max_bytes: int
    #: px, of the longer side.
    max_side_px: int
    #: width × height, px².
    max_pixels: int


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Picture:
    """A file that says it is a picture within the limits."""

    data: bytes
    format: ImageFormat
    width_px: int
    height_px: int
    sha256: str

    def store(self, storage: ObjectStorage, prefix: str, index: int) -> StoredInput:
        """Upload it below a job's prefix; blocks."""
        key = input_key(prefix, index, self.format)
        storage.put(key, self.data, content_type=CONTENT_TYPES[self.format], sha256=self.sha256)
        return self.unstored().model_copy(update={"key": key})

    def unstored(self) -> StoredInput:
        """Return what a specification says of it, without a key: it lies nowhere."""
        return StoredInput(
            key="",
            format=self.format,
            width_px=self.width_px,
            height_px=self.height_px,
            bytes=len(self.data),
            sha256=self.sha256,
        )


@dataclass(frozen=True, slots=True)
class CopiedPicture:
    """An input of an earlier generation."""

    earlier: StoredInput

    def store(self, storage: ObjectStorage, prefix: str, index: int) -> StoredInput:
        """Copy it below another job's prefix, so that it outlives its own; blocks. Raises `Gone` where it did not."""
        key = input_key(prefix, index, self.earlier.format)
        try:
            storage.copy(self.earlier.key, key, content_type=CONTENT_TYPES[self.earlier.format])
        except ObjectMissing:
            raise Gone("An input picture of this generation was erased.") from None
        return self.earlier.model_copy(update={"key": key})


def read_picture(text: str, limits: PictureLimits) -> Picture:
    """Return the picture in a base64 text; takes milliseconds per megabyte.

    Raises `PictureRefused` saying what is allowed.
    """
    too_large = f"must hold a picture of at most {limits.max_bytes} bytes"
    if len(text) > 4 * (limits.max_bytes // 3 + 1):
        raise PictureRefused(too_large)
    if text.startswith("data:"):
        raise PictureRefused("must be the base64 text alone, without `data:…;base64,` before it")
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        msg = "must be standard base64 (RFC 4648 §4) with padding and without line breaks"
        raise PictureRefused(msg) from None
    return picture_of(data, limits)


def picture_of(data: bytes, limits: PictureLimits) -> Picture:
    """Return the picture that a file is; takes milliseconds per megabyte.

    Raises `PictureRefused` saying what is allowed.
    """
    if len(data) > limits.max_bytes:
        raise PictureRefused(f"must hold a picture of at most {limits.max_bytes} bytes")
    try:
        header = sniff(data)
    except NotAPicture as err:
        raise PictureRefused(str(err)) from None
    check_header(header, limits)
    return Picture(data, header.format, header.width_px, header.height_px, hashlib.sha256(data).hexdigest())


def check_header(header: PictureHeader, limits: PictureLimits) -> None:
    """Return if such a picture is taken here, its bytes aside; raises `PictureRefused`."""
    longer, shorter = max(header.width_px, header.height_px), min(header.width_px, header.height_px)
    if header.frames != 1:
        raise PictureRefused("must be a picture of one frame; animations are not taken")
    if longer > limits.max_side_px:
        raise PictureRefused(f"must have sides of at most {limits.max_side_px} px")
    if longer * shorter > limits.max_pixels:
        raise PictureRefused(f"must have at most {limits.max_pixels} px² (width × height)")
    if longer > _MAX_ASPECT * shorter:
        raise PictureRefused(f"must be at most {_MAX_ASPECT} times as long as it is wide")
