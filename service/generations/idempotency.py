"""An Idempotency-Key and the body it came with, as hashes: neither is stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.contract.errors import FieldError, InvalidRequest
from service.jobs.commands import record_name

#: Characters of a key; a UUID has 36.
KEY_MAX_CHARS = 255


@dataclass(frozen=True, slots=True)
class IdempotentCall:
    """One creating call, ready to be compared with its repetitions."""

    #: SHA-256 over method, path and key, lower-case hex.
    record: str
    #: SHA-256 over the parsed body, lower-case hex: neither spaces nor the order of members count.
    body_sha256: str


def idempotent_call(method: str, path: str, key: str, body: Mapping[str, Any]) -> IdempotentCall:
    """Return the hashes of a call. Raises `InvalidRequest` for a key that cannot be one."""
    if not 1 <= len(key) <= KEY_MAX_CHARS or not key.isascii() or not key.isprintable():
        message = f"must be 1 to {KEY_MAX_CHARS} printable ASCII characters, e.g. a UUID"
        raise InvalidRequest([FieldError("Idempotency-Key", message)])
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return IdempotentCall(record_name(method, path, key), hashlib.sha256(canonical.encode()).hexdigest())
