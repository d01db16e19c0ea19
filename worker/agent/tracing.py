"""The spans of one execution: what the agent does itself, and the engine's phases by what the engine says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from service.contract.generation import Timings
from service.contract.job import Job
from service.telemetry.tracing import Span, Tracer

#: How an execution may end that did what it was there for; any other end is an error of the span.
_GOOD_ENDS = frozenset({"succeeded", "canceled"})


class ExecutionTrace:
    """A span as long as the execution, a child of the request that made the job. For its one thread."""

    def __init__(self, tracer: Tracer, job: Job, execution_id: str) -> None:
        self._tracer = tracer
        self._span = tracer.start(
            "execution",
            kind="consumer",
            parent=job.traceparent,
            attributes={
                "darkroom.job_id": job.id,
                "darkroom.execution_id": execution_id,
                "darkroom.attempt": job.attempt,
                "darkroom.tenant": job.tenant,
                "darkroom.pool": job.pool,
                "darkroom.model": job.model,
                "darkroom.task": job.spec.task,
                "darkroom.images": job.spec.num_images,
                "darkroom.steps": job.spec.steps,
                "darkroom.alone": job.suspect,
                "darkroom.queued_ms": max(0, (job.started_ms or job.created_ms) - job.created_ms),
            },
        )
        self._phase: Span | None = None

    @property
    def log_fields(self) -> dict[str, str]:
        """What lines of the log say of the trace."""
        return {"trace_id": self._span.trace_id} if self._span.trace_id else {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Have a span of its own while the block runs."""
        span = self._tracer.start(name, parent=self._span.traceparent)
        try:
            yield
        except BaseException as err:
            span.end(error=type(err).__name__)
            raise
        span.end()

    def phase(self, name: str | None) -> None:
        """End the engine's phase, and begin another; None = the engine is done."""
        if self._phase is not None:
            self._phase.end()
        self._phase = self._tracer.start(f"engine {name}", parent=self._span.traceparent) if name else None

    def end(self, outcome: str, timings: Timings | None) -> None:
        """End the execution's span, by the outcome that is counted for it."""
        self.phase(None)
        self._span.set({"darkroom.outcome": outcome})
        if timings is not None:
            self._span.set({"darkroom.gpu_ms": round(1000 * timings.gpu_s)})
        self._span.end(error=None if outcome in _GOOD_ENDS else outcome)
