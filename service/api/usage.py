"""`/v1/usage`: what the calling tenant used."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.api import documentation as doc
from service.api.gateway import caller_of, gateway_of
from service.api.operation import Operation
from service.contract.job import Priority
from service.jobs.commands import DayUsage

router = APIRouter(route_class=Operation, tags=["usage"])


class UsageDay(BaseModel):
    """One day in UTC."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    day: date
    requests: Annotated[int, Field(ge=0, description="Generations that were accepted on this day.")]
    images: Annotated[int, Field(ge=0, description="Pictures of generations that were drawn to their end on this day.")]
    gpu_s: Annotated[
        float, Field(ge=0, description="The device's time for these generations, s: the sum of their `timings.gpu_s`.")
    ]


class UsageToday(BaseModel):
    """The present day in UTC, and what is left of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    day: date
    gpu_s: Annotated[float, Field(ge=0, description="The device's time that counts against the limit so far, s.")]
    remaining_gpu_s: Annotated[
        float | None,
        Field(ge=0, description="What is left of `limits.max_gpu_s_per_day`, s; null where there is none."),
    ]


class UsageLimits(BaseModel):
    """What the tenant may take; null = no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_requests_per_minute: Annotated[int | None, Field(description="Generations that may be created in a minute.")]
    max_gpu_s_per_day: Annotated[
        int | None, Field(description="GPU seconds of a day, s; when they are used up nothing new is accepted.")
    ]
    max_queued: Annotated[int | None, Field(description="Generations that may wait at once.")]
    max_running: Annotated[int | None, Field(description="Generations that run at once; others wait.")]
    top_priority: Annotated[Priority, Field(description="Highest priority that a generation gets.")]


class UsageList(BaseModel):
    """Every day that was asked for, oldest first; and how today stands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    object: Literal["list"] = "list"
    data: list[UsageDay]
    today: UsageToday
    limits: UsageLimits


@router.get(
    "/v1/usage",
    operation_id="getUsage",
    summary="What the tenant used, by day",
    responses={200: {"model": UsageList, "description": "A line for each day."}, **doc.refusals(422)},
    openapi_extra={"parameters": [doc.USAGE_FROM, doc.USAGE_TO]},
)
async def get_usage(request: Request) -> Response:
    """Answer with the caller's days."""
    caller = await caller_of(request)
    used = await gateway_of(request).usage.by_day(caller.tenant, request.query_params.multi_items())
    found = UsageList(
        data=[
            UsageDay(day=day, requests=counts.requests, images=counts.images, gpu_s=counts.gpu_ms / 1000)
            for day, counts in used.days
        ],
        today=_today(*used.today, caller.limits.max_gpu_s_per_day),
        limits=UsageLimits.model_validate(caller.limits.model_dump(include=set(UsageLimits.model_fields))),
    )
    return Response(found.model_dump_json(), media_type="application/json")


def _today(day: date, used: DayUsage, limit_s: int | None) -> UsageToday:
    left_ms = None if limit_s is None else max(0, 1000 * limit_s - used.gpu_ms)
    return UsageToday(day=day, gpu_s=used.gpu_ms / 1000, remaining_gpu_s=None if left_ms is None else left_ms / 1000)
