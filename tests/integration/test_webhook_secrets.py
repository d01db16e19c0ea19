"""A tenant's webhook secrets: drawn once, rotated, encrypted where a key is given, and never replaced unasked."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis
from pydantic import SecretStr, ValidationError

from service.jobs.connection import connect_async
from service.jobs.keys import key
from service.settings.groups import RedisSettings, WebhookSettings
from service.tenants.sealing import Sealer
from service.tenants.store import TenantStore
from service.tenants.webhook_secrets import WebhookSecrets, WebhookSecretUnreadable
from tests.clock import QueueClock

pytestmark = pytest.mark.anyio

HOUR_S = 3600
KEPT = key("webhook_secrets", "acme")


@asynccontextmanager
async def opened(settings: RedisSettings, clock: QueueClock, *keys: bytes) -> AsyncIterator[WebhookSecrets]:
    async with connect_async(settings) as client:
        yield WebhookSecrets(client, Sealer(keys), clock=clock)


@pytest.fixture
async def plain(
    redis_settings: RedisSettings, redis_client: redis.Redis, clock: QueueClock
) -> AsyncIterator[WebhookSecrets]:
    async with opened(redis_settings, clock) as found:
        yield found


async def test_the_first_use_draws_one_secret_for_everybody(plain: WebhookSecrets) -> None:
    found = await asyncio.gather(*(plain.current("acme") for _ in range(20)))
    assert len(set(found)) == 1
    (only,) = found[0]
    assert len(only.key) == 32
    assert only.until_ms is None
    assert (await plain.current("other"))[0].key != only.key


async def test_a_rotation_keeps_the_earlier_secret_for_a_while(plain: WebhookSecrets, clock: QueueClock) -> None:
    (old,) = await plain.current("acme")
    clock.now_ms += 1000
    new, kept = await plain.rotate("acme", who="ada@host", keep_s=HOUR_S)
    assert new.key != old.key
    assert (kept.id, kept.key, kept.until_ms) == (old.id, old.key, clock.now_ms + 1000 * HOUR_S)
    clock.now_ms += 1000 * HOUR_S - 1
    assert [each.id for each in await plain.current("acme")] == [new.id, old.id]
    clock.now_ms += 1
    assert [each.id for each in await plain.current("acme")] == [new.id]


async def test_what_is_over_is_no_longer_stored(
    plain: WebhookSecrets, clock: QueueClock, redis_client: redis.Redis
) -> None:
    await plain.current("acme")
    await plain.rotate("acme", who="ada@host", keep_s=HOUR_S)
    clock.now_ms += 1000 * HOUR_S
    await plain.current("acme")
    assert redis_client.hlen(KEPT) == 1


async def test_a_rotation_that_keeps_nothing_ends_all_earlier_secrets(plain: WebhookSecrets) -> None:
    await plain.current("acme")
    await plain.rotate("acme", who="ada@host")
    (only,) = await plain.rotate("acme", who="ada@host", keep_s=0)
    assert await plain.current("acme") == (only,)


async def test_a_later_rotation_lengthens_no_earlier_one(plain: WebhookSecrets, clock: QueueClock) -> None:
    (first,) = await plain.current("acme")
    await plain.rotate("acme", who="ada@host", keep_s=HOUR_S)
    clock.now_ms += 1000
    found = await plain.rotate("acme", who="ada@host", keep_s=24 * HOUR_S)
    ends = {each.id: each.until_ms for each in found}
    assert ends[first.id] == clock.now_ms - 1000 + 1000 * HOUR_S
    assert len(found) == 3


async def test_at_most_four_are_valid_and_the_oldest_goes(plain: WebhookSecrets, clock: QueueClock) -> None:
    drawn = [(await plain.current("acme"))[0].id]
    for _ in range(6):
        clock.now_ms += 1
        drawn.append((await plain.rotate("acme", who="ada@host"))[0].id)
    assert [each.id for each in await plain.current("acme")] == drawn[:-5:-1]


async def test_a_rotation_that_is_repeated_by_name_draws_no_second_secret(plain: WebhookSecrets) -> None:
    await plain.current("acme")
    assert await plain.rotate("acme", who="ada@host", name="again") == await plain.rotate(
        "acme", who="ada@host", name="again"
    )
    assert len(await plain.current("acme")) == 2


async def test_with_a_key_nothing_of_a_secret_can_be_read_in_redis(
    redis_settings: RedisSettings, redis_client: redis.Redis, clock: QueueClock
) -> None:
    async with opened(redis_settings, clock, secrets.token_bytes(32)) as found:
        (secret,) = await found.current("acme")
        assert await found.current("acme") == (secret,)
    (stored,) = redis_client.hvals(KEPT)
    assert secret.text[6:] not in stored
    assert " a256gcm:" in stored


async def test_a_changed_key_reads_what_the_earlier_one_encrypted_and_stores_it_anew(
    redis_settings: RedisSettings, redis_client: redis.Redis, clock: QueueClock
) -> None:
    old_key, new_key = secrets.token_bytes(32), secrets.token_bytes(32)
    async with opened(redis_settings, clock) as found:
        (secret,) = await found.current("acme")
    for keys in ((old_key,), (new_key, old_key), (new_key,)):
        async with opened(redis_settings, clock, *keys) as found:
            assert await found.seal_anew("acme") == 1
            assert await found.current("acme") == (secret,)
    async with opened(redis_settings, clock, old_key) as found:
        with pytest.raises(WebhookSecretUnreadable, match="DARKROOM_WEBHOOK_KEY does not have"):
            await found.current("acme")


@pytest.mark.parametrize("damage", ["", "x", "1 0", "1 0 plain:", "1 0 plain:AAAA", "1 0 a256gcm:x:y", "nan inf \xff"])
async def test_a_damaged_secret_is_told_and_not_replaced_until_a_rotation(
    plain: WebhookSecrets, redis_client: redis.Redis, damage: str
) -> None:
    (secret,) = await plain.current("acme")
    redis_client.hset(KEPT, secret.id, damage)
    for _ in range(2):
        with pytest.raises(WebhookSecretUnreadable, match="Rotating draws another"):
            await plain.current("acme")
    await plain.rotate("acme", who="ada@host")
    assert (await plain.current("acme"))[0].key != secret.key


async def test_a_record_of_another_type_is_told_and_a_rotation_mends_it(
    plain: WebhookSecrets, redis_client: redis.Redis
) -> None:
    redis_client.set(KEPT, "no hash")
    with pytest.raises(WebhookSecretUnreadable):
        await plain.current("acme")
    assert len(await plain.rotate("acme", who="ada@host")) == 1


async def test_a_damaged_earlier_secret_does_not_keep_the_present_one_from_signing(
    plain: WebhookSecrets, redis_client: redis.Redis, clock: QueueClock
) -> None:
    await plain.current("acme")
    new, old = await plain.rotate("acme", who="ada@host")
    redis_client.hset(KEPT, old.id, f"1 {clock.now_ms + 1000} plain:AAAA")
    assert await plain.current("acme") == (new,)


async def test_encrypted_secrets_of_two_tenants_cannot_be_exchanged(
    redis_settings: RedisSettings, redis_client: redis.Redis, clock: QueueClock
) -> None:
    async with opened(redis_settings, clock, secrets.token_bytes(32)) as found:
        await found.current("acme")
        redis_client.copy(KEPT, key("webhook_secrets", "other"))
        with pytest.raises(WebhookSecretUnreadable, match="damaged"):
            await found.current("other")


async def test_a_new_tenant_does_not_sign_with_the_secret_of_a_removed_one(
    plain: WebhookSecrets, redis_client: redis.Redis
) -> None:
    tenants = TenantStore(redis_client)
    tenants.create("acme")
    (secret,) = await plain.current("acme")
    tenants.remove("acme")
    assert 0 < redis_client.ttl(KEPT) <= 7 * 86_400
    tenants.create("acme")
    assert (await plain.current("acme"))[0].key != secret.key


@pytest.mark.parametrize("text", ["x", "AAAA", "é", "A" * 43 + "=,", "A" * 44])
def test_a_key_of_another_form_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValidationError) as refused:
        WebhookSettings(key=SecretStr(text))
    assert "openssl rand -base64 32" in str(refused.value)
