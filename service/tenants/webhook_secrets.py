"""What webhooks of a tenant are signed with. One secret at a time, and after a rotation the earlier ones for a while.

dr:tenant:{id}:webhook_secrets   hash secret id → "created_ms until_ms sealed"; until_ms 0 = the present one
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.contract.errors import DarkroomError, Unavailable
from service.jobs.scripts import script_text
from service.tenants.sealing import Sealer, SealError

log = structlog.get_logger(__name__)

#: s; how long an earlier secret stays valid where a rotation does not say, and at most.
KEEP_DEFAULT_S = 86_400
KEEP_MAX_S = 7 * 86_400

_PREFIX = "whsec_"
_SECRET_BYTES = 32
#: Bytes that Standard Webhooks allows a secret to have.
_LEAST_BYTES, _MOST_BYTES = 24, 64


class WebhookSecretUnreadable(DarkroomError):
    """The webhook secret of this tenant cannot be read."""

    code = "webhook_secret_unreadable"


@dataclass(frozen=True, slots=True)
class WebhookSecret:
    """A secret that is valid now."""

    id: str
    #: What the signature's HMAC is keyed with.
    key: bytes
    #: By the clock of Redis.
    created_ms: int
    #: Until when it is valid, after a rotation; None = it is the present one.
    until_ms: int | None = None

    @property
    def text(self) -> str:
        """The secret as receivers are given it: `whsec_` and base64."""
        return _PREFIX + base64.b64encode(self.key).decode()

    def __repr__(self) -> str:
        return f"WebhookSecret(id={self.id!r}, key=***)"


@dataclass(frozen=True, slots=True)
class _Stored:
    """A secret as it lies in Redis; `sealed` is empty where nothing readable does."""

    id: str
    created_ms: int
    until_ms: int | None
    sealed: str


class WebhookSecrets:
    """The secrets of all tenants.

    `clock` gives milliseconds since 1970 and is for tests; without it Redis' own clock counts. The client must decode
    responses. Every method may be repeated; raises `Unavailable` where Redis does not answer.
    """

    def __init__(self, redis: Redis, sealer: Sealer, *, clock: Callable[[], int] | None = None) -> None:
        self._sealer = sealer
        self._clock = clock
        self._script = redis.register_script(script_text("webhook_secrets"))

    async def current(self, tenant: str) -> tuple[WebhookSecret, ...]:
        """Return every valid secret, the present one first; the tenant's first is made on the way.

        Raises `WebhookSecretUnreadable` where the present one cannot be read; an earlier one is then left out.
        """
        stored = await self._run("read", tenant)
        if not any(each.until_ms is None for each in stored):
            stored = await self._run("ensure", tenant, *self._drawn(tenant))
        return await self._opened(tenant, stored)

    async def rotate(
        self, tenant: str, *, who: str, keep_s: int = KEEP_DEFAULT_S, name: str = ""
    ) -> tuple[WebhookSecret, ...]:
        """Draw a new secret, and return what is valid now; the earlier ones stay so for `keep_s` at most.

        The audit log notes it with `who`. Secrets that cannot be read are dropped. The same `name` draws no second one
        while the first is valid.
        """
        stored = await self._run("rotate", tenant, *self._drawn(tenant, name), 1000 * keep_s, who)
        return await self._opened(tenant, stored)

    async def seal_anew(self, tenant: str) -> int:
        """Store what is valid as `DARKROOM_WEBHOOK_KEY` now says; return how many secrets there are.

        Raises `WebhookSecretUnreadable` as `current`.
        """
        return len(await self._opened(tenant, await self._run("read", tenant)))

    async def _run(self, mode: str, tenant: str, *arguments: str | int) -> list[_Stored]:
        now = "" if self._clock is None else self._clock()
        try:
            reply = cast("list[str]", await self._script(args=[now, mode, tenant, *arguments]))
        except (RedisError, OSError) as err:
            raise Unavailable("The webhook secrets do not answer.") from err
        parts = [reply[at : at + 4] for at in range(0, len(reply), 4)]
        return [_Stored(name, int(created), int(until) or None, sealed) for name, created, until, sealed in parts]

    def _drawn(self, tenant: str, name: str = "") -> tuple[str, str]:
        """Return id and sealed text of a new secret."""
        unique = hashlib.sha256(name.encode()).hexdigest()[:16] if name else secrets.token_hex(8)
        secret_id = f"whs_{unique}"
        text = base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
        return secret_id, self._sealer.seal(text, context=_context(tenant, secret_id))

    async def _opened(self, tenant: str, stored: list[_Stored]) -> tuple[WebhookSecret, ...]:
        found: list[WebhookSecret] = []
        for each in stored:
            try:
                key = _key(self._sealer.open(each.sealed, context=_context(tenant, each.id)))
            except SealError as err:
                log.error("webhook_secret_unreadable", tenant=tenant, secret=each.id, reason=str(err))
                if each.until_ms is None:
                    msg = f"The webhook secret {each.id} of this tenant cannot be read: {err}. Rotating draws another."
                    raise WebhookSecretUnreadable(msg) from err
                continue
            found.append(WebhookSecret(each.id, key, each.created_ms, each.until_ms))
            if not self._sealer.is_fresh(each.sealed):
                anew = self._sealer.seal(base64.b64encode(key).decode(), context=_context(tenant, each.id))
                await self._run("seal", tenant, each.id, anew, each.sealed)
        return tuple(found)


def _context(tenant: str, secret_id: str) -> str:
    """Return what a sealed secret is bound to."""
    return f"webhook secret\n{tenant}\n{secret_id}"


def _key(text: str) -> bytes:
    """Return the bytes of a secret; raises `SealError` where these are none."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not _LEAST_BYTES <= len(key) <= _MOST_BYTES:
        msg = "it is damaged"
        raise SealError(msg)
    return key
