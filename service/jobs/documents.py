"""A job document as a Redis hash and back. Pure.

Absent values are empty strings, so that a script can clear a field and a reader sees every field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from service.contract.errors import DarkroomError
from service.contract.job import Job

_JSON_FIELDS = frozenset({"spec", "images", "timings", "receipt", "error", "labels", "webhook_events"})
_BOOLEANS = frozenset({"suspect", "cancel_requested", "erase_requested", "previewed"})
_LITERAL_INTEGERS = frozenset({"schema_version"})

#: Made once: `json.dumps` makes one for every call that asks for anything but its defaults.
_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode

#: What only the scripts read: paid for, times passed over, who committed, whether `started` was told, and at which
#: revision and when progress was.
BOOKKEEPING = frozenset({"charged", "passed", "committed_by", "told_start", "told_progress", "told_progress_ms"})


class CorruptDocument(DarkroomError):
    """A job document in Redis does not read as one."""

    code = "internal"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"the document of job {job_id[:64]!r} does not read as one")
        self.job_id = job_id


def encode(job: Job) -> dict[str, str]:
    """Return the hash fields of a job."""
    return {name: encode_field(name, getattr(job, name)) for name in Job.model_fields}


def encode_field(name: str, value: object) -> str:
    """Return one field as stored."""
    if value is None:
        return ""
    if name in _JSON_FIELDS:
        if isinstance(value, BaseModel):
            return value.model_dump_json(exclude_none=True)
        return _to_json(_plain(value))
    if isinstance(value, bool):
        return "1" if value else "0"
    return str(value)


def decode(fields: Mapping[str, str]) -> Job:
    """Return the job of a hash. Raises `CorruptDocument`; its message never holds a field's value."""
    values: dict[str, Any] = {}
    try:
        for name, text in fields.items():
            if name in BOOKKEEPING or text == "":
                continue
            if name in _JSON_FIELDS:
                values[name] = json.loads(text)
            elif name in _BOOLEANS:
                values[name] = text == "1"
            elif name in _LITERAL_INTEGERS:
                values[name] = int(text)
            else:
                values[name] = text
        return Job.model_validate(values)
    except (ValidationError, ValueError, RecursionError) as err:
        raise CorruptDocument(fields.get("id", "?")) from err


def is_here(fields: Mapping[str, str], tenant: str) -> bool:
    """Tell whether the hash of a job is this tenant's, and not being erased."""
    return fields.get("tenant") == tenant and fields.get("erase_requested") != "1"


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
