"""Uploads as a caller makes them: declared, sent to the storage by their form, drawn from."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx

from tests.gateway import picture

PATH = "/v1/uploads"
GENERATIONS = "/v1/generations"
PNG = picture(40, 32)


def declared(data: bytes = PNG, **changed: Any) -> dict[str, Any]:
    return {
        "content_type": "image/png",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    } | changed


async def made(api: httpx.AsyncClient, data: bytes = PNG, **changed: Any) -> dict[str, Any]:
    response = await api.post(PATH, json=declared(data, **changed))
    assert response.status_code == 201, response.text
    return response.json()


async def sent(form: dict[str, Any], data: bytes = PNG, **changed: str) -> int:
    assert form["method"] == "POST"
    async with httpx.AsyncClient() as outside:
        fields = {**form["fields"], **changed}
        return (await outside.post(form["url"], data=fields, files={"file": ("a", data)})).status_code


async def uploaded(api: httpx.AsyncClient, data: bytes = PNG, **changed: Any) -> str:
    upload = await made(api, data, **changed)
    assert await sent(upload["form"], data) == 204
    return upload["id"]


async def drawn_from(api: httpx.AsyncClient, upload_id: str, *, key: str | None = None) -> httpx.Response:
    body = {"prompt": "x", "task": "image-to-image", "image": {"upload_id": upload_id}}
    return await api.post(GENERATIONS, json=body, headers={"Idempotency-Key": key} if key else {})
