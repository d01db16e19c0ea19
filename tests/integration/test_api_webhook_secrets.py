"""`/v1/webhooks/secret…`: reading, listing and rotating what a tenant's webhooks are signed with."""

from __future__ import annotations

import json
import secrets
from base64 import b64encode
from datetime import datetime, timedelta

import httpx
import pytest
import redis
from pydantic import SecretStr

from service.jobs.keys import key
from service.settings.gateway import GatewaySettings
from service.settings.groups import RedisSettings, StorageSettings, WebhookSettings
from tests.gateway import gateway_settings, make_key, serving

pytestmark = pytest.mark.anyio

SECRET, SECRETS, ROTATE = (f"/v1/webhooks/{name}" for name in ("secret", "secrets", "secrets/rotate"))


async def present(api: httpx.AsyncClient) -> str:
    response = await api.get(SECRET)
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    return response.json()["secret"]


async def test_every_gateway_tells_a_tenant_the_same_secret_and_another_tenant_another_one(
    api: httpx.AsyncClient, settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    text = await present(api)
    assert text.startswith("whsec_")
    assert await present(api) == text
    async with serving(settings, key=make_key(redis_client, "other")) as other:
        assert await present(other) != text


async def test_the_list_has_no_texts(api: httpx.AsyncClient) -> None:
    first = await present(api)
    second = (await api.post(ROTATE)).json()["secret"]
    response = await api.get(SECRETS)
    assert response.json()["object"] == "list"
    assert [set(each) for each in response.json()["data"]] == [{"id", "created_at", "expires_at"}] * 2
    assert first[6:] not in response.text
    assert second[6:] not in response.text


async def test_a_rotation_answers_with_the_new_secret_and_keeps_the_earlier_one_for_a_day(
    api: httpx.AsyncClient,
) -> None:
    first = await present(api)
    rotated = (await api.post(ROTATE)).json()
    assert rotated["secret"] != first
    assert rotated["expires_at"] is None
    assert await present(api) == rotated["secret"]
    new, old = (await api.get(SECRETS)).json()["data"]
    assert new["id"] == rotated["id"]
    assert _moment(old["expires_at"]) - _moment(new["created_at"]) == timedelta(days=1)


async def test_the_caller_says_how_long_the_earlier_secret_is_kept(api: httpx.AsyncClient) -> None:
    await present(api)
    for keep_s, valid in ((604_800, 2), (0, 1), (None, 2)):
        assert (await api.post(ROTATE, json={"keep_previous_s": keep_s})).status_code == 200
        assert len((await api.get(SECRETS)).json()["data"]) == valid


async def test_a_wrong_rotation_changes_nothing(api: httpx.AsyncClient) -> None:
    text = await present(api)
    for body, pointers in (
        ({"keep_previous_s": -1}, ["/keep_previous_s"]),
        ({"keep_previous_s": 604_801}, ["/keep_previous_s"]),
        ({"keep_previous_s": True}, ["/keep_previous_s"]),
        ({"keep_previous_s": "60"}, ["/keep_previous_s"]),
        ({"keep_previous_s": 1.0}, ["/keep_previous_s"]),
        ({"keep": 1}, ["/keep"]),
    ):
        response = await api.post(ROTATE, json=body)
        assert response.status_code == 422
        assert [each["pointer"] for each in response.json()["errors"]] == pointers
    assert await present(api) == text


async def test_a_repeated_rotation_draws_no_second_secret(api: httpx.AsyncClient) -> None:
    await present(api)
    answers = [(await api.post(ROTATE, headers={"Idempotency-Key": "r-1"})).json() for _ in range(2)]
    assert answers[0] == answers[1]
    assert len((await api.get(SECRETS)).json()["data"]) == 2
    other = await api.post(ROTATE, headers={"Idempotency-Key": "r-2"})
    assert other.json()["secret"] != answers[0]["secret"]


async def test_without_a_key_of_the_api_no_secret_is_told(api: httpx.AsyncClient) -> None:
    for method, path in (("GET", SECRET), ("GET", SECRETS), ("POST", ROTATE)):
        response = await api.request(method, path, headers={"Authorization": "Bearer x"})
        assert response.status_code == 401


async def test_a_secret_that_no_key_opens_is_told_as_such_until_it_is_rotated(
    redis_settings: RedisSettings, storage_settings: StorageSettings, redis_client: redis.Redis
) -> None:
    def with_key() -> GatewaySettings:
        webhooks = WebhookSettings(key=SecretStr(b64encode(secrets.token_bytes(32)).decode()))
        return gateway_settings(redis_settings, storage_settings, webhooks=webhooks)

    api_key = make_key(redis_client)
    async with serving(with_key(), key=api_key) as api:
        text = await present(api)
    (stored,) = redis_client.hvals(key("webhook_secrets", "acme"))
    assert text[6:] not in stored
    async with serving(with_key(), key=api_key) as api:
        response = await api.get(SECRET)
        assert response.status_code == 500
        assert response.json()["code"] == "webhook_secret_unreadable"
        assert "DARKROOM_WEBHOOK_KEY" in response.json()["detail"]
        assert stored.rpartition(":")[2] not in json.dumps(response.json())
        assert (await api.post(ROTATE)).status_code == 200
        assert await present(api) != text


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
