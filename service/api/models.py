"""`/v1/models` and `/v1/schedulers`: what can be asked for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.api import documentation as doc
from service.api.gateway import caller_of, gateway_of
from service.api.operation import Operation
from service.contract.catalog import DType, Execution, Family, Limits, StepRange, UnusedField
from service.contract.generation import SigmaSpacing, Task
from service.contract.schedulers import ALIASES, SCHEDULERS, SchedulerSpec
from service.jobs.commands import RegisteredModel

ModelState = Literal["warm", "loading", "cold", "unavailable"]

router = APIRouter(route_class=Operation, tags=["models"])


class _Resource(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelDefaults(_Resource):
    """What a request gets that does not say otherwise."""

    width: int
    height: int
    steps: int
    guidance_scale: float
    scheduler: str
    strength: float


class ModelResource(_Resource):
    """A model with everything a request to it must keep to."""

    id: str
    object: Literal["model"] = "model"
    description: str
    family: Family
    default: Annotated[bool, Field(description="It draws what names no model.")]
    tasks: list[Task]
    size_step_px: Annotated[int, Field(description="Sides are multiples of this, px.")]
    defaults: ModelDefaults
    limits: Limits
    schedulers: Annotated[
        list[str], Field(description="Ids of `GET /v1/schedulers`, or `default`: its own, which is none of them.")
    ]
    step_ranges: Annotated[
        dict[str, StepRange], Field(description="Schedulers that cannot do every number of steps, and what they can.")
    ]
    max_prompt_tokens: int
    safety_checker: bool
    execution: Annotated[
        Execution, Field(description="`whole`: it draws one request at a time; `batched`: many at once.")
    ]
    unused_fields: Annotated[
        list[UnusedField], Field(description="Fields of a request that do nothing here, and may not be set.")
    ]
    rescaled_tasks: Annotated[list[Task], Field(description="Tasks in which guidance_rescale does something.")]
    dtype: DType
    sha256: str
    state: Annotated[
        ModelState,
        Field(
            description=(
                "What it is on the worker that is nearest to drawing with it: in memory; being read; read when a "
                "request wants it; or on no live worker, so that requests wait for one."
            )
        ),
    ]
    workers: Annotated[int, Field(ge=0, description="Live workers that hold it in memory.")]


class ModelList(_Resource):
    """Every model, the default first."""

    object: Literal["list"] = "list"
    data: list[ModelResource]


class SchedulerResource(_Resource):
    """A sampler, with what it takes to build it in diffusers."""

    id: str
    object: Literal["scheduler"] = "scheduler"
    title: str
    aliases: list[str]
    diffusers_class: str
    config: Annotated[dict[str, Any], Field(description="Settings laid over the model's own scheduler config.")]
    sigmas: Annotated[list[SigmaSpacing], Field(description="Accepted values of `sigmas`.")]
    tasks: Annotated[list[Task], Field(description="What it can do, where the model does it too.")]


class SchedulerList(_Resource):
    """Every sampler."""

    object: Literal["list"] = "list"
    data: list[SchedulerResource]


_MODELS_PATH = "/v1/models"
_MODEL_PATH = _MODELS_PATH + "/{model_id}"


def scheduler_resource(spec: SchedulerSpec) -> SchedulerResource:
    """Return what a caller sees of a scheduler."""
    return SchedulerResource(
        id=spec.name,
        title=spec.title,
        aliases=[alias for alias, name in ALIASES.items() if name == spec.name],
        diffusers_class=spec.diffusers_class,
        config=spec.config,
        sigmas=list(spec.spacings),
        tasks=list(spec.tasks),
    )


_SCHEDULERS = SchedulerList(data=[scheduler_resource(spec) for spec in SCHEDULERS.values()])


@router.get(
    _MODELS_PATH,
    operation_id="listModels",
    summary="List the models",
    responses={200: {"model": ModelList, "description": "Every model that a worker has shown."}, **doc.refusals()},
)
async def list_models(request: Request) -> Response:
    """Answer with every model."""
    await caller_of(request)
    models = await gateway_of(request).models.models()
    return _json(ModelList(data=[model_resource(model) for model in models]))


@router.get(
    _MODEL_PATH,
    operation_id="getModel",
    summary="Look at a model",
    responses={200: {"model": ModelResource, "description": "The model."}, **doc.refusals(404)},
    openapi_extra={"parameters": [doc.MODEL_ID]},
)
async def get_model(request: Request) -> Response:
    """Answer with one model."""
    await caller_of(request)
    return _json(model_resource(await gateway_of(request).models.model(str(request.path_params["model_id"]))))


@router.get(
    "/v1/schedulers",
    operation_id="listSchedulers",
    summary="List the schedulers",
    responses={200: {"model": SchedulerList, "description": "Every scheduler."}, **doc.refusals()},
)
async def list_schedulers(request: Request) -> Response:
    """Answer with every scheduler; each model says which of them it offers."""
    await caller_of(request)
    return _json(_SCHEDULERS)


def _json(resource: BaseModel) -> Response:
    return Response(resource.model_dump_json(), media_type="application/json")


def model_resource(model: RegisteredModel) -> ModelResource:
    """Return what a caller sees of a model."""
    card = model.card
    return ModelResource(
        id=card.id,
        description=card.description,
        family=card.family,
        default=card.default,
        tasks=list(card.tasks),
        size_step_px=card.size_step_px,
        defaults=ModelDefaults(
            width=card.width,
            height=card.height,
            steps=card.steps,
            guidance_scale=card.guidance_scale,
            scheduler=card.scheduler,
            strength=card.strength,
        ),
        limits=card.limits,
        schedulers=list(card.schedulers),
        step_ranges=card.step_ranges,
        max_prompt_tokens=card.max_prompt_tokens,
        safety_checker=card.safety_checker,
        execution=card.execution,
        unused_fields=list(card.unused_fields),
        rescaled_tasks=[task for task in card.tasks if task in card.rescaled_tasks],
        dtype=card.dtype,
        sha256=card.sha256,
        state=model_state(model),
        workers=model.warm,
    )


def model_state(model: RegisteredModel) -> ModelState:
    """Return what a model is on the worker that is nearest to drawing with it."""
    if model.warm:
        return "warm"
    if model.loading:
        return "loading"
    return "cold" if model.cold else "unavailable"
