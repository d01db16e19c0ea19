"""Weights, caps and priorities of tenants over two workers: real agents on one queue, callers with keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import httpx
import pytest
import redis
import yaml

from service.contract.job import Job
from service.jobs.keys import key
from service.jobs.store import JobStore
from service.settings.groups import RedisSettings, StorageSettings
from service.tenants.records import TenantLimits
from tests.e2e.processes import Gateway, Service, running, wait_for
from tests.gateway import make_key

PATH = "/v1/generations"
LIMITS = {
    "heavy": TenantLimits(weight=3),
    "light": TenantLimits(weight=1),
    "capped": TenantLimits(max_running=1),
    "last": TenantLimits(top_priority="low"),
}
JOBS = {"heavy": 18, "light": 18, "capped": 5, "last": 4}


@pytest.fixture(scope="module")
def jobs(
    redis_settings: RedisSettings, storage_settings: StorageSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Job]]:
    """What four tenants asked for at once, drawn by two agents of one place each, in the order of their starts."""
    folder = tmp_path_factory.mktemp("tenants")
    (folder / "model").mkdir()
    catalogue = folder / "models.yaml"
    catalogue.write_text(yaml.safe_dump({"models": [{"id": "tiny", "source": "./model", "default": True}]}))
    extra = {"DARKROOM_ENGINE_MODULE": "worker.engine.fake", "DARKROOM_ENGINE_CAPACITY": "1"}
    client = redis.Redis.from_url(redis_settings.url.get_secret_value(), decode_responses=True)
    client.flushdb()
    with running(Service(redis_settings, storage_settings, folder, models=catalogue, extra=extra)) as service:
        gateway = service.gateway(DARKROOM_AUTH="keys", DARKROOM_MODELS_CACHE_S="0")
        agents = [service.agent(f"agent{number}") for number in (1, 2)]
        wait_for("both agents are warm", lambda: client.zcard(key("warm", "tiny")) == len(agents))
        ids = submit_all(client, gateway)
        store = JobStore(client)

        def ended() -> list[Job]:
            found = [store.get(tenant, job_id) for tenant, job_id in ids]
            return [job for job in found if job is not None and job.ended]

        wait_for("the end of all jobs", lambda: len(ended()) == len(ids))
        yield sorted(ended(), key=lambda job: job.started_ms or 0)
    client.flushdb()
    client.close()


def submit_all(client: redis.Redis, gateway: Gateway) -> list[tuple[str, str]]:
    """Submit every tenant's jobs while both agents are kept busy, then let them go; return (tenant, id) of each."""
    keys = {tenant: make_key(client, tenant, limits) for tenant, limits in LIMITS.items()}
    busy = make_key(client, "busy")
    ids: list[tuple[str, str]] = []

    def post(api: httpx.Client, secret: str, path: str = PATH, **body: object) -> str:
        reply = api.post(path, json=body, headers={"Authorization": f"Bearer {secret}"})
        assert reply.status_code in {200, 202}, reply.text
        return str(reply.json()["id"])

    with gateway.client() as api:
        held = [post(api, busy, prompt="step=0.5", steps=100) for _ in range(2)]
        wait_for("both are drawn", lambda: client.hget(key("tenant_counts", "busy"), "running") == "2")
        for number in range(max(JOBS.values())):
            for tenant in (tenant for tenant, count in JOBS.items() if number < count):
                priority = "high" if tenant == "last" else "normal"
                ids.append((tenant, post(api, keys[tenant], prompt="step=0.02", steps=5, priority=priority)))
        assert client.hget(key("tenant_counts", "busy"), "running") == "2"
        for job_id in held:
            post(api, busy, f"{PATH}/{job_id}/cancel")
    return ids


def test_both_workers_drew_and_all_of_it(jobs: list[Job]) -> None:
    assert Counter(job.tenant for job in jobs if job.status == "succeeded") == JOBS
    assert min(Counter(job.agent_id for job in jobs).values()) > len(jobs) // 4
    assert len({job.agent_id for job in jobs}) == 2


def test_shares_go_by_weight_while_both_wait(jobs: list[Job]) -> None:
    both = [job.tenant for job in jobs if job.tenant in {"heavy", "light"}]
    contended = Counter(both[:20])
    assert contended["heavy"] == pytest.approx(15, abs=2)


def test_a_running_cap_holds_over_all_workers(jobs: list[Job]) -> None:
    def overlaps(tenant: str) -> int:
        mine = [job for job in jobs if job.tenant == tenant]
        return sum((later.started_ms or 0) < (earlier.finished_ms or 0) for earlier, later in pairwise(mine))

    assert overlaps("capped") == 0
    assert overlaps("heavy") > 0


def test_a_capped_priority_is_the_last_though_the_highest_was_asked_for(jobs: list[Job]) -> None:
    mine = [place for place, job in enumerate(jobs) if job.tenant == "last"]
    assert {jobs[place].priority for place in mine} == {"low"}
    # Every ninth turn is for a class that waits.
    assert mine[0] >= 7
    assert all(later - earlier >= 7 for earlier, later in pairwise(mine) if later < 30)
