"""Who is calling: from a bearer key to a tenant, asking Redis at most once per key and two seconds."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, cast

import redis.asyncio
from redis.exceptions import RedisError

from service.contract.errors import DarkroomError, TooManyAttempts, Unauthenticated, Unavailable
from service.tenants.attempts import FailedAttempts
from service.tenants.key_text import PresentedKey, parse_key
from service.tenants.records import (
    LOCAL_TENANT,
    ApiKey,
    DefaultWebhook,
    Tenant,
    TenantError,
    TenantLimits,
    api_key_key,
    keys_used_key,
    tenant_key,
)
from service.tenants.scopes import ALL_SCOPES, Scope

#: Keys remembered at once, and ids that are no key's: a flood of invented ones pushes out neither keys nor memory.
_REMEMBERED_KEYS = 10_000
_REMEMBERED_UNKNOWN = 1_000

#: Keys that a process looks up in a minute although their addresses have failed too often: a key that is new here opens
#: whoever else comes from its address, unless they are a flood. 100 a second are nothing to Redis.
_SPARE_LOOKUPS = 6_000

_DAY_S = 86_400

_BEARER = "bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a request runs."""

    tenant: str
    limits: TenantLimits = field(default_factory=TenantLimits)
    #: Id of the key that was used; None where keys are switched off.
    key_id: str | None = None
    #: What the key may do.
    scopes: frozenset[Scope] = ALL_SCOPES
    #: Where events go unless a request says.
    webhook: DefaultWebhook | None = None

    @property
    def who(self) -> str:
        """The caller as the audit log has it."""
        return f"key:{self.key_id}" if self.key_id else "local"


class Authenticator(Protocol):
    """From the `Authorization` header to a caller."""

    async def caller(self, authorization: str | None, *, address: str | None = None) -> Caller:
        """Return the caller, who comes from `address`.

        Raises `Unauthenticated`, `TooManyAttempts`, or `Unavailable` where Redis does not answer.
        """
        ...


class LocalAuthenticator:
    """Everybody is the tenant `local`. Only for a gateway that no other machine can reach."""

    async def caller(self, authorization: str | None, *, address: str | None = None) -> Caller:  # noqa: ARG002 - whatever is sent, it is ignored
        """Return the tenant `local`, without limits."""
        return Caller(LOCAL_TENANT)


@dataclass(frozen=True, slots=True)
class _Known:
    """What Redis said about a key id, and until when that is good."""

    key: ApiKey | None
    limits: TenantLimits
    until: float
    #: The day on which its use was noted last, since 1970 in UTC.
    noted_day: int | None = None


class KeyAuthenticator:
    """Bearer keys. A revoked key, a changed limit or scope is noticed within `cache_s`.

    Where an address has failed too often, wrong keys are told to wait, and of keys that were never seen here only so
    many are looked up as Redis does not notice. Those that were seen go on opening what they open, whoever else comes
    from there.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        *,
        cache_s: float,
        failures_per_minute: int = 60,
        spare_lookups_per_minute: int = _SPARE_LOOKUPS,
        clock: Callable[[], float] = time.monotonic,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._redis = client
        self._cache_s = cache_s
        self._clock = clock
        self._now_s = now_s
        self._attempts = FailedAttempts(per_minute=failures_per_minute, clock=clock)
        #: Of all such addresses together: whoever floods may have many.
        self._spare = FailedAttempts(per_minute=spare_lookups_per_minute, clock=clock)
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._unknown: OrderedDict[str, _Known] = OrderedDict()

    async def caller(self, authorization: str | None, *, address: str | None = None) -> Caller:
        """Return whom the key belongs to; every refusal reads the same, whatever was wrong with the key."""
        if not authorization:
            raise Unauthenticated
        if authorization[: len(_BEARER)].lower() != _BEARER:
            raise Unauthenticated("Send the key as `Authorization: Bearer dk_…`; other schemes are not taken here.")
        presented = parse_key(authorization[len(_BEARER) :].strip())
        known = await self._look_up(presented, address) if presented else None
        if presented is None or known is None or not _opens(presented, known.key):
            self._check_attempts(address)
            self._attempts.count(address)
            raise Unauthenticated("This API key is not valid, or it was revoked.")
        key = cast("ApiKey", known.key)
        return Caller(key.tenant, known.limits, key.id, key.granted, key.webhook)

    def _check_attempts(self, address: str | None) -> None:
        wait_s = self._attempts.wait_s(address)
        if wait_s:
            raise TooManyAttempts(retry_after_s=wait_s)

    async def _look_up(self, presented: PresentedKey, address: str | None) -> _Known:
        earlier = self._known.get(presented.id)
        known = earlier or self._unknown.get(presented.id)
        if known is not None and known.until > self._clock():
            return known
        if earlier is None and self._attempts.wait_s(address):
            if self._spare.wait_s(None):
                self._check_attempts(address)
            self._spare.count(None)
        try:
            known = await self._read(presented, earlier.noted_day if earlier else None)
        except (RedisError, OSError) as err:
            raise Unavailable("Keys cannot be checked at the moment.") from err
        except TenantError as err:
            raise DarkroomError("The record of this key is damaged; the request id finds it.") from err
        if known.key is None:
            self._known.pop(presented.id, None)
            _remember(self._unknown, presented.id, known, _REMEMBERED_UNKNOWN)
        else:
            self._unknown.pop(presented.id, None)
            _remember(self._known, presented.id, known, _REMEMBERED_KEYS)
        return known

    async def _read(self, presented: PresentedKey, noted_day: int | None) -> _Known:
        until = self._clock() + self._cache_s
        fields = cast("dict[str, str]", await self._redis.hgetall(api_key_key(presented.id)))
        if not fields:
            return _Known(None, TenantLimits(), until)
        key = ApiKey.from_hash(presented.id, fields)
        today = int(self._now_s() // _DAY_S)
        note = noted_day != today and _opens(presented, key)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hgetall(tenant_key(key.tenant))
        if note:
            pipeline.hset(keys_used_key(key.tenant), key.id, str(today))
        tenant, *_ = cast("list[dict[str, str] | RedisError]", await pipeline.execute(raise_on_error=False))
        # That its use cannot be noted, as Redis is full, keeps nobody out.
        if isinstance(tenant, RedisError):
            raise tenant
        if not tenant:
            # It was removed, or a key was made for it in the same moment.
            return _Known(None, TenantLimits(), until)
        limits = Tenant.from_hash(key.tenant, tenant).limits
        return _Known(key, limits, until, today if note else noted_day)


def _opens(presented: PresentedKey, key: ApiKey | None) -> bool:
    return key is not None and key.revoked_ms is None and presented.opens(key.secret_sha256)


def _remember(of: OrderedDict[str, _Known], key_id: str, known: _Known, most: int) -> None:
    of[key_id] = known
    of.move_to_end(key_id)
    while len(of) > most:
        of.popitem(last=False)
