"""The folder of an embedded server: one server at a time, and what it remembers from its first start."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from service.cli.ports import LOOPBACK

#: How long a start waits for an earlier server on the folder that is just ending.
_LOCK_TIMEOUT_S = 5.0
_MIN_FREE_BYTES = 256 << 20
_POLL_S = 0.02


class CannotStart(RuntimeError):
    """An embedded server did not come up; the message is one line for people."""


class Kept(BaseModel):
    """What a data folder remembers from its first start, in a file that only its owner reads."""

    model_config = ConfigDict(frozen=True)

    access_key: str
    secret_key: str
    #: Signs SeaweedFS' internal requests.
    signing_key: str
    #: The ports of the last start, taken again where they are free.
    ports: tuple[int, ...] = ()


class DataFolder:
    """A data folder: its lock and what it remembers."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self._name = name
        self._lock = path / "lock"
        self._kept = path / "instance.json"

    @property
    def log_path(self) -> Path:
        return self.path / "server.log"

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the folder; yields the lock's descriptor for the server to inherit. CannotStart while it is taken."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            msg = f"{self._name}: the data folder {self.path} cannot be used: {err.strerror}"
            raise CannotStart(msg) from err
        try:
            self._take(descriptor)
            free = shutil.disk_usage(self.path).free
            if free < _MIN_FREE_BYTES:
                msg = f"{self._name}: {free >> 20} MiB are free for {self.path}; {_MIN_FREE_BYTES >> 20} MiB are needed"
                raise CannotStart(msg)
            yield descriptor
        finally:
            os.close(descriptor)

    def _take(self, descriptor: int) -> None:
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as err:
                if time.monotonic() > deadline:
                    owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
                    msg = f"{self._name}: the data folder {self.path} is in use by a running server (process {owner})"
                    raise CannotStart(msg) from err
                time.sleep(_POLL_S)
            else:
                return

    def note_owner(self, descriptor: int, pid: int) -> None:
        """Write into the lock file whose folder it is, for the message of a second start."""
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % pid, 0)

    def kept(self) -> Kept:
        """Return what the folder remembers, drawn now if this is its first start."""
        try:
            return Kept.model_validate_json(self._kept.read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as err:
            msg = f"{self._name}: {self._kept} cannot be read; restore it, or start with another data folder"
            raise CannotStart(msg) from err
        return Kept(
            access_key=secrets.token_hex(10), secret_key=secrets.token_hex(20), signing_key=secrets.token_hex(32)
        )

    def keep(self, kept: Kept) -> None:
        """Remember it; a crash leaves the old file or the new one."""
        draft = self._kept.with_suffix(".new")
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(kept.model_dump(), file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._kept)

    def failure(self, code: int | None, ports: tuple[int, ...]) -> CannotStart:
        """Say in one line why the server did not come up, from its log."""
        with self.log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 8192))
            lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        tail = "\n".join(lines).lower()
        if "address already in use" in tail:
            reason = f"a port is in use (wanted {', '.join(map(str, ports))} on {LOOPBACK})"
        elif "no space left" in tail:
            reason = f"no space is left for {self.path}"
        elif code is None:
            reason = "it does not answer in time"
        else:
            reason = f"it ended with code {code}" + (f": {lines[-1][:200]}" if lines else "")
        return CannotStart(f"{self._name} did not start: {reason}; its log is {self.log_path}")
