"""Costs of calls in Redis: kept for the next engine, few, and never trusted."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import redis
import structlog

from service.contract.costs import MAX_KEPT, CallCost
from service.jobs.async_store import AsyncJobStore
from service.jobs.connection import connect_async
from service.jobs.costs import COSTS_TTL_MS, OVERGROWN, device_key, entries, read_entries
from service.jobs.keys import key
from service.jobs.store import JobStore
from service.settings.groups import RedisSettings
from tests.costs import cost

DEVICE = "NVIDIA H200"
HASH = key("costs", device_key(DEVICE))


@pytest.fixture
def store(redis_client: redis.Redis) -> JobStore:
    return JobStore(redis_client)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def field_of(rows: int) -> str:
    return entries([cost(rows, 0.1)], now_s=0)[0]


def written(redis_client: redis.Redis, wide: int, **changes: Any) -> str:
    """Write an entry as we would, but for these changes; return its field."""
    field, text = entries([cost(wide, 0.1)], now_s=int(time.time()))
    entry = json.loads(text)
    for name, value in changes.items():
        (entry if name in entry else entry["cost"])[name] = value
    redis_client.hset(HASH, field, json.dumps(entry))
    return field


def overgrow(redis_client: redis.Redis) -> None:
    """Fill the hash with more than agents ever leave there."""
    redis_client.hset(HASH, items=[str(part) for n in range(OVERGROWN + 1) for part in (n, "x")])


def rows_of(costs: tuple[CallCost, ...]) -> set[int]:
    return {each.rows for each in costs}


def test_what_was_measured_is_known_afterwards_of_this_kind_of_device_alone(store: JobStore) -> None:
    kept = [cost(2, 0.1, calls=7, peak_bytes=10**9), cost(2, 0.5, kind="decode", tokens=0, rows_each=16)]
    store.keep_costs(DEVICE, kept)
    assert set(store.costs(DEVICE)) == set(kept)
    assert store.costs("NVIDIA H100") == ()


@pytest.mark.anyio
async def test_gateways_know_it_too_and_read_no_hash_that_somebody_else_filled(
    store: JobStore, redis_client: redis.Redis, redis_settings: RedisSettings
) -> None:
    store.keep_costs(DEVICE, [cost(2, 0.1)])
    client = connect_async(redis_settings)
    try:
        assert await AsyncJobStore(client).costs(DEVICE) == (cost(2, 0.1),)
        overgrow(redis_client)
        assert await AsyncJobStore(client).costs(DEVICE) == ()
    finally:
        await client.aclose()


def test_a_newer_measurement_takes_the_place_of_the_older(store: JobStore) -> None:
    store.keep_costs(DEVICE, [cost(2, 0.1), cost(4, 0.3)])
    store.keep_costs(DEVICE, [cost(2, 0.2, calls=9)])
    assert set(store.costs(DEVICE)) == {cost(2, 0.2, calls=9), cost(4, 0.3)}


def test_it_is_forgotten_some_weeks_after_the_last_measurement(store: JobStore, redis_client: redis.Redis) -> None:
    store.keep_costs(DEVICE, [cost(2, 0.1)])
    assert COSTS_TTL_MS - 60_000 < redis_client.pttl(HASH) <= COSTS_TTL_MS


def test_a_bounded_number_is_kept_and_the_oldest_make_room(store: JobStore, redis_client: redis.Redis) -> None:
    now_s = int(time.time())
    old = entries([cost(rows, 0.1) for rows in range(1, MAX_KEPT + 1)], now_s=now_s - 10**6)
    redis_client.hset(HASH, items=old)
    store.keep_costs(DEVICE, [cost(10_000 + rows, 0.1) for rows in range(300)])
    left = rows_of(store.costs(DEVICE))
    assert len(left) == redis_client.hlen(HASH) <= MAX_KEPT
    assert {10_000 + rows for rows in range(300)} <= left


def test_entries_of_the_future_make_room_first(store: JobStore, redis_client: redis.Redis) -> None:
    ahead = entries([cost(rows, 0.1) for rows in range(1, MAX_KEPT + 1)], now_s=10**12)
    redis_client.hset(HASH, items=ahead)
    store.keep_costs(DEVICE, [cost(10_000 + rows, 0.1) for rows in range(300)])
    assert {10_000 + rows for rows in range(300)} <= rows_of(store.costs(DEVICE))


HOSTILE = [
    pytest.param({"seconds": 0}, id="no time"),
    pytest.param({"seconds": -1}, id="negative time"),
    pytest.param({"seconds": 1e9}, id="years"),
    pytest.param({"seconds": "NaN"}, id="no number"),
    pytest.param({"calls": 0}, id="never measured"),
    pytest.param({"calls": 10**30}, id="too many calls"),
    pytest.param({"peak_bytes": 0}, id="no memory"),
    pytest.param({"peak_bytes": 10**30}, id="too much memory"),
    pytest.param({"rows": 3}, id="another field's rows"),
    pytest.param({"rows": 10**12}, id="too many rows"),
    pytest.param({"label": {"model": "tiny"}}, id="half a label"),
    pytest.param({"more": 1}, id="more than ours"),
    pytest.param({"kept_s": -5}, id="before 1970"),
]


@pytest.mark.parametrize("changes", HOSTILE)
def test_a_damaged_entry_is_dropped_and_told_once_and_the_others_count(
    store: JobStore, redis_client: redis.Redis, changes: dict[str, Any]
) -> None:
    store.keep_costs(DEVICE, [cost(4, 0.3)])
    damaged = written(redis_client, 2, **changes)
    redis_client.hset(HASH, "whatever", "not JSON")
    with structlog.testing.capture_logs() as logs:
        assert store.costs(DEVICE) == (cost(4, 0.3),)
        assert store.costs(DEVICE) == (cost(4, 0.3),)
    assert [(line["event"], line["entries"]) for line in logs] == [("costs_damaged", 2)]
    assert not redis_client.hexists(HASH, damaged)


def test_an_entry_that_is_far_too_long_is_not_even_parsed(store: JobStore, redis_client: redis.Redis) -> None:
    field, text = entries([cost(2, 0.1)], now_s=0)
    redis_client.hset(HASH, field, text + " " * 5000)
    assert store.costs(DEVICE) == ()


def test_an_entry_under_anothers_name_is_damaged(store: JobStore, redis_client: redis.Redis) -> None:
    """Else one that is written again and again would stand there many times."""
    text = entries([cost(2, 0.1)], now_s=0)[1]
    redis_client.hset(HASH, items=[field_of(2), text, field_of(3), text])
    assert store.costs(DEVICE) == (cost(2, 0.1),)


def test_a_hash_that_somebody_else_filled_is_not_read(store: JobStore, redis_client: redis.Redis) -> None:
    overgrow(redis_client)
    with structlog.testing.capture_logs() as logs:
        assert store.costs(DEVICE) == ()
    assert [line["event"] for line in logs] == ["costs_overgrown"]
    assert not redis_client.exists(HASH)
    store.keep_costs(DEVICE, [cost(2, 0.1)])
    assert store.costs(DEVICE) == (cost(2, 0.1),)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("NVIDIA H200", "nvidia-h200"),
        ("cpu: AMD EPYC 9654 96-Core Processor, 8 threads", "cpu-amd-epyc-9654-96-core-processor-8-threads"),
        ("a:b*c\n/../" + "x" * 500, "a-b-c-" + "x" * 114),
    ],
)
def test_a_device_is_spelt_in_a_key_of_ours(name: str, part: str) -> None:
    assert device_key(name) == part


def test_every_part_of_a_label_tells_costs_apart() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"model": "other"},
        {"sha256": "ffffffffffff"},
        {"kind": "decode"},
        {"width_px": 8},
        {"height_px": 8},
        {"tokens": 154},
        {"dtype": "float16"},
        {"rows_each": 16},
    ]
    kept = [cost(2, 0.1, **each) for each in changes]
    flat = entries(kept, now_s=0)
    assert set(read_entries(dict(zip(flat[::2], flat[1::2], strict=True)), now_s=0).costs) == set(kept)
