"""What would become of a request: filled in, estimated, and whether there is room for it. Nothing of it is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.contract.errors import LimitReached, Overloaded
from service.contract.job import Job
from service.contract.rate import RequestRate
from service.generations.estimate import estimate_engine_s
from service.generations.models import ModelDirectory
from service.generations.outlook.costs import CostBook
from service.generations.outlook.reading import Outlook, Outlooks
from service.generations.submit import SubmitGeneration
from service.jobs.commands import RegisteredModel
from service.tenants.authentication import Caller


@dataclass(frozen=True, slots=True)
class Validated:
    """A request that is as it has to be."""

    #: As it would be created.
    job: Job
    model: RegisteredModel
    #: What it would be refused with now; None where it would be accepted.
    refusal: LimitReached | Overloaded | None
    outlook: Outlook | None
    #: s of a device; None where its model was never measured.
    gpu_s: float | None
    rate: RequestRate | None


class ValidateGeneration:
    """The use case."""

    def __init__(
        self, *, submit: SubmitGeneration, models: ModelDirectory, outlooks: Outlooks, costs: CostBook
    ) -> None:
        self._submit = submit
        self._models = models
        self._outlooks = outlooks
        self._costs = costs

    async def validate(self, caller: Caller, body: Mapping[str, Any], *, request_id: str) -> Validated:
        """Return what would become of a body; raises `InvalidRequest` as creating does, `NotFound`, `Unavailable`."""
        rehearsal = await self._submit.rehearse(caller, body, request_id=request_id)
        job = rehearsal.job
        forecast = self._outlooks.forecast
        pool = forecast.pools.get(job.pool) if forecast else None
        costs = await self._costs.of(pool.devices if pool else ())
        # Some ms where many sizes and widths were measured: other calls are not to wait for it.
        gpu_s = await asyncio.to_thread(estimate_engine_s, job.spec, rehearsal.card, costs)
        return Validated(
            job=job,
            model=await self._models.model(job.model),
            refusal=rehearsal.refusal,
            outlook=self._outlooks.of(job),
            gpu_s=gpu_s,
            rate=rehearsal.rate,
        )
