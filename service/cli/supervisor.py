"""The parts of one `darkroom up`: started one after the other, kept alive, stopped in order."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from service.cli.data_folder import CannotStart
from service.cli.failure import CommandFailed
from service.cli.processes import ChildProcess
from service.cli.terminal import Terminal

_FIRST_DELAY_S, _LONGEST_DELAY_S = 1.0, 30.0
#: A part that ran this long was well: its next restart is a first one again.
_WELL_AFTER_S = 60.0


class Part(Protocol):
    """Something that runs beside this process; the embedded servers are parts too."""

    @property
    def name(self) -> str:
        """As people are told."""
        ...

    def start(self) -> None:
        """Start it. Raises CannotStart."""
        ...

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""
        ...

    def stop(self) -> None:
        """End it, by force after some seconds."""
        ...


class ProcessPart:
    """A process of Darkroom, started by its module's name, its output in a file."""

    def __init__(self, name: str, module: str, *, log_path: Path, env: Mapping[str, str], grace_s: int) -> None:
        self.name = name
        self._module = module
        self._log_path = log_path
        self._env = env
        self._grace_s = grace_s
        self._process: ChildProcess | None = None

    def start(self) -> None:
        """Start it. Raises CannotStart."""
        try:
            # -P: a folder named `service` beside the caller must not be taken for ours.
            self._process = ChildProcess(
                [sys.executable, "-P", "-m", self._module],
                log_path=self._log_path,
                env=self._env,
                grace_s=self._grace_s,
            )
        except OSError as err:
            msg = f"The {self.name} cannot be started: {err.strerror}."
            raise CannotStart(msg) from err

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""
        return self._process.poll() if self._process else None

    def ask_to_stop(self) -> None:
        """Have its grace period begin, and return at once."""
        if self._process:
            self._process.terminate()

    def stop(self) -> None:
        """End it, by force after the grace period."""
        if self._process:
            self._process.stop()
            self._process = None

    def last_lines(self, count: int = 8) -> str:
        """Return the end of its log, indented."""
        try:
            lines = self._log_path.read_text("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return "\n".join(f"  | {line[:300]}" for line in lines[-count:])

    @property
    def log_path(self) -> Path:
        """Where its output goes."""
        return self._log_path


class _Watched:
    """A started part and when it is to be started again."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.started_at = time.monotonic()
        self.restart_at: float | None = None
        self.delay_s = _FIRST_DELAY_S


class Supervisor:
    """Holds the parts. Single-threaded: its caller calls `check` or `mend` every now and then."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._watched: list[_Watched] = []

    def start(self, part: Part) -> None:
        """Start a part and watch it from now on. Raises CommandFailed when it cannot be started."""
        self._watched.append(_Watched(part))
        try:
            part.start()
        except CannotStart as err:
            raise CommandFailed(str(err)) from err

    def check(self) -> None:
        """Raise CommandFailed, with the end of its log, if a part has ended: for the time before all are up."""
        for each in self._watched:
            code = each.part.poll()
            if code is not None:
                raise CommandFailed(_ended_early(each.part, code))

    def mend(self) -> None:
        """Start ended parts again, each after a delay that grows from death to death."""
        now = time.monotonic()
        for each in self._watched:
            if each.restart_at is not None:
                if now >= each.restart_at:
                    self._restart(each)
                continue
            code = each.part.poll()
            if code is not None:
                if now - each.started_at > _WELL_AFTER_S:
                    each.delay_s = _FIRST_DELAY_S
                self._schedule(each, f"{_sentence_start(each.part.name)} {_ending(code)}")

    @property
    def all_run(self) -> bool:
        """Whether no part is down or waits for its restart."""
        return all(each.restart_at is None and each.part.poll() is None for each in self._watched)

    def stop(self) -> None:
        """Stop everything: our processes first, side by side, then the servers that they use."""
        processes = [each.part for each in self._watched if isinstance(each.part, ProcessPart)]
        servers = [each.part for each in self._watched if not isinstance(each.part, ProcessPart)]
        for process in processes:
            process.ask_to_stop()
        for part in (*processes, *servers):
            part.stop()
        self._watched.clear()

    def _schedule(self, each: _Watched, what: str) -> None:
        each.restart_at = time.monotonic() + each.delay_s
        log = f"; its log is {each.part.log_path}" if isinstance(each.part, ProcessPart) else ""
        self._terminal.warn(f"{what}; it is started again in {each.delay_s:.0f} s{log}")
        each.delay_s = min(each.delay_s * 2, _LONGEST_DELAY_S)

    def _restart(self, each: _Watched) -> None:
        each.restart_at = None
        each.part.stop()
        try:
            each.part.start()
        except CannotStart as err:
            self._schedule(each, str(err))
            return
        each.started_at = time.monotonic()
        self._terminal.say(f"{_sentence_start(each.part.name)} runs again.")


def _ended_early(part: Part, code: int) -> str:
    message = f"{_sentence_start(part.name)} {_ending(code)} while starting."
    if isinstance(part, ProcessPart):
        message += f" Its log is {part.log_path} and ends with:\n{part.last_lines()}"
    return message


def _ending(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _sentence_start(name: str) -> str:
    return f"The {name}" if name.islower() else name
