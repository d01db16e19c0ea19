"""One line of a terminal that says what is going on, for as long as nothing but the standard library is installed."""

from __future__ import annotations

import shutil
import time
from typing import Self, TextIO

_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class LiveLine:
    """Rewrites one line on a terminal; elsewhere (a pipe, CI) writes a whole line every `plain_every_s` seconds."""

    def __init__(self, stream: TextIO, *, plain_every_s: float = 15.0) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._started = time.monotonic()
        self._plain_every_s = plain_every_s
        self._written_at = self._started
        self._dirty = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    @property
    def elapsed_s(self) -> float:
        """Seconds since this line was made."""
        return time.monotonic() - self._started

    def show(self, text: str) -> None:
        """Say what happens now; cheap enough to be called ten times a second."""
        now = time.monotonic()
        if self._terminal:
            frame = _FRAMES[int(now * 10) % len(_FRAMES)]
            width = shutil.get_terminal_size().columns
            line = f"{frame} {self.elapsed_s:4.0f} s  {text}"[: width - 1]
            self._write(f"\r\x1b[K{line}")
            self._dirty = True
        elif now - self._written_at >= self._plain_every_s:
            self._written_at = now
            self._write(f"{self.elapsed_s:6.0f} s  {text}\n")

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self.clear()
        self._write(text + "\n")

    def clear(self) -> None:
        """Remove the changing line from the terminal."""
        if self._dirty:
            self._write("\r\x1b[K")
            self._dirty = False

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "ascii"
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()
