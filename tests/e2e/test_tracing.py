"""One trace from the request to the commit, over real processes and a real exporter; and nothing private in it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import httpx
import pytest
from pydantic import SecretStr

from service.jobs.keys import key
from service.settings.groups import RedisSettings, StorageSettings
from service.tenants.store import KeyStore, TenantStore
from tests.collector import Collector, TakenSpan, collecting
from tests.e2e.outages import Outpost
from tests.e2e.processes import wait_for
from tests.gateway import GatewayProcess, gateway_process

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = ["inputs", "engine encode", "engine denoise", "engine decode", "compress", "upload", "commit"]
SERVER, CONSUMER = 2, 5


@dataclass
class Traced:
    """A gateway, the queue behind it, and what both tell the collector."""

    collector: Collector
    gateway: GatewayProcess
    outpost: Outpost
    key: str

    @property
    def variables(self) -> dict[str, str]:
        return {"DARKROOM_TRACING_ENDPOINT": self.collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}

    def post(self, prompt: str, **headers: str) -> httpx.Response:
        authorized = {"Authorization": f"Bearer {self.key}"}
        models = f"{self.gateway.url}/v1/models"
        wait_for("a model", lambda: httpx.get(models, headers=authorized).json()["data"], timeout_s=10)
        body = {"prompt": prompt, "steps": 4, "labels": {"order": "label-text"}}
        return httpx.post(
            f"{self.gateway.url}/v1/generations",
            json=body,
            headers={**authorized, **headers},
            timeout=30,
        )

    def whole(self, job_id: str, executions: int = 1) -> list[TakenSpan]:
        """Wait for this many executions of a job and the request that made it; return their traces' spans."""

        def look() -> list[TakenSpan] | None:
            runs = [
                span
                for span in self.collector.spans
                if span.name == "execution" and span.attributes["darkroom.job_id"] == job_id
            ]
            if len(runs) < executions:
                return None
            found = self.collector.of_trace(runs[0].trace_id)
            return found if runs[0].parent_id in {"", *(span.span_id for span in found)} else None

        return wait_for("the spans of the job", look, timeout_s=20)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
def traced(outpost: Outpost, collector: Collector, storage_settings: StorageSettings) -> Iterator[Traced]:
    outpost.redis.flushdb()
    TenantStore(outpost.redis).create("ada")
    redis_settings = RedisSettings(url=SecretStr(outpost.valkey.url))
    variables = {"DARKROOM_TRACING_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with gateway_process(redis_settings, storage_settings, **variables) as gateway:
        yield Traced(collector, gateway, outpost, KeyStore(outpost.redis).create("ada").text)


def named(spans: list[TakenSpan], name: str) -> TakenSpan:
    (found,) = [span for span in spans if span.name == name]
    return found


def test_a_job_is_one_trace_from_its_callers_span_to_its_commit(traced: Traced, name: str) -> None:
    traced.outpost.agent(name, **traced.variables)
    posted = traced.post("a private prompt", traceparent=f"00-{TRACE}-{CALLER}-01")
    assert posted.status_code == 202, posted.text
    job_id = posted.json()["id"]
    assert traced.outpost.ended([job_id]) == ["succeeded"]
    spans = traced.whole(job_id)
    assert {span.trace_id for span in spans} == {TRACE}
    request, execution = named(spans, "POST /v1/generations"), named(spans, "execution")
    assert (request.service, request.parent_id, request.kind) == ("darkroom-gateway", CALLER, SERVER)
    assert request.attributes["http.response.status_code"] == 202
    assert request.attributes["darkroom.job_id"] == job_id
    assert (execution.service, execution.parent_id, execution.kind) == ("darkroom-worker", request.span_id, CONSUMER)
    assert execution.attributes["darkroom.outcome"] == "succeeded"
    assert execution.attributes["darkroom.attempt"] == 1
    stages = [span for span in spans if span.parent_id == execution.span_id]
    assert [span.name for span in stages] == STAGES
    assert len(spans) == 2 + len(STAGES)
    for before, after in pairwise(stages):
        assert before.end_ns <= after.start_ns
    assert execution.start_ns <= stages[0].start_ns
    assert stages[-1].end_ns <= execution.end_ns
    denoise = named(spans, "engine denoise")
    assert denoise.end_ns - denoise.start_ns >= 4 * 0.01e9 * 0.9


def test_nothing_private_is_sent_and_lines_of_the_log_name_the_trace(traced: Traced, name: str) -> None:
    traced.outpost.agent(name, **traced.variables)
    job_id = traced.post("a private prompt").json()["id"]
    assert traced.outpost.ended([job_id]) == ["succeeded"]
    trace_id = traced.whole(job_id)[0].trace_id
    image = httpx.get(
        f"{traced.gateway.url}/v1/generations/{job_id}/images/0", headers={"Authorization": f"Bearer {traced.key}"}
    )
    assert image.status_code == 302
    looked = "GET /v1/generations/{generation_id}/images/{number}"
    wait_for("the look at it", lambda: [span for span in traced.collector.spans if span.name == looked], timeout_s=10)
    sent = b"".join(traced.collector.bodies)
    assert job_id.encode() in sent
    private = ("private prompt", "label-text", traced.key, traced.key.rpartition("_")[2], "X-Amz", "redis://")
    for each in private:
        assert each.encode() not in sent, each
    (ended,) = traced.outpost.events("generation_ended", name)
    assert (ended["trace_id"], ended["job_id"]) == (trace_id, job_id)
    lines = [json.loads(line) for line in traced.gateway.lines]
    (posted,) = [line for line in lines if line["event"] == "request_finished" and line["method"] == "POST"]
    assert (posted["trace_id"], posted["job_id"]) == (trace_id, job_id)


def test_a_job_that_is_taken_back_shows_both_executions(traced: Traced, name: str) -> None:
    agent = traced.outpost.agent(name, **traced.variables)
    job_id = traced.post("step=0.3").json()["id"]
    traced.outpost.wait_until(job_id, "running")
    wait_for("a step", lambda: traced.outpost.redis.hget(key("job", job_id), "progress_step") != "0", timeout_s=20)
    os.kill(traced.outpost.service.engine_of(agent), signal.SIGKILL)
    assert traced.outpost.ended([job_id]) == ["succeeded"]
    spans = traced.whole(job_id, executions=2)
    request = named(spans, "POST /v1/generations")
    runs = [span for span in spans if span.name == "execution"]
    assert [span.attributes["darkroom.outcome"] for span in runs] == ["dropped", "succeeded"]
    assert [span.attributes["darkroom.attempt"] for span in runs] == [1, 2]
    assert {span.parent_id for span in runs} == {request.span_id}
    assert runs[1].attributes["darkroom.alone"] is True
    assert runs[0].end_ns <= runs[1].start_ns


def test_who_is_not_let_in_makes_no_span_and_what_is_no_parent_begins_a_trace(traced: Traced, name: str) -> None:
    traced.outpost.agent(name, **traced.variables)
    refused = traced.post("x", Authorization="Bearer dk_none_none", traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    assert refused.status_code == 401
    accepted = traced.post("x", traceparent="00-no-parent-01").json()["id"]
    damaged = traced.outpost.submit(traceparent=f"00-{'0' * 32}-{'b' * 16}-01")
    assert traced.outpost.ended([accepted, damaged]) == ["succeeded"] * 2
    assert named(traced.whole(accepted), "POST /v1/generations").parent_id == ""
    assert named(traced.whole(damaged), "execution").parent_id == ""
    assert traced.collector.of_trace("a" * 32) == []


def test_a_collector_that_is_away_delays_nothing_and_is_told_of_without_its_password(
    outpost: Outpost, name: str
) -> None:
    agent = outpost.agent(name, DARKROOM_TRACING_ENDPOINT="http://me:hunter2@127.0.0.1:9", OTEL_BSP_SCHEDULE_DELAY="50")
    job_id = outpost.submit()
    assert outpost.ended([job_id]) == ["succeeded"]
    wait_for("a line about it", lambda: "opentelemetry" in outpost.log(name), timeout_s=20)
    agent.terminate()
    assert agent.wait(15) == 0
    assert "hunter2" not in outpost.log(name)
