"""The folder of one `darkroom up`: servers' data, logs, first pictures; held by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from service.cli.failure import CommandFailed

#: Below this the embedded servers could not write their logs; they would stop answering in the middle of a job.
MIN_FREE_BYTES = 256 << 20


class Home:
    """Paths under the home folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.valkey = self.folder / "valkey"
        self.s3 = self.folder / "s3"
        self.logs = self.folder / "logs"
        self.pictures = self.folder / "pictures"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and hold it. Raises CommandFailed when another process does, or it cannot be written."""
        try:
            for folder in (self.folder, self.logs, self.pictures):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            msg = f"{self.folder} cannot be used as the home folder: {err.strerror}."
            raise CommandFailed(msg) from err
        try:
            self._take(descriptor)
            self._require_space()
            yield
        finally:
            os.close(descriptor)

    def log_path(self, name: str) -> Path:
        """Return the log file of a process; the one of the start before is kept as `.1`."""
        path = self.logs / f"{name}.log"
        if path.exists():
            path.replace(path.with_suffix(".log.1"))
        return path

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            msg = f"Darkroom runs on {self.folder} already (process {owner}); stop it, or set DARKROOM_HOME."
            raise CommandFailed(msg) from err
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)

    def _require_space(self) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < MIN_FREE_BYTES:
            msg = f"The disk is full: {self.folder} has {free >> 20} MiB left, {MIN_FREE_BYTES >> 20} MiB are needed."
            raise CommandFailed(msg)
