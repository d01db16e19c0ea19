"""What calls cost outlives the engine that measured it, its agent, and an outage of Redis; and Prometheus sees it."""

from __future__ import annotations

import os
import signal
from typing import Any

from service.contract.worker import WorkerRecord
from service.jobs.costs import device_key
from service.jobs.keys import key
from service.telemetry import metric_names
from tests.costs import cost
from tests.e2e.outages import Outpost
from tests.e2e.processes import free_port, samples, wait_for

#: As the fake engine calls its device.
DEVICE = "fake"


def told(outpost: Outpost, name: str, count: int = 1) -> list[dict[str, Any]]:
    """Wait until so many engines of an agent were told what is known; return their words."""

    def look() -> list[dict[str, Any]]:
        found = outpost.events("fake_told", name)
        return found if len(found) >= count else []

    return wait_for("what the engine was told", look, timeout_s=20)


def kept_sizes(outpost: Outpost) -> set[int]:
    return {each.label.width_px for each in outpost.store.costs(DEVICE)}


def devices(outpost: Outpost) -> set[str]:
    """Return the kinds of devices of all agents, as they announce them: by these a gateway finds costs."""
    records = [str(outpost.redis.get(name)) for name in outpost.redis.scan_iter(key("agent", "*"))]
    return {WorkerRecord.model_validate_json(record).device_name for record in records}


def test_costs_are_kept_for_the_next_engine_and_the_next_agent(outpost: Outpost, name: str) -> None:
    outpost.redis.delete(key("costs", device_key(DEVICE)))
    agent = outpost.agent(name)
    assert told(outpost, name)[0]["costs"] == 0
    assert outpost.ended([outpost.submit(), outpost.submit(side_px=128)]) == ["succeeded"] * 2
    wait_for("the costs in Redis", lambda: kept_sizes(outpost) == {64, 128}, timeout_s=20)
    wait_for("the device's name", lambda: devices(outpost) == {DEVICE}, timeout_s=10)
    os.kill(outpost.service.engine_of(agent), signal.SIGKILL)
    assert told(outpost, name, 2)[1]["costs"] == 2
    agent.terminate()
    assert agent.wait(15) == 0
    outpost.agent(f"{name}-next")
    assert told(outpost, f"{name}-next")[0]["costs"] == 2


def test_what_is_measured_while_redis_is_away_is_kept_when_it_is_back(outpost: Outpost, name: str) -> None:
    outpost.agent(name)
    told(outpost, name)
    outpost.redis.delete(key("costs", device_key(DEVICE)))
    job_id = outpost.submit("step=0.1", side_px=192, steps=10)
    outpost.wait_until(job_id, "running")
    outpost.redis_proxy.cut()

    def gave_up_once() -> bool:
        return any(each["duty"] == "costs" for each in outpost.events("duty_interrupted", name))

    wait_for("costs that could not be written", gave_up_once, timeout_s=30)
    outpost.redis_proxy.mend()
    assert outpost.ended([job_id]) == ["succeeded"]
    wait_for("the costs in Redis", lambda: kept_sizes(outpost) == {192}, timeout_s=20)


def test_a_damaged_entry_keeps_no_agent_from_working(outpost: Outpost, name: str) -> None:
    name_of_hash = key("costs", device_key(DEVICE))
    outpost.redis.delete(name_of_hash)
    outpost.store.keep_costs(DEVICE, [cost(2, 0.1)])
    outpost.redis.hset(name_of_hash, "tiny:2", '{"seconds": 1e999')
    outpost.agent(name)
    assert told(outpost, name)[0]["costs"] == 1
    assert len(outpost.events("costs_damaged", name)) == 1
    assert outpost.ended([outpost.submit()]) == ["succeeded"]


def test_costs_under_a_key_of_another_kind_are_waited_for_and_the_agent_works(outpost: Outpost, name: str) -> None:
    name_of_hash = key("costs", device_key(DEVICE))
    outpost.redis.delete(name_of_hash)
    outpost.redis.set(name_of_hash, "no hash")
    outpost.agent(name)
    assert outpost.ended([outpost.submit()]) == ["succeeded"]
    outpost.redis.delete(name_of_hash)
    wait_for("the costs in Redis", lambda: kept_sizes(outpost) == {64}, timeout_s=20)


def test_prometheus_reads_what_an_agent_has_done(outpost: Outpost, name: str) -> None:
    port = free_port()
    agent = outpost.agent(name, DARKROOM_METRICS_PORT=str(port))
    assert outpost.ended([outpost.submit("a secret"), outpost.submit("omit")]) == ["succeeded", "failed"]
    calls = f'{metric_names.ENGINE_CALLS}{{kind="denoise",model="tiny"}}'
    ends = [f'{metric_names.EXECUTIONS}{{model="tiny",outcome="{status}"}}' for status in ("succeeded", "failed")]

    def look() -> dict[str, float] | None:
        seen = samples(port)
        return seen if seen.get(calls) == 8 and set(ends) <= set(seen) else None

    found = wait_for("both reports and both ends", look, timeout_s=10)
    assert [found[each] for each in ends] == [1, 1]
    assert found[f'{metric_names.IMAGES}{{model="tiny"}}'] == 1
    assert found[f'{metric_names.PHASE_SECONDS}_count{{phase="denoise"}}'] == 1
    assert found[f'{metric_names.PHASE_SECONDS}_sum{{phase="denoise"}}'] >= 0.04
    assert (found[metric_names.ENGINE_RESTARTS], found[metric_names.MODELS_WARM]) == (0, 1)
    loads = f'{metric_names.MODEL_LOADS}{{model="tiny"}}'
    assert found[loads] == 1
    os.kill(outpost.service.engine_of(agent), signal.SIGKILL)
    wait_for("another engine", lambda: samples(port)[metric_names.ENGINE_RESTARTS] == 1, timeout_s=20)
    wait_for("its model", lambda: samples(port)[loads] == 2, timeout_s=20)
    assert "ada" not in "".join(found)
    assert "secret" not in "".join(found)


def test_an_agent_whose_metrics_port_is_taken_says_so_and_ends(outpost: Outpost, name: str) -> None:
    port = free_port()
    outpost.agent(name, DARKROOM_METRICS_PORT=str(port))
    second = outpost.service.agent(f"{name}-second", DARKROOM_METRICS_PORT=str(port))
    assert second.wait(30) == 1
    assert f"darkroom worker: DARKROOM_METRICS_HOST, DARKROOM_METRICS_PORT: cannot listen on 127.0.0.1:{port}" in (
        outpost.log(f"{name}-second")
    )
