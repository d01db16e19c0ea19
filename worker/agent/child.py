"""Starts the engine child, talks to it, sees at once when it ends, and starts another.

The child may crash, hang in a kernel or hold its GIL for a minute: nothing here waits for it, and no lease is lost.
"""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import structlog

from service.contract.catalog import CatalogEntry
from service.contract.costs import CallCost
from service.contract.engine import (
    FROM_ENGINE,
    Cancel,
    FromEngine,
    Generate,
    Hello,
    LoadModel,
    Measured,
    ModelCold,
    ModelFailed,
    ModelLoaded,
    ModelLoading,
    Remember,
)
from service.contract.framing import Buffer, FramingError, read_frame
from service.settings.groups import LogSettings
from service.settings.worker import AgentSettings, engine_environment
from worker.agent.letters import Letters
from worker.agent.models import Models, ModelWord

log = structlog.get_logger(__name__)

#: s; importing torch and diffusers takes 5 s on a quiet machine.
_HELLO_S = 300.0
#: s between the order to dump stacks and the kill.
_DUMP_S = 2.0
#: s; pause before a child that never came to hold a model is followed by another, doubled each time.
_RESTART_S, _RESTART_MAX_S = 0.5, 30.0


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The child ended; whatever it ran is gone."""

    #: Whether the request was on its way to it: it may have been what ended it.
    had_it: bool


EngineEvent = FromEngine | EngineLost
#: Called on the reader's thread with an execution's message and its buffers.
Listener = Callable[[EngineEvent, list[bytes]], None]


class EngineChild:
    """One engine process after another. Thread-safe.

    On the reader's thread `on_change` is called whenever the child became ready or was lost, `on_measured` with what it
    measured, and `on_model` with what became of a model and whether it was warm before. No method but `kill` and
    `stop` waits for the child.
    """

    def __init__(
        self,
        settings: AgentSettings,
        logs: LogSettings,
        entries: Sequence[CatalogEntry],
        *,
        on_change: Callable[[], None],
        on_measured: Callable[[Measured], None],
        on_model: Callable[[ModelWord, bool], None] = lambda _word, _was_warm: None,
    ) -> None:
        self._settings = settings
        self._logs = logs
        # The default first: it is what most requests are for.
        self._entries = tuple(sorted(entries, key=lambda entry: not entry.default))
        self._on_change = on_change
        self._on_measured = on_measured
        self._on_model = on_model
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._letters: Letters | None = None
        self._listeners: dict[str, Listener] = {}
        self._hello: Hello | None = None
        self._models = self._unheard_of()
        self._watch: threading.Timer | None = None
        #: Whether any child has held a model; one that holds none is then of no use, and tried again.
        self.has_served = False
        #: How many messages were heard, of any child: one that draws for anybody is not silent.
        self.words = 0
        #: How many children have been started.
        self.starts = 0
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
    def models(self) -> Models:
        """What the living child has said of its models; a copy."""
        with self._lock:
            return copy.deepcopy(self._models)

    @property
    def pid(self) -> int | None:
        """Process id of the living child."""
        process = self._process
        return process.pid if process else None

    def generate(self, message: Generate, buffers: Sequence[Buffer], listener: Listener) -> None:
        """Hand over a request. `listener` hears its messages; `EngineLost` if the child is or goes away."""
        with self._lock:
            if self._send(message, buffers):
                self._listeners[message.execution_id] = listener
            else:
                listener(EngineLost(had_it=False), [])

    def cancel(self, execution_id: str) -> None:
        """Ask the child to drop a request at its next step."""
        with self._lock:
            self._send(Cancel(execution_id=execution_id))

    def remember(self, costs: Sequence[CallCost]) -> None:
        """Tell the child what calls are known to cost."""
        with self._lock:
            self._send(Remember(costs=tuple(costs)))

    def release(self, execution_id: str) -> None:
        """Stop listening for a request."""
        with self._lock:
            self._listeners.pop(execution_id, None)

    def kill(self) -> None:
        """Have the child write its stacks to the log, then end it: it no longer says anything."""
        process = self._process
        if process is not None:
            _kill(process)

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
            served = False
            self.starts += 1
            try:
                replies = self._spawn()
            except OSError as err:
                log.error("engine_not_started", error=type(err).__name__, reason=err.strerror)
            else:
                self._expect_within(_HELLO_S)
                self._read(replies)
                self._expect_within(None)
                served = self._bury()
            # One that held a model died of a request or by chance; a request ends after some strikes.
            pause_s = _RESTART_S if served else pause_s
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, _RESTART_MAX_S)

    def _spawn(self) -> BinaryIO:
        """Start a child; return where it speaks. Raises OSError."""
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        command = [
            # -P: a folder named `worker` where the agent was started is not ours.
            *(sys.executable, "-P", "-X", "faulthandler", "-m", self._settings.engine_module),
            *("--fd-in", str(theirs_in), "--fd-out", str(theirs_out)),
            *("--threads", str(self._settings.engine_threads)),
            *("--capacity", str(self._settings.engine_capacity)),
            *("--model-bytes", str(round(self._settings.model_memory_gib * 2**30))),
            *("--step-target-s", str(self._settings.step_target_s)),
            *("--log-format", self._logs.log, "--log-level", self._logs.log_level),
        ]
        try:
            process = subprocess.Popen(  # noqa: S603 - our own module
                command, pass_fds=(theirs_in, theirs_out), env=engine_environment(), stdin=subprocess.DEVNULL
            )
        except OSError:
            os.close(ours_in)
            os.close(ours_out)
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        with self._lock:
            self._process = process
            self._letters = Letters(os.fdopen(ours_out, "wb"))
        if self._stopping.is_set():
            process.kill()
        log.info("engine_started", pid=process.pid)
        return os.fdopen(ours_in, "rb")

    def _expect_within(self, limit_s: float | None) -> None:
        """Have the child killed unless this is called again within `limit_s`; None = nothing is awaited."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if limit_s is not None and self._process is not None:
            self._watch = threading.Timer(limit_s, _kill, (self._process,))
            self._watch.daemon = True
            self._watch.start()

    def _read(self, replies: BinaryIO) -> None:
        with replies:
            try:
                while (frame := read_frame(replies, FROM_ENGINE)) is not None:
                    self._hear(*frame)
            except FramingError as err:
                log.error("engine_spoke_nonsense", error=str(err))
            except Exception:
                # The supervisor must outlive its own defects: without it there is no engine any more.
                log.exception("engine_reader_failed")
            else:
                return
        if self._process is not None:
            self._process.kill()

    def _hear(self, message: FromEngine, buffers: list[bytes]) -> None:
        self.words += 1
        match message:
            case Hello():
                with self._lock:
                    self._hello = message
                    for entry in self._entries:
                        self._send(LoadModel(entry=entry))
                log.info("engine_ready", pid=message.pid, device=message.device)
                self._expect_within(self._settings.load_s)
            case ModelLoading() | ModelLoaded() | ModelCold() | ModelFailed():
                self._hear_of_model(message)
            case Measured():
                self._on_measured(message)
            case _:
                with self._lock:
                    listener = self._listeners.get(message.execution_id)
                if listener is not None:
                    listener(message, buffers)

    def _hear_of_model(self, word: ModelWord) -> None:
        with self._lock:
            was_warm = isinstance(word, ModelCold) and word.card.id in self._models.warm
            self._models.hear(word)
            settled, of_use = self._models.settled, bool(self._models.cards)
        match word:
            case ModelLoaded():
                log.info("model_loaded", model=word.card.id, seconds=round(word.seconds, 2))
                self.has_served = True
            case ModelFailed():
                log.error("model_failed", model=word.model, reason=word.message)
            case _:
                log.info(word.type, model=word.model if isinstance(word, ModelLoading) else word.card.id)
        self._on_model(word, was_warm)
        # Later loads are watched by the executions that wait for them.
        self._expect_within(None if settled else self._settings.load_s)
        if settled and not of_use and self.has_served and self._process is not None:
            # The models were fine before: a device still occupied by the last child, a share that is away.
            log.error("engine_holds_no_model")
            self._process.kill()
        self._on_change()

    def _unheard_of(self) -> Models:
        return Models(entry.id for entry in self._entries)

    def _bury(self) -> bool:
        """Note the end of a child, tell everybody who waited for it; return whether it had held a model."""
        process = self._process
        if process is None:
            return False
        try:
            exit_code = process.wait(_DUMP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            exit_code = process.wait()
        with self._lock:
            listeners, self._listeners = self._listeners, {}
            letters, self._letters, self._process, self._hello = self._letters, None, None, None
            models, self._models = self._models, self._unheard_of()
        if letters is not None:
            letters.close()
        if not self._stopping.is_set():
            log.error("engine_lost", pid=process.pid, exit_code=exit_code, executions=len(listeners))
        for listener in listeners.values():
            listener(EngineLost(had_it=True), [])
        self._on_change()
        return bool(models.cards)

    def _send(self, message: LoadModel | Generate | Cancel | Remember, buffers: Sequence[Buffer] = ()) -> bool:
        """Have a message written to the living child; False where there is none. Hold the lock."""
        if self._letters is None:
            return False
        self._letters.send(message, buffers)
        return True


def _kill(process: subprocess.Popen[bytes]) -> None:
    log.error("engine_killed", pid=process.pid)
    process.send_signal(signal.SIGABRT)
    try:
        process.wait(_DUMP_S)
    except subprocess.TimeoutExpired:
        process.kill()
