"""A worker with more models than memory draws with all of them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.e2e.outages import Outpost
from tests.e2e.processes import Gateway, Service, draw, wait_for
from tests.models import LIBRARY_WARNINGS, tiny_model

pytestmark = LIBRARY_WARNINGS

#: GiB: more than one of the tiny models takes, less than two.
ROOM_FOR_ONE = "0.0019"


@pytest.fixture(scope="module")
def gateway(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    sizes = "defaults: {width: 64, height: 64, steps: 4}"
    service.models = Path(tmp_path_factory.mktemp("catalogue") / "models.yaml")
    service.models.write_text(
        f"models:\n"
        f"  - {{id: second, source: {tiny_model('sd21')}, {sizes}}}\n"
        f"  - {{id: first, source: {tiny_model('sd15')}, default: true, {sizes}}}\n",
        "utf-8",
    )
    service.agent(DARKROOM_MODEL_MEMORY_GIB=ROOM_FOR_ONE)
    gateway = service.gateway()
    gateway.wait_for_workers()
    return gateway


def states(client: httpx.Client) -> dict[str, str]:
    return {model["id"]: model["state"] for model in client.get("/v1/models").json()["data"]}


def test_a_cold_model_is_read_when_it_is_wanted_and_the_time_is_told(gateway: Gateway) -> None:
    with gateway.client() as client:
        wait_for("both models", lambda: states(client) == {"first": "warm", "second": "cold"})
        first = draw(client, model="first", seed=1)
        assert first["timings"]["load_s"] == 0
        second = draw(client, model="second", seed=1)
        assert second["status"] == "succeeded"
        assert second["timings"]["load_s"] > 0
        wait_for("the other way round", lambda: states(client) == {"first": "cold", "second": "warm"})
        again = draw(client, model="first", seed=1)
        assert again["timings"]["load_s"] > 0
        assert again["images"][0]["sha256"] == first["images"][0]["sha256"]


def test_many_jobs_of_both_models_all_end(gateway: Gateway) -> None:
    with gateway.client() as client:
        bodies = [{"prompt": f"{n}", "model": ("first", "second")[n % 2], "steps": 4} for n in range(24)]
        ids = [client.post("/v1/generations", json=body).json()["id"] for body in bodies]
        for job_id in ids:
            reply = client.get(f"/v1/generations/{job_id}", headers={"Prefer": "wait=60"})
            assert reply.json()["status"] == "succeeded", reply.text


def test_a_job_that_waits_for_its_model_says_so(outpost: Outpost, name: str) -> None:
    outpost.agent(name)
    job_id = outpost.submit("load=1.5")
    wait_for("the phase", lambda: outpost.job(job_id).phase == "load")
    assert outpost.ended([job_id]) == ["succeeded"]
    timings = outpost.job(job_id).timings
    assert timings is not None
    assert timings.load_s == 1.5
