"""Uploads in Redis: limits, lives, repetitions, and that every one of them ends."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
import redis
from redis.asyncio import Redis

from service.jobs.commands import Idempotency
from service.jobs.store import JobStore
from service.jobs.uploads import GRACE_MS, Created, UploadLimits, UploadStore
from service.settings.groups import RedisSettings
from tests.clock import QueueClock

pytestmark = pytest.mark.anyio

TTL_MS = 60_000
FORM_TTL_MS = 20_000
LIMITS = UploadLimits(ttl_ms=TTL_MS, unused=3, unused_bytes=1000, form_ttl_ms=FORM_TTL_MS)


@pytest.fixture
async def store(
    redis_settings: RedisSettings, redis_client: redis.Redis, clock: QueueClock
) -> AsyncIterator[UploadStore]:
    async with Redis.from_url(redis_settings.url.get_secret_value(), decode_responses=True) as client:
        yield UploadStore(client, LIMITS, clock=clock)


def prefix_of(upload_id: str, tenant: str = "acme") -> str:
    return f"{tenant}/2026/11/{upload_id}/"


async def create(
    store: UploadStore, upload_id: str, *, tenant: str = "acme", size: int = 100, call: tuple[str, str] | None = None
) -> Created:
    return await store.create(
        upload_id,
        tenant,
        prefix_of(upload_id, tenant),
        image_format="png",
        size_bytes=size,
        sha256="0" * 64,
        idempotency=call and Idempotency(*call, ttl_s=86_400),
    )


async def used(store: UploadStore, upload_id: str) -> None:
    """Use an upload for a generation that is accepted."""
    upload = await store.settle("acme", upload_id, width_px=8, height_px=8)
    assert upload
    await store.spend("acme", [upload])


def due(client: redis.Redis) -> dict[str, float]:
    return dict(client.zrange("dr:erasures", 0, -1, withscores=True))


def ends_ms(client: redis.Redis) -> float:
    return 1000 * time.time() + client.pttl("dr:upload:u1")


async def test_an_upload_is_due_to_be_erased_from_the_start(
    store: UploadStore, redis_client: redis.Redis, clock: QueueClock
) -> None:
    created = await create(store, "u1")
    assert created.outcome == "created"
    assert created.upload == await store.get("acme", "u1")
    assert created.upload
    assert created.upload.expires_ms == clock.now_ms + TTL_MS
    assert due(redis_client) == {prefix_of("u1"): clock.now_ms + TTL_MS + GRACE_MS}
    assert ends_ms(redis_client) == pytest.approx(clock.now_ms + TTL_MS, abs=5000)


async def test_the_same_id_is_noted_once(store: UploadStore, redis_client: redis.Redis) -> None:
    first = await create(store, "u1")
    assert await create(store, "u1") == first
    assert redis_client.zcard("dr:tenant:acme:uploads") == 1


async def test_of_another_tenant_it_is_unknown(store: UploadStore, redis_client: redis.Redis) -> None:
    created = await create(store, "u1")
    before = due(redis_client)
    assert await store.get("other", "u1") is None
    assert await store.use("other", "u1") is None
    assert await store.settle("other", "u1", width_px=1, height_px=1) is None
    assert not await store.erase("other", "u1", files_prefix="x")
    assert due(redis_client) == before
    assert await store.get("acme", "u1") == created.upload


async def test_unused_uploads_are_limited_by_number_and_an_accepted_use_makes_room(
    store: UploadStore, clock: QueueClock
) -> None:
    await create(store, "u1")
    clock.now_ms += 1000
    for n in (2, 3):
        await create(store, f"u{n}")
    refused = await create(store, "u4")
    assert (refused.outcome, refused.upload, refused.room_in_ms) == ("full", None, TTL_MS - 1000)
    assert (await create(store, "v1", tenant="other")).outcome == "created"
    await used(store, "u1")
    assert (await create(store, "u4")).outcome == "created"
    assert (await create(store, "u5")).outcome == "full"
    await used(store, "u2")
    assert (await create(store, "u5")).outcome == "created"


async def test_one_that_was_looked_at_for_a_refused_generation_counts_as_long_as_it_lives(
    store: UploadStore, clock: QueueClock
) -> None:
    for n in (1, 2, 3):
        await create(store, f"u{n}")
    clock.now_ms += TTL_MS - 1000
    await store.settle("acme", "u1", width_px=8, height_px=8)
    clock.now_ms += 1000
    # The other two have expired.
    assert [(await create(store, f"v{n}")).outcome for n in (1, 2, 3)] == ["created", "created", "full"]
    await store.use("acme", "u1")
    clock.now_ms += TTL_MS - 1
    assert [(await create(store, f"w{n}")).outcome for n in (1, 2)] == ["full", "full"]


async def test_a_deleted_one_counts_while_its_form_lives(store: UploadStore, clock: QueueClock) -> None:
    for n in (1, 2, 3):
        await create(store, f"u{n}")
    for _ in range(2):
        await store.erase("acme", "u1", files_prefix="x")
    refused = await create(store, "u4")
    assert (refused.outcome, refused.room_in_ms) == ("full", FORM_TTL_MS)
    clock.now_ms += FORM_TTL_MS
    assert (await create(store, "u4")).outcome == "created"
    # What was used does not count, deleted or not; nor does one longer than it would have lived.
    await used(store, "u2")
    await store.erase("acme", "u2", files_prefix="x")
    assert (await create(store, "u5")).outcome == "created"
    clock.now_ms += TTL_MS - FORM_TTL_MS - 1000
    await store.erase("acme", "u3", files_prefix="x")
    assert (await create(store, "u6")).outcome == "full"
    clock.now_ms += 1000
    assert (await create(store, "u6")).outcome == "created"


async def test_unused_uploads_are_limited_by_their_bytes(store: UploadStore) -> None:
    assert (await create(store, "u1", size=600)).outcome == "created"
    assert (await create(store, "u2", size=401)).outcome == "full"
    assert (await create(store, "u2", size=400)).outcome == "created"


async def test_expired_uploads_count_no_more(store: UploadStore, clock: QueueClock) -> None:
    for n in (1, 2, 3):
        await create(store, f"u{n}")
    clock.now_ms += TTL_MS
    assert (await create(store, "u4")).outcome == "created"


async def test_a_use_before_the_look_puts_nothing_off(
    store: UploadStore, redis_client: redis.Redis, clock: QueueClock
) -> None:
    await create(store, "u1")
    before = due(redis_client)
    clock.now_ms += 1000
    used = await store.use("acme", "u1")
    assert used
    assert used.state == "waiting"
    assert due(redis_client) == before


async def test_each_use_of_a_ready_one_puts_its_end_off(
    store: UploadStore, redis_client: redis.Redis, clock: QueueClock
) -> None:
    await create(store, "u1")
    for _ in range(3):
        clock.now_ms += TTL_MS - 1
        ready = await store.settle("acme", "u1", width_px=8, height_px=9)
        assert ready
        assert (ready.state, ready.width_px, ready.height_px) == ("ready", 8, 9)
        clock.now_ms += TTL_MS - 1
        used = await store.use("acme", "u1")
        assert used
        assert used.expires_ms == clock.now_ms + TTL_MS
        assert due(redis_client) == {prefix_of("u1"): used.expires_ms + GRACE_MS}
        assert ends_ms(redis_client) == pytest.approx(used.expires_ms, abs=5000)
    clock.now_ms += TTL_MS
    assert await store.use("acme", "u1") is None


async def test_an_erased_one_is_erased_again_when_no_form_can_fill_it(
    store: UploadStore, redis_client: redis.Redis, clock: QueueClock
) -> None:
    created = await create(store, "u1")
    assert created.upload
    files = created.upload.prefix + "files/"
    for _ in range(2):
        assert await store.erase("acme", "u1", files_prefix=files)
    assert due(redis_client) == {prefix_of("u1"): clock.now_ms, files: clock.now_ms + FORM_TTL_MS + GRACE_MS}
    assert await store.get("acme", "u1") is None
    assert await store.use("acme", "u1") is None
    # A gateway that had just looked at the file.
    assert await store.settle("acme", "u1", width_px=8, height_px=8) is None
    assert redis_client.hkeys("dr:upload:u1") == ["tenant", "state"]
    assert redis_client.pttl("dr:upload:u1") > 0


async def test_agents_that_erased_the_objects_forget_the_prefix(
    store: UploadStore, redis_client: redis.Redis, clock: QueueClock
) -> None:
    created = await create(store, "u1")
    assert created.upload
    await store.erase("acme", "u1", files_prefix=created.upload.prefix + "files/")
    agent = JobStore(redis_client, clock=clock)
    assert agent.due_erasures() == [created.upload.prefix]
    agent.forget(created.upload.prefix)
    assert agent.due_erasures() == []
    clock.now_ms += TTL_MS + GRACE_MS
    assert agent.due_erasures() == [created.upload.prefix + "files/"]
    agent.forget(created.upload.prefix + "files/")
    assert due(redis_client) == {}


async def test_a_repeated_call_gets_the_one_upload(store: UploadStore, redis_client: redis.Redis) -> None:
    call = ("record", "body")
    first = await create(store, "u1", call=call)
    again = await create(store, "u2", call=call)
    assert (again.outcome, again.upload) == ("replayed", first.upload)
    assert (await create(store, "u3", call=("record", "other"))).outcome == "mismatch"
    assert not redis_client.exists("dr:upload:u2", "dr:upload:u3")
    assert (await create(store, "u4", call=call, tenant="other")).outcome == "created"
    await store.erase("acme", "u1", files_prefix="x")
    gone = await create(store, "u5", call=call)
    assert (gone.outcome, gone.upload) == ("gone", None)


async def test_a_refused_call_remembers_nothing(store: UploadStore) -> None:
    assert (await create(store, "u1", size=1001, call=("record", "body"))).outcome == "full"
    assert (await create(store, "u2", call=("record", "other"))).outcome == "created"


@pytest.mark.parametrize(
    "fields",
    [{"bytes": "many"}, {"expires_ms": "nan"}, {"state": "?"}, {"format": "exe"}, {"prefix": ""}, {"sha256": ""}],
    ids=lambda fields: next(iter(fields)),
)
async def test_a_damaged_record_stops_nobody(
    store: UploadStore, redis_client: redis.Redis, fields: dict[str, str]
) -> None:
    await create(store, "u1")
    redis_client.hset("dr:upload:u1", mapping=fields)
    redis_client.zadd("dr:tenant:acme:uploads", {"damaged": 9e15})
    await store.get("acme", "u1")
    await store.use("acme", "u1")
    assert (await create(store, "u2")).outcome == "created"
    assert await store.erase("acme", "u1", files_prefix="x")
