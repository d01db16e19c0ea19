"""Previews in Redis: shown by whoever holds the job, gone with the hold; and the agent's thread that shows them."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import redis
from PIL import Image
from redis.asyncio import Redis as AsyncRedis

from service.contract.engine import PreviewDrawn
from service.contract.job import Job, Status
from service.contract.previews import PREVIEW_BYTES, PREVIEW_MS, PREVIEW_SIDE_PX
from service.jobs.async_store import AsyncJobStore
from service.jobs.commands import Outcome
from service.jobs.keys import key
from service.jobs.store import LEASE_MS, JobStore
from tests.clock import QueueClock
from tests.jobs import submit
from worker.agent.previews import Previews

#: Bytes that are no text in any encoding.
PICTURE = bytes(range(256)) + b"\xff\xfe\x00\r\n"


@pytest.fixture
def store(redis_client: redis.Redis, clock: QueueClock) -> JobStore:
    return JobStore(redis_client, clock=clock)


@pytest.fixture
def job(store: JobStore) -> Job:
    """A job that runs as e0, with a preview."""
    submit(store, "gen_1")
    claimed = store.claim("default", "e0", "agent")
    assert claimed is not None
    assert store.show_preview("gen_1", "e0", PICTURE)
    return claimed


def found(store: JobStore) -> Job:
    job = store.get("ada", "gen_1")
    assert job is not None
    return job


def is_gone(client: redis.Redis) -> bool:
    return not client.exists(key("preview", "gen_1")) and client.hget(key("job", "gen_1"), "previewed") != "1"


@pytest.mark.anyio
@pytest.mark.usefixtures("job")
async def test_what_is_shown_is_read_back_to_the_byte_and_kept_for_a_while(
    redis_client: redis.Redis, valkey_url: str
) -> None:
    assert 0 < redis_client.pttl(key("preview", "gen_1")) <= PREVIEW_MS
    async with AsyncRedis.from_url(valkey_url, decode_responses=True) as client:
        store = AsyncJobStore(client)
        assert await store.preview("gen_1") == PICTURE
        assert await store.preview("gen_2") is None
        # What somebody else put there is read no further than it takes to see that it is too long.
        redis_client.set(key("preview", "gen_1"), "x" * 1_000_000)
        assert len(await store.preview("gen_1") or b"") == PREVIEW_BYTES + 1


def test_the_first_preview_is_a_change_that_watchers_hear_of_and_later_ones_are_none(
    redis_client: redis.Redis, store: JobStore
) -> None:
    submit(store, "gen_1")
    store.claim("default", "e0", "agent")
    before = found(store)
    changes = redis_client.pubsub(ignore_subscribe_messages=True)
    changes.subscribe(key("changes", "gen_1"))
    changes.get_message(timeout=1)
    for _ in range(3):
        assert store.show_preview("gen_1", "e0", PICTURE)
    after = found(store)
    assert (before.previewed, after.previewed) == (False, True)
    assert after.revision == before.revision + 1
    message = changes.get_message(timeout=5)
    assert message is not None
    assert message["data"] == f"{after.revision} running"
    assert changes.get_message(timeout=0.1) is None
    changes.close()


def test_only_the_execution_that_holds_a_job_shows_previews_of_it(
    redis_client: redis.Redis, store: JobStore, clock: QueueClock
) -> None:
    submit(store, "gen_1")
    assert not store.show_preview("gen_1", "e0", PICTURE)
    assert not store.show_preview("gen_2", "e0", PICTURE)
    store.claim("default", "e0", "agent")
    assert not store.show_preview("gen_1", "e1", PICTURE)
    assert is_gone(redis_client)
    assert redis_client.keys(key("preview", "*")) == []
    clock.now_ms += LEASE_MS + 1
    store.reap(take_back=True)
    store.claim("default", "e1", "agent")
    assert not store.show_preview("gen_1", "e0", PICTURE)
    assert store.show_preview("gen_1", "e1", PICTURE)


def ended(store: JobStore) -> None:
    assert store.commit("gen_1", "e0", Outcome(Status.SUCCEEDED)) == "committed"


def handed_back(store: JobStore) -> None:
    assert store.release("gen_1", "e0", "drained") is Status.QUEUED


def lost(store: JobStore) -> None:
    assert store.release("gen_1", "e0", "engine_lost") is Status.QUEUED


def canceled(store: JobStore) -> None:
    assert store.cancel("ada", "gen_1") is not None


def erased(store: JobStore) -> None:
    assert store.erase("ada", "gen_1")


@pytest.mark.usefixtures("job")
@pytest.mark.parametrize("leave", [ended, handed_back, lost, canceled, erased])
def test_a_preview_goes_with_its_execution_and_does_not_come_back(
    redis_client: redis.Redis, store: JobStore, leave: Callable[[JobStore], None]
) -> None:
    assert found(store).previewed
    leave(store)
    assert is_gone(redis_client)
    assert not store.show_preview("gen_1", "e0", PICTURE)
    assert is_gone(redis_client)


@pytest.mark.usefixtures("job")
def test_a_preview_goes_with_a_lease_or_a_deadline_that_ran_out(
    redis_client: redis.Redis, store: JobStore, clock: QueueClock
) -> None:
    clock.now_ms += LEASE_MS + 1
    store.reap(take_back=True)
    assert found(store).status is Status.QUEUED
    assert is_gone(redis_client)


# ── the agent's thread ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def previews(redis_client: redis.Redis) -> Iterator[Previews]:
    previews = Previews(JobStore(redis_client), every_s=1.0)
    previews.start()
    yield previews
    previews.stop()


def drawn(width_px: int, height_px: int) -> PreviewDrawn:
    return PreviewDrawn(execution_id="e0", step=1, width_px=width_px, height_px=height_px)


def shown(valkey_url: str, *, within_s: float = 10.0) -> bytes:
    """Return the preview once there is one."""
    with redis.Redis.from_url(valkey_url) as client:
        deadline_s = time.monotonic() + within_s
        while time.monotonic() < deadline_s:
            if data := client.get(key("preview", "gen_1")):
                assert isinstance(data, bytes)
                return data
            time.sleep(0.01)
    raise AssertionError("no preview was shown")


def test_an_agent_shows_small_webp_files(store: JobStore, previews: Previews, valkey_url: str) -> None:
    submit(store, "gen_1")
    store.claim("default", "e0", "agent")
    previews.show("gen_1", drawn(16, 8), bytes((200, 30, 30)) * 128)
    image = Image.open(io.BytesIO(shown(valkey_url)))
    assert (image.format, image.size) == ("WEBP", (16, 8))
    red, green, _ = image.convert("RGB").getpixel((8, 4))  # pyright: ignore[reportGeneralTypeIssues]
    assert red > 150
    assert green < 80


def test_noise_is_made_small_too(store: JobStore, previews: Previews, valkey_url: str) -> None:
    submit(store, "gen_1")
    store.claim("default", "e0", "agent")
    side = PREVIEW_SIDE_PX
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    previews.show("gen_1", drawn(side, side), noise.tobytes())
    assert 1000 < len(shown(valkey_url)) <= PREVIEW_BYTES


def test_the_thread_outlives_an_engine_that_sends_nonsense(
    store: JobStore, previews: Previews, valkey_url: str
) -> None:
    submit(store, "gen_1")
    store.claim("default", "e0", "agent")
    nonsense = drawn(16, 8).model_copy(update={"execution_id": "another"})
    previews.show("gen_0", nonsense, b"too short")
    # First come, first shown: it is that one's turn before.
    previews.show("gen_1", drawn(16, 8), bytes(16 * 8 * 3))
    assert shown(valkey_url)
