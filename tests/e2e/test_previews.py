"""A running generation can be seen over HTTP, drawn by the real engine with the model in the box."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import pytest
import redis
from PIL import Image

from service.jobs.keys import key
from tests.e2e.looks import Picture
from tests.e2e.processes import Gateway, Service, wait_for

#: 30 steps with two rows each, of the largest size: seconds, whatever the machine.
LONG: dict[str, Any] = {
    "prompt": "a red circle on a blue background",
    "steps": 30,
    "width": 128,
    "height": 128,
    "seed": 3,
    "deterministic": True,
}


@pytest.fixture(scope="module")
def gateway(service: Service) -> Gateway:
    service.agent(DARKROOM_PREVIEW_S="0.05")
    gateway = service.gateway()
    gateway.wait_for_workers()
    return gateway


def begun(client: httpx.Client, **request: Any) -> str:
    """Return the path of a generation that was accepted."""
    reply = client.post("/v1/generations", json={**LONG, **request})
    assert reply.status_code == 202, reply.text
    return reply.headers["Location"]


def shown(client: httpx.Client, path: str) -> httpx.Response:
    """Return the first preview of a generation."""

    def look() -> httpx.Response | None:
        resource = client.get(path).json()
        assert resource["status"] in {"queued", "running"}, "it ended before its first preview"
        progress = resource["progress"]
        if not progress or not progress["preview_url"]:
            return None
        reply = client.get(progress["preview_url"])
        return reply if reply.status_code == 200 else None

    return wait_for("a preview", look, every_s=0.02)


def opened(reply: httpx.Response) -> Picture:
    image = Image.open(io.BytesIO(reply.content))
    assert image.format == "WEBP"
    return np.asarray(image.convert("RGB"))


def test_a_running_generation_shows_its_picture_and_an_ended_one_only_the_result(
    gateway: Gateway, redis_settings: Any
) -> None:
    with gateway.client() as client:
        path = begun(client)
        reply = shown(client, path)
        assert reply.headers["content-type"] == "image/webp"
        assert opened(reply).shape == (32, 32, 3)

        def changed() -> httpx.Response | None:
            later = client.get(f"{path}/preview", headers={"If-None-Match": reply.headers["etag"]})
            assert later.status_code in {200, 304, 404}
            return later if later.status_code == 200 else None

        # What is to come is seen before it is there.
        foreseen = opened(wait_for("another preview", changed, every_s=0.02))
        ended = client.get(path, headers={"Prefer": "wait=60"}).json()
        while ended["status"] == "running":
            ended = client.get(path, headers={"Prefer": "wait=60"}).json()
        assert ended["status"] == "succeeded"
        assert ended["progress"] is None
        assert client.get(f"{path}/preview").status_code == 404
        picture = Image.open(io.BytesIO(client.get(ended["images"][0]["url"], follow_redirects=True).content))
        small = np.asarray(picture.resize((32, 32), Image.Resampling.BOX))
        assert np.corrcoef(foreseen.ravel().astype(float), small.ravel())[0, 1] > 0.6
    with redis.Redis.from_url(redis_settings.url.get_secret_value()) as store:
        assert store.keys(key("preview", "*")) == []


def test_a_canceled_generation_shows_nothing_any_more(gateway: Gateway) -> None:
    with gateway.client() as client:
        path = begun(client)
        shown(client, path)
        client.post(f"{path}/cancel")
        assert client.get(f"{path}/preview").status_code == 404
        wait_for("the end", lambda: client.get(path).json()["status"] == "canceled")
        assert client.get(f"{path}/preview").status_code == 404
