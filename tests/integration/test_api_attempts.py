"""Wrong keys by the address they come from: bounded, whoever spoofs, and never at the price of those with a key."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import redis

from service.contract.errors import TooManyAttempts, Unauthenticated
from service.jobs.connection import connect_async
from service.settings.groups import RedisSettings, StorageSettings
from service.tenants.authentication import KeyAuthenticator
from service.tenants.store import KeyStore, TenantStore
from tests.clock import Clock
from tests.gateway import GatewayProcess, gateway_process, make_key

pytestmark = pytest.mark.anyio

HERE, THERE = "192.0.2.1", "192.0.2.2"


def wrong(number: int = 0) -> str:
    """Return a key that nobody has, each another."""
    name = "".join("abcdefghij"[int(digit)] for digit in f"{number:012d}")
    return f"Bearer dk_{name}_{'b' * 32}"


def commands(client: redis.Redis) -> int:
    return int(client.info("commandstats").get("cmdstat_hgetall", {}).get("calls", 0))


async def use_up(authenticator: KeyAuthenticator, failures: int) -> None:
    for number in range(failures):
        with pytest.raises(Unauthenticated):
            await authenticator.caller(wrong(number), address=HERE)


async def test_wrong_keys_are_refused_and_few_of_them_read_when_too_many_came(
    redis_client: redis.Redis, redis_settings: RedisSettings
) -> None:
    clock = Clock(100)
    async with connect_async(redis_settings) as client:
        authenticator = KeyAuthenticator(
            client, cache_s=2, failures_per_minute=6, spare_lookups_per_minute=2, clock=clock
        )
        await use_up(authenticator, 6)
        asked = commands(redis_client)
        for text in (wrong(6), wrong(7), wrong(11), "Bearer nonsense", wrong(0), wrong(12)):
            with pytest.raises(TooManyAttempts) as caught:
                await authenticator.caller(text, address=HERE)
            assert caught.value.retry_after_s == 10
        assert commands(redis_client) == asked + 2
        with pytest.raises(Unauthenticated):
            await authenticator.caller(wrong(8), address=THERE)
        clock.now_s += 10
        with pytest.raises(Unauthenticated):
            await authenticator.caller(wrong(9), address=HERE)
        with pytest.raises(TooManyAttempts):
            await authenticator.caller(wrong(10), address=HERE)


async def test_a_key_that_was_used_here_goes_on_whoever_else_comes_from_its_address(
    redis_client: redis.Redis, redis_settings: RedisSettings
) -> None:
    TenantStore(redis_client).create("acme")
    known, late = KeyStore(redis_client).create("acme"), KeyStore(redis_client).create("acme")
    clock = Clock(100)
    async with connect_async(redis_settings) as client:
        authenticator = KeyAuthenticator(client, cache_s=2, failures_per_minute=6, clock=clock)
        await authenticator.caller(f"Bearer {known.text}", address=HERE)
        await use_up(authenticator, 6)
        # Also when it has to be looked up anew.
        clock.now_s += 3
        assert (await authenticator.caller(f"Bearer {known.text}", address=HERE)).key_id == known.key.id
        with pytest.raises(TooManyAttempts):
            await authenticator.caller(f"Bearer {known.text[:-32]}{'a' * 32}", address=HERE)
        # So does one that was never used here: after a restart that is each, behind a balancer that nobody named too.
        assert (await authenticator.caller(f"Bearer {late.text}", address=HERE)).key_id == late.key.id


async def test_a_flood_of_wrong_keys_costs_redis_no_more_than_the_spare_looks_and_then_new_keys_wait(
    redis_client: redis.Redis, redis_settings: RedisSettings
) -> None:
    TenantStore(redis_client).create("acme")
    late, clock = KeyStore(redis_client).create("acme"), Clock(100)
    async with connect_async(redis_settings) as client:
        authenticator = KeyAuthenticator(
            client, cache_s=2, failures_per_minute=6, spare_lookups_per_minute=60, clock=clock
        )
        await use_up(authenticator, 6)
        asked = commands(redis_client)
        for number in range(500):
            with pytest.raises(TooManyAttempts):
                await authenticator.caller(wrong(1000 + number), address=HERE)
        assert commands(redis_client) == asked + 60
        with pytest.raises(TooManyAttempts):
            await authenticator.caller(f"Bearer {late.text}", address=HERE)
        assert (await authenticator.caller(f"Bearer {late.text}", address=THERE)).key_id == late.key.id


async def test_who_sends_no_key_and_who_has_one_uses_nothing_up(
    redis_client: redis.Redis, redis_settings: RedisSettings
) -> None:
    key = make_key(redis_client)
    async with connect_async(redis_settings) as client:
        authenticator = KeyAuthenticator(client, cache_s=2, failures_per_minute=1)
        for _ in range(20):
            await authenticator.caller(f"Bearer {key}", address=HERE)
            for header in (None, "Basic eDp5"):
                with pytest.raises(Unauthenticated):
                    await authenticator.caller(header, address=HERE)
        await use_up(authenticator, 1)


async def test_a_flood_of_invented_keys_pushes_out_neither_keys_nor_memory(
    redis_client: redis.Redis, redis_settings: RedisSettings
) -> None:
    key, clock = make_key(redis_client), Clock(100)
    async with connect_async(redis_settings) as client:
        authenticator = KeyAuthenticator(client, cache_s=2, failures_per_minute=100_000, clock=clock)
        await authenticator.caller(f"Bearer {key}", address=HERE)
        await use_up(authenticator, 1_500)
        assert (len(authenticator._known), len(authenticator._unknown)) == (1, 1_000)
        asked = commands(redis_client)
        await authenticator.caller(f"Bearer {key}", address=HERE)
        assert commands(redis_client) == asked


@pytest.fixture
def behind_a_proxy(
    redis_client: redis.Redis, redis_settings: RedisSettings, storage_settings: StorageSettings
) -> Iterator[GatewayProcess]:
    trusted = {"DARKROOM_TRUSTED_PROXIES": "127.0.0.1, 10.0.0.0/8", "DARKROOM_AUTH_FAILURES_PER_MINUTE": "3"}
    with gateway_process(redis_settings, storage_settings, **trusted) as gateway:
        yield gateway


def status(gateway: GatewayProcess, *forwarded: str, key: str | None = None) -> int:
    headers = [
        ("Authorization", f"Bearer {key}" if key else wrong()),
        *(("X-Forwarded-For", each) for each in forwarded),
    ]
    return httpx.get(f"{gateway.url}/v1/models", headers=headers).status_code


def test_who_calls_is_the_right_most_address_that_is_no_proxy_of_ours(
    behind_a_proxy: GatewayProcess, redis_client: redis.Redis
) -> None:
    for spoofed in ("198.51.100.1, 203.0.113.7", "203.0.113.7", "203.0.113.7, 10.1.2.3"):
        assert status(behind_a_proxy, spoofed) == 401
    # Whatever stands to the left of it, in one header or in several, and with a port.
    for spoofed in (["198.51.100.2, 203.0.113.7"], ["198.51.100.3", "203.0.113.7"], ["10.0.0.1, 203.0.113.7:4711"]):
        assert status(behind_a_proxy, *spoofed) == 429
    assert status(behind_a_proxy, "203.0.113.7, 203.0.113.8") == 401
    assert status(behind_a_proxy, "203.0.113.9", key=make_key(redis_client)) == 200
    refused = httpx.get(
        f"{behind_a_proxy.url}/v1/models", headers={"Authorization": wrong(), "X-Forwarded-For": "203.0.113.7"}
    )
    assert refused.json()["code"] == "too_many_attempts"
    assert 1 <= int(refused.headers["retry-after"]) <= 20


def test_without_a_proxy_what_is_claimed_is_not_believed(
    redis_client: redis.Redis, redis_settings: RedisSettings, storage_settings: StorageSettings
) -> None:
    with gateway_process(redis_settings, storage_settings, DARKROOM_AUTH_FAILURES_PER_MINUTE="3") as gateway:
        found = [status(gateway, f"203.0.113.{number}") for number in range(5)]
    assert found == [401, 401, 401, 429, 429]
