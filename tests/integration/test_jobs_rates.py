"""A tenant's rate as the submit script keeps it, against a real Valkey and by a clock of the test's own."""

from __future__ import annotations

import math
from itertools import count

import pytest
import redis

from service.contract.rate import MAX_RATE, RequestRate
from service.jobs.commands import Idempotency, Submission, SubmitLimits
from service.jobs.keys import key
from service.jobs.store import JobStore
from service.tenants.records import TenantLimits
from service.tenants.store import TenantStore
from tests.jobs import ROOM, make_job

RATE_KEY = key("tenant_rate", "ada")


class Desk:
    """Submits job after job, by a clock that stands until the test moves it."""

    def __init__(self, client: redis.Redis) -> None:
        self.now_ms = 1_800_000_000_000
        self.store = JobStore(client, clock=lambda: self.now_ms)
        self._tenants = TenantStore(client)
        self._numbers = count()

    def allow(self, per_minute: int | None, tenant: str = "ada") -> None:
        limits = TenantLimits(max_requests_per_minute=per_minute)
        if any(each.id == tenant for each in self._tenants.list()):
            self._tenants.set_limits(tenant, limits)
        else:
            self._tenants.create(tenant, limits=limits)

    def submit(
        self, tenant: str = "ada", *, once: Idempotency | None = None, room: SubmitLimits = ROOM, job_id: str = ""
    ) -> Submission:
        job = make_job(job_id or f"gen_{next(self._numbers)}", tenant=tenant)
        return self.store.submit(job, idempotency=once, limits=room)

    def accepted(self, tries: int) -> int:
        outcomes = [self.submit().outcome for _ in range(tries)]
        assert set(outcomes) <= {"created", "rate_limited"}
        return outcomes.count("created")


@pytest.fixture
def desk(redis_client: redis.Redis) -> Desk:
    return Desk(redis_client)


def test_a_quarter_of_a_minutes_calls_may_come_at_once_and_then_one_by_one(
    desk: Desk, redis_client: redis.Redis
) -> None:
    desk.allow(60)
    replies = [desk.submit() for _ in range(15)]
    assert {reply.outcome for reply in replies} == {"created"}
    assert [reply.rate.remaining for reply in replies if reply.rate] == list(reversed(range(15)))
    refused = desk.submit()
    assert (refused.outcome, refused.job_ids, refused.rate) == ("rate_limited", (), RequestRate(60, 0, 1))
    assert redis_client.hget(key("tenant_counts", "ada"), "queued") == "15"
    desk.now_ms += 998
    assert desk.submit().outcome == "rate_limited"
    desk.now_ms += 2
    assert desk.submit().outcome == "created"
    assert desk.submit().outcome == "rate_limited"
    desk.now_ms += 3_600_000
    assert desk.accepted(40) == 15


@pytest.mark.parametrize("per_minute", [1, 7, 60])
def test_the_greediest_caller_gets_its_rate_and_never_more_than_a_burst_above_it(desk: Desk, per_minute: int) -> None:
    desk.allow(per_minute)
    burst, step_ms, minutes = math.ceil(per_minute / 4), 250, 3
    moments: list[int] = []
    for _ in range(minutes * 60_000 // step_ms):
        moments += [desk.now_ms] * desk.accepted(1 if moments else 30)
        desk.now_ms += step_ms
    assert burst + minutes * per_minute - 1 <= len(moments) <= burst + minutes * per_minute
    for first in moments:
        assert sum(first <= moment < first + 60_000 for moment in moments) <= burst + per_minute


@pytest.mark.parametrize("per_minute", [7, 9, 1001])
def test_who_waits_as_long_as_told_is_accepted(desk: Desk, per_minute: int) -> None:
    desk.allow(per_minute)
    burst = math.ceil(per_minute / 4)
    assert desk.accepted(burst) == burst
    reply = desk.submit()
    assert (reply.outcome, reply.rate is None) == ("rate_limited", False)
    assert reply.rate
    desk.now_ms += 1000 * reply.rate.next_s
    assert desk.submit().outcome == "created"


def test_a_refusal_of_any_kind_uses_nothing(desk: Desk) -> None:
    desk.allow(8)
    once = Idempotency("record", "body", 60)
    first = desk.submit(once=once)
    assert first.rate == RequestRate(8, 1, 8)
    again = desk.submit(once=once)
    assert (again.outcome, again.job_ids, again.rate) == ("replayed", first.job_ids, RequestRate(8, 1, 8))
    assert desk.submit(once=Idempotency("record", "else", 60)).outcome == "mismatch"
    assert desk.submit(room=SubmitLimits(1, 100)).outcome == "tenant_full"
    assert desk.submit(room=SubmitLimits(None, 1)).outcome == "pool_full"
    last = desk.submit()
    assert (last.outcome, last.rate) == ("created", RequestRate(8, 0, 8))
    # The same submit once more, whose reply was lost.
    lost = desk.submit(job_id=last.job_ids[0])
    assert (lost.outcome, lost.rate) == ("created", RequestRate(8, 0, 8))
    assert desk.submit().outcome == "rate_limited"
    # What was accepted can be asked for, however fast.
    assert {desk.submit(once=once).outcome for _ in range(20)} == {"replayed"}
    desk.store.erase("ada", first.job_ids[0])
    assert desk.submit(once=once).outcome == "gone"


def test_tenants_have_their_rates_each_for_itself(desk: Desk) -> None:
    desk.allow(4)
    desk.allow(4, "bob")
    assert desk.accepted(3) == 1
    assert desk.submit("bob").outcome == "created"
    assert desk.submit("eve") == Submission("created", ("gen_4",), desk.now_ms, rate=None, aheads=(0,))


def test_without_a_limit_nothing_is_counted(desk: Desk, redis_client: redis.Redis) -> None:
    desk.allow(None)
    assert desk.accepted(50) == 50
    assert not redis_client.exists(RATE_KEY)


def test_another_limit_counts_at_once(desk: Desk) -> None:
    desk.allow(400)
    assert desk.accepted(200) == 100
    desk.allow(4)
    assert desk.submit().rate == RequestRate(4, 0, 15)
    desk.now_ms += 15_000
    assert desk.accepted(5) == 1
    desk.allow(400)
    assert desk.submit().rate == RequestRate(400, 0, 1)
    desk.now_ms += 1_000
    assert desk.accepted(10) == 6
    desk.allow(None)
    assert desk.accepted(50) == 50


def test_what_is_kept_is_one_value_that_goes_with_the_minute(desk: Desk, redis_client: redis.Redis) -> None:
    desk.allow(1)
    assert desk.accepted(5) == 1
    assert redis_client.type(RATE_KEY) == "string"
    assert 50_000 < int(redis_client.pttl(RATE_KEY)) <= 60_000


@pytest.mark.parametrize(
    "kept", ["", "nan", "inf", "-inf", "-1e300", "é", "0x", "9" * 400, "1e18", "1800009999999", "now", "\x00"]
)
def test_what_is_stored_as_the_rate_and_cannot_be_one_is_none(desk: Desk, redis_client: redis.Redis, kept: str) -> None:
    desk.allow(60)
    redis_client.set(RATE_KEY, kept)
    assert desk.submit().rate == RequestRate(60, 14, 1)
    assert desk.accepted(20) == 14


def test_whatever_is_stored_nobody_waits_longer_than_a_minute(desk: Desk, redis_client: redis.Redis) -> None:
    desk.allow(60)
    redis_client.set(RATE_KEY, desk.now_ms + 60_000)
    assert desk.submit().rate == RequestRate(60, 0, 1)
    desk.now_ms += 44_000
    assert desk.submit().outcome == "rate_limited"
    desk.now_ms += 16_000
    assert desk.accepted(20) == 15


def test_a_value_of_another_type_is_replaced(desk: Desk, redis_client: redis.Redis) -> None:
    desk.allow(60)
    redis_client.rpush(RATE_KEY, "x")
    assert desk.accepted(20) == 15
    assert redis_client.type(RATE_KEY) == "string"


def test_a_clock_that_is_set_back_locks_nobody_out(desk: Desk) -> None:
    desk.allow(60)
    desk.accepted(15)
    desk.now_ms -= 86_400_000
    assert desk.accepted(20) == 15


@pytest.mark.parametrize("limit", ["", "nan", "inf", "many", "0", "-5", "1e300", str(MAX_RATE + 1)])
def test_a_damaged_limit_is_none_and_breaks_no_submit(desk: Desk, redis_client: redis.Redis, limit: str) -> None:
    redis_client.hset(key("tenant", "ada"), "max_requests_per_minute", limit)
    assert desk.submit() == Submission("created", ("gen_0",), desk.now_ms, rate=None, aheads=(0,))
