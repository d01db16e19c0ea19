"""Who changed what about tenants and keys: a stream in Redis, written in the same step as the change.

    dr:audit   stream {who, action, tenant, key, changes}; an entry's id begins with the moment, ms by Redis' clock

It holds the last entries (`AUDIT_ENTRIES`, a few more as Redis trims whole blocks). Never a secret.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

import redis
from redis.client import Pipeline
from redis.typing import EncodableT, FieldT

from service.jobs.keys import key as redis_key
from service.jobs.scripts import LIMITS

#: Entries read in one round trip.
_PAGE = 500
#: ms that one call waits for the next entry; less than the client's patience.
_BLOCK_MS = 2_000

#: The end of the year 9999: an id may be any number that somebody else gave it.
_LAST_MS = 253_402_300_799_000

_NOTHING: Mapping[str, object] = MappingProxyType({})

#: Entries as redis-py gives them: id and fields.
_Page = list[tuple[str, dict[str, str]]]


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change."""

    #: Of the stream; later ones are greater.
    id: str
    #: ms since 1970 by Redis' clock.
    at_ms: int
    #: `user@host` of a command line, or `key:<id>` of a call.
    who: str
    action: str
    tenant: str
    #: Id of the key that was changed; empty where it was none.
    key: str
    #: What is different now, by name: `[before, after]`, or what was given.
    changes: Mapping[str, object]


def operator() -> str:
    """Return who works on this command line: `user@host`, as the system knows both."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        # A container's user often has no name.
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def note(
    pipeline: Pipeline, action: str, *, who: str, tenant: str, key: str = "", changes: Mapping[str, object] = _NOTHING
) -> None:
    """Add an entry to a transaction, which makes the change itself."""
    fields: dict[FieldT, EncodableT] = {
        "who": who,
        "action": action,
        "tenant": tenant,
        "key": key,
        "changes": json.dumps(dict(changes), separators=(",", ":"), ensure_ascii=False),
    }
    pipeline.xadd(redis_key("audit"), fields, maxlen=LIMITS["audit_entries"])


class AuditLog:
    """The log for reading. The client must decode responses."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def latest(self, count: int, *, tenant: str | None = None) -> list[AuditEntry]:
        """Return up to `count` newest entries, oldest first; of one tenant where that is asked."""
        found: list[AuditEntry] = []
        before = "+"
        while len(found) < count:
            page = cast(
                "list[tuple[str, dict[str, str]]]", self._redis.xrevrange(redis_key("audit"), before, "-", _PAGE)
            )
            found += [entry for entry in map(_entry, page) if tenant in {None, entry.tenant}]
            if len(page) < _PAGE:
                break
            before = f"({page[-1][0]}"
        return found[:count][::-1]

    def follow(self, after: str, *, tenant: str | None = None) -> Iterator[AuditEntry]:
        """Yield what comes after an entry's id, for ever; "0" is before all."""
        while True:
            reply = self._redis.xread({redis_key("audit"): after}, count=_PAGE, block=_BLOCK_MS)
            for _, page in cast("list[tuple[str, _Page]]", reply or []):
                for each in page:
                    entry = _entry(each)
                    after = entry.id
                    if tenant in {None, entry.tenant}:
                        yield entry


def _entry(stored: tuple[str, Mapping[str, str]]) -> AuditEntry:
    """Read one entry; what somebody else wrote into our stream is shown as far as it can be read."""
    name, fields = stored
    try:
        changes = json.loads(fields.get("changes", "{}"))
    except (ValueError, RecursionError):
        changes = {}
    who, action, tenant, key = (fields.get(field, "") for field in ("who", "action", "tenant", "key"))
    at_ms = min(int(name.partition("-")[0]), _LAST_MS)
    return AuditEntry(name, at_ms, who, action, tenant, key, changes if isinstance(changes, dict) else {})
