"""Rates of tenants as callers meet them: over gateways, in headers, and by a clock of the test's own."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import redis

from service.api.gateway import Gateway
from service.app import create_app
from service.settings.gateway import GatewaySettings
from service.tenants.records import TenantLimits
from service.tenants.store import TenantStore
from tests.clock import QueueClock
from tests.gateway import BASE_URL, SHAPES, Hand, make_key, picture, running, show_models

pytestmark = pytest.mark.anyio

PATH = "/v1/generations"
BODY = {"prompt": "x"}


@asynccontextmanager
async def gateway(settings: GatewaySettings, clock: QueueClock, key: str) -> AsyncIterator[httpx.AsyncClient]:
    """A caller of a gateway whose queue goes by this clock."""
    app = create_app(settings)
    async with running(app):
        state: Gateway = app.state.gateway
        state.store._clock = clock
        headers = {"Authorization": f"Bearer {key}"}
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=BASE_URL, headers=headers, timeout=30) as client:
            yield client


@pytest.fixture
def key(redis_client: redis.Redis) -> str:
    """A key of a tenant that may create 16 generations a minute, so 4 at once."""
    show_models(redis_client, SHAPES)
    return make_key(redis_client, limits=TenantLimits(max_requests_per_minute=16))


@pytest.fixture
async def api(settings: GatewaySettings, clock: QueueClock, key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway(settings, clock, key) as client:
        yield client


def fields(response: httpx.Response) -> dict[str, int]:
    """Return the parameters of both fields, read as structured fields (RFC 9651): a list of one string each."""
    found: dict[str, int] = {}
    for name, parameters in (("ratelimit-policy", "qw"), ("ratelimit", "rt")):
        item = re.fullmatch(r'"default"((?:;[a-z]=(?:0|[1-9][0-9]*))+)', response.headers[name])
        assert item, response.headers[name]
        values = dict(part.split("=") for part in item[1][1:].split(";"))
        assert list(values) == list(parameters)
        found |= {parameter: int(value) for parameter, value in values.items()}
    return found


def has_none(response: httpx.Response) -> bool:
    return not {"ratelimit", "ratelimit-policy"} & set(response.headers)


async def use_up(api: httpx.AsyncClient) -> None:
    for _ in range(4):
        assert (await api.post(PATH, json=BODY)).status_code == 202
    assert (await api.post(PATH, json=BODY)).status_code == 429


async def test_two_gateways_count_together(settings: GatewaySettings, clock: QueueClock, key: str) -> None:
    async with gateway(settings, clock, key) as one, gateway(settings, clock, key) as two:
        replies = await asyncio.gather(*((one, two)[n % 2].post(PATH, json=BODY) for n in range(16)))
        listed = (await two.get(PATH)).json()["data"]
        accepted = [reply for reply in replies if reply.status_code == 202]
        refused = [reply for reply in replies if reply.status_code == 429]
        assert (len(accepted), len(refused), len(listed)) == (4, 12, 4)
        assert sorted(fields(reply)["r"] for reply in accepted) == [0, 1, 2, 3]
        # 3.75 s for each: told in whole seconds.
        assert {tuple(fields(reply).values()) for reply in refused} == {(16, 60, 0, 4)}
        clock.now_ms += 3_700
        assert (await one.post(PATH, json=BODY)).status_code == 429
        clock.now_ms += 300
        assert [(await each.post(PATH, json=BODY)).status_code for each in (one, two)] == [202, 429]


async def test_the_refusal_is_a_problem_that_says_when_to_come_again(api: httpx.AsyncClient) -> None:
    await use_up(api)
    refused = await api.post(PATH, json=BODY)
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["code"] == "rate_limited"
    assert refused.json()["detail"] == "This tenant may create 16 generations a minute; the next one in 4 s."
    assert refused.headers["retry-after"] == str(fields(refused)["t"]) == "4"


async def test_only_what_is_accepted_counts_and_all_else_stays_open(api: httpx.AsyncClient) -> None:
    wrong = await api.post(PATH, json={**BODY, "steps": 0})
    assert (wrong.status_code, has_none(wrong)) == (422, True)
    created = await api.post(PATH, json=BODY)
    assert fields(created) == {"q": 16, "w": 60, "r": 3, "t": 4}
    for _ in range(3):
        await api.post(PATH, json=BODY)
    path = created.json()["urls"]["self"]
    for reply in [await api.get(path), await api.get(PATH), await api.post(f"{path}/cancel")]:
        assert (reply.status_code, has_none(reply)) == (200, True)
    assert (await api.delete(path)).status_code == 204
    assert (await api.post(PATH, json=BODY)).status_code == 429


async def test_the_outcome_of_an_accepted_call_can_always_be_asked_for(api: httpx.AsyncClient, hand: Hand) -> None:
    mine = {"Idempotency-Key": "order-12"}
    first = await api.post(PATH, json=BODY, headers=mine)
    hand.draw(await asyncio.to_thread(hand.claim))
    for _ in range(3):
        await api.post(PATH, json=BODY)
    again = await api.post(PATH, json=BODY, headers={**mine, "Prefer": "wait=5"})
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert (again.headers["idempotency-replayed"], fields(again)["r"]) == ("true", 0)
    refused = await api.post(PATH, json=BODY, headers={"Idempotency-Key": "order-13"})
    assert refused.json()["code"] == "rate_limited"


async def test_a_picture_itself_has_the_headers_too(api: httpx.AsyncClient, hand: Hand) -> None:
    asked = asyncio.create_task(api.post(PATH, json=BODY, headers={"Accept": "image/png"}))
    hand.draw(await asyncio.to_thread(hand.claim))
    reply = await asked
    assert (reply.headers["content-type"], fields(reply)["r"]) == ("image/png", 3)


async def test_no_input_picture_is_stored_for_a_refused_call(
    api: httpx.AsyncClient, redis_client: redis.Redis, settings: GatewaySettings, clock: QueueClock
) -> None:
    body = {**BODY, "task": "image-to-image", "image": {"base64": base64.b64encode(picture()).decode()}}
    mine = {"Idempotency-Key": "order-12"}
    first = await api.post(PATH, json=body, headers=mine)
    assert fields(first)["r"] == 3
    for _ in range(3):
        assert (await api.post(PATH, json=body)).status_code == 202
    refused = await api.post(PATH, json=body)
    assert (refused.json()["code"], fields(refused)) == ("rate_limited", {"q": 16, "w": 60, "r": 0, "t": 4})
    again = await api.post(PATH, json=body, headers=mine)
    assert (again.status_code, again.json()["id"], fields(again)["r"]) == (202, first.json()["id"], 0)
    # Staging is what comes before an upload; what was staged and not accepted would stand here.
    assert redis_client.zrange("dr:erasures", 0, -1) == []


async def test_no_limit_no_headers_and_a_changed_limit_counts_at_once(
    api: httpx.AsyncClient, settings: GatewaySettings, redis_client: redis.Redis, clock: QueueClock
) -> None:
    await use_up(api)
    async with gateway(settings, clock, make_key(redis_client, "other")) as other:
        reply = await other.post(PATH, json=BODY)
        assert (reply.status_code, has_none(reply)) == (202, True)
    tenants = TenantStore(redis_client)
    tenants.set_limits("acme", TenantLimits(max_queued=4))
    full = await api.post(PATH, json=BODY)
    assert (full.json()["code"], has_none(full)) == ("limit_reached", True)
    tenants.set_limits("acme", TenantLimits())
    reply = await api.post(PATH, json=BODY)
    assert (reply.status_code, has_none(reply)) == (202, True)
