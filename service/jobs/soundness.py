"""Whether a Redis keeps what it accepted: judged by its INFO alone, since managed services bar CONFIG. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["ok", "warn", "fail"]
Version = tuple[int, ...]

#: CVE-2025-49844: a script can break out of Lua. First patched release of each line, from the advisories.
_PATCHED: Mapping[str, tuple[Version, ...]] = {
    "Redis": ((6, 2, 20), (7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
    "Valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4)),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what was found, and what to do about it."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


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
