"""`python -m service.webhooks` as a process: killed, stopped, started wrongly."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
import redis

from service.jobs.keys import key
from service.jobs.store import JobStore
from tests.jobs import claim_all, submit
from tests.outbox import endpoint_of
from tests.sites import PUBLIC, Exchange, Site, site
from tests.webhooks import gen, inbox, seen

pytestmark = pytest.mark.anyio

TENANT = "ada"


@pytest.fixture
async def hook() -> AsyncIterator[Site]:
    async with site() as place:
        yield place


@contextmanager
def sender_process(url: str, port: int, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Run a sender until the block ends."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    environment = {
        **kept,
        "DARKROOM_REDIS_URL": url,
        "DARKROOM_EGRESS_HTTP": "true",
        "DARKROOM_EGRESS_NETWORKS": f"{PUBLIC}/32",
        "DARKROOM_EGRESS_PORTS": str(port),
        "DARKROOM_LOG": "json",
        **variables,
    }
    command = [sys.executable, "-W", "error", "-m", "service.webhooks"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def let_leases_run_out(client: redis.Redis, endpoint: str) -> None:
    """What an hour does, at once."""
    for name in (key("outbox"), key("endpoint_queue", endpoint), key("endpoint_sending", endpoint)):
        for member, at_ms in client.zrange(name, 0, -1, withscores=True):
            client.zadd(name, {member: at_ms - 3_600_000})


async def test_event_of_a_sender_that_is_killed_comes_again_with_the_same_id(
    hook: Site, valkey_url: str, redis_client: redis.Redis
) -> None:
    url = f"http://{PUBLIC}:{hook.port}/hook"
    store = JobStore(redis_client)
    submit(store, gen(1), tenant=TENANT, webhook_url=url)
    claim_all(store, 1)
    with sender_process(valkey_url, hook.port) as first:

        async def kill(exchange: Exchange) -> None:
            first.kill()
            first.wait(20)
            await exchange.answer(200)

        hook.plays["/hook"] = kill
        await seen("the first attempt", lambda: hook.hits == 1, 30)
        await seen("the end of the sender", lambda: first.poll() == -signal.SIGKILL)
    event = f"evt_{gen(1)}_succeeded"
    assert redis_client.hget(key("event", event), "state") == "pending"
    let_leases_run_out(redis_client, endpoint_of(url, TENANT))
    hook.plays.clear()
    with sender_process(valkey_url, hook.port):
        delivered = lambda: redis_client.hget(key("event", event), "state") == "delivered"  # noqa: E731
        await seen("the second attempt", delivered, 30)
    assert [each.id for each in inbox(hook)] == [event, event]
    assert inbox(hook)[0].body == inbox(hook)[1].body


async def test_sender_that_is_told_to_stop_finishes_what_it_sends(
    hook: Site, valkey_url: str, redis_client: redis.Redis
) -> None:
    store = JobStore(redis_client)
    submit(store, gen(1), webhook_url=f"http://{PUBLIC}:{hook.port}/hook")
    claim_all(store, 1)
    with sender_process(valkey_url, hook.port) as process:

        async def stop(exchange: Exchange) -> None:
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.2)
            await exchange.answer(200)

        hook.plays["/hook"] = stop
        await seen("the end of the sender", lambda: process.poll() is not None, 30)
        assert process.returncode == 0
        assert process.stderr is not None
        lines = process.stderr.read()
    assert redis_client.hget(key("event", f"evt_{gen(1)}_succeeded"), "state") == "delivered"
    assert '"webhook_delivered"' in lines
    # Neither the receiver's address nor the prompt is in the log.
    assert PUBLIC not in lines
    assert "a red circle" not in lines


def test_wrong_setting_ends_the_process_with_one_line(valkey_url: str) -> None:
    with sender_process(valkey_url, 80, DARKROOM_WEBHOOK_TIMEOUT_S="soon") as process:
        _, told = process.communicate(timeout=30)
        assert process.returncode == 1
    assert told.startswith("darkroom sender: DARKROOM_WEBHOOK_TIMEOUT_S: ")
    assert told.count("\n") == 1
    with sender_process(valkey_url, 80, DARKROOM_WEBHOOK_TENANT_LIMIT="2") as process:
        _, told = process.communicate(timeout=30)
    assert "DARKROOM_WEBHOOK_ENDPOINT_LIMIT" in told
