"""Input pictures as the engine takes them: decoded in a process that can do nothing else (see `decoder`)."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Literal

import structlog

from service.contract.errors import FailureCode, GenerationFailed
from service.contract.generation import ImageFormat
from service.net.pictures import NotAPicture, PictureHeader, sniff
from worker.agent.decoder import (
    MAX_ASPECT,
    MAX_PIXELS,
    MAX_SIDE_PX,
    READY_FILTERED,
    READY_LIMITED,
    REPLY,
    REQUEST,
    Verdict,
    check_size,
)

log = structlog.get_logger(__name__)

_FORMATS: dict[ImageFormat, bytes] = {"png": b"p", "jpeg": b"j", "webp": b"w"}

#: Every text about a picture is written here; what a decoder says about one may hold bytes of its memory.
_MESSAGES: dict[int, str] = {
    Verdict.UNREADABLE: "An input picture is damaged, cut off or of an unusual kind. Saving it anew as PNG helps.",
    Verdict.ANIMATED: "An input picture must have one frame; animations are not taken.",
    Verdict.TOO_LARGE: f"An input picture may have {MAX_PIXELS} px² and sides of {MAX_SIDE_PX} px at most.",
    Verdict.TOO_NARROW: f"An input picture may be {MAX_ASPECT} times as long as it is wide at most.",
    Verdict.OUT_OF_MEMORY: "An input picture takes too much memory to be decoded. A smaller one helps.",
}
_TOO_SLOW = "An input picture takes too long to be decoded. A smaller one helps."


class InvalidInput(GenerationFailed):
    """An input picture cannot be used."""

    def __init__(self, message: str) -> None:
        super().__init__(FailureCode.INVALID_INPUT, message)


class DecoderBroken(RuntimeError):
    """The decoder does not start on this machine; no picture is to blame."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture upright, rows from the top, uint8: height × width × 3 (RGB), or height × width (L)."""

    width_px: int
    height_px: int
    pixels: bytes


class Decoders:
    """Sandboxed decoders, one process per picture, some of them started ahead (a start takes 0.1 s). Thread-safe."""

    def __init__(self, spare: int = 1) -> None:
        """Start `spare` processes. OSError where none can be started."""
        self._wanted = spare
        self._spares: deque[_Process] = deque()
        self._lock = threading.Lock()
        self._closed = False
        self._warned = False
        for _ in range(spare):
            self._spares.append(_Process())

    def decode(
        self, data: bytes, *, mode: Literal["RGB", "L"], deadline_s: float, size: tuple[int, int] | None = None
    ) -> Decoded:
        """Return the picture in `mode`, resized to `size` (width, height in px) the way diffusers resizes.

        Raises `InvalidInput` with a sentence for the caller, also for a picture that is not done within `deadline_s`;
        `DecoderBroken` when no decoder starts.
        """
        header = _header(data)
        request = REQUEST.pack(_FORMATS[header.format], mode[0].encode(), *(size or (0, 0)), len(data))
        ends = time.monotonic() + deadline_s
        process = self._take()
        watchdog = threading.Timer(max(0.0, deadline_s), process.kill)
        watchdog.start()
        try:
            self._await(process)
            reply = process.ask(request, data)
            if reply is None:
                raise InvalidInput(_TOO_SLOW if time.monotonic() >= ends else _MESSAGES[Verdict.UNREADABLE])
            return _decoded(reply, process, header, size, channels=len(mode))
        finally:
            watchdog.cancel()
            process.end()
            self._refill()

    def close(self) -> None:
        """End the spare processes; decodings that run go on."""
        with self._lock:
            self._closed = True
            spares, self._spares = self._spares, deque()
        for process in spares:
            process.end()

    def _take(self) -> _Process:
        while True:
            with self._lock:
                process = self._spares.popleft() if self._spares else None
            if process is None:
                return _started()
            if process.lives():
                return process
            process.end()

    def _await(self, process: _Process) -> None:
        ready = process.ready()
        if ready not in {READY_FILTERED, READY_LIMITED}:
            msg = "the picture decoder did not start; its standard error says why"
            raise DecoderBroken(msg)
        if ready == READY_LIMITED and not self._warned:
            self._warned = True
            log.warning("decoder_without_system_call_filter", platform=sys.platform)

    def _refill(self) -> None:
        with self._lock:
            if not self._closed and len(self._spares) < self._wanted:
                with suppress(DecoderBroken):  # the next picture tries again, and says so
                    self._spares.append(_started())


class _Process:
    """One decoder, which answers once."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "worker.agent.decoder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={},
            cwd="/",
            start_new_session=True,
        )
        self._to = _pipe(self._process.stdin)
        self._from = _pipe(self._process.stdout)

    def lives(self) -> bool:
        return self._process.poll() is None

    def ready(self) -> bytes:
        """Wait until it is locked down; empty when it ends before."""
        return self._from.read(1)

    def ask(self, request: bytes, data: bytes) -> tuple[int, int, int, int] | None:
        """Send the picture; returns the head of the reply, or None when the process ended without one."""
        with suppress(BrokenPipeError):
            self._to.write(request)
            self._to.write(data)
            self._to.flush()
        head = self._from.read(REPLY.size)
        return REPLY.unpack(head) if len(head) == REPLY.size else None

    def pixels(self, length: int) -> bytes:
        return self._from.read(length)

    def kill(self) -> None:
        """May be called from another thread; whoever reads then sees the pipe end."""
        self._process.kill()

    def end(self) -> None:
        """Leave nothing behind, also of a decoder that was taken over by its picture."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._to, self._from):
            with suppress(BrokenPipeError):
                pipe.close()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        msg = "the process was started without pipes"
        raise RuntimeError(msg)
    return stream


def _started() -> _Process:
    try:
        return _Process()
    except OSError as err:
        msg = f"the picture decoder cannot be started: {err.strerror}"
        raise DecoderBroken(msg) from err


def _header(data: bytes) -> PictureHeader:
    """Refuse by its header what need not be decoded."""
    try:
        header = sniff(data)
    except NotAPicture as err:
        msg = f"An input picture {err}."
        raise InvalidInput(msg) from None
    if header.frames != 1:
        raise InvalidInput(_MESSAGES[Verdict.ANIMATED])
    outcome = check_size(header.width_px, header.height_px)
    if outcome is not Verdict.DECODED:
        raise InvalidInput(_MESSAGES[outcome])
    return header


def _decoded(
    reply: tuple[int, int, int, int],
    process: _Process,
    header: PictureHeader,
    size: tuple[int, int] | None,
    *,
    channels: int,
) -> Decoded:
    """Believe the decoder nothing: its picture may have taken it over."""
    code, width, height, length = reply
    if code != Verdict.DECODED:
        raise InvalidInput(_MESSAGES.get(code, _MESSAGES[Verdict.UNREADABLE]))
    stored = header.width_px, header.height_px
    allowed = {size} if size is not None else {stored, stored[::-1]}
    if (width, height) not in allowed or length != width * height * channels:
        raise InvalidInput(_MESSAGES[Verdict.UNREADABLE])
    pixels = process.pixels(length)
    if len(pixels) != length:
        raise InvalidInput(_MESSAGES[Verdict.UNREADABLE])
    return Decoded(width, height, pixels)
