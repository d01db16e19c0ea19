"""Messages on a byte stream: a length-prefixed JSON header, then raw buffers. Nothing is ever unpickled.

4 bytes   length of the header, big-endian
n bytes   JSON: {"message": {…}, "buffers": [length, …]}
…         the buffers, one after the other
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import BinaryIO, TypeVar

from pydantic import BaseModel, TypeAdapter

#: A header is a prompt and numbers; a buffer is one picture of at most 16384 × 16384 RGB pixels.
MAX_HEADER_BYTES = 1 << 20
MAX_BUFFER_BYTES = 3 * 16384 * 16384

Buffer = bytes | bytearray | memoryview
M = TypeVar("M")

_LENGTH = struct.Struct(">I")


class FramingError(ConnectionError):
    """The stream does not carry our frames, or ended inside one."""


def write_frame(stream: BinaryIO, message: BaseModel, buffers: Sequence[Buffer] = ()) -> None:
    """Write one message and flush; the caller serialises writers."""
    head = {"message": message.model_dump(mode="json"), "buffers": [len(b) for b in buffers]}
    header = json.dumps(head, separators=(",", ":")).encode()
    stream.write(_LENGTH.pack(len(header)) + header)
    for buffer in buffers:
        stream.write(buffer)
    stream.flush()


def read_frame(stream: BinaryIO, adapter: TypeAdapter[M]) -> tuple[M, list[bytes]] | None:
    """Return the next message with its buffers, or None when the stream ended between two frames.

    Raises `FramingError` for anything else than a whole, valid frame.
    """
    prefix = stream.read(_LENGTH.size)
    if not prefix:
        return None
    if len(prefix) < _LENGTH.size:
        msg = "the stream ended inside a frame"
        raise FramingError(msg)
    (length,) = _LENGTH.unpack(prefix)
    if length > MAX_HEADER_BYTES:
        msg = f"a header of {length} bytes is over the limit of {MAX_HEADER_BYTES}"
        raise FramingError(msg)
    try:
        head = json.loads(_exactly(stream, length))
        message = adapter.validate_python(head["message"], strict=False)
        sizes = [int(size) for size in head["buffers"]]
    except (ValueError, KeyError, TypeError) as err:
        msg = "a header that is not ours"
        raise FramingError(msg) from err
    if any(not 0 <= size <= MAX_BUFFER_BYTES for size in sizes):
        msg = f"a buffer is over the limit of {MAX_BUFFER_BYTES} bytes"
        raise FramingError(msg)
    return message, [_exactly(stream, size) for size in sizes]


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        msg = "the stream ended inside a frame"
        raise FramingError(msg)
    return data
