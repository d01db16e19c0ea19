"""The two pipes to the agent. Imports no torch, so that the child watches its pipe before the long imports begin."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import BinaryIO, Protocol

import structlog

from service.contract.engine import TO_ENGINE, Cancel, FromEngine, Generate, LoadModel, Remember, Shutdown, ToEngine
from service.contract.framing import Buffer, FramingError, read_frame, write_frame

log = structlog.get_logger()

Work = tuple[LoadModel | Remember | Generate, list[bytes]]


class Inbox:
    """Messages of the agent, read by a thread of its own so that a cancel is seen while the engine draws.

    The end of the pipe means that the agent is gone: the process exits at once, whatever it does, and leaves no
    orphan behind.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._work: queue.SimpleQueue[Work | Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._canceled: list[str] = []
        #: Executions that were asked for and not answered yet → whether they were canceled.
        self._open: dict[str, bool] = {}

    def start(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def take(self, *, wait: bool, timeout_s: float | None = None) -> list[Work]:
        """Return all work that has arrived, with its buffers; `wait` for something to arrive, or until `timeout_s`."""
        taken: list[Work] = []
        try:
            while True:
                arrived = self._work.get(block=wait, timeout=timeout_s)
                wait = False
                if callable(arrived):
                    arrived()
                else:
                    taken.append(arrived)
        except queue.Empty:
            return taken

    def hand_over(self, call: Callable[[], None]) -> None:
        """Have a function called by the thread that takes the work, also where that waits. From any thread."""
        self._work.put(call)

    def newly_canceled(self) -> list[str]:
        """Return the open executions that were canceled since the last call."""
        with self._lock:
            canceled, self._canceled = self._canceled, []
        return canceled

    def is_canceled(self, execution_id: str) -> bool:
        """Return whether the agent wants this execution stopped."""
        with self._lock:
            return self._open.get(execution_id, False)

    def close(self, execution_id: str) -> None:
        """Forget an execution that was answered; later cancels of it are ignored."""
        with self._lock:
            self._open.pop(execution_id, None)

    def _read(self) -> None:
        try:
            while (frame := read_frame(self._stream, TO_ENGINE)) is not None:
                self._take(*frame)
        except (FramingError, OSError):
            log.exception("engine_pipe_broken")
            os._exit(os.EX_PROTOCOL)
        os._exit(os.EX_OK)

    def _take(self, message: ToEngine, buffers: list[bytes]) -> None:
        match message:
            case Shutdown():
                os._exit(os.EX_OK)
            case Cancel():
                with self._lock:
                    if message.execution_id in self._open:
                        self._open[message.execution_id] = True
                        self._canceled.append(message.execution_id)
            case Generate():
                with self._lock:
                    self._open[message.execution_id] = False
                self._work.put((message, buffers))
            case LoadModel() | Remember():
                self._work.put((message, buffers))


class Send(Protocol):
    """Tell the agent something, with buffers beside it."""

    def __call__(self, message: FromEngine, buffers: Sequence[Buffer] = ()) -> None: ...


class Outbox:
    """Messages to the agent; for one thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def send(self, message: FromEngine, buffers: Sequence[Buffer] = ()) -> None:
        """Write one message; when the agent no longer reads, the process exits."""
        try:
            write_frame(self._stream, message, buffers)
        except OSError:
            os._exit(os.EX_OK)
