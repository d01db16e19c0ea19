"""What a key may do: by operation, as its record says, and as a record of another version says."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import redis

from service.api.access import SCOPE_OF
from service.api.application import build_api
from service.api.openapi import document
from service.jobs.connection import connect_async
from service.settings.gateway import GatewaySettings, HttpSettings
from service.settings.groups import RedisSettings
from service.tenants.authentication import KeyAuthenticator
from service.tenants.records import api_key_key
from service.tenants.scopes import ALL_SCOPES, Scope
from service.tenants.store import KeyStore, TenantStore
from tests.clock import Clock
from tests.gateway import SHAPES, serving, show_models

pytestmark = pytest.mark.anyio


def operations() -> dict[str, tuple[str, str]]:
    """Return method and path of every operation that asks for a key, its parameters filled in."""
    paths: dict[str, dict[str, Any]] = document(build_api(HttpSettings(), local_only=False))["paths"]
    return {
        each["operationId"]: (method.upper(), "/".join("x" if "{" in part else part for part in path.split("/")))
        for path, methods in paths.items()
        for method, each in methods.items()
        if each["security"]
    }


def scoped_key(client: redis.Redis, *scopes: Scope) -> str:
    return KeyStore(client).create("acme", scopes=frozenset(scopes)).text


@pytest.mark.parametrize("scope", sorted(ALL_SCOPES))
async def test_a_key_does_what_its_scope_allows_and_nothing_else(
    settings: GatewaySettings, redis_client: redis.Redis, scope: Scope
) -> None:
    TenantStore(redis_client).create("acme")
    asked = operations()
    assert set(asked) == set(SCOPE_OF)
    async with serving(settings, key=scoped_key(redis_client, scope)) as api:
        for operation, (method, path) in asked.items():
            reply = await api.request(method, path)
            if SCOPE_OF[operation] == scope:
                assert reply.status_code not in {401, 403}, operation
            else:
                assert (reply.status_code, reply.json()["code"]) == (403, "forbidden"), operation
                assert f"`{SCOPE_OF[operation]}`" in reply.json()["detail"]
                assert f'error="insufficient_scope", scope="{SCOPE_OF[operation]}"' in reply.headers["www-authenticate"]


async def test_what_is_forbidden_does_not_happen(settings: GatewaySettings, redis_client: redis.Redis) -> None:
    TenantStore(redis_client).create("acme")
    show_models(redis_client, SHAPES)
    reader, writer = scoped_key(redis_client, "read"), scoped_key(redis_client, "generate")

    def as_key(key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    async with serving(settings) as api:
        made = await api.post("/v1/generations", json={"prompt": "x"}, headers=as_key(writer))
        path = made.json()["urls"]["self"]
        wanted = (
            ("POST", "/v1/generations", {"prompt": "y"}),
            ("POST", f"{path}/cancel", None),
            ("DELETE", path, None),
        )
        for method, where, body in wanted:
            reply = await api.request(method, where, json=body, headers=as_key(reader))
            assert reply.status_code == 403
        listed: list[dict[str, Any]] = (await api.get("/v1/generations", headers=as_key(reader))).json()["data"]
        assert [(each["id"], each["status"]) for each in listed] == [(made.json()["id"], "queued")]


async def _scopes(client: redis.Redis, settings: RedisSettings, **fields: str) -> frozenset[Scope]:
    """Return what a key may do whose record has these fields beside its own."""
    TenantStore(client).create("acme")
    made = KeyStore(client).create("acme")
    if fields:
        client.hset(api_key_key(made.key.id), mapping=fields)
    async with connect_async(settings) as connection:
        return (await KeyAuthenticator(connection, cache_s=2).caller(f"Bearer {made.text}")).scopes


@pytest.mark.parametrize(
    ("fields", "scopes"),
    [
        ({}, ALL_SCOPES),
        ({"scopes": "read"}, {"read"}),
        ({"scopes": "paint read teleport"}, {"read"}),
        ({"scopes": "paint"}, set()),
        ({"scopes": ""}, set()),
        ({"of_a_later_version": "x"}, ALL_SCOPES),
    ],
)
async def test_records_of_other_versions_are_read_as_far_as_they_are_known(
    redis_client: redis.Redis, redis_settings: RedisSettings, fields: dict[str, str], scopes: set[Scope]
) -> None:
    assert await _scopes(redis_client, redis_settings, **fields) == scopes


def test_a_key_with_every_scope_is_a_record_that_earlier_versions_read(redis_client: redis.Redis) -> None:
    TenantStore(redis_client).create("acme")
    keys = KeyStore(redis_client)
    made = keys.create("acme", scopes=frozenset({"read"}))
    assert redis_client.hget(api_key_key(made.key.id), "scopes") == "read"
    assert keys.set_scopes(made.key.id, None).scopes is None
    assert set(redis_client.hkeys(api_key_key(made.key.id))) == {"tenant", "secret_sha256", "created_ms", "label"}


async def test_changed_scopes_are_noticed_within_the_cache_time(
    redis_client: redis.Redis, redis_settings: RedisSettings
) -> None:
    TenantStore(redis_client).create("acme")
    made, clock = KeyStore(redis_client).create("acme"), Clock(100)
    async with connect_async(redis_settings) as client:
        authenticator = KeyAuthenticator(client, cache_s=2, clock=clock)
        assert (await authenticator.caller(f"Bearer {made.text}")).scopes == ALL_SCOPES
        KeyStore(redis_client).set_scopes(made.key.id, frozenset({"read", "webhooks"}))
        clock.now_s += 2.1
        assert (await authenticator.caller(f"Bearer {made.text}")).scopes == {"read", "webhooks"}


async def test_the_last_day_of_a_keys_use_is_noted_once_a_day(
    redis_client: redis.Redis, redis_settings: RedisSettings
) -> None:
    TenantStore(redis_client).create("acme")
    keys = KeyStore(redis_client)
    made, other, clock, day = keys.create("acme"), keys.create("acme"), Clock(100), Clock(20_833 * 86_400.0)
    used = "dr:tenant:acme:used"
    async with connect_async(redis_settings) as client:
        authenticator = KeyAuthenticator(client, cache_s=2, clock=clock, now_s=day)
        wrong = made.text[:-32] + "a" * 32
        with pytest.raises(Exception, match="not valid"):
            await authenticator.caller(f"Bearer {wrong}")
        assert keys.used("acme") == {}
        clock.now_s += 3
        await authenticator.caller(f"Bearer {made.text}")
        assert {key: str(at) for key, at in keys.used("acme").items()} == {made.key.id: "2027-01-15"}
        redis_client.hset(used, other.key.id, "soon")
        redis_client.hset(used, made.key.id, "1")
        clock.now_s += 3
        await authenticator.caller(f"Bearer {made.text}")
        assert redis_client.hget(used, made.key.id) == "1"
        day.now_s += 86_400
        clock.now_s += 3
        await authenticator.caller(f"Bearer {made.text}")
    assert {key: str(at) for key, at in keys.used("acme").items()} == {made.key.id: "2027-01-16"}
    TenantStore(redis_client).remove("acme")
    assert not redis_client.exists(used)


async def test_a_full_redis_keeps_no_key_out(redis_client: redis.Redis, redis_settings: RedisSettings) -> None:
    """Its use cannot be noted then."""
    TenantStore(redis_client).create("acme")
    made = KeyStore(redis_client).create("acme")
    redis_client.set("dr:tenant:acme:used", "no hash")
    async with connect_async(redis_settings) as client:
        assert (await KeyAuthenticator(client, cache_s=2).caller(f"Bearer {made.text}")).tenant == "acme"


async def test_a_missing_scope_is_told_before_anything_of_the_body_is(
    settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    TenantStore(redis_client).create("acme")
    async with serving(settings, key=scoped_key(redis_client, "read")) as api:
        reply: httpx.Response = await api.post("/v1/generations", content=b"no json")
    assert reply.status_code == 403
