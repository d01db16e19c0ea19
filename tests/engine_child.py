"""A real engine child at the end of two pipes, as the agent has one."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from service.contract.catalog import CatalogEntry, ModelCard
from service.contract.costs import MeasuredCost
from service.contract.engine import (
    FROM_ENGINE,
    Cancel,
    FromEngine,
    Generate,
    Hello,
    LoadModel,
    Measured,
    ModelFailed,
    ModelLoaded,
    ModelLoading,
    ToEngine,
)
from service.contract.framing import FramingError, read_frame, write_frame

#: Far beyond what anything here takes: a test that waits so long has found a hang.
DEADLINE_S = 60.0

M = TypeVar("M")
Received = tuple[FromEngine, list[bytes]]


class EngineChild:
    """Starts `python -m worker.engine` and talks to it; a context manager."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """`arguments`: of the command, besides those that every child gets."""
        from_parent, self.to_child_fd = os.pipe()
        from_child_fd, to_parent = os.pipe()
        command = [sys.executable, "-m", "worker.engine", "--threads", "1", *arguments]
        self.process = subprocess.Popen(
            [*command, "--fd-in", str(from_parent), "--fd-out", str(to_parent)],
            pass_fds=(from_parent, to_parent),
            env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.close(from_parent)
        os.close(to_parent)
        self._writer = os.fdopen(self.to_child_fd, "wb")
        self._reader = os.fdopen(from_child_fd, "rb")
        self._received: queue.SimpleQueue[Received | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._receive, daemon=True)]
        self._output: dict[str, bytes] = {}
        for name, stream in (("stdout", self.process.stdout), ("stderr", self.process.stderr)):
            self._threads.append(threading.Thread(target=self._drain, args=(name, stream), daemon=True))
        #: What calls cost, as it was reported between other messages.
        self.measured: list[MeasuredCost] = []
        #: Messages that came while another execution was asked for.
        self._heard: defaultdict[str, list[Received]] = defaultdict(list)
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> EngineChild:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _err: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.process.kill()
        self.wait()
        self.hang_up()
        self._reader.close()

    def send(self, message: ToEngine, buffers: Sequence[bytes] = ()) -> None:
        write_frame(self._writer, message, buffers)

    def receive(self) -> Received:
        """Return the next message but for reports of costs; fail when the child ended or nothing comes."""
        while True:
            received = self._received.get(timeout=DEADLINE_S)
            assert received is not None, f"the child ended: {self.stderr()}"
            if not isinstance(received[0], Measured):
                return received
            self.measured.extend(received[0].costs)

    def take_report(self) -> None:
        """Wait for a report of costs; nothing else may come before it."""
        received = self._received.get(timeout=DEADLINE_S)
        assert received is not None, f"the child ended: {self.stderr()}"
        message, _ = received
        assert isinstance(message, Measured), message
        self.measured.extend(message.costs)

    def expect(self, kind: type[M]) -> M:
        message, _ = self.receive()
        assert isinstance(message, kind), message
        return message

    def hello(self) -> Hello:
        return self.expect(Hello)

    def load(self, folder: Path | str, *, model: str = "tiny") -> ModelCard:
        self.send(LoadModel(entry=CatalogEntry(id=model, source=str(folder))))
        self.expect(ModelLoading)
        return self.expect(ModelLoaded).card

    def fail_to_load(self, entry: CatalogEntry) -> str:
        self.send(LoadModel(entry=entry))
        self.expect(ModelLoading)
        return self.expect(ModelFailed).message

    def cancel(self, execution_id: str) -> None:
        self.send(Cancel(execution_id=execution_id))

    def draw(self, request: Generate, buffers: Sequence[bytes] = ()) -> list[Received]:
        """Return every message of the execution, its end included."""
        self.send(request, buffers)
        return self.rest(request.execution_id)

    def rest(self, execution_id: str) -> list[Received]:
        """Return what is left of the messages of an execution, its end included; those of others are kept for them."""
        while not (heard := self._heard[execution_id]) or heard[-1][0].type not in ("finished", "refused"):
            received = self.receive()
            self._heard[getattr(received[0], "execution_id", "")].append(received)
        return self._heard.pop(execution_id)

    def hang_up(self) -> None:
        """Close our end of the pipe, as the death of the agent does."""
        if not self._writer.closed:
            with contextlib.suppress(BrokenPipeError):
                self._writer.close()

    def wait(self) -> int:
        """Return the exit status, once everything that the child wrote is here."""
        status = self.process.wait(DEADLINE_S)
        for thread in self._threads:
            thread.join(DEADLINE_S)
        return status

    def stderr(self) -> str:
        return self._output.get("stderr", b"").decode()

    def stdout(self) -> str:
        return self._output.get("stdout", b"").decode()

    def _receive(self) -> None:
        with contextlib.suppress(FramingError):
            while (received := read_frame(self._reader, FROM_ENGINE)) is not None:
                self._received.put(received)
        self._received.put(None)

    def _drain(self, name: str, stream: subprocess.PIPE) -> None:
        with stream:
            self._output[name] = stream.read()
