"""Two gateways and two agents on one Redis are one service."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import httpx
import pytest

from tests.e2e.processes import Gateway, Service, wait_for


@pytest.fixture(scope="module")
def gateways(service: Service) -> list[Gateway]:
    for number in (1, 2):
        service.agent(f"agent{number}")
    gateways = [service.gateway(f"gateway{number}") for number in (1, 2)]
    gateways[0].wait_for_workers(2)
    return gateways


def committed(service: Service, name: str) -> set[str]:
    """Return the jobs that an agent ended, from its log."""
    lines = (service.folder / f"{name}.log").read_text("utf-8").splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    return {event["job_id"] for event in events if event.get("event") == "generation_ended"}


def test_both_agents_work_for_both_gateways(service: Service, gateways: list[Gateway]) -> None:
    ids: list[str] = []
    for number in range(24):
        reply = httpx.post(f"{gateways[number % 2].url}/v1/generations", json={"prompt": "a cat", "steps": 4})
        assert reply.status_code == 202, reply.text
        ids.append(reply.json()["id"])
    for number, job_id in enumerate(ids):
        other = gateways[(number + 1) % 2]
        reply = httpx.get(f"{other.url}/v1/generations/{job_id}", headers={"Prefer": "wait=60"}, timeout=90)
        assert reply.json()["status"] == "succeeded", reply.text

    def shares() -> list[set[str]]:
        return [committed(service, name) & set(ids) for name in ("agent1", "agent2")]

    # An agent writes its line after the commit that the caller was answered by.
    wait_for("the agents' own words", lambda: set.union(*shares()) == set(ids), timeout_s=10)
    assert all(shares())
    assert not set.intersection(*shares())


def test_one_idempotency_key_sent_sixteen_times_at_once_over_both_is_one_job(gateways: list[Gateway]) -> None:
    barrier = Barrier(16)

    def post(number: int) -> httpx.Response:
        barrier.wait()
        return httpx.post(
            f"{gateways[number % 2].url}/v1/generations",
            json={"prompt": "a cat", "steps": 2},
            headers={"Idempotency-Key": "the-same"},
            timeout=30,
        )

    with ThreadPoolExecutor(16) as callers:
        replies = list(callers.map(post, range(16)))
    assert {reply.status_code for reply in replies} == {202}
    assert len({reply.json()["id"] for reply in replies}) == 1
    assert len({reply.headers["Location"] for reply in replies}) == 1
    replayed = [reply.headers.get("Idempotency-Replayed") for reply in replies]
    assert replayed.count("true") == 15
    listed = httpx.get(f"{gateways[0].url}/v1/generations", params={"limit": 100}).json()["data"]
    assert sum(each["id"] == replies[0].json()["id"] for each in listed) == 1
