"""Cursors of listings: a place, sealed, so that a caller can do nothing with it but send it back.

base64url, without padding, of
    6 bytes  keyed BLAKE2b over tenant and the rest
    6 bytes  milliseconds since 1970, big-endian
    n bytes  the id that stands there, or stood
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from service.generations.ids import IdSource
from service.jobs.listing import Position

_MAC_BYTES, _TIME_BYTES = 6, 6
#: Bytes of an id. Ours have 44; a stranger's in our Redis sorts by its beginning.
_ID_MAX_BYTES = 64
#: Characters of a cursor.
CURSOR_MAX_CHARS = 4 * (_MAC_BYTES + _TIME_BYTES + _ID_MAX_BYTES + 2) // 3

_PERSON = b"listing"


class NotACursor(ValueError):
    """No cursor that was made here for this tenant."""


class Cursors:
    """Makes and reads the cursors of one Redis. All gateways share the secret."""

    def __init__(self, ids: IdSource) -> None:
        self._ids = ids

    async def seal(self, tenant: str, position: Position) -> str:
        """Return the cursor of a place."""
        job_id = position.job_id.encode("utf-8", "replace")[:_ID_MAX_BYTES]
        place = position.created_ms.to_bytes(_TIME_BYTES, "big") + job_id
        return base64.urlsafe_b64encode(await self._mac(tenant, place) + place).decode().rstrip("=")

    async def open(self, tenant: str, cursor: str) -> Position:
        """Return the place of a cursor; raises `NotACursor`."""
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except ValueError:
            raise NotACursor from None
        mac, place = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if len(place) <= _TIME_BYTES or not hmac.compare_digest(mac, await self._mac(tenant, place)):
            raise NotACursor
        job_id = place[_TIME_BYTES:].decode("utf-8", "ignore")
        return Position(int.from_bytes(place[:_TIME_BYTES], "big"), job_id)

    async def _mac(self, tenant: str, place: bytes) -> bytes:
        text = b"%d %s %s" % (len(tenant), tenant.encode(), place)
        secret = (await self._ids.ids()).secret
        return hashlib.blake2b(text, key=secret, digest_size=_MAC_BYTES, person=_PERSON).digest()
