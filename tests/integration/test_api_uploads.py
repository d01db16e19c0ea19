"""Uploads over HTTP, with files sent to a real storage: what a form takes, what is drawn from, what is left."""

from __future__ import annotations

import asyncio
import hashlib
import time
from datetime import datetime
from typing import Any

import httpx
import pytest
import redis

from service.contract.job import Job
from service.jobs.store import JobStore
from service.settings.gateway import GatewaySettings
from service.settings.groups import StorageSettings
from service.storage.errors import ObjectMissing
from service.storage.keys import checked_key, job_prefix, sent_key
from service.storage.s3 import ObjectStorage
from tests.gateway import EMOJI, SHAPES, Hand, gateway_settings, make_key, picture, serving, show_models
from tests.uploads import GENERATIONS, PATH, PNG, declared, drawn_from, made, sent, uploaded

pytestmark = pytest.mark.anyio


async def refused(api: httpx.AsyncClient, upload_id: str) -> str:
    response = await drawn_from(api, upload_id)
    assert response.status_code == 422, response.text
    (error,) = response.json()["errors"]
    assert error["pointer"] == "/image/upload_id"
    assert (await api.get(GENERATIONS)).json()["data"] == []
    return error["detail"]


def prefix_of(upload: dict[str, Any], tenant: str = "acme") -> str:
    created = datetime.fromisoformat(upload["created_at"])
    return job_prefix(tenant, int(created.timestamp() * 1000), upload["id"])


def erase_all(client: redis.Redis, storage: ObjectStorage) -> None:
    """What agents do when time has passed."""
    agent = JobStore(client, clock=lambda: 2 * 10**12)
    for prefix in agent.due_erasures(limit=100):
        storage.delete_prefix(prefix)
        agent.forget(prefix)


def is_there(storage: ObjectStorage, key: str) -> bool:
    try:
        storage.size_bytes(key)
    except ObjectMissing:
        return False
    return True


async def test_a_file_is_sent_to_the_storage_and_drawn_from(
    api: httpx.AsyncClient, hand: Hand, storage: ObjectStorage
) -> None:
    upload = await made(api)
    assert (upload["status"], upload["width_px"]) == ("waiting", None)
    where = f"{PATH}/{upload['id']}"
    assert (await api.get(where)).json() == {**upload, "form": None}
    assert await sent(upload["form"]) == 204
    assert (await api.get(where)).json()["status"] == "received"
    response = await drawn_from(api, upload["id"])
    assert response.status_code == 202, response.text
    assert response.json()["request"]["image"] == {
        "format": "png", "width_px": 40, "height_px": 32, "bytes": len(PNG),
        "sha256": hashlib.sha256(PNG).hexdigest(),
    }  # fmt: skip
    ready = (await api.get(where)).json()
    assert (ready["status"], ready["width_px"], ready["height_px"]) == ("ready", 40, 32)
    assert ready["expires_at"] > upload["expires_at"]
    job = hand.claim()
    assert job.spec.image
    assert job.spec.image.key.startswith(job.object_prefix)
    assert storage.get(job.spec.image.key, max_bytes=10**6) == PNG
    assert not is_there(storage, sent_key(prefix_of(upload)))


async def test_an_upload_serves_as_many_generations_as_wanted_at_once_too(
    api: httpx.AsyncClient, hand: Hand, storage: ObjectStorage
) -> None:
    upload_id = await uploaded(api)
    replies = await asyncio.gather(*[drawn_from(api, upload_id) for _ in range(6)])
    assert {reply.status_code for reply in replies} == {202}
    assert (await drawn_from(api, upload_id)).status_code == 202
    jobs = [hand.claim() for _ in range(7)]
    keys = {job.spec.image.key for job in jobs if job.spec.image}
    assert len(keys) == 7
    assert {storage.get(key, max_bytes=10**6) for key in keys} == {PNG}


async def test_image_and_mask_may_be_one_upload(api: httpx.AsyncClient, hand: Hand) -> None:
    asset = {"upload_id": await uploaded(api)}
    response = await api.post(GENERATIONS, json={"prompt": "x", "task": "inpaint", "image": asset, "mask": asset})
    assert response.status_code == 202, response.text
    spec = hand.claim().spec
    assert spec.image
    assert spec.mask
    assert spec.image.key != spec.mask.key


async def test_what_is_sent_after_the_look_is_not_drawn(
    api: httpx.AsyncClient, hand: Hand, storage: ObjectStorage
) -> None:
    upload = await made(api)
    await sent(upload["form"])
    await drawn_from(api, upload["id"])
    other = PNG[:-1] + b"?"
    assert await sent(upload["form"], other) == 204
    await drawn_from(api, upload["id"])
    for job in (hand.claim(), hand.claim()):
        assert job.spec.image
        assert storage.get(job.spec.image.key, max_bytes=10**6) == PNG


async def test_a_job_keeps_its_copy_and_each_goes_with_its_own_record(
    api: httpx.AsyncClient, hand: Hand, storage: ObjectStorage, redis_client: redis.Redis
) -> None:
    upload = await made(api)
    await sent(upload["form"])
    first, second = (await drawn_from(api, upload["id"])).json(), (await drawn_from(api, upload["id"])).json()
    jobs: list[Job] = [hand.claim(), hand.claim()]
    hand.draw(jobs[0])
    hand.draw(jobs[1])
    keys = [job.spec.image.key for job in jobs if job.spec.image]
    checked = checked_key(prefix_of(upload), upload["sha256"], "png")
    assert [is_there(storage, key) for key in [*keys, checked]] == [True, True, True]

    assert (await api.delete(f"{PATH}/{upload['id']}")).status_code == 204
    agent = JobStore(redis_client)
    for prefix in agent.due_erasures():
        storage.delete_prefix(prefix)
    assert [is_there(storage, key) for key in [*keys, checked]] == [True, True, False]
    assert (await api.delete(f"{GENERATIONS}/{first['id']}")).status_code == 204
    for prefix in agent.due_erasures():
        storage.delete_prefix(prefix)
    assert [is_there(storage, key) for key in keys] == [False, True]
    assert (await api.get(f"{GENERATIONS}/{second['id']}")).status_code == 200
    erase_all(redis_client, storage)
    assert [is_there(storage, key) for key in keys] == [False, False]


async def test_whatever_is_sent_before_and_after_an_end_is_erased(
    api: httpx.AsyncClient, storage: ObjectStorage, redis_client: redis.Redis
) -> None:
    kept, gone = await made(api), await made(api)
    await sent(kept["form"])
    assert (await api.delete(f"{PATH}/{gone['id']}")).status_code == 204
    agent = JobStore(redis_client)
    for prefix in agent.due_erasures():
        storage.delete_prefix(prefix)
        agent.forget(prefix)
    # The form is a signature: the storage takes it until it ends.
    assert await sent(gone["form"]) == 204
    keys = [sent_key(prefix_of(each)) for each in (kept, gone)]
    assert [is_there(storage, key) for key in keys] == [True, True]
    erase_all(redis_client, storage)
    assert [is_there(storage, key) for key in keys] == [False, False]
    assert redis_client.zcard("dr:erasures") == 0


async def test_a_file_that_did_not_come_is_told(api: httpx.AsyncClient) -> None:
    assert "send the file with the upload's form first" in await refused(api, (await made(api))["id"])


async def test_a_file_that_is_not_the_declared_one_is_told_and_may_be_sent_again(api: httpx.AsyncClient) -> None:
    upload = await made(api)
    assert await sent(upload["form"], PNG[:-1] + b"?") == 204
    assert "its SHA-256 differs" in await refused(api, upload["id"])
    assert await sent(upload["form"]) == 204
    assert (await drawn_from(api, upload["id"])).status_code == 202


@pytest.mark.parametrize(
    ("data", "content_type", "told"),
    [
        (b"<svg>" + b" " * 100, "image/png", "must be a PNG, JPEG or WebP file; this is an SVG"),
        (picture(image_format="jpeg"), "image/png", "declared as image/png, and is none"),
        (picture(1700, 100), "image/png", "16 times as long"),
        (PNG[:30], "image/png", "cut off or damaged"),
    ],
)
async def test_a_file_that_is_no_picture_as_we_take_it_is_refused(
    api: httpx.AsyncClient, data: bytes, content_type: str, told: str
) -> None:
    assert told in await refused(api, await uploaded(api, data, content_type=content_type))


@pytest.mark.parametrize("data", [PNG[:-1], PNG + b"x"], ids=["shorter", "longer"])
async def test_the_form_takes_no_other_size(api: httpx.AsyncClient, data: bytes) -> None:
    upload = await made(api)
    assert await sent(upload["form"], data) == 400
    assert (await api.get(f"{PATH}/{upload['id']}")).json()["status"] == "waiting"


async def test_the_form_takes_no_other_type(api: httpx.AsyncClient) -> None:
    assert await sent((await made(api))["form"], **{"Content-Type": "text/html"}) == 403


async def test_another_tenants_upload_is_as_unknown_as_an_invented_one(
    api: httpx.AsyncClient, settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    upload_id = await uploaded(api)
    async with serving(settings, key=make_key(redis_client, "other")) as theirs:
        told = await refused(theirs, upload_id)
        assert told == await refused(theirs, "upl_" + "0" * 40) == await refused(theirs, "no id at all")
        for method in ("GET", "DELETE"):
            response = await theirs.request(method, f"{PATH}/{upload_id}")
            assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert (await api.get(f"{PATH}/{upload_id}")).status_code == 200


async def test_what_was_deleted_is_gone(api: httpx.AsyncClient) -> None:
    upload_id = await uploaded(api)
    assert (await api.delete(f"{PATH}/{upload_id}")).status_code == 204
    for method in ("GET", "DELETE"):
        assert (await api.request(method, f"{PATH}/{upload_id}")).status_code == 410
    assert "neither expired nor deleted" in await refused(api, upload_id)
    assert (await api.get(f"{PATH}/upl_{'0' * 40}")).status_code == 404


async def test_what_has_expired_is_gone(api: httpx.AsyncClient, redis_client: redis.Redis) -> None:
    upload_id = await uploaded(api)
    redis_client.pexpire(f"dr:upload:{upload_id}", 1)
    deadline = time.monotonic() + 5
    while redis_client.exists(f"dr:upload:{upload_id}"):
        assert time.monotonic() < deadline
    assert (await api.get(f"{PATH}/{upload_id}")).status_code == 410
    assert "neither expired nor deleted" in await refused(api, upload_id)


async def test_a_form_ends_before_its_upload_does(settings: GatewaySettings, redis_client: redis.Redis) -> None:
    short = gateway_settings(settings.redis, settings.storage, uploads={"ttl_s": 60})
    async with serving(short, key=make_key(redis_client)) as api:
        upload = await made(api)
        assert upload["form"]["expires_at"] <= upload["expires_at"]
    async with serving(settings, key=make_key(redis_client, "other")) as api:
        upload = await made(api)
        assert upload["form"]["expires_at"] < upload["expires_at"]


async def test_the_form_is_for_the_public_address_and_our_calls_for_the_inner_one(
    settings: GatewaySettings, storage_settings: StorageSettings, redis_client: redis.Redis
) -> None:
    show_models(redis_client, SHAPES, EMOJI)
    public = storage_settings.model_copy(update={"public_endpoint": "https://pictures.example.com"})
    async with serving(gateway_settings(settings.redis, public), key=make_key(redis_client)) as api:
        upload = await made(api)
        assert upload["form"]["url"] == f"https://pictures.example.com/{public.bucket}"
        # The signature covers the policy, not the address: the storage takes it by its inner name too.
        inner = f"{public.endpoint}/{public.bucket}"
        assert await sent({**upload["form"], "url": inner}) == 204
        assert (await drawn_from(api, upload["id"])).status_code == 202


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"bytes": 0}, {"/bytes"}),
        ({"bytes": True}, {"/bytes"}),
        ({"bytes": 16 * 2**20 + 1}, {"/bytes"}),
        ({"content_type": "image/gif", "sha256": "A" * 64}, {"/content_type", "/sha256"}),
        ({"sha256": "0" * 63}, {"/sha256"}),
        ({"filename": "../../x"}, {"/filename"}),
    ],
)
async def test_a_wrong_declaration_is_422_with_what_is_allowed(
    api: httpx.AsyncClient, redis_client: redis.Redis, changed: dict[str, Any], where: set[str]
) -> None:
    response = await api.post(PATH, json=declared(**changed))
    assert response.status_code == 422
    assert {error["pointer"] for error in response.json()["errors"]} == where
    assert redis_client.zcard("dr:erasures") == 0


async def test_messages_say_what_a_declaration_takes(api: httpx.AsyncClient) -> None:
    response = await api.post(PATH, json={"content_type": "x", "bytes": "1", "sha256": "", "byte": 1})
    told = {error["pointer"]: error["detail"] for error in response.json()["errors"]}
    assert told == {
        "/content_type": "must be one of image/png, image/jpeg, image/webp",
        "/bytes": "must be a whole number, 1 to 268435456 bytes",
        "/sha256": "must be 64 lower-case hex digits: the SHA-256 over the file",
        "/byte": "is not a field of this request; did you mean bytes?",
    }


async def test_a_repeated_creation_is_the_same_upload(api: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "file-7"}
    first = await api.post(PATH, json=declared(), headers=headers)
    again = await api.post(PATH, json=declared(), headers=headers)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"] == f"{PATH}/{first.json()['id']}"
    assert await sent(again.json()["form"]) == 204
    assert (await api.post(PATH, json=declared(PNG + b"x"), headers=headers)).status_code == 422
    # The same key for a generation is another call.
    assert (await drawn_from(api, first.json()["id"], key="file-7")).status_code == 202
    used = await api.post(PATH, json=declared(), headers=headers)
    assert (used.json()["status"], used.json()["form"]) == ("ready", None)
    await api.delete(f"{PATH}/{first.json()['id']}")
    assert (await api.post(PATH, json=declared(), headers=headers)).status_code == 410


async def test_a_repeated_generation_does_not_need_its_upload_any_more(api: httpx.AsyncClient) -> None:
    upload_id = await uploaded(api)
    first = await drawn_from(api, upload_id, key="order-1")
    await api.delete(f"{PATH}/{upload_id}")
    again = await drawn_from(api, upload_id, key="order-1")
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert again.headers["Idempotency-Replayed"] == "true"


async def test_inputs_of_a_job_that_was_refused_are_erased_and_the_upload_stays(
    settings: GatewaySettings, redis_client: redis.Redis, storage: ObjectStorage
) -> None:
    show_models(redis_client, SHAPES, EMOJI)
    small = gateway_settings(settings.redis, settings.storage, admission={"queue_limit": 1})
    async with serving(small, key=make_key(redis_client)) as api:
        upload_id = await uploaded(api)
        assert (await drawn_from(api, upload_id)).status_code == 202
        assert (await drawn_from(api, upload_id)).status_code == 503
        due = dict(redis_client.zrange("dr:erasures", 0, -1, withscores=True))
        assert sorted(score == 0 for score in due.values()) == [False, True]
        (refused_prefix,) = [prefix for prefix, score in due.items() if score == 0]
        assert "/gen_" in refused_prefix
        assert storage.delete_prefix(refused_prefix) == 1
        assert (await api.get(f"{PATH}/{upload_id}")).json()["status"] == "ready"


async def test_while_the_storage_is_away_uploads_are_made_and_not_used(
    settings: GatewaySettings, redis_client: redis.Redis, free_tcp_port: int
) -> None:
    show_models(redis_client, SHAPES, EMOJI)
    away = settings.storage.model_copy(update={"endpoint": f"http://127.0.0.1:{free_tcp_port}"})
    async with serving(gateway_settings(settings.redis, away), key=make_key(redis_client)) as api:
        upload = await made(api)
        response = await drawn_from(api, upload["id"])
        assert (response.status_code, response.json()["code"]) == (503, "unavailable")
