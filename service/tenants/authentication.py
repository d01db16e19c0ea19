"""Who is calling: from a bearer key to a tenant, asking Redis at most once per key and two seconds."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, cast

import redis.asyncio
from redis.exceptions import RedisError

from service.contract.errors import DarkroomError, Unauthenticated, Unavailable
from service.tenants.key_text import PresentedKey, parse_key
from service.tenants.records import LOCAL_TENANT, ApiKey, Tenant, TenantError, TenantLimits, api_key_key, tenant_key

#: Keys remembered at once; a flood of invented ones pushes out the oldest, and costs no more memory.
_REMEMBERED_KEYS = 10_000

_BEARER = "bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a request runs."""

    tenant: str
    limits: TenantLimits = field(default_factory=TenantLimits)
    #: Id of the key that was used; None where keys are switched off.
    key_id: str | None = None


class Authenticator(Protocol):
    """From the `Authorization` header to a caller."""

    async def caller(self, authorization: str | None) -> Caller:
        """Return the caller; raises `Unauthenticated`, or `Unavailable` where Redis does not answer."""
        ...


class LocalAuthenticator:
    """Everybody is the tenant `local`. Only for a gateway that no other machine can reach."""

    async def caller(self, authorization: str | None) -> Caller:  # noqa: ARG002 - whatever is sent, it is ignored
        """Return the tenant `local`, without limits."""
        return Caller(LOCAL_TENANT)


@dataclass(frozen=True, slots=True)
class _Known:
    """What Redis said about a key id, and until when that is good."""

    key: ApiKey | None
    limits: TenantLimits
    until: float


class KeyAuthenticator:
    """Bearer keys. A revoked key or a changed limit is noticed within `cache_s`."""

    def __init__(
        self, client: redis.asyncio.Redis, *, cache_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._redis = client
        self._cache_s = cache_s
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def caller(self, authorization: str | None) -> Caller:
        """Return whom the key belongs to; every refusal reads the same, whatever was wrong with the key."""
        if not authorization:
            raise Unauthenticated
        if authorization[: len(_BEARER)].lower() != _BEARER:
            raise Unauthenticated("Send the key as `Authorization: Bearer dk_…`; other schemes are not taken here.")
        presented = parse_key(authorization[len(_BEARER) :].strip())
        known = await self._look_up(presented) if presented else None
        if presented is None or known is None or known.key is None:
            raise Unauthenticated("This API key is not valid, or it was revoked.")
        if known.key.revoked_ms is not None or not presented.opens(known.key.secret_sha256):
            raise Unauthenticated("This API key is not valid, or it was revoked.")
        return Caller(known.key.tenant, known.limits, known.key.id)

    async def _look_up(self, presented: PresentedKey) -> _Known:
        known = self._known.get(presented.id)
        if known is not None and known.until > self._clock():
            return known
        try:
            known = await self._read(presented.id)
        except (RedisError, OSError) as err:
            raise Unavailable("Keys cannot be checked at the moment.") from err
        except TenantError as err:
            raise DarkroomError("The record of this key is damaged; the request id finds it.") from err
        self._known[presented.id] = known
        self._known.move_to_end(presented.id)
        while len(self._known) > _REMEMBERED_KEYS:
            self._known.popitem(last=False)
        return known

    async def _read(self, key_id: str) -> _Known:
        until = self._clock() + self._cache_s
        fields = cast("dict[str, str]", await self._redis.hgetall(api_key_key(key_id)))
        if not fields:
            return _Known(None, TenantLimits(), until)
        key = ApiKey.from_hash(key_id, fields)
        tenant = cast("dict[str, str]", await self._redis.hgetall(tenant_key(key.tenant)))
        if not tenant:
            # It was removed, or a key was made for it in the same moment.
            return _Known(None, TenantLimits(), until)
        return _Known(key, Tenant.from_hash(key.tenant, tenant).limits, until)
