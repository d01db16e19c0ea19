"""kill -9, in the middle of a hundred jobs: all succeed, each committed once."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import redis

from service.jobs.keys import key
from service.settings.groups import RedisSettings
from tests.e2e.processes import Gateway, Service, alive, wait_for

JOBS = 100


class Fleet:
    """Two gateways and two agents; callers that retry on the other gateway with the same key."""

    def __init__(self, service: Service, settings: RedisSettings) -> None:
        self.service = service
        self.redis = redis.Redis.from_url(settings.url.get_secret_value(), decode_responses=True)
        self.agents = [service.agent(f"agent{n}") for n in (1, 2)]
        self.gateways = [service.gateway(f"gateway{n}") for n in (1, 2)]
        self.gateways[0].wait_for_workers(2)

    def post(self, number: int, campaign: str) -> str:
        """Submit one job; a caller whose gateway dies asks the other one, with the same Idempotency-Key."""
        body = {"prompt": "a red circle on a blue background", "steps": 3, "seed": number}
        deadline = time.monotonic() + 60
        turn = number
        while time.monotonic() < deadline:
            gateway = self.gateways[turn % 2]
            turn += 1
            try:
                reply = httpx.post(
                    f"{gateway.url}/v1/generations",
                    json=body,
                    headers={"Idempotency-Key": f"{campaign}-{number}"},
                    timeout=10,
                )
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            if reply.status_code == 202:
                return reply.json()["id"]
            assert reply.status_code == 503, reply.text
        msg = f"job {number} was never accepted"
        raise AssertionError(msg)

    def submit_all(self, campaign: str) -> list[str]:
        with ThreadPoolExecutor(8) as callers:
            return list(callers.map(lambda number: self.post(number, campaign), range(JOBS)))

    def living_gateway(self) -> Gateway:
        return next(gateway for gateway in self.gateways if gateway.process.poll() is None)

    def succeeded(self) -> int:
        return sum(
            self.redis.hget(name, "status") == "succeeded" for name in self.redis.scan_iter(key("job", "*"), count=500)
        )

    def images_metered(self) -> int:
        """Count committed pictures: metered by the script that commits, so twice committed is twice counted."""
        days = self.redis.scan_iter(key("usage", "local", "*"))
        return sum(int(self.redis.hget(day, "images") or 0) for day in days)

    def check(self, ids: list[str], metered_before: int) -> None:
        gateway = self.living_gateway()
        assert len(set(ids)) == JOBS
        with gateway.client() as client:
            for job_id in ids:
                resource = client.get(f"/v1/generations/{job_id}", headers={"Prefer": "wait=60"}).json()
                while resource["status"] in {"queued", "running"}:
                    resource = client.get(f"/v1/generations/{job_id}", headers={"Prefer": "wait=60"}).json()
                assert resource["status"] == "succeeded", resource
                (image,) = resource["images"]
                data = client.get(image["url"], follow_redirects=True)
                assert data.status_code == 200
                assert hashlib.sha256(data.content).hexdigest() == image["sha256"]
        assert self.images_metered() - metered_before == JOBS
        assert self.redis.zcard(key("leases")) == 0
        assert self.redis.hlen(key("executions")) == 0
        assert Counter(self.redis.hmget(key("pool", "default"), "queued", "running")) == Counter({"0": 2})


@pytest.fixture(scope="module")
def fleet(service: Service, redis_settings: RedisSettings) -> Fleet:
    return Fleet(service, redis_settings)


def in_the_middle(fleet: Fleet, before: int, strike) -> threading.Thread:
    """Strike when a quarter of the jobs has succeeded, on a thread of its own."""

    def wait_and_strike() -> None:
        wait_for("a quarter of the jobs", lambda: fleet.succeeded() - before >= JOBS // 4, timeout_s=120)
        strike()

    thread = threading.Thread(target=wait_and_strike)
    thread.start()
    return thread


def test_an_engine_child_that_is_killed_costs_nothing(fleet: Fleet) -> None:
    before, metered = fleet.succeeded(), fleet.images_metered()
    killed: list[int] = []

    def strike() -> None:
        killed.append(fleet.service.engine_of(fleet.agents[0]))
        os.kill(killed[0], signal.SIGKILL)

    thread = in_the_middle(fleet, before, strike)
    ids = fleet.submit_all("engine")
    thread.join()
    assert killed
    fleet.check(ids, metered)
    assert fleet.agents[0].poll() is None


def test_an_agent_that_is_killed_costs_nothing(fleet: Fleet) -> None:
    before, metered = fleet.succeeded(), fleet.images_metered()
    engine = fleet.service.engine_of(fleet.agents[1])
    thread = in_the_middle(fleet, before, fleet.agents[1].kill)
    ids = fleet.submit_all("agent")
    thread.join()
    fleet.check(ids, metered)
    wait_for("the orphaned engine to end", lambda: not alive(engine), timeout_s=10)
    fleet.agents[1].wait(5)
    fleet.agents[1] = fleet.service.agent("agent2b")
    fleet.living_gateway().wait_for_workers(2)


def test_a_gateway_that_is_killed_costs_nothing(fleet: Fleet) -> None:
    metered = fleet.images_metered()
    accepted: list[str] = []

    def strike() -> None:
        wait_for("some accepted jobs", lambda: len(accepted) >= JOBS // 4)
        fleet.gateways[0].process.kill()

    thread = threading.Thread(target=strike)
    thread.start()

    def post(number: int) -> str:
        job_id = fleet.post(number, "gateway")
        accepted.append(job_id)
        return job_id

    with ThreadPoolExecutor(8) as callers:
        ids = list(callers.map(post, range(JOBS)))
    thread.join()
    assert fleet.gateways[0].process.wait(5) == -signal.SIGKILL
    fleet.check(ids, metered)


def test_an_engine_that_is_stopped_does_not_outlive_its_agent(fleet: Fleet) -> None:
    agent = fleet.service.agent("stopped")
    engine = fleet.service.engine_of(agent)
    fleet.living_gateway().wait_for_workers(3)
    os.kill(engine, signal.SIGSTOP)
    agent.kill()
    agent.wait(5)
    wait_for("the stopped engine to end", lambda: not alive(engine), timeout_s=10)
