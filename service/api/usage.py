"""`/v1/usage`: what the calling tenant used."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.api import documentation as doc
from service.api.gateway import caller_of, gateway_of
from service.api.operation import Operation

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


class UsageList(BaseModel):
    """Every day that was asked for, oldest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    object: Literal["list"] = "list"
    data: list[UsageDay]


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
    days = await gateway_of(request).usage.by_day(caller.tenant, request.query_params.multi_items())
    found = UsageList(
        data=[
            UsageDay(day=day, requests=used.requests, images=used.images, gpu_s=used.gpu_ms / 1000)
            for day, used in days
        ]
    )
    return Response(found.model_dump_json(), media_type="application/json")
