"""The job resource over HTTP: a real app, a real Valkey, a real S3."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from typing import Any

import httpx
import pytest
import redis

from service.contract.errors import FailureCode
from service.settings.gateway import GatewaySettings
from service.storage.s3 import ObjectStorage
from service.tenants.records import TenantLimits
from tests.gateway import (
    EMOJI,
    SHAPES,
    Hand,
    gateway_settings,
    lasting,
    make_key,
    picture,
    serving,
    show_models,
)

pytestmark = pytest.mark.anyio

PATH = "/v1/generations"


async def create(api: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await api.post(PATH, json={"prompt": "a red circle", **fields})
    assert response.status_code == 202, response.text
    return response.json()


async def claimed(hand: Hand) -> Any:
    return await asyncio.to_thread(hand.claim)


async def test_an_accepted_generation_is_202_with_its_location_and_every_default(api: httpx.AsyncClient) -> None:
    response = await api.post(PATH, json={"prompt": "a red circle"})
    resource = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"{PATH}/{resource['id']}" == resource["urls"]["self"]
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert re.fullmatch("gen_[0-9a-v]{40}", resource["id"])
    assert resource["status"] == "queued"
    asked = resource["request"]
    assert asked.items() >= {"model": "shapes", "width": 64, "height": 64, "steps": 20, "scheduler": "ddim"}.items()
    assert asked.items() >= {"guidance_scale": 3.0, "num_images": 1, "priority": "normal"}.items()
    assert 0 <= asked["seed"] < 2**53


async def test_what_was_accepted_is_what_is_read_back(api: httpx.AsyncClient) -> None:
    created = await create(api, seed=7, labels={"order": "12"}, start_within_s=60, finish_within_s=90, retain_s=120)
    read = (await api.get(created["urls"]["self"])).json()
    # Redis' clock has the last word on the moment; until then it is the gateway's.
    assert created.pop("created_at")[:16] == read.pop("created_at")[:16]
    assert lasting(read) == lasting(created)
    assert read["request"].items() >= {"start_within_s": 60, "finish_within_s": 90, "retain_s": 120}.items()


async def test_a_drawn_generation_has_pictures_behind_stable_links(api: httpx.AsyncClient, hand: Hand) -> None:
    created = await create(api, num_images=2, seed=5, output={"format": "webp"})
    job = await claimed(hand)
    hand.step(job, 3, 12)
    running = (await api.get(created["urls"]["self"])).json()
    assert running["status"] == "running"
    steps = {"phase": "denoise", "step": 3, "steps": 12, "fraction": 0.25}
    running["progress"].pop("estimated_finish_s")
    assert running["progress"] == {**steps, "preview_url": None}
    data = hand.draw(job)
    ended = (await api.get(created["urls"]["self"])).json()
    assert ended["status"] == "succeeded"
    assert ended["progress"] is None
    assert [image["seed"] for image in ended["images"]] == [5, 6]
    assert ended["images"][1]["url"] == f"{created['urls']['self']}/images/1"
    assert ended["images"][0]["sha256"] == hashlib.sha256(data).hexdigest()
    redirect = await api.get(ended["images"][1]["url"])
    assert redirect.status_code == 302
    async with httpx.AsyncClient() as anyone:
        fetched = await anyone.get(redirect.headers["location"])
    assert fetched.content == data
    assert fetched.headers["content-type"] == "image/webp"
    assert fetched.headers["content-disposition"].startswith("attachment")
    inline = await api.get(ended["images"][0]["url"], params={"inline": "true"})
    assert "inline" in inline.headers["location"]


@pytest.mark.parametrize("number", ["1", "2", "-1", "00", "1.0", "x", "１"])
async def test_a_picture_that_is_not_there_is_404(api: httpx.AsyncClient, hand: Hand, number: str) -> None:
    created = await create(api)
    before = await api.get(f"{created['urls']['self']}/images/0")
    assert before.status_code == 404
    assert "queued" in before.json()["detail"]
    hand.draw(await claimed(hand))
    assert (await api.get(f"{created['urls']['self']}/images/{number}")).status_code == 404


async def test_a_withheld_picture_is_told_and_404(api: httpx.AsyncClient, hand: Hand) -> None:
    created = await create(api)
    hand.flag(await claimed(hand))
    ended = (await api.get(created["urls"]["self"])).json()
    assert ended["images"][0].items() >= {"flagged": True, "url": None}.items()
    assert (await api.get(f"{created['urls']['self']}/images/0")).status_code == 404


async def test_waiting_creation_answers_200_when_it_ends_in_time(api: httpx.AsyncClient, hand: Hand) -> None:
    waiting = asyncio.create_task(api.post(PATH, json={"prompt": "x"}, headers={"Prefer": "respond-async, wait=20"}))
    hand.draw(await claimed(hand))
    response = await waiting
    assert response.status_code == 200
    assert response.json()["status"] == "succeeded"
    assert response.headers["preference-applied"] == "wait=20"


async def test_waiting_creation_answers_202_when_time_is_up(api: httpx.AsyncClient) -> None:
    response = await api.post(PATH, json={"prompt": "x"}, headers={"Prefer": "respond-async, wait=1"})
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "respond-async, wait=1"


async def test_a_wait_is_no_longer_than_the_cap(settings: GatewaySettings, redis_client: redis.Redis) -> None:
    show_models(redis_client, SHAPES)
    short = gateway_settings(settings.redis, settings.storage, http={"wait_cap_s": 1})
    async with serving(short, key=make_key(redis_client)) as api:
        response = await api.post(PATH, json={"prompt": "x"}, headers={"Prefer": "wait=3600"})
    assert response.headers["preference-applied"] == "wait=1"


async def test_looking_can_wait_for_the_end(api: httpx.AsyncClient, hand: Hand) -> None:
    created = await create(api)
    waiting = asyncio.create_task(api.get(created["urls"]["self"], headers={"Prefer": "wait=20"}))
    hand.fail(await claimed(hand), FailureCode.OUT_OF_MEMORY)
    response = await waiting
    assert response.json()["status"] == "failed"
    assert response.json()["error"] == {"code": "out_of_memory", "message": "It failed.", "retryable": False}
    assert response.headers["preference-applied"] == "wait=20"
    again = await api.get(created["urls"]["self"], headers={"Prefer": "wait=20"})
    assert again.json() == response.json()


@pytest.mark.parametrize(("accept", "kind"), [("image/png", "png"), ("image/webp, image/*;q=0.5", "webp")])
async def test_accepting_an_image_gets_the_picture_itself(
    api: httpx.AsyncClient, hand: Hand, accept: str, kind: str
) -> None:
    waiting = asyncio.create_task(api.post(PATH, json={"prompt": "x"}, headers={"Accept": accept}))
    data = hand.draw(await claimed(hand))
    response = await waiting
    assert response.status_code == 200
    assert response.content == data
    assert response.headers["content-type"] == f"image/{kind}"
    assert response.headers["content-location"] == response.headers["location"] + "/images/0"
    assert (await api.get(response.headers["location"])).json()["request"]["output"]["format"] == kind


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (FailureCode.PROMPT_TOO_LONG, 422),
        (FailureCode.INVALID_INPUT, 422),
        (FailureCode.DEADLINE_EXCEEDED, 504),
        (FailureCode.INTERNAL, 500),
    ],
)
async def test_a_picture_that_could_not_be_drawn_is_a_problem(
    api: httpx.AsyncClient, hand: Hand, code: FailureCode, status: int
) -> None:
    waiting = asyncio.create_task(api.post(PATH, json={"prompt": "x"}, headers={"Accept": "image/png"}))
    hand.fail(await claimed(hand), code)
    response = await waiting
    assert response.status_code == status
    assert response.json().items() >= {"code": "generation_failed", "failure": code, "detail": "It failed."}.items()


async def test_a_canceled_picture_is_a_problem_of_its_caller(api: httpx.AsyncClient, hand: Hand) -> None:
    waiting = asyncio.create_task(
        api.post(PATH, json={"prompt": "x"}, headers={"Accept": "image/png", "Prefer": "wait=20"})
    )
    job = await claimed(hand)
    canceling = await api.post(f"{PATH}/{job.id}/cancel")
    assert canceling.json()["status"] == "running"
    hand.stop(job)
    response = await waiting
    assert response.status_code == 422
    assert response.json()["failure"] == "canceled"


async def test_a_picture_that_takes_too_long_is_202_as_json(api: httpx.AsyncClient) -> None:
    response = await api.post(PATH, json={"prompt": "x"}, headers={"Accept": "image/png", "Prefer": "wait=1"})
    assert response.status_code == 202
    assert response.json()["status"] == "queued"


async def test_a_picture_in_a_format_that_is_not_accepted_is_406(
    api: httpx.AsyncClient, redis_client: redis.Redis
) -> None:
    body = {"prompt": "x", "output": {"format": "jpeg"}}
    for accept in ("image/png", "image/gif", "text/html"):
        response = await api.post(PATH, json=body, headers={"Accept": accept})
        assert response.status_code == 406
    several = await api.post(PATH, json={"prompt": "x", "num_images": 2}, headers={"Accept": "image/png"})
    assert several.status_code == 422
    assert several.json()["errors"][0]["pointer"] == "/num_images"
    assert (await api.get(PATH)).json()["data"] == []


async def test_cancelling_ends_a_queued_generation_and_leaves_an_ended_one(api: httpx.AsyncClient) -> None:
    created = await create(api)
    first = await api.post(created["urls"]["cancel"])
    assert first.status_code == 200
    assert first.json()["status"] == "canceled"
    second = await api.post(created["urls"]["cancel"], json={})
    assert second.json() == first.json()
    assert (await api.post(created["urls"]["cancel"], json={"why": "x"})).status_code == 422


async def test_an_erased_generation_is_410_everywhere(api: httpx.AsyncClient, hand: Hand) -> None:
    created = await create(api, prompt="something private")
    hand.draw(await claimed(hand))
    path = created["urls"]["self"]
    assert (await api.delete(path)).status_code == 204
    for response in (
        await api.get(path),
        await api.get(path, headers={"Prefer": "wait=5"}),
        await api.get(f"{path}/images/0"),
        await api.post(f"{path}/cancel"),
        await api.delete(path),
    ):
        assert response.status_code == 410
        assert response.json()["code"] == "gone"
    assert (await api.get(PATH)).json()["data"] == []


async def test_the_prompt_of_an_erased_generation_is_nowhere_in_redis(
    api: httpx.AsyncClient, redis_client: redis.Redis
) -> None:
    created = await create(api, prompt="something private")
    await api.delete(created["urls"]["self"])
    names = [name for name in redis_client.scan_iter("dr:*") if redis_client.type(name) == "hash"]
    assert names
    for name in names:
        assert "something private" not in str(redis_client.hgetall(name))


@pytest.mark.parametrize("invented", ["gen_" + "0" * 40, "gen_x", "x", "gen_" + "0" * 400, "%00", "..%2f"])
async def test_an_invented_id_is_404(api: httpx.AsyncClient, invented: str) -> None:
    for response in (
        await api.get(f"{PATH}/{invented}"),
        await api.get(f"{PATH}/{invented}/images/0"),
        await api.post(f"{PATH}/{invented}/cancel"),
        await api.delete(f"{PATH}/{invented}"),
    ):
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"


async def test_another_tenants_generation_is_404(
    api: httpx.AsyncClient, settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    created = await create(api)
    async with serving(settings, key=make_key(redis_client, "other")) as other:
        for response in (
            await other.get(created["urls"]["self"]),
            await other.get(f"{created['urls']['self']}/images/0"),
            await other.get(f"{created['urls']['self']}/preview"),
            await other.post(created["urls"]["cancel"]),
            await other.delete(created["urls"]["self"]),
        ):
            assert response.status_code == 404
        assert (await other.get(PATH)).json()["data"] == []
    assert (await api.get(created["urls"]["self"])).json()["status"] == "queued"


async def test_listing_pages_through_everything_newest_first(api: httpx.AsyncClient) -> None:
    ids = [(await create(api, labels={"n": str(n % 2)}))["id"] for n in range(5)]
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(3):
        page = (await api.get(PATH, params={"limit": 2, **({"cursor": cursor} if cursor else {})})).json()
        seen += [item["id"] for item in page["data"]]
        cursor = page["next_cursor"]
    assert cursor is None
    assert sorted(seen) == sorted(ids)
    labelled = (await api.get(PATH, params={"label.n": "1"})).json()["data"]
    assert {item["id"] for item in labelled} == {ids[1], ids[3]}
    await api.post(f"{PATH}/{ids[0]}/cancel")
    canceled = (await api.get(PATH, params={"status": "canceled"})).json()["data"]
    assert [item["id"] for item in canceled] == [ids[0]]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=1.0", "limit=x", "status=done", "cursor=", "cursor=nonsense",
              "state=queued", "limit=1&limit=2", "limit=+1", "label.a=1&label.a=2"]
)  # fmt: skip
async def test_a_wrong_query_is_422_and_lists_nothing(api: httpx.AsyncClient, query: str) -> None:
    response = await api.get(f"{PATH}?{query}")
    assert response.status_code == 422
    assert response.json()["errors"]


def inline(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode()}


async def test_input_pictures_are_stored_before_the_job(
    api: httpx.AsyncClient, hand: Hand, storage_settings: Any
) -> None:
    image, mask = picture(), picture(image_format="webp", color="white")
    created = await create(api, task="inpaint", image=inline(image), mask=inline(mask), strength=0.5)
    assert created["request"]["image"] == {
        "format": "png",
        "width_px": 64,
        "height_px": 64,
        "bytes": len(image),
        "sha256": hashlib.sha256(image).hexdigest(),
    }
    assert "base64" not in str(created)
    job = await claimed(hand)
    storage = ObjectStorage(storage_settings)
    assert storage.get(job.spec.image.key, max_bytes=10**6) == image
    assert storage.get(job.spec.mask.key, max_bytes=10**6) == mask
    assert job.cost == pytest.approx(1 * 10 * 2 * 1.0)


async def test_inputs_of_a_refused_submit_are_due_for_erasure(
    settings: GatewaySettings, redis_client: redis.Redis
) -> None:
    show_models(redis_client, SHAPES)
    key = make_key(redis_client, limits=TenantLimits(max_queued=0))
    async with serving(settings, key=key) as api:
        response = await api.post(PATH, json={"prompt": "x", "task": "image-to-image", "image": inline(picture())})
    assert response.status_code == 429
    assert response.headers["retry-after"].isdigit()
    assert [due for _, due in redis_client.zrange("dr:erasures", 0, -1, withscores=True)] == [0.0]


async def test_a_full_pool_is_503_with_retry_after(settings: GatewaySettings, redis_client: redis.Redis) -> None:
    show_models(redis_client, SHAPES)
    small = gateway_settings(settings.redis, settings.storage, admission={"queue_limit": 1})
    async with serving(small, key=make_key(redis_client)) as api:
        await create(api)
        response = await api.post(PATH, json={"prompt": "x"})
    assert response.status_code == 503
    assert response.json()["code"] == "overloaded"
    assert int(response.headers["retry-after"]) > 0


async def test_priority_is_capped_by_the_tenant(settings: GatewaySettings, redis_client: redis.Redis) -> None:
    show_models(redis_client, SHAPES, EMOJI)
    async with serving(settings, key=make_key(redis_client, limits=TenantLimits(top_priority="low"))) as api:
        assert (await create(api, priority="high"))["request"]["priority"] == "low"


async def test_everything_wrong_is_told_at_once_and_nothing_is_queued(api: httpx.AsyncClient) -> None:
    body = {
        "prompt": "x", "width": 65, "steps": 51, "num_images": 5, "scheduler": "dim", "strength": 0.5, "seed": True,
        "stepps": 4, "output": {"quality": 50}, "retain_s": 99_999_999, "image": {"url": "http://x"},
    }  # fmt: skip
    response = await api.post(PATH, json=body)
    assert response.status_code == 422
    told = {error["pointer"]: error["detail"] for error in response.json()["errors"]}
    assert set(told) == {
        "/width", "/steps", "/num_images", "/scheduler", "/strength", "/seed", "/stepps", "/output/quality",
        "/retain_s", "/image",
    }  # fmt: skip
    assert "multiple of 8 px, 32 to 128 px" in told["/width"]
    assert "did you mean ddim" in told["/scheduler"]
    assert "did you mean steps" in told["/stepps"]
    assert (await api.get(PATH)).json()["data"] == []


async def test_an_unknown_model_is_answered_with_the_nearest_names(api: httpx.AsyncClient) -> None:
    response = await api.post(PATH, json={"prompt": "x", "model": "shape"})
    assert response.status_code == 422
    assert "did you mean shapes?" in response.json()["errors"][0]["detail"]


async def test_without_any_model_submitting_is_503(settings: GatewaySettings, redis_client: redis.Redis) -> None:
    async with serving(settings, key=make_key(redis_client)) as api:
        assert (await api.post(PATH, json={"prompt": "x"})).status_code == 503
