"""Who may call, and how a gateway without keys keeps web pages out."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import redis

from service.settings.gateway import GatewaySettings
from tests.gateway import SHAPES, Hand, gateway_settings, make_key, serving, show_models

pytestmark = pytest.mark.anyio

PATH = "/v1/generations"


@pytest.fixture
def open_settings(settings: GatewaySettings) -> GatewaySettings:
    return gateway_settings(settings.redis, settings.storage, auth="none")


@pytest.mark.parametrize("authorization", [None, "Basic eDp5", "Bearer nonsense", f"Bearer dk_{'a' * 12}_{'b' * 32}"])
async def test_without_a_valid_key_every_v1_path_is_401(
    settings: GatewaySettings, redis_client: redis.Redis, authorization: str | None
) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    async with serving(settings) as api:
        for method, path in [
            ("GET", PATH), ("POST", PATH), ("GET", f"{PATH}/x"), ("DELETE", f"{PATH}/x"), ("POST", f"{PATH}/x/cancel"),
            ("GET", f"{PATH}/x/images/0"), ("GET", "/v1/models"), ("GET", "/v1/models/x"), ("GET", "/v1/schedulers"),
        ]:  # fmt: skip
            response = await api.request(method, path, headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == 'Bearer realm="darkroom"'
            assert response.json()["code"] == "unauthenticated"


async def test_a_key_beside_another_authorization_is_401(settings: GatewaySettings, redis_client: redis.Redis) -> None:
    key = make_key(redis_client)
    async with serving(settings) as api:
        headers = [("Authorization", f"Bearer {key}"), ("Authorization", "Bearer nonsense")]
        assert (await api.get("/v1/models", headers=headers)).status_code == 401
        assert (await api.get("/v1/models", headers=headers[:1])).status_code == 200


async def test_without_keys_everybody_on_this_machine_is_the_tenant_local(
    open_settings: GatewaySettings, redis_client: redis.Redis, hand: Hand
) -> None:
    show_models(redis_client, SHAPES)
    async with serving(open_settings) as api:
        response = await api.post(PATH, json={"prompt": "x"})
    assert response.status_code == 202
    assert (await asyncio.to_thread(hand.claim)).tenant == "local"


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "127.1.2.3:8000"])
async def test_without_keys_hosts_of_this_machine_are_served(
    open_settings: GatewaySettings, redis_client: redis.Redis, host: str
) -> None:
    async with serving(open_settings) as api:
        headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert (await api.get("/healthz", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:8000"},
        {"Host": "127.0.0.1:9000"},
        {"Host": "127.0.0.1"},
        {"Host": "localhost.evil.example:8000"},
        {"Host": "evil.example@127.0.0.1:8000"},
        {"Host": "127.0.0.1:8000/x"},
        {"Host": "127.0.0.1:8000#"},
        {"Host": "127.0.0.1:8000?"},
        {"Host": "[::1]evil.example:8000"},
        {"Host": "[::1%25evil]:8000"},
        {"Host": "127.0.0.1:08000"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9000"},
        {"Origin": "https://127.0.0.1:8000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_without_keys_what_a_web_page_could_send_is_403(
    open_settings: GatewaySettings, redis_client: redis.Redis, headers: dict[str, str]
) -> None:
    show_models(redis_client, SHAPES)
    async with serving(open_settings) as api:
        for method, path in [("POST", PATH), ("GET", PATH), ("GET", "/v1/models"), ("GET", "/healthz")]:
            response = await api.request(
                method, path, headers=headers, json={"prompt": "x"} if method == "POST" else None
            )
            assert response.status_code == 403
            assert response.json()["code"] == "forbidden"
        assert (await api.get(PATH)).json()["data"] == []


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_without_keys_what_a_form_could_send_is_415(
    open_settings: GatewaySettings, redis_client: redis.Redis, content_type: str
) -> None:
    async with serving(open_settings) as api:
        for path in (PATH, f"{PATH}/x/cancel"):
            response = await api.post(path, content=b'{"prompt": "x"}', headers={"Content-Type": content_type})
            assert response.status_code == 415


async def test_a_request_id_is_kept_or_made_and_always_returned(
    settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    async with serving(settings, key=make_key(redis_client)) as api:
        for path in ("/healthz", "/v1/generations", "/nowhere"):
            given = await api.get(path, headers={"X-Request-Id": "trace-1"})
            assert given.headers["x-request-id"] == "trace-1"
            made = await api.get(path, headers={"X-Request-Id": "a b<script>"})
            assert made.headers["x-request-id"].startswith("req_")
        problem = (await api.get("/nowhere", headers={"X-Request-Id": "trace-2"})).json()
        assert problem["request_id"] == "trace-2"


async def test_an_unknown_method_names_those_that_are_there(api: httpx.AsyncClient) -> None:
    response = await api.put(PATH)
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, POST"


async def test_bodies_beyond_the_budget_of_the_process_are_503(
    settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    show_models(redis_client, SHAPES)
    tight = gateway_settings(settings.redis, settings.storage, http={"body_budget_bytes": 1 << 20})
    body = b'{"prompt": "' + b"x" * (2 << 20) + b'"}'
    async with serving(tight, key=make_key(redis_client)) as api:
        for _ in range(2):
            response = await api.post(PATH, content=body, headers={"Content-Type": "application/json"})
            assert response.status_code == 503
            assert response.json()["code"] == "overloaded"
        # What was read is given back.
        assert (await api.post(PATH, json={"prompt": "x"})).status_code == 202
