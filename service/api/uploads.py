"""`/v1/uploads`: files that callers send straight to the storage."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.api import documentation as doc
from service.api.gateway import caller_of, gateway_of
from service.api.operation import Operation, idempotent, json_object
from service.generations.ids import UPLOAD_ID_PATTERN
from service.generations.resource import moment
from service.generations.uploads import MediaType, OpenForm, UploadStatus
from service.jobs.uploads import UploadRecord

UPLOADS_PATH = "/v1/uploads"

router = APIRouter(route_class=Operation, tags=["uploads"])

EXAMPLE_UPLOAD_ID = "upl_0d6la8q1o4u2l0p3b7f9k2s5t8v1c4e6g8i0m2n4"

UPLOAD_ID: doc.Parameter = {
    "name": "upload_id",
    "in": "path",
    "required": True,
    "description": "The id of an upload.",
    "schema": {"type": "string", "pattern": UPLOAD_ID_PATTERN},
    "example": EXAMPLE_UPLOAD_ID,
}


class UploadFormResource(BaseModel):
    """How to send the file: `multipart/form-data` with these fields and, as the last one, the file as `file`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, Field(description="An address of the storage.")]
    method: Literal["POST"] = "POST"
    fields: Annotated[dict[str, str], Field(description="As they are. Whoever has them can send this one file.")]
    expires_at: Annotated[datetime, Field(description="The storage refuses the form afterwards.")]


class UploadResource(BaseModel):
    """A file that was sent, or will be, straight to the storage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=UPLOAD_ID_PATTERN)]
    status: Annotated[
        UploadStatus,
        Field(description="waiting: no file yet. received: it is there. ready: it was checked when it was first used."),
    ]
    content_type: MediaType
    bytes: int
    sha256: str
    width_px: Annotated[int | None, Field(description="null until it is ready.")]
    height_px: Annotated[int | None, Field(description="null until it is ready.")]
    created_at: datetime
    expires_at: Annotated[datetime, Field(description="When it is erased; each use by a generation puts it off.")]
    form: Annotated[
        UploadFormResource | None, Field(description="In the reply to the creating call, until the upload is ready.")
    ] = None


@router.post(
    UPLOADS_PATH,
    operation_id="createUpload",
    summary="Make ready to send a file straight to the storage",
    status_code=201,
    responses={
        201: {
            "model": UploadResource,
            "description": "Created; `form` says how to send the file.",
            "headers": {
                "Location": doc.header("Path of the upload."),
                "Idempotency-Replayed": doc.header("`true` where an earlier call with this key created it."),
            },
        },
        **doc.refusals(408, 410, 413, 415, 422, 429),
    },
    openapi_extra={
        "parameters": [doc.IDEMPOTENCY_KEY],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/UploadRequest"}}},
        },
    },
)
async def create_upload(request: Request) -> Response:
    """Answer with a form for one file of exactly this type and size; generations name it by the upload's id."""
    gateway, caller = gateway_of(request), await caller_of(request)
    body = await json_object(request)
    call = idempotent(request, UPLOADS_PATH, body)
    created = await gateway.uploads.create(caller.tenant, body, call=call)
    status: UploadStatus = "ready" if created.upload.state == "ready" else "waiting"
    response = _json(upload_resource(created.upload, status, created.form), 201)
    response.headers["Location"] = f"{UPLOADS_PATH}/{created.upload.id}"
    if created.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response


@router.get(
    UPLOADS_PATH + "/{upload_id}",
    operation_id="getUpload",
    summary="Look at an upload",
    responses={200: {"model": UploadResource, "description": "The upload."}, **doc.refusals(404, 410)},
    openapi_extra={"parameters": [UPLOAD_ID]},
)
async def get_upload(request: Request) -> Response:
    """Answer whether the file is there, and until when."""
    gateway, caller = gateway_of(request), await caller_of(request)
    upload, status = await gateway.uploads.get(caller.tenant, str(request.path_params["upload_id"]))
    return _json(upload_resource(upload, status, None))


@router.delete(
    UPLOADS_PATH + "/{upload_id}",
    operation_id="eraseUpload",
    summary="Erase an upload",
    description="Generations that named it keep what they draw from. Afterwards it is 410.",
    status_code=204,
    responses={204: {"description": "Erased."}, **doc.refusals(404, 410)},
    openapi_extra={"parameters": [UPLOAD_ID]},
)
async def erase_upload(request: Request) -> Response:
    """Erase an upload."""
    gateway, caller = gateway_of(request), await caller_of(request)
    await gateway.uploads.erase(caller.tenant, str(request.path_params["upload_id"]))
    return Response(status_code=204)


def _json(resource: BaseModel, status: int = 200) -> Response:
    return Response(resource.model_dump_json(), status_code=status, media_type="application/json")


def upload_resource(upload: UploadRecord, status: UploadStatus, form: OpenForm | None) -> UploadResource:
    """Return what a caller sees of an upload."""
    return UploadResource.model_validate(
        {
            **upload.model_dump(include={"id", "bytes", "sha256", "width_px", "height_px"}),
            "content_type": upload.content_type,
            "status": status,
            "created_at": moment(upload.created_ms),
            "expires_at": moment(upload.expires_ms),
            "form": form
            and UploadFormResource(url=form.form.url, fields=form.form.fields, expires_at=moment(form.expires_ms)),
        }
    )
