"""Generations sent as a form of JSON and files."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import httpx
import pytest
import redis

from service.settings.gateway import GatewaySettings
from service.storage.s3 import ObjectStorage
from tests.gateway import EMOJI, SHAPES, Hand, gateway_settings, make_key, picture, serving, show_models

pytestmark = pytest.mark.anyio

PATH = "/v1/generations"
PNG, WEBP = picture(), picture(image_format="webp", color="white")
FROM_PICTURE = {"prompt": "x", "task": "image-to-image"}

#: A name, and (file name, data, content type) as httpx takes them.
Files = list[tuple[str, tuple[str | None, bytes, str | None]]]


def form(body: dict[str, Any] | None = None, **files: bytes) -> Files:
    request = json.dumps(FROM_PICTURE if body is None else body).encode()
    return [
        ("request", (None, request, "application/json")),
        *((name, ("a", data, "image/png")) for name, data in files.items()),
    ]


async def send(api: httpx.AsyncClient, files: Files, **headers: str) -> httpx.Response:
    return await api.post(PATH, files=files, headers={name.replace("_", "-"): text for name, text in headers.items()})


async def refused(api: httpx.AsyncClient, files: Files) -> dict[str, str]:
    response = await send(api, files)
    assert response.status_code == 422, response.text
    assert (await api.get(PATH)).json()["data"] == []
    return {error["pointer"]: error["detail"] for error in response.json()["errors"]}


async def test_files_take_the_place_of_the_pictures(api: httpx.AsyncClient, hand: Hand, storage: ObjectStorage) -> None:
    response = await send(api, form({"prompt": "x", "task": "inpaint"}, image=PNG, mask=WEBP))
    assert response.status_code == 202, response.text
    assert response.json()["request"]["image"] == {
        "format": "png", "width_px": 64, "height_px": 64, "bytes": len(PNG), "sha256": hashlib.sha256(PNG).hexdigest(),
    }  # fmt: skip
    spec = hand.claim().spec
    assert spec.image
    assert spec.mask
    assert storage.get(spec.image.key, max_bytes=10**6) == PNG
    assert storage.get(spec.mask.key, max_bytes=10**6) == WEBP


async def test_the_request_may_be_text_or_a_file_and_stand_anywhere(api: httpx.AsyncClient) -> None:
    text = json.dumps(FROM_PICTURE).encode()
    for request in ((None, text, None), (None, text, "text/plain"), ("r.json", text, "application/json")):
        response = await send(api, [("image", ("../../etc/passwd", PNG, None)), ("request", request)])
        assert response.status_code == 202, response.text
        assert "passwd" not in response.text


async def test_without_files_it_is_as_json(api: httpx.AsyncClient) -> None:
    files: Files = [("request", (None, b'{"prompt": "x", "seed": 7}', None))]
    response = await send(api, files)
    assert (response.status_code, response.json()["request"]["seed"]) == (202, 7)


async def test_fields_are_judged_as_in_json_and_all_at_once(api: httpx.AsyncClient) -> None:
    told = await refused(api, form({"prompt": "x", "steps": "4", "stepps": 1}, image=PNG))
    assert set(told) == {"/steps", "/stepps", "/image"}
    assert "has no place in text-to-image" in told["/image"]


async def test_a_picture_is_given_once(api: httpx.AsyncClient) -> None:
    for asset in ({"base64": "AAAA"}, {"upload_id": "x"}, {}, "text", False):
        assert await refused(api, form({**FROM_PICTURE, "image": asset}, image=PNG)) == {
            "/image": "is given twice, here and as a file"
        }
    assert (await send(api, form({**FROM_PICTURE, "image": None}, image=PNG))).status_code == 202


async def test_a_file_that_is_no_picture_is_told_at_its_name(api: httpx.AsyncClient) -> None:
    assert await refused(api, form(image=b"<svg>")) == {"/image": "must be a PNG, JPEG or WebP file; this is an SVG"}
    assert set(await refused(api, form(image=b""))) == {"/image"}


async def test_json_makes_no_file(api: httpx.AsyncClient) -> None:
    for asset in ({"data": "AAAA"}, {"data": "AAAA", "base64": "AAAA"}):
        response = await api.post(PATH, json={**FROM_PICTURE, "image": asset})
        assert response.status_code == 422
        assert "/image/data" in {error["pointer"] for error in response.json()["errors"]}


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([("image", ("a", PNG, None))], {"request": "is required"}),
        ([*form(), ("image", ("a", PNG, None)), ("image", ("a", PNG, None))], {"image": "is given twice"}),
        ([*form(), *form()], {"request": "is given twice"}),
        ([*form(), ("images", ("a", PNG, None))], {"images": "is not a part"}),
        ([*form(), ("../x y", ("a", PNG, None))], {"part 2": "is not a part"}),
        ([("request", (None, b"{}", "image/png"))], {"request": "must be application/json"}),
        ([*form(), ("mask", (None, PNG, "multipart/mixed; boundary=b"))], {"mask": "not a form of its own"}),
    ],
    ids=["no request", "two images", "two requests", "unknown", "unknown and strange", "type", "nested"],
)
async def test_other_parts_are_refused_at_their_names(
    api: httpx.AsyncClient, files: Files, told: dict[str, str]
) -> None:
    found = await refused(api, files)
    assert set(found) == set(told)
    assert all(text in found[where] for where, text in told.items())


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("multipart/form-data", b"--b\r\n", 415),
        ("multipart/form-data; boundary=b; charset=x", b"--b\r\n", 415),
        ("multipart/mixed; boundary=b", b"--b\r\n", 415),
        ("application/x-www-form-urlencoded", b"request={}", 415),
        ("multipart/form-data; boundary=b", b"", 400),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="request"\r\n\r\n{"pro', 400),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Disposition: form-data; name=request\r\n\r\n[]\r\n--b--",
            400,
        ),
        ("multipart/form-data; boundary=b", b"--b\r\nX: MARKER\r\n\r\n\r\n" * 10_000 + b"--b--", 400),
    ],
)
async def test_what_is_no_form_is_refused_without_an_echo(
    api: httpx.AsyncClient, content_type: str, body: bytes, status: int
) -> None:
    response = await api.post(PATH, content=body, headers={"Content-Type": content_type})
    assert response.status_code == status, response.text
    assert "MARKER" not in response.text
    assert (await api.get(PATH)).json()["data"] == []


async def test_the_part_with_the_json_is_named_in_what_is_wrong_with_it(api: httpx.AsyncClient) -> None:
    files: Files = [("request", (None, b'{"prompt": NaN}', None))]
    bad_depth: Files = [("request", (None, b"", None))]
    assert (await send(api, files)).json()["code"] == "malformed_request"
    assert (await send(api, bad_depth)).json()["detail"] == "The part `request` is empty; send a JSON object."


async def test_a_repeated_form_is_the_same_generation_whatever_its_boundary(api: httpx.AsyncClient) -> None:
    first = await send(api, form(image=PNG), idempotency_key="order-1")
    again = await send(api, form(image=PNG), idempotency_key="order-1")
    assert first.request.headers["content-type"] != again.request.headers["content-type"]
    assert (again.json()["id"], again.headers["Idempotency-Replayed"]) == (first.json()["id"], "true")
    for other in (form(image=WEBP), form({**FROM_PICTURE, "seed": 1}, image=PNG), form(image=PNG, mask=PNG)):
        response = await send(api, other, idempotency_key="order-1")
        assert response.status_code == 422, response.text


async def test_a_form_has_the_limit_of_any_body(settings: GatewaySettings, redis_client: redis.Redis) -> None:
    show_models(redis_client, SHAPES, EMOJI)
    small = gateway_settings(settings.redis, settings.storage, http={"body_limit_bytes": 65_536})
    async with serving(small, key=make_key(redis_client)) as api:
        response = await send(api, form(image=PNG + b"\0" * 65_536))
        assert (response.status_code, response.json()["code"]) == (413, "request_too_large")


async def test_without_keys_a_form_needs_what_no_web_page_sends_unasked(
    settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    show_models(redis_client, SHAPES, EMOJI)
    open_to_all = gateway_settings(settings.redis, settings.storage, auth="none")
    async with serving(open_to_all) as api:
        response = await send(api, form(image=PNG))
        assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")
        assert "X-Darkroom: 1" in response.json()["detail"]
        assert (await send(api, form(image=PNG), x_darkroom="yes")).status_code == 415
        assert (await send(api, form(image=PNG), x_darkroom="1", origin="http://evil.example")).status_code == 403
        plain = await api.post(PATH, content=b"{}", headers={"Content-Type": "text/plain", "X-Darkroom": "1"})
        assert plain.status_code == 415
        assert (await send(api, form(image=PNG), x_darkroom="1")).status_code == 202


async def test_a_form_is_validated_as_it_is_created(api: httpx.AsyncClient, redis_client: redis.Redis) -> None:
    response = await api.post(f"{PATH}/validate", files=form(image=PNG))
    assert response.status_code == 200, response.text
    created = await send(api, form({**FROM_PICTURE, "seed": response.json()["request"]["seed"]}, image=PNG))
    assert response.json()["request"] == created.json()["request"]
    refusal = await api.post(f"{PATH}/validate", files=form(image=b"<svg>"))
    assert [error["pointer"] for error in refusal.json()["errors"]] == ["/image"]
    assert len((await api.get(PATH)).json()["data"]) == 1
