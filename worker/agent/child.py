"""Starts the engine child, talks to it, sees at once when it ends, and starts another.

The child may crash, hang in a kernel or hold its GIL for a minute: nothing here waits for it, and no lease is lost.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

import structlog

from service.contract.catalog import CatalogEntry, ModelCard
from service.contract.engine import (
    FROM_ENGINE,
    Cancel,
    FromEngine,
    Generate,
    Hello,
    LoadModel,
    ModelFailed,
    ModelLoaded,
)
from service.contract.framing import Buffer, FramingError, read_frame, write_frame
from service.settings.groups import LogSettings
from service.settings.worker import AgentSettings, engine_environment

log = structlog.get_logger(__name__)

#: s; importing torch and diffusers takes 5 s on a quiet machine.
_HELLO_S = 300.0
#: s between the order to dump stacks and the kill.
_DUMP_S = 2.0
#: s; pause before a child that died young is followed by another, doubled each time.
_RESTART_S, _RESTART_MAX_S = 0.5, 30.0


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The child ended; whatever it ran is gone."""

    #: Whether it had been given the request before it ended.
    had_it: bool


EngineEvent = FromEngine | EngineLost
#: Called on the reader's thread with an execution's message and its buffers.
Listener = Callable[[EngineEvent, list[bytes]], None]


class EngineChild:
    """One engine process after another. Thread-safe.

    `on_change` is called (on the reader's thread) whenever the child became ready or was lost.
    """

    def __init__(
        self,
        settings: AgentSettings,
        logs: LogSettings,
        entries: Sequence[CatalogEntry],
        *,
        on_change: Callable[[], None],
        command: Sequence[str] = (sys.executable, "-X", "faulthandler", "-m", "worker.engine"),
    ) -> None:
        self._settings = settings
        self._logs = logs
        self._entries = tuple(entries)
        self._on_change = on_change
        self._command = tuple(command)
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: BinaryIO | None = None
        self._listeners: dict[str, Listener] = {}
        self._hello: Hello | None = None
        self._cards: dict[str, ModelCard] = {}
        self._failures: dict[str, str] = {}
        self._load_started_s = 0.0
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="engine-supervisor", daemon=True)

    # ── what the agent asks ───────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Start the first child; models are loaded in the background."""
        self._supervisor.start()

    @property
    def hello(self) -> Hello | None:
        """What the living child said of itself."""
        return self._hello

    @property
    def ready(self) -> bool:
        """Whether a child lives and every model of the catalogue is loaded or known to fail."""
        with self._lock:
            return self._hello is not None and len(self._cards) + len(self._failures) == len(self._entries)

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """The models in memory."""
        with self._lock:
            return tuple(self._cards.values())

    @property
    def failures(self) -> dict[str, str]:
        """Models that could not be loaded, and why."""
        with self._lock:
            return dict(self._failures)

    @property
    def pid(self) -> int | None:
        """Process id of the living child."""
        process = self._process
        return process.pid if process else None

    def generate(self, message: Generate, buffers: Sequence[Buffer], listener: Listener) -> None:
        """Hand over a request. `listener` hears its messages; `EngineLost` if the child is or goes away."""
        with self._lock:
            self._listeners[message.execution_id] = listener
            if not self._send(message, buffers):
                self._listeners.pop(message.execution_id, None)
                listener(EngineLost(had_it=False), [])

    def cancel(self, execution_id: str) -> None:
        """Ask the child to drop a request at its next step."""
        with self._lock:
            self._send(Cancel(execution_id=execution_id))

    def release(self, execution_id: str) -> None:
        """Stop listening for a request."""
        with self._lock:
            self._listeners.pop(execution_id, None)

    def kill(self) -> None:
        """Have the child write its stacks to the log, then end it: it no longer says anything."""
        process = self._process
        if process is None:
            return
        log.error("engine_killed", pid=process.pid)
        process.send_signal(signal.SIGABRT)
        try:
            process.wait(_DUMP_S)
        except subprocess.TimeoutExpired:
            process.kill()

    def stop(self) -> None:
        """End the child for good."""
        self._stopping.set()
        process = self._process
        if process is not None:
            process.kill()
        if self._supervisor.is_alive():
            self._supervisor.join(10)

    # ── the supervisor's thread ───────────────────────────────────────────────────────────────────────────────────────

    def _supervise(self) -> None:
        pause_s = _RESTART_S
        while not self._stopping.is_set():
            started_s = time.monotonic()
            replies = self._spawn()
            watch = threading.Timer(_HELLO_S, self._kill_unless_hello)
            watch.daemon = True
            watch.start()
            self._read(replies)
            watch.cancel()
            self._bury()
            if time.monotonic() - started_s > 60:
                pause_s = _RESTART_S
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, _RESTART_MAX_S)

    def _spawn(self) -> BinaryIO:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        command = [
            *self._command,
            *("--fd-in", str(theirs_in), "--fd-out", str(theirs_out)),
            *("--threads", str(self._settings.engine_threads)),
            *("--log-format", self._logs.log, "--log-level", self._logs.log_level),
        ]
        process = subprocess.Popen(  # noqa: S603 - our own module
            command, pass_fds=(theirs_in, theirs_out), env=engine_environment(), stdin=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        with self._lock:
            self._process = process
            self._pipe = os.fdopen(ours_out, "wb")
        if self._stopping.is_set():
            process.kill()
        log.info("engine_started", pid=process.pid)
        return os.fdopen(ours_in, "rb")

    def _kill_unless_hello(self) -> None:
        if self._hello is None:
            self.kill()

    def _read(self, replies: BinaryIO) -> None:
        with replies:
            try:
                while (frame := read_frame(replies, FROM_ENGINE)) is not None:
                    self._hear(*frame)
            except FramingError as err:
                log.error("engine_spoke_nonsense", error=str(err))
                if self._process is not None:
                    self._process.kill()

    def _hear(self, message: FromEngine, buffers: list[bytes]) -> None:
        match message:
            case Hello():
                with self._lock:
                    self._hello = message
                    for entry in self._entries:
                        self._send(LoadModel(entry=entry))
                log.info("engine_ready", pid=message.pid, device=message.device)
            case ModelLoaded():
                with self._lock:
                    self._cards[message.card.id] = message.card
                log.info("model_loaded", model=message.card.id, seconds=round(message.seconds, 2))
                self._on_change()
            case ModelFailed():
                with self._lock:
                    self._failures[message.model] = message.message
                log.error("model_failed", model=message.model, reason=message.message)
                self._on_change()
            case _:
                with self._lock:
                    listener = self._listeners.get(message.execution_id)
                if listener is not None:
                    listener(message, buffers)

    def _bury(self) -> None:
        """Note the end of a child, and tell everybody who waited for it."""
        process = self._process
        if process is None:
            return
        try:
            exit_code = process.wait(_DUMP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            exit_code = process.wait()
        with self._lock:
            listeners, self._listeners = self._listeners, {}
            pipe, self._pipe, self._process, self._hello = self._pipe, None, None, None
            self._cards, self._failures = {}, {}
        if pipe is not None:
            # What was buffered for the dead child has nowhere to go.
            with suppress(OSError):
                pipe.close()
        if not self._stopping.is_set():
            log.error("engine_lost", pid=process.pid, exit_code=exit_code, executions=len(listeners))
        for listener in listeners.values():
            listener(EngineLost(had_it=True), [])
        self._on_change()

    def _send(self, message: LoadModel | Generate | Cancel, buffers: Sequence[Buffer] = ()) -> bool:
        """Write to the living child; False where there is none. Hold the lock."""
        if self._pipe is None:
            return False
        try:
            write_frame(self._pipe, message, buffers)
        except OSError:
            return False
        return True
