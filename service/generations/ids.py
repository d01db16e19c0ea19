"""Ids of generations and uploads: a genuine one is told from an invented one without a record of it.

    gen_ or upl_ + 40 characters of lower-case base32hex over
        6 bytes   milliseconds since 1970, big-endian: ids sort by time
        9 bytes   random
        10 bytes  keyed BLAKE2b over kind, tenant, time and random

So an id without a record was erased if its MAC is right (410), and never was if it is not (404).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets

from service.jobs.async_store import AsyncJobStore

_TIME_BYTES, _RANDOM_BYTES, _MAC_BYTES = 6, 9, 10

#: What an id looks like, for schemas and routes.
ID_PATTERN = r"^gen_[0-9a-v]{40}$"
UPLOAD_ID_PATTERN = r"^upl_[0-9a-v]{40}$"

#: The same, compiled.
ID_FORM = re.compile(r"gen_[0-9a-v]{40}")


class GenerationIds:
    """Makes and recognises ids. All gateways on one Redis share the secret (1 to 64 bytes)."""

    _prefix = "gen_"
    _kind = b""

    def __init__(self, secret: bytes) -> None:
        #: Whatever else is sealed with it names its own purpose.
        self.secret = secret
        self._form = re.compile(rf"{self._prefix}[0-9a-v]{{40}}")

    def new(self, tenant: str, now_ms: int) -> str:
        """Return a fresh id for a tenant."""
        head = now_ms.to_bytes(_TIME_BYTES, "big") + secrets.token_bytes(_RANDOM_BYTES)
        return self._prefix + base64.b32hexencode(head + self._mac(tenant, head)).decode().lower()

    def is_genuine(self, an_id: str, tenant: str) -> bool:
        """Tell whether this id was once made here for this tenant."""
        if not self._form.fullmatch(an_id):
            return False
        raw = base64.b32hexdecode(an_id.removeprefix(self._prefix).upper())
        head, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        return hmac.compare_digest(mac, self._mac(tenant, head))

    def _mac(self, tenant: str, head: bytes) -> bytes:
        # The time and random bytes have a fixed length, so that no two inputs run together.
        text = head + tenant.encode()
        return hashlib.blake2b(text, key=self.secret, digest_size=_MAC_BYTES, person=self._kind).digest()


class UploadIds(GenerationIds):
    """The same for uploads: no id of one kind can be turned into one of the other."""

    _prefix = "upl_"
    _kind = b"upload"


class IdSource:
    """The ids of this Redis; asks it for the secret once, when it first answers."""

    def __init__(self, store: AsyncJobStore) -> None:
        self._store = store
        self._ids: GenerationIds | None = None
        self._upload_ids: UploadIds | None = None

    async def ids(self) -> GenerationIds:
        """Return what makes and recognises ids; raises `Unavailable`."""
        if self._ids is None:
            self._ids = GenerationIds(await self._store.secret())
        return self._ids

    async def upload_ids(self) -> UploadIds:
        """Return what makes and recognises ids of uploads; raises `Unavailable`."""
        if self._upload_ids is None:
            self._upload_ids = UploadIds(await self._store.secret())
        return self._upload_ids
