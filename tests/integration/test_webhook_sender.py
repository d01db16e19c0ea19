"""The sender against real receivers and a real Valkey, by a clock that the tests move."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator

import pytest
import redis

from service.contract.job import Status
from service.jobs.commands import Outcome
from service.jobs.keys import key
from service.jobs.store import JobStore
from service.tenants.sealing import Sealer
from service.webhooks.sender import SenderRules
from tests.clock import QueueClock
from tests.jobs import submit
from tests.outbox import DAY_MS, begin, end, endpoint_of, states, step
from tests.proxy import Proxy
from tests.sites import PUBLIC, Exchange, Site, site
from tests.webhooks import RULES, answering, gen, inbox, seen, sending

pytestmark = pytest.mark.anyio

HOUR_MS = 3_600_000
ENDS = ("completed",)


@pytest.fixture
def store(redis_client: redis.Redis, clock: QueueClock) -> JobStore:
    return JobStore(redis_client, clock=clock)


@pytest.fixture
async def hook() -> AsyncIterator[Site]:
    async with site() as place:
        yield place


def at(place: Site, path: str = "/hook") -> str:
    return f"http://{PUBLIC}:{place.port}{path}"


def ended(store: JobStore, place: Site, job_id: str, path: str = "/hook", tenant: str = "ada") -> None:
    end(store, begin(store, job_id, webhook_url=at(place, path), webhook_events=ENDS, tenant=tenant))


async def test_receiver_gets_what_happened_and_the_generation_as_it_is(
    store: JobStore, hook: Site, valkey_url: str, clock: QueueClock
) -> None:
    job = begin(store, gen(1), webhook_url=at(hook))
    async with sending(valkey_url, clock, hook) as drive:
        await drive.go()
        clock.now_ms += 6000
        step(store, job, 3)
        await drive.go()
        clock.now_ms += 6000
        end(store, job)
        await drive.go()
    start, progress, done = inbox(hook)
    assert [each.body["type"] for each in (start, progress, done)] == [
        "generation.started",
        "generation.progress",
        "generation.succeeded",
    ]
    assert (start.id, done.id) == (f"evt_{gen(1)}_started", f"evt_{gen(1)}_succeeded")
    assert start.revision < progress.revision < done.revision
    assert progress.body["data"]["progress"]["step"] == 3
    assert done.body["timestamp"] == "2027-01-15T08:00:12Z"
    assert done.timestamp == clock.now_ms // 1000
    headers = hook.exchanges[0].headers
    assert hook.exchanges[0].line == "POST /hook HTTP/1.1"
    assert (headers["content-type"], headers["user-agent"]) == ("application/json", "Darkroom-Webhooks")
    assert headers["webhook-signature"].startswith("v1,")


async def test_receiver_that_is_down_for_hours_gets_every_end_in_order_with_unchanged_ids(
    store: JobStore, hook: Site, valkey_url: str, redis_client: redis.Redis, clock: QueueClock
) -> None:
    """Generations over eight hours at three endpoints; two of these are down from the first hour to the seventh."""
    chance, origin = random.Random(5), clock.now_ms
    down = range(origin + HOUR_MS, origin + 7 * HOUR_MS)

    async def falter(exchange: Exchange) -> None:
        if clock.now_ms in down:
            if chance.random() < 0.5:
                await exchange.answer(500)
            return  # else it hangs up
        await exchange.answer(200)

    hook.plays |= {"/a": falter, "/b": falter}
    moments: list[tuple[int, int, str]] = []
    for number in range(36):
        start = origin + chance.randrange(8 * HOUR_MS)
        moments.append((start, number, "begin"))
        moments.append((start + chance.randrange(20, 3600) * 1000, number, "end"))
    jobs = {}
    async with sending(valkey_url, clock, hook) as drive:
        for moment_ms, number, what in sorted(moments):
            await drive.until(moment_ms)
            if what == "begin":
                path = f"/{'abc'[number % 3]}"
                jobs[number] = begin(store, gen(number), webhook_url=at(hook, path), retain_ms=7 * DAY_MS)
            else:
                end(store, jobs[number], chance.choice([Status.SUCCEEDED, Status.FAILED]))
        await drive.until(clock.now_ms + 4 * DAY_MS)
    got = defaultdict(list)
    for each in inbox(hook):
        got[each.job].append(each)
    assert len(got) == 36
    failed_first = 0
    for number in range(36):
        story = got[gen(number)]
        status = redis_client.hget(key("job", gen(number)), "status")
        assert story[-1].id == f"evt_{gen(number)}_{status}"
        assert {each.id for each in story} <= {f"evt_{gen(number)}_started", f"evt_{gen(number)}_{status}"}
        assert [each.revision for each in story] == sorted(each.revision for each in story)
        assert {each.body["timestamp"] for each in story if each.id == story[-1].id} == {story[-1].body["timestamp"]}
        failed_first += len([each for each in story if each.id == story[-1].id]) > 1
    assert failed_first >= 8
    assert set(states(redis_client).values()) <= {"delivered", "superseded"}
    assert list(states(redis_client).values()).count("delivered") >= 36


async def test_two_senders_send_each_event_once(
    store: JobStore, hook: Site, valkey_url: str, clock: QueueClock
) -> None:
    for number in range(40):
        ended(store, hook, gen(number), f"/{number % 8}", tenant=f"t{number % 3}")
    rules = SenderRules(concurrency=5, per_endpoint=4, per_tenant=50, timeout_s=10.0, poll_s=0.01)
    async with (
        sending(valkey_url, clock, hook, rules=rules) as one,
        sending(valkey_url, clock, hook, rules=rules) as two,
    ):
        shares = await asyncio.gather(one.go(), two.go())
        while sum(shares) < 40:
            clock.now_ms += 1000
            shares = [had + more for had, more in zip(shares, await asyncio.gather(one.go(), two.go()), strict=True)]
    assert sorted(each.job for each in inbox(hook)) == sorted(gen(number) for number in range(40))
    assert all(shares)


async def test_dead_and_slow_receivers_delay_nobody_else(
    store: JobStore, hook: Site, valkey_url: str, clock: QueueClock
) -> None:
    """Twelve receivers that never answer and one that is slow hold a sender of eight connections; a third gets all."""
    never, released = asyncio.Event(), asyncio.Event()

    async def hang(_exchange: Exchange) -> None:
        await never.wait()

    async def dawdle(exchange: Exchange) -> None:
        await released.wait()
        await exchange.answer(200)

    hook.plays |= {f"/dead{number}": answering(500) for number in range(12)}
    for number in range(12):
        ended(store, hook, gen(f"first{number}"), f"/dead{number}", tenant=f"dead{number}")
    rules = SenderRules(concurrency=8, per_endpoint=2, per_tenant=8, timeout_s=60.0, poll_s=0.01)
    async with sending(valkey_url, clock, hook, rules=rules) as drive:
        await drive.go()
        hook.plays |= {f"/dead{number}": hang for number in range(12)}
        hook.plays["/slow"] = dawdle
        for number in range(5):
            ended(store, hook, gen(f"lag{number}"), "/slow", tenant="slow")
        clock.now_ms += 6000
        stopping = asyncio.Event()
        running = asyncio.create_task(drive.sender.run(stopping))
        await seen("hung receivers", lambda: sum("dead" in each.path for each in inbox(hook)) == 12 + 4)
        await seen("slow receiver", lambda: sum("slow" in each.path for each in inbox(hook)) == 2)
        for number in range(20):
            ended(store, hook, gen(f"fine{number}"), "/well", tenant="well")
        await seen("the third receiver's events", lambda: sum("well" in each.path for each in inbox(hook)) == 20)
        # Nothing of what hung had to end for that.
        assert sum("dead" in each.path for each in inbox(hook)) == 12 + 4
        assert sum("slow" in each.path for each in inbox(hook)) == 2
        released.set()
        never.set()
        stopping.set()
        await running


async def test_receiver_that_says_gone_is_sent_nothing_more(
    store: JobStore, hook: Site, valkey_url: str, redis_client: redis.Redis, clock: QueueClock
) -> None:
    hook.plays["/hook"] = answering(410)
    ended(store, hook, gen(1))
    async with sending(valkey_url, clock, hook) as drive:
        await drive.go()
        for number in range(2, 5):
            ended(store, hook, gen(number))
        await drive.until(clock.now_ms + 4 * DAY_MS)
    assert hook.hits == 1
    assert redis_client.hget(key("endpoint", endpoint_of(at(hook))), "disabled_reason") == "gone"
    assert set(states(redis_client).values()) == {"failed"}


async def test_receiver_that_only_fails_is_switched_off_after_three_days(
    store: JobStore, hook: Site, valkey_url: str, redis_client: redis.Redis, clock: QueueClock
) -> None:
    hook.plays["/hook"] = answering(500)
    began = clock.now_ms
    ended(store, hook, gen(1))
    async with sending(valkey_url, clock, hook) as drive:
        await drive.until(began + 4 * DAY_MS)
    endpoint = redis_client.hgetall(key("endpoint", endpoint_of(at(hook))))
    assert endpoint["disabled_reason"] == "failing"
    assert int(endpoint["disabled_ms"]) - began >= 3 * DAY_MS
    attempts = [each.timestamp - began // 1000 for each in inbox(hook)]
    assert attempts == [0, 5, 305, 2105, 9305, 27_305, 63_305, 113_705, 185_705, 272_105]


async def test_retry_after_is_honoured_for_all_that_the_endpoint_is_sent(
    store: JobStore, hook: Site, valkey_url: str, clock: QueueClock
) -> None:
    hook.plays["/hook"] = answering(503, retry_after="600")
    ended(store, hook, gen(1))
    async with sending(valkey_url, clock, hook) as drive:
        await drive.go()
        ended(store, hook, gen(2))
        await drive.until(clock.now_ms + 599_000)
        assert hook.hits == 1
        hook.plays.clear()
        await drive.until(clock.now_ms + 10_000)
    assert sorted(each.job for each in inbox(hook)[1:]) == [gen(1), gen(2)]


async def test_redirects_are_failures_and_nobody_follows_them(
    store: JobStore, hook: Site, valkey_url: str, redis_client: redis.Redis, clock: QueueClock
) -> None:
    hook.plays["/hook"] = answering(307, location=at(hook, "/elsewhere"))
    ended(store, hook, gen(1))
    async with sending(valkey_url, clock, hook) as drive:
        await drive.go()
    assert [each.path for each in inbox(hook)] == ["/hook"]
    assert states(redis_client) == {f"evt_{gen(1)}_succeeded": "pending"}


async def test_progress_that_could_not_be_told_is_not_told_again(
    store: JobStore, hook: Site, valkey_url: str, redis_client: redis.Redis, clock: QueueClock
) -> None:
    hook.plays["/hook"] = answering(500)
    job = begin(store, gen(1), webhook_url=at(hook), webhook_events=("progress",))
    step(store, job, 1)
    async with sending(valkey_url, clock, hook) as drive:
        await drive.until(clock.now_ms + HOUR_MS)
        assert hook.hits == 1
    assert list(states(redis_client).values()) == ["failed"]


async def test_nothing_is_sent_of_what_was_erased_while_its_receiver_was_down(
    store: JobStore, hook: Site, valkey_url: str, redis_client: redis.Redis, clock: QueueClock
) -> None:
    hook.plays["/hook"] = answering(500)
    ended(store, hook, gen(1))
    async with sending(valkey_url, clock, hook) as drive:
        await drive.go()
        assert store.erase("ada", gen(1))
        hook.plays.clear()
        await drive.until(clock.now_ms + 4 * DAY_MS)
    assert hook.hits == 1
    assert states(redis_client) == {}


async def test_urls_are_checked_anew_at_each_send(
    store: JobStore, hook: Site, valkey_url: str, redis_client: redis.Redis, clock: QueueClock
) -> None:
    """What was allowed when the job was accepted, or was written by somebody else, is not called for that."""
    async with site("127.0.0.1") as inside:
        end(store, begin(store, gen(1), webhook_url=f"http://127.0.0.1:{inside.port}/", webhook_events=ENDS))
        end(store, begin(store, gen(2), webhook_url="gopher://example.com/", webhook_events=ENDS))
        async with sending(valkey_url, clock, hook, inside) as drive:
            await drive.go()
        assert inside.hits == 0
    logs = [redis_client.hget(key("event", f"evt_{gen(number)}_succeeded"), "log") or "" for number in (1, 2)]
    assert '"reason":"address"' in logs[0]
    assert '"reason":"refused"' in logs[1]


async def test_damaged_jobs_and_unreadable_secrets_stop_nobody_and_are_not_held_against_the_endpoint(
    store: JobStore, hook: Site, valkey_url: str, redis_client: redis.Redis, clock: QueueClock
) -> None:
    async with sending(valkey_url, clock, hook, sealer=Sealer([b"k" * 32])) as other:
        ended(store, hook, gen(0), tenant="bob")
        await other.go()
    for number, tenant in ((1, "ada"), (2, "bob"), (3, "eve")):
        ended(store, hook, gen(number), tenant=tenant)
    redis_client.hset(key("job", gen(1)), "spec", "{")
    async with sending(valkey_url, clock, hook) as drive:
        await drive.go()
        assert [each.job for each in inbox(hook)] == [gen(0), gen(3)]
        for tenant in ("ada", "bob"):
            assert redis_client.hget(key("endpoint", endpoint_of(at(hook), tenant)), "failing_since_ms") is None
    async with sending(valkey_url, clock, hook, sealer=Sealer([b"k" * 32])) as other:
        await other.until(clock.now_ms + 10_000)
    assert [each.job for each in inbox(hook)] == [gen(0), gen(3), gen(2)]


async def test_sender_outlives_an_outage_of_redis_and_loses_nothing(
    store: JobStore, hook: Site, valkey_url: str, clock: QueueClock
) -> None:
    """The connection breaks while an event is being sent; it is recorded when Redis is back, and not sent twice."""
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def hold(exchange: Exchange) -> None:
        arrived.set()
        await go_on.wait()
        await exchange.answer(200)

    hook.plays["/hook"] = hold
    host, _, port = valkey_url.removeprefix("redis://").rpartition("@")[2].partition("/")[0].rpartition(":")
    with Proxy(int(port)) as proxy:
        through = valkey_url.replace(f"{host}:{port}", f"127.0.0.1:{proxy.port}")
        async with sending(through, clock, hook) as drive:
            stopping = asyncio.Event()
            running = asyncio.create_task(drive.sender.run(stopping))
            ended(store, hook, gen(1))
            await asyncio.wait_for(arrived.wait(), 10)
            proxy.cut()
            go_on.set()
            ended(store, hook, gen(2))
            await asyncio.sleep(0)
            assert hook.hits == 1
            proxy.mend()
            await seen("both events", lambda: hook.hits == 2)
            stopping.set()
            await running
    assert [each.job for each in inbox(hook)] == [gen(1), gen(2)]
    outcome = store.commit(gen(1), f"exe-{gen(1)}", Outcome(Status.SUCCEEDED))
    assert outcome == "already_committed"
    assert RULES.lease_ms > 1000 * RULES.timeout_s
    submit(store, gen(3))
