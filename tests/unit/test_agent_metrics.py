"""What a worker counts, as Prometheus reads it over HTTP."""

from __future__ import annotations

import pytest

from service.contract.costs import MeasuredCost
from service.contract.engine import Measured, ModelCold, ModelLoaded
from service.contract.generation import Timings
from service.jobs.commands import Reaped
from service.telemetry import metric_names
from service.telemetry.exposition import expose
from tests.costs import cost
from tests.e2e.processes import free_port, samples
from tests.gateway import SHAPES
from worker.agent.metrics import PHASES, AgentMetrics


def scraped(metrics: AgentMetrics) -> dict[str, float]:
    port = free_port()
    expose(metrics.registry, "127.0.0.1", port)
    return samples(port)


def of_call(name: str, kind: str, more: str = "") -> str:
    return f'{name}{{kind="{kind}",{more}model="tiny"}}'


def test_calls_are_counted_with_their_rows_and_the_time_that_they_took() -> None:
    metrics = AgentMetrics(["tiny"])
    denoise = [
        MeasuredCost(cost=cost(8, 0.5, calls=100), calls=3, spent_s=1.5),
        MeasuredCost(cost=cost(2, 0.2, calls=100), calls=2, spent_s=0.4),
    ]
    decode = MeasuredCost(cost=cost(16, 0.1, kind="decode"), calls=1, spent_s=0.1)
    metrics.measured(Measured(costs=(*denoise, decode)))
    metrics.measured(Measured(costs=(denoise[0],)))
    found = scraped(metrics)
    assert found[of_call(metric_names.ENGINE_CALLS, "denoise")] == 8
    assert found[of_call(metric_names.ENGINE_CALLS, "decode")] == 1
    assert found[of_call(metric_names.ENGINE_CALL_SECONDS, "denoise")] == pytest.approx(3.4)
    assert found[of_call(f"{metric_names.ENGINE_ROWS}_sum", "denoise")] == 6 * 8 + 2 * 2
    assert found[of_call(f"{metric_names.ENGINE_ROWS}_bucket", "denoise", 'le="2.0",')] == 2
    assert found[of_call(f"{metric_names.ENGINE_ROWS}_bucket", "denoise", 'le="8.0",')] == 8


def test_models_that_are_in_no_catalogue_make_no_series() -> None:
    metrics = AgentMetrics(["tiny"])
    for number in range(50):
        metrics.measured(Measured(costs=(MeasuredCost(cost=cost(2, 0.1, model=f"m{number}"), calls=1, spent_s=0.1),)))
        metrics.ended(f"m{number}", "succeeded", images=1)
    assert not [name for name in scraped(metrics) if 'model="' in name]


def test_executions_are_counted_by_their_outcome_and_their_time_by_its_phase() -> None:
    metrics = AgentMetrics(["tiny"])
    metrics.ended("tiny", "succeeded", images=2, timings=Timings(queued_s=99, denoise_s=0.3, upload_s=0.02, gpu_s=77))
    metrics.ended("tiny", "succeeded", images=1, timings=Timings(denoise_s=3.0))
    metrics.ended("tiny", "failed")
    found = scraped(metrics)
    assert found[f'{metric_names.EXECUTIONS}{{model="tiny",outcome="succeeded"}}'] == 2
    assert found[f'{metric_names.EXECUTIONS}{{model="tiny",outcome="failed"}}'] == 1
    assert found[f'{metric_names.IMAGES}{{model="tiny"}}'] == 3
    phases = {phase: found[f'{metric_names.PHASE_SECONDS}_sum{{phase="{phase}"}}'] for phase in PHASES}
    assert phases.pop("denoise") == pytest.approx(3.3)
    assert phases.pop("upload") == pytest.approx(0.02)
    assert set(phases.values()) == {0.0}
    assert "queued" not in phases
    assert found[f'{metric_names.GPU_SECONDS}{{model="tiny"}}'] == pytest.approx(77)
    assert found[f'{metric_names.PHASE_SECONDS}_bucket{{le="0.5",phase="denoise"}}'] == 1


def test_models_are_counted_as_they_come_and_as_they_leave_for_others() -> None:
    metrics = AgentMetrics(["shapes"])
    metrics.heard_of_model(ModelCold(card=SHAPES), was_warm=False)
    metrics.heard_of_model(ModelLoaded(card=SHAPES, seconds=3.0), was_warm=False)
    metrics.heard_of_model(ModelCold(card=SHAPES), was_warm=True)
    metrics.heard_of_model(ModelLoaded(card=SHAPES, seconds=0.5), was_warm=False)
    metrics.heard_of_model(ModelLoaded(card=SHAPES.model_copy(update={"id": "unheard"}), seconds=9.0), was_warm=False)
    found = scraped(metrics)
    assert found[f'{metric_names.MODEL_LOADS}{{model="shapes"}}'] == 2
    assert found[f'{metric_names.MODEL_EVICTIONS}{{model="shapes"}}'] == 1
    assert found[f"{metric_names.MODEL_LOAD_SECONDS}_sum"] == pytest.approx(3.5)
    assert not [name for name in found if "unheard" in name]


def test_passes_of_the_reaper_add_up() -> None:
    metrics = AgentMetrics([])
    metrics.reaped(Reaped(leases=2, deadlines=1, bells=5))
    metrics.reaped(Reaped(leases=0, deadlines=0, bells=1))
    found = scraped(metrics)
    names = (metric_names.LEASES_TAKEN_BACK, metric_names.DEADLINES_PASSED, metric_names.BELLS_RUNG)
    assert [found[name] for name in names] == [2, 1, 6]
