"""From an HTTP request to a picture in storage, through real processes and the model in the box."""

from __future__ import annotations

import base64
import hashlib
import io
import time
from collections.abc import Iterator

import httpx
import pytest
import redis
from PIL import Image

from service.jobs.keys import key
from service.settings.groups import RedisSettings
from tests.e2e.processes import Gateway, Service, draw, wait_for


@pytest.fixture(scope="module")
def gateway(service: Service) -> Gateway:
    service.agent()
    gateway = service.gateway()
    gateway.wait_for_workers()
    return gateway


@pytest.fixture
def client(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.client() as client:
        yield client


def picture(client: httpx.Client, resource: dict, index: int = 0) -> bytes:
    assert resource["status"] == "succeeded", resource
    reply = client.get(resource["images"][index]["url"], follow_redirects=True)
    assert reply.status_code == 200, reply.text
    return reply.content


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def encoded(image: Image.Image) -> dict[str, str]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"base64": base64.b64encode(buffer.getvalue()).decode()}


def test_a_request_is_accepted_polled_and_drawn(client: httpx.Client) -> None:
    reply = client.post("/v1/generations", json={"prompt": "a red apple", "width": 128, "height": 64, "steps": 4})
    assert reply.status_code == 202
    assert reply.json()["status"] == "queued"
    location = reply.headers["Location"]
    assert location == f"/v1/generations/{reply.json()['id']}"
    seen = []

    def ended() -> dict | None:
        resource = client.get(location).json()
        seen.append(resource["status"])
        return resource if resource["status"] not in {"queued", "running"} else None

    resource = wait_for("the end", ended)
    assert set(seen) <= {"queued", "running", "succeeded"}
    data = picture(client, resource)
    (told,) = resource["images"]
    assert opened(data).format == "PNG"
    assert opened(data).size == (128, 64) == (told["width_px"], told["height_px"])
    assert hashlib.sha256(data).hexdigest() == told["sha256"]
    assert len(data) == told["bytes"]
    assert not opened(data).info
    assert resource["timings"]["denoise_s"] > 0
    assert resource["request"]["scheduler"] == "ddim"
    assert resource["receipt"]["model_sha256"]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(client: httpx.Client) -> None:
    first, again, other = (draw(client, seed=seed, steps=6) for seed in (7, 7, 8))
    assert picture(client, first) == picture(client, again)
    assert picture(client, first) != picture(client, other)


def test_image_i_of_several_is_the_one_of_seed_plus_i(client: httpx.Client) -> None:
    several = draw(client, seed=20, num_images=3, steps=4)
    assert [image["seed"] for image in several["images"]] == [20, 21, 22]
    alone = draw(client, seed=21, steps=4)
    assert picture(client, several, 1) == picture(client, alone)


def test_a_deterministic_rerun_is_the_same_picture_to_the_bit_also_in_company(client: httpx.Client) -> None:
    inputs = {"image": encoded(Image.effect_noise((64, 64), 80)), "mask": encoded(Image.new("L", (64, 64), 255))}
    first = draw(client, task="inpaint", steps=12, strength=0.9, deterministic=True, seed=11, num_images=2, **inputs)
    data = [picture(client, first, index) for index in range(2)]
    location = f"/v1/generations/{first['id']}"
    company = [client.post("/v1/generations", json={"prompt": "x", "steps": 20}).json() for _ in range(3)]
    rerun = client.post(f"{location}/rerun")
    assert rerun.status_code == 202, rerun.text
    # The copies of the inputs outlive the original.
    assert client.delete(location).status_code == 204
    again = client.get(rerun.headers["Location"], headers={"Prefer": "wait=60"}).json()
    assert again["status"] == "succeeded", again
    assert [picture(client, again, index) for index in range(2)] == data
    assert again["rerun_of"] == first["id"]
    assert again["receipt"] == first["receipt"]
    assert again["request"] == first["request"]
    for each in company:
        done = client.get(f"/v1/generations/{each['id']}", headers={"Prefer": "wait=60"}).json()
        assert done["status"] == "succeeded"


def test_a_red_circle_on_a_blue_background_is_one(client: httpx.Client) -> None:
    data = picture(client, draw(client, prompt="a red circle on a blue background", seed=3))
    image = opened(data).convert("RGB")
    red, green, blue = image.getpixel((32, 32))
    assert red > 150
    assert max(green, blue) < 110
    for corner in ((2, 2), (61, 2), (2, 61), (61, 61)):
        red, green, blue = image.getpixel(corner)
        assert blue > 120
        assert blue > max(red, green) + 40


def test_one_post_answers_the_picture_itself(client: httpx.Client) -> None:
    reply = client.post(
        "/v1/generations", json={"prompt": "a lemon", "steps": 4}, headers={"Accept": "image/png", "Prefer": "wait=60"}
    )
    assert reply.status_code == 200, reply.text
    assert reply.headers["Content-Type"] == "image/png"
    assert opened(reply.content).size == (64, 64)


@pytest.mark.parametrize(("name", "kind"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_other_formats_and_parameters_on_request(client: httpx.Client, name: str, kind: str) -> None:
    resource = draw(client, steps=4, output={"format": name, "quality": 90, "embed_parameters": True})
    data = picture(client, resource)
    assert opened(data).format == kind
    comment = opened(data).getexif().get_ifd(0x8769)[0x9286]
    assert comment.removeprefix(b"UNICODE\0").decode("utf-16-be").startswith("a red circle on a blue background\n")


def test_a_picture_that_does_not_decode_ends_the_job_with_a_reason(client: httpx.Client) -> None:
    whole = base64.b64decode(encoded(Image.effect_noise((64, 64), 80))["base64"])
    broken = base64.b64encode(whole[:300]).decode()
    resource = draw(client, task="image-to-image", image={"base64": broken})
    assert resource["status"] == "failed"
    assert resource["error"]["code"] == "invalid_input"
    assert resource["error"]["retryable"] is False


def test_a_prompt_over_the_encoders_length_is_refused_not_cut(client: httpx.Client) -> None:
    resource = draw(client, prompt="apple " * 90)
    assert resource["status"] == "failed"
    assert resource["error"]["code"] == "prompt_too_long"
    assert "75" in resource["error"]["message"]


def test_a_running_job_is_canceled_within_a_step(client: httpx.Client) -> None:
    reply = client.post(
        "/v1/generations", json={"prompt": "x", "steps": 150, "num_images": 4, "width": 128, "height": 128}
    )
    location = reply.headers["Location"]
    wait_for("progress", lambda: (client.get(location).json().get("progress") or {}).get("step", 0) > 0)
    canceled_s = time.monotonic()
    assert client.post(f"{location}/cancel").status_code == 200
    resource = client.get(location, headers={"Prefer": "wait=20"}).json()
    assert resource["status"] == "canceled"
    assert time.monotonic() - canceled_s < 5
    assert draw(client, steps=4)["status"] == "succeeded"
    assert client.post(f"{location}/cancel").json()["status"] == "canceled"


def test_an_erased_job_is_gone_with_its_objects(
    client: httpx.Client, service: Service, redis_settings: RedisSettings
) -> None:
    resource = draw(client, steps=4)
    location = f"/v1/generations/{resource['id']}"
    link = client.get(resource["images"][0]["url"]).headers["Location"]
    assert httpx.get(link).status_code == 200
    assert client.delete(location).status_code == 204
    assert client.get(location).status_code == 410
    assert client.get(resource["images"][0]["url"]).status_code == 410
    with redis.Redis.from_url(redis_settings.url.get_secret_value()) as store:
        wait_for("the record to go", lambda: store.exists(key("job", resource["id"])) == 0)
    assert httpx.get(link).status_code == 404


def test_a_drained_agent_hands_its_job_to_the_next_one(
    client: httpx.Client, service: Service, gateway: Gateway
) -> None:
    second = service.agent("drained", DARKROOM_DRAIN_S="0.5")
    gateway.wait_for_workers(2)
    locations = [
        client.post("/v1/generations", json={"prompt": "x", "steps": 60, "num_images": 2}).headers["Location"]
        for _ in range(4)
    ]
    wait_for("both agents to draw", lambda: [client.get(x).json()["status"] for x in locations].count("running") >= 2)
    second.terminate()
    assert second.wait(20) == 0
    for location in locations:
        resource = client.get(location, headers={"Prefer": "wait=60"}).json()
        assert resource["status"] == "succeeded"
        assert resource["attempt"] == 1


def test_neither_agent_nor_engine_writes_a_prompt_down(client: httpx.Client, service: Service) -> None:
    """The engine's lines stand among its agent's."""
    drawn = draw(client, prompt="a xyzzy", negative_prompt="no xyzzy", labels={"order": "xyzzy"}, steps=4)
    refused = draw(client, prompt="xyzzy " * 90)
    assert (drawn["status"], refused["error"]["code"]) == ("succeeded", "prompt_too_long")
    text = "".join(path.read_text("utf-8", errors="replace") for path in service.folder.glob("*.log"))
    assert drawn["id"] in text
    assert "model_loaded" in text
    assert "xyzzy" not in text
