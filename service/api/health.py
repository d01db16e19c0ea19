"""`/healthz`: this process lives. `/readyz`: it and what it stands on can serve."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from service.api import documentation as doc
from service.api.edge import request_id_of
from service.api.gateway import Gateway, gateway_of
from service.api.operation import Operation
from service.api.problems import problem_response
from service.contract.errors import DarkroomError, Unavailable

router = APIRouter(route_class=Operation, tags=["health"])

#: s; a probe that hears nothing by then counts as unanswered.
_PATIENCE_S = 4.5


class Health(BaseModel):
    """The process answers."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Every part answers; each says `ok`."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["ready"] = "ready"
    checks: dict[Literal["redis", "storage", "models"], str]


@router.get(
    "/healthz",
    operation_id="getHealth",
    summary="Does the process live?",
    responses={200: {"model": Health, "description": "It does."}, **doc.refusals()},
)
async def get_health(_request: Request) -> Response:
    """Answer without asking anyone."""
    return Response(Health().model_dump_json(), media_type="application/json")


@router.get(
    "/readyz",
    operation_id="getReadiness",
    summary="Can a generation be accepted and drawn?",
    responses={
        200: {"model": Readiness, "description": "Redis and the bucket answer, and a model is registered."},
        **doc.refusals(),
        503: {**doc.refusals()[503], "description": "Not ready; `checks` says which part, `detail` why."},
    },
)
async def get_readiness(request: Request) -> Response:
    """Ask every part at once."""
    gateway = gateway_of(request)
    names = ("redis", "storage", "models")
    answers = await asyncio.gather(
        _answer(gateway.store.ping()), _answer(_storage_answers(gateway)), _answer(_models_are_there(gateway))
    )
    checks = dict(zip(names, answers, strict=True))
    wrong = [f"{name}: {answer}" for name, answer in checks.items() if answer != "ok"]
    if wrong:
        return problem_response(Unavailable(" ".join(wrong)), request_id_of(request), checks=checks)
    return Response(Readiness(checks=checks).model_dump_json(), media_type="application/json")


async def _answer(probe: Awaitable[None]) -> str:
    try:
        await asyncio.wait_for(probe, _PATIENCE_S)
    except DarkroomError as err:
        return err.message
    except TimeoutError:
        return f"No answer within {_PATIENCE_S:g} s."
    return "ok"


async def _storage_answers(gateway: Gateway) -> None:
    await asyncio.get_running_loop().run_in_executor(gateway.threads, gateway.storage.ping)


async def _models_are_there(gateway: Gateway) -> None:
    if not await gateway.models.cards():
        raise Unavailable("No worker has shown a model yet.")
