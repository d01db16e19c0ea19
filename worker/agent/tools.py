"""What every execution of an agent uses."""

from __future__ import annotations

from dataclasses import dataclass

from service.jobs.store import JobStore
from service.storage.s3 import ObjectStorage
from service.telemetry.tracing import NO_TRACER, Tracer
from worker.agent.child import EngineChild
from worker.agent.inputs import Decoders
from worker.agent.metrics import AgentMetrics
from worker.agent.previews import Previews
from worker.agent.watch import PhaseClock


@dataclass(frozen=True, slots=True)
class Tools:
    """Made once, for all of them."""

    store: JobStore
    storage: ObjectStorage
    engine: EngineChild
    decoders: Decoders
    clock: PhaseClock
    metrics: AgentMetrics
    previews: Previews
    tracer: Tracer = NO_TRACER
