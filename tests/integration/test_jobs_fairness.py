"""Whose turn it is: tenants, priorities, caps, warm models; against a real Valkey."""

from __future__ import annotations

from collections import Counter
from typing import cast

import pytest
import redis

from service.contract.job import Status
from service.contract.worker import WorkerRecord
from service.jobs.commands import Outcome
from service.jobs.keys import key
from service.jobs.store import JobStore
from tests.e2e.processes import wait_for
from tests.gateway import SHAPES
from tests.jobs import claim_all, submit


@pytest.fixture
def store(redis_client: redis.Redis) -> JobStore:
    return JobStore(redis_client, clock=lambda: 1_800_000_000_000)


def announce_warm(store: JobStore, agent_id: str, model: str) -> None:
    """Let an agent live, with one of its two models in memory."""
    models = {"cold", "other"}
    record = WorkerRecord(agent_id=agent_id, pool="default", warm=(model,), cold=tuple(models - {model}))
    store.announce(record, [SHAPES.model_copy(update={"id": each}) for each in models], ttl_ms=60_000)


def test_a_tenant_with_a_thousand_jobs_delays_another_by_one(store: JobStore) -> None:
    for number in range(1000):
        submit(store, f"gen_a{number}")
    claim_all(store, 3)
    submit(store, "gen_b", tenant="bob")
    assert "gen_b" in [job.id for job in claim_all(store, 2)]


def test_tenants_share_by_weight_and_cost(redis_client: redis.Redis, store: JobStore) -> None:
    redis_client.hset(key("tenant", "bob"), "weight", 3)
    for number in range(100):
        submit(store, f"gen_a{number}", cost=10)
        submit(store, f"gen_b{number}", tenant="bob", cost=10)
        submit(store, f"gen_e{number}", tenant="eve", cost=30)
    shares = Counter(job.tenant for job in claim_all(store, 65))
    # In time units ada : bob : eve = 1 : 3 : 1, in jobs 3 : 9 : 1 of every 13.
    assert shares["bob"] == pytest.approx(45, abs=3)
    assert shares["ada"] == pytest.approx(15, abs=3)
    assert shares["eve"] == pytest.approx(5, abs=2)


def test_a_tenant_that_comes_back_is_not_owed_the_time_it_was_away(store: JobStore) -> None:
    for number in range(50):
        submit(store, f"gen_a{number}")
    claim_all(store, 50)
    for number in range(10):
        submit(store, f"gen_c{number}")
        submit(store, f"gen_b{number}", tenant="bob")
    shares = Counter(job.tenant for job in claim_all(store, 10))
    assert shares == {"ada": 5, "bob": 5}


def test_high_goes_before_normal_before_low_and_every_ninth_turn_is_for_the_passed_over(store: JobStore) -> None:
    for number in range(40):
        submit(store, f"gen_h{number}", priority="high")
    for number in range(4):
        submit(store, f"gen_l{number}", priority="low")
        submit(store, f"gen_n{number}", priority="normal")
    order = [job.priority for job in claim_all(store, 30)]
    assert order[:8] == ["high"] * 8
    assert order.count("low") == 3
    assert order.count("normal") == 3


def test_a_running_cap_holds_a_tenant_back_and_lets_it_go_on(redis_client: redis.Redis, store: JobStore) -> None:
    redis_client.hset(key("tenant", "ada"), "max_running", 2)
    for number in range(4):
        submit(store, f"gen_{number}")
    first = claim_all(store, 4, commit=False)
    assert len(first) == 2
    assert store.claim("default", "more", "agent") is None
    store.commit(first[0].id, cast("str", first[0].execution_id), Outcome(Status.SUCCEEDED))
    third = store.claim("default", "third", "agent")
    assert third is not None
    assert third.id == "gen_2"


def test_a_raised_cap_lets_waiting_jobs_go_and_rings_for_them(redis_client: redis.Redis, store: JobStore) -> None:
    redis_client.hset(key("tenant", "ada"), "max_running", 1)
    for number in range(3):
        submit(store, f"gen_{number}")
    claim_all(store, 3, commit=False)
    redis_client.delete(key("rq_queue", "default"))
    assert store.reap(take_back=False).bells == 0
    redis_client.hset(key("tenant", "ada"), "max_running", 2)
    assert store.claim("default", "more", "agent") is None
    store.unhold("ada")
    assert redis_client.llen(key("rq_queue", "default")) == 1
    assert store.claim("default", "more", "agent") is not None


def test_a_capped_tenants_next_job_is_rung_for_when_one_ends(redis_client: redis.Redis, store: JobStore) -> None:
    redis_client.hset(key("tenant", "ada"), "max_running", 1)
    for number in range(3):
        submit(store, f"gen_{number}")
    (first,) = claim_all(store, 3, commit=False)
    redis_client.delete(key("rq_queue", "default"))
    store.commit(first.id, cast("str", first.execution_id), Outcome(Status.SUCCEEDED))
    assert redis_client.llen(key("rq_queue", "default")) == 1


def test_a_warm_model_goes_first_but_a_cold_one_not_last(store: JobStore) -> None:
    submit(store, "gen_cold", model="cold")
    for number in range(30):
        submit(store, f"gen_warm{number}", model="warm")
    order: list[str] = []
    for number in range(12):
        job = store.claim("default", f"e{number}", "agent", models=["cold", "warm"], warm=["warm"])
        assert job is not None
        order.append(job.id)
    assert order.index("gen_cold") == 8


def test_a_cold_model_is_drawn_where_nothing_warm_waits(store: JobStore) -> None:
    submit(store, "gen_cold", model="cold")
    job = store.claim("default", "e", "agent", models=["cold", "warm"], warm=["warm"])
    assert job is not None
    assert job.id == "gen_cold"


def test_a_job_is_left_to_an_agent_that_has_its_model_warm_but_not_for_good(
    store: JobStore, redis_client: redis.Redis
) -> None:
    announce_warm(store, "hot", "cold")
    submit(store, "gen_cold", model="cold")
    bells = redis_client.llen(key("rq_queue", "default"))
    for number in range(8):
        assert store.claim("default", f"e{number}", "agent", models=["cold", "warm"], warm=["warm"]) is None
    # The other agent hears of it each time.
    assert redis_client.llen(key("rq_queue", "default")) == bells + 8
    taken = store.claim("default", "e", "agent", models=["cold", "warm"], warm=["warm"])
    assert taken is not None


def test_the_agent_that_has_it_warm_takes_it_at_once(store: JobStore) -> None:
    announce_warm(store, "hot", "cold")
    submit(store, "gen_cold", model="cold")
    assert store.claim("default", "e", "hot", models=["cold"], warm=["cold"]) is not None


def test_a_job_is_not_left_to_an_agent_that_is_gone_or_has_evicted_the_model(store: JobStore) -> None:
    announce_warm(store, "hot", "cold")
    store.withdraw("hot")
    announce_warm(store, "cooled", "cold")
    announce_warm(store, "cooled", "other")
    submit(store, "gen_cold", model="cold")
    assert store.claim("default", "e", "agent", models=["cold", "warm"], warm=["warm"]) is not None


def test_a_job_is_not_left_to_an_agent_whose_engine_was_lost(store: JobStore, redis_client: redis.Redis) -> None:
    record = WorkerRecord(agent_id="hot", pool="default", warm=("cold",))
    store.announce(record, [SHAPES.model_copy(update={"id": "cold"})], ttl_ms=200)
    assert redis_client.exists(key("warm", "cold"))
    # It lives, and its new engine has said nothing yet.
    store.announce(WorkerRecord(agent_id="hot", pool="default"), [], ttl_ms=60_000)
    wait_for("what it said to be over", lambda: not redis_client.exists(key("warm", "cold")), timeout_s=5)
    submit(store, "gen_cold", model="cold")
    assert store.claim("default", "e", "agent", models=["cold", "warm"], warm=["warm"]) is not None


def test_agents_that_were_killed_do_not_pile_up_under_a_model(store: JobStore, redis_client: redis.Redis) -> None:
    for number in range(20):
        record = WorkerRecord(agent_id=f"killed{number}", pool="default", warm=("cold",))
        store.announce(record, [], ttl_ms=1)

    def only_the_living() -> bool:
        announce_warm(store, "alive", "cold")
        return redis_client.zrange(key("warm", "cold"), 0, -1) == ["alive"]

    wait_for("the dead to be forgotten", only_the_living, timeout_s=5)
