"""Cursors of listings as callers meet them."""

from __future__ import annotations

import base64

import httpx
import pytest
import redis

from service.settings.gateway import GatewaySettings
from tests.gateway import EMOJI, SHAPES, make_key, serving, show_models

pytestmark = pytest.mark.anyio

PATH = "/v1/generations"


async def three(api: httpx.AsyncClient) -> list[str]:
    reply = await api.post(f"{PATH}/batch", json={"requests": [{"prompt": "x"}] * 3})
    return [each["id"] for each in reply.json()["data"]]


async def first_page(api: httpx.AsyncClient) -> dict[str, object]:
    return (await api.get(PATH, params={"limit": 1})).json()


async def test_a_cursor_says_nothing_and_cannot_be_changed(api: httpx.AsyncClient) -> None:
    ids = await three(api)
    page = await first_page(api)
    cursor = str(page["next_cursor"])
    raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    assert (await api.get(PATH, params={"cursor": cursor})).json()["data"][0]["id"] == ids[1]
    for at in range(len(raw)):
        changed = bytes([*raw[:at], raw[at] ^ 1, *raw[at + 1 :]])
        reply = await api.get(PATH, params={"cursor": base64.urlsafe_b64encode(changed).decode().rstrip("=")})
        assert reply.status_code == 422, at
        assert reply.json()["errors"][0]["pointer"] == "cursor"
    for other in (
        cursor[:-4],
        cursor[:8],
        f"{cursor}AAAA",
        ids[0],
        f"1800000000000-{ids[0]}",
        "A" * 104,
        "é",
        "%",
        "-",
    ):
        assert (await api.get(PATH, params={"cursor": other})).status_code == 422, other


async def test_a_cursor_is_its_tenants_and_good_at_every_gateway(
    settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    show_models(redis_client, SHAPES, EMOJI)
    mine, theirs = make_key(redis_client), make_key(redis_client, "other")
    async with (
        serving(settings, key=mine) as one,
        serving(settings, key=mine) as two,
        serving(settings, key=theirs) as other,
    ):
        ids = await three(one)
        page = await first_page(one)
        # Also where what it stands on is gone.
        await one.delete(f"{PATH}/{ids[2]}")
        following = (await two.get(PATH, params={"cursor": page["next_cursor"]})).json()["data"]
        assert [each["id"] for each in following] == [ids[1], ids[0]]
        assert (await other.get(PATH, params={"cursor": page["next_cursor"]})).status_code == 422
