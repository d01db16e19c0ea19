"""Writing to an engine child without ever waiting for it: a hung child stops reading, and a pipe holds only 64 KiB."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO

from pydantic import BaseModel

from service.contract.framing import Buffer, write_frame


class Letters:
    """One child's pipe, and the thread that writes to it. What a dead child was still to get is dropped."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._waiting: queue.SimpleQueue[tuple[BaseModel, Sequence[Buffer]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._write, name="engine-letters", daemon=True).start()

    def send(self, message: BaseModel, buffers: Sequence[Buffer] = ()) -> None:
        """Have one message written, after those before it."""
        self._waiting.put((message, buffers))

    def close(self) -> None:
        """Close the pipe when everything is written, or at once where nobody reads any more."""
        self._waiting.put(None)

    def _write(self) -> None:
        with suppress(OSError), self._pipe:
            while (letter := self._waiting.get()) is not None:
                write_frame(self._pipe, *letter)
