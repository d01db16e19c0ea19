"""The sender: takes what is due, sends many events at once, records each. Any number of senders may run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog
from structlog.contextvars import bound_contextvars

from service.contract.errors import Overloaded, Unavailable
from service.jobs.outbox import Attempt, DueEvent, Recorded, Room, WebhookOutbox
from service.telemetry.sender_metrics import SenderMetrics
from service.telemetry.tracing import NO_TRACER, Span, Tracer
from service.webhooks.delivery import Delivery
from service.webhooks.schedule import FAILING_OFF_MS

T = TypeVar("T")

log = structlog.get_logger(__name__)

#: s that an event stays with its sender beyond the receiver's time, to be recorded; then it goes to another.
_RECORDING_S = 30.0
#: s between two tries to reach a Redis that is away.
_OUTAGE_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class SenderRules:
    """How much is sent at once."""

    concurrency: int
    per_endpoint: int
    per_tenant: int
    #: s for a receiver to answer.
    timeout_s: float
    #: s between two looks while nothing is due.
    poll_s: float

    @property
    def lease_ms(self) -> int:
        """For how long an event is nobody else's: no shorter than sending and recording it may take."""
        return round(1000 * (self.timeout_s + _RECORDING_S))


class Sender:
    """One process' part of the sending."""

    def __init__(
        self,
        *,
        outbox: WebhookOutbox,
        delivery: Delivery,
        rules: SenderRules,
        metrics: SenderMetrics | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """`metrics`: None = nothing is counted."""
        self._metrics = metrics
        self._tracer = tracer
        self._outbox = outbox
        self._delivery = delivery
        self._rules = rules
        #: What is in flight, and whether its endpoint is failing.
        self._flights: dict[asyncio.Task[None], bool] = {}

    async def run(self, stopping: asyncio.Event) -> None:
        """Send until told to stop, then let what is in flight finish. An outage of Redis only makes it wait."""
        stop = asyncio.create_task(stopping.wait(), name="stopping")
        away = False
        while not stopping.is_set():
            pause_s = self._rules.poll_s
            try:
                if await self.take():
                    pause_s = 0
                away = False
            except (Unavailable, Overloaded) as err:
                if not away:
                    log.warning("sender_waits", reason=err.code)
                away, pause_s = True, _OUTAGE_PAUSE_S
            if pause_s:
                # A receiver that answered may be sent the next event at once; in an outage there is none.
                for_these = {stop} if away else {stop, *self._flights}
                await asyncio.wait(for_these, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        await self.settle(self._rules.timeout_s + 2)

    async def take(self) -> int:
        """Begin to send what is due and fits; return how many events that were."""
        room = self._rules.concurrency - len(self._flights)
        if room < 1:
            return 0
        # Receivers that do not answer hold half of the connections at most.
        failing = self._rules.concurrency // 2 - sum(self._flights.values())
        due = await self._outbox.due(
            Room(room, max(0, failing), self._rules.per_endpoint, self._rules.per_tenant),
            lease_ms=self._rules.lease_ms,
        )
        for event in due:
            flight = asyncio.create_task(self._send(event), name=event.id)
            self._flights[flight] = event.failing
            flight.add_done_callback(self._flights.pop)
        return len(due)

    async def settle(self, timeout_s: float) -> None:
        """Wait until nothing is in flight; what is not done by then is given up, and sent again by another."""
        flights = set(self._flights)
        if not flights:
            return
        _, late = await asyncio.wait(flights, timeout=timeout_s)
        while late:
            for flight in late:
                flight.cancel()
            # Once is not enough: a connection that is just being made may swallow a cancellation.
            _, late = await asyncio.wait(late, timeout=0.1)

    async def _send(self, event: DueEvent) -> None:
        span = self._span(event)
        with bound_contextvars(**_log_fields(event, span)):
            try:
                async with asyncio.timeout(self._rules.lease_ms / 1000):
                    attempt = await self._through_outages(lambda: self._delivery.attempt(event))
                    span.set({"darkroom.outcome": attempt.verdict})
                    record = partial(self._outbox.record, event, attempt, failing_off_ms=FAILING_OFF_MS)
                    self._tell(event, attempt, await self._through_outages(record))
            except TimeoutError:
                # Not sent, or not recorded: it goes to another, and its receiver may see it once more.
                log.info("webhook_left_to_its_lease")
            except Exception:
                log.exception("webhook_not_sent")
            finally:
                span.end()

    def _span(self, event: DueEvent) -> Span:
        """Begin the span of an attempt: a trace of its own, as some come days later, linked to that of the job."""
        job = event.job
        return self._tracer.start(
            "webhook",
            kind="client",
            links=(job.traceparent,) if job else (),
            attributes={
                "darkroom.event_id": event.id,
                "darkroom.event_type": event.type,
                "darkroom.attempt": event.attempts + 1,
                **({"darkroom.job_id": job.id, "darkroom.tenant": job.tenant} if job else {}),
            },
        )

    async def _through_outages(self, act: Callable[[], Awaitable[T]]) -> T:
        """Return what `act` returns when Redis is there; all that it does may be repeated."""
        while True:
            with suppress(Unavailable, Overloaded):
                return await act()
            await asyncio.sleep(_OUTAGE_PAUSE_S)

    def _tell(self, event: DueEvent, attempt: Attempt, recorded: Recorded) -> None:
        """Count an attempt, and write down what came of it."""
        if self._metrics is not None:
            age_s = (attempt.at_ms + attempt.duration_ms - event.created_ms) / 1000
            self._metrics.attempted(attempt.verdict, age_s=age_s, switched_off=recorded.disabled)
        if attempt.verdict == "delivered":
            log.info("webhook_delivered", status=attempt.status, duration_ms=attempt.duration_ms)
        elif attempt.verdict == "unsent":
            log.error("webhook_unsent", reason=attempt.reason)
        else:
            log.info(
                "webhook_failed",
                status=attempt.status,
                reason=attempt.reason,
                attempt=event.attempts + 1,
                retry_ms=attempt.retry_ms,
                outcome=recorded.outcome,
            )
        if recorded.disabled:
            log.warning("webhook_endpoint_off", reason=recorded.disabled)


def _log_fields(event: DueEvent, span: Span) -> dict[str, str]:
    """Return what every line about an attempt says."""
    fields = {"event_id": event.id, "endpoint": event.endpoint}
    if event.job:
        fields |= {"tenant": event.job.tenant, "job_id": event.job.id}
        if event.job.request_id:
            fields["request_id"] = event.job.request_id
    return fields | ({"trace_id": span.trace_id} if span.trace_id else {})
