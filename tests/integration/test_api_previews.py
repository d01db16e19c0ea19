"""Previews over HTTP: a real app and a real Valkey, whose content is not believed."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import httpx
import pytest
import redis
from PIL import Image

from service.contract.job import Job
from service.contract.previews import PREVIEW_BYTES, PREVIEW_SIDE_PX
from service.jobs.keys import key
from service.settings.gateway import GatewaySettings
from tests.gateway import Hand, make_key, picture, serving

pytestmark = pytest.mark.anyio

PREVIEW = picture(16, 8, "webp")


async def running(api: httpx.AsyncClient, hand: Hand) -> tuple[str, Job]:
    """Return the path of a generation that runs, and its job."""
    created = await api.post("/v1/generations", json={"prompt": "a red circle"})
    assert created.status_code == 202
    return created.headers["location"], await asyncio.to_thread(hand.claim)


async def progress(api: httpx.AsyncClient, path: str) -> dict[str, Any]:
    return (await api.get(path)).json()["progress"]


async def test_a_running_generation_shows_what_it_looks_like_and_an_ended_one_does_not(
    api: httpx.AsyncClient, hand: Hand
) -> None:
    path, job = await running(api, hand)
    assert (await progress(api, path))["preview_url"] is None
    none_yet = await api.get(f"{path}/preview")
    assert (none_yet.status_code, none_yet.json()["code"]) == (404, "not_found")
    hand.show(job, PREVIEW)
    assert (await progress(api, path))["preview_url"] == f"{path}/preview"
    shown = await api.get(f"{path}/preview")
    assert shown.status_code == 200
    assert shown.content == PREVIEW
    assert shown.headers["content-type"] == "image/webp"
    assert shown.headers["x-content-type-options"] == "nosniff"
    assert shown.headers["cache-control"] == "no-store"
    hand.draw(job)
    over = await api.get(f"{path}/preview")
    assert over.status_code == 404
    assert "succeeded" in over.json()["detail"]
    assert (await api.get(path)).json()["progress"] is None


async def test_a_preview_that_is_known_is_not_sent_again(api: httpx.AsyncClient, hand: Hand) -> None:
    path, job = await running(api, hand)
    hand.show(job, PREVIEW)
    tag = (await api.get(f"{path}/preview")).headers["etag"]
    for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        again = await api.get(f"{path}/preview", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    hand.show(job, picture(16, 8, "webp", "blue"))
    changed = await api.get(f"{path}/preview", headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


async def test_another_tenants_preview_is_404_and_an_erased_one_410(
    api: httpx.AsyncClient, hand: Hand, settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    path, job = await running(api, hand)
    hand.show(job, PREVIEW)
    async with serving(settings, key=make_key(redis_client, "other")) as other:
        stranger = await other.get(f"{path}/preview")
        invented = await other.get(f"{path[:-4]}0000/preview")
    assert stranger.status_code == invented.status_code == 404
    assert stranger.json()["detail"] == invented.json()["detail"]
    async with serving(settings) as nobody:
        assert (await nobody.get(f"{path}/preview")).status_code == 401
    assert (await api.delete(path)).status_code == 204
    assert (await api.get(f"{path}/preview")).status_code == 410
    assert redis_client.keys(key("preview", "*")) == []


def animation() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(b"<script>alert(1)</script>", id="markup"),
        pytest.param(b"RIFF\x10\0\0\0WEBP<script>alert(1)</script>", id="markup in webp's clothes"),
        pytest.param(picture(16, 16, "png"), id="another format"),
        pytest.param(picture(PREVIEW_SIDE_PX + 1, 16, "webp"), id="too wide"),
        pytest.param(animation(), id="animated"),
        pytest.param(PREVIEW + bytes(PREVIEW_BYTES), id="too long"),
        pytest.param(b"\0", id="one byte"),
    ],
)
async def test_what_no_agent_wrote_is_not_handed_on(
    api: httpx.AsyncClient, hand: Hand, redis_client: redis.Redis, found: bytes
) -> None:
    path, job = await running(api, hand)
    hand.show(job, PREVIEW)
    redis_client.set(key("preview", job.id), found)
    reply = await api.get(f"{path}/preview")
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"
    assert b"script" not in reply.content


async def test_a_record_of_another_type_is_a_problem_and_nothing_else(
    api: httpx.AsyncClient, hand: Hand, redis_client: redis.Redis
) -> None:
    path, job = await running(api, hand)
    redis_client.rpush(key("preview", job.id), "a list")
    reply = await api.get(f"{path}/preview")
    assert (reply.status_code, reply.json()["code"]) == (503, "unavailable")
    assert "WRONGTYPE" not in reply.text
