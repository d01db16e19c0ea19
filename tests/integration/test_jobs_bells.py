"""Bells: what RQ itself would store and hear, and nothing that anybody else writes there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from rq import Callback, Queue
from rq.serializers import JSONSerializer

from service.jobs.keys import key
from service.jobs.queue import make_worker, queue_name
from service.jobs.store import JobStore
from tests.jobs import submit


@pytest.fixture
def plain(redis_client: redis.Redis, valkey_url: str) -> Iterator[redis.Redis]:
    """A client as RQ wants it, that does not decode responses."""
    client = redis.Redis.from_url(valkey_url)
    yield client
    client.close()


def test_an_rq_worker_hears_every_bell_and_leaves_nothing_behind(redis_client: redis.Redis, plain: redis.Redis) -> None:
    store = JobStore(redis_client)
    for number in range(5):
        submit(store, f"gen_{number}")
    rung: list[int] = []
    make_worker(plain, "default", ring=lambda: rung.append(1)).work(burst=True, logging_level="ERROR")
    assert len(rung) == 5
    assert list(redis_client.scan_iter("rq:job:*")) == []
    assert redis_client.llen(key("rq_queue", "default")) == 0


def test_nothing_that_is_stored_with_a_bell_is_ever_called(
    redis_client: redis.Redis, plain: redis.Redis, tmp_path: Path
) -> None:
    touched = tmp_path / "touched"
    queue = Queue(queue_name("default"), connection=plain, serializer=JSONSerializer)
    queue.enqueue("os.system", f"touch {touched}")
    queue.enqueue(
        "os.system",
        f"touch {touched}",
        on_success=Callback("os.abort"),
        on_failure=Callback("os.abort"),
    )
    rung: list[int] = []
    make_worker(plain, "default", ring=lambda: rung.append(1)).work(burst=True, logging_level="ERROR")
    assert len(rung) == 2
    assert not touched.exists()


def test_a_bell_that_fails_calls_nothing_either(redis_client: redis.Redis, plain: redis.Redis) -> None:
    queue = Queue(queue_name("default"), connection=plain, serializer=JSONSerializer)
    queue.enqueue("os.abort", on_failure=Callback("os.abort"))

    def fail() -> None:
        raise RuntimeError

    make_worker(plain, "default", ring=fail).work(burst=True, logging_level="CRITICAL")
    assert redis_client.llen(key("rq_queue", "default")) == 0
