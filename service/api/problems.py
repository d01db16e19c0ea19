"""Errors as `application/problem+json` (RFC 9457). The only place that knows which error has which HTTP status."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

from service.api.access import MissingScope
from service.api.rate_headers import rate_headers
from service.contract import errors
from service.contract.errors import DarkroomError, FailureCode
from service.storage.errors import StorageError
from service.tenants.records import TenantError
from service.tenants.webhook_secrets import WebhookSecretUnreadable

MEDIA_TYPE = "application/problem+json"

#: Characters of a detail; what is longer holds something that no message of ours should.
_MAX_DETAIL = 1000


class NotAcceptable(errors.RequestError):
    """None of the accepted media types can be given."""

    code = "not_acceptable"


class MethodNotAllowed(errors.RequestError):
    """This method is not supported here."""

    code = "method_not_allowed"

    def __init__(self, allow: str) -> None:
        super().__init__()
        self.allow = allow


#: Most specific class first wins; a test asserts that every error of the service finds its line.
STATUSES: dict[type[DarkroomError], HTTPStatus] = {
    errors.InvalidRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.ModelChanged: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.MalformedRequest: HTTPStatus.BAD_REQUEST,
    errors.RequestTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.RequestTimedOut: HTTPStatus.REQUEST_TIMEOUT,
    errors.UnsupportedMedia: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.Gone: HTTPStatus.GONE,
    # Not 409: clients there are that repeat such calls by themselves.
    errors.EndpointOff: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.IdempotencyMismatch: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.RequestError: HTTPStatus.BAD_REQUEST,
    errors.LimitReached: HTTPStatus.TOO_MANY_REQUESTS,
    errors.RateLimited: HTTPStatus.TOO_MANY_REQUESTS,
    errors.QuotaExceeded: HTTPStatus.TOO_MANY_REQUESTS,
    errors.TooManyAttempts: HTTPStatus.TOO_MANY_REQUESTS,
    errors.Overloaded: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.GenerationFailed: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.DarkroomError: HTTPStatus.INTERNAL_SERVER_ERROR,
    NotAcceptable: HTTPStatus.NOT_ACCEPTABLE,
    MethodNotAllowed: HTTPStatus.METHOD_NOT_ALLOWED,
    # Nothing that a caller did: an object of ours is missing, too large or damaged.
    StorageError: HTTPStatus.INTERNAL_SERVER_ERROR,
    # The operator's key is missing, or the record is damaged; the tenant may rotate.
    WebhookSecretUnreadable: HTTPStatus.INTERNAL_SERVER_ERROR,
    # Raised on the command line's side only.
    TenantError: HTTPStatus.INTERNAL_SERVER_ERROR,
}

#: How a generation that ended without a picture answers a call that asked for the picture itself.
FAILURE_STATUSES: dict[str, HTTPStatus] = {
    FailureCode.INVALID_REQUEST: HTTPStatus.UNPROCESSABLE_ENTITY,
    FailureCode.INVALID_INPUT: HTTPStatus.UNPROCESSABLE_ENTITY,
    FailureCode.PROMPT_TOO_LONG: HTTPStatus.UNPROCESSABLE_ENTITY,
    "canceled": HTTPStatus.UNPROCESSABLE_ENTITY,
    "flagged": HTTPStatus.UNPROCESSABLE_ENTITY,
    FailureCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}


class FieldProblem(BaseModel):
    """One wrong field."""

    model_config = ConfigDict(extra="forbid")

    pointer: Annotated[
        str,
        Field(description="JSON pointer (RFC 6901) into the body, or a part, query parameter or header by its name."),
    ]
    detail: Annotated[str, Field(description="What is allowed, with its unit; never what was sent.")]


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(description="urn:darkroom:problem:<code>")]
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    instance: Annotated[str, Field(description="urn:darkroom:request:<request_id>")]
    code: Annotated[str, Field(description="Stable; docs/errors.md lists them.")]
    request_id: str
    errors: Annotated[list[FieldProblem] | None, Field(description="Every wrong field.")] = None
    failure: Annotated[str | None, Field(description="Why the generation ended without a picture.")] = None


def status_of(err: DarkroomError) -> HTTPStatus:
    """Return the HTTP status of an error."""
    if isinstance(err, errors.GenerationFailed):
        return FAILURE_STATUSES.get(err.failure, STATUSES[errors.GenerationFailed])
    return next(STATUSES[kind] for kind in type(err).__mro__ if kind in STATUSES)


def problem_response(err: DarkroomError, request_id: str, **members: Any) -> Response:
    """Return the problem that an error is to its caller; `members` are added to it."""
    status = int(status_of(err))
    body: dict[str, Any] = {
        "type": f"urn:darkroom:problem:{err.code}",
        "title": _title(err),
        "status": status,
        "detail": err.message[:_MAX_DETAIL],
        "instance": f"urn:darkroom:request:{request_id}",
        "code": err.code,
        "request_id": request_id,
        **members,
    }
    if isinstance(err, errors.InvalidRequest):
        body["errors"] = [{"pointer": each.pointer, "detail": each.message} for each in err.errors]
    if isinstance(err, errors.GenerationFailed):
        body["failure"] = err.failure
    content = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    return Response(content, status_code=status, headers=_headers(err), media_type=MEDIA_TYPE)


def unexpected_response(request_id: str) -> Response:
    """Return the problem for a defect of ours: nothing of it is told."""
    return problem_response(DarkroomError("Something went wrong on our side; the request id finds it."), request_id)


def _title(err: DarkroomError) -> str:
    """Return the error's own name in words: the same for every occurrence, as RFC 9457 asks."""
    return err.code.replace("_", " ").capitalize()


def _headers(err: DarkroomError) -> dict[str, str]:
    headers: dict[str, str] = {}
    match err:
        case errors.Unauthenticated():
            headers["WWW-Authenticate"] = 'Bearer realm="darkroom"'
        case MissingScope():
            # RFC 6750, section 3.1.
            headers["WWW-Authenticate"] = f'Bearer realm="darkroom", error="insufficient_scope", scope="{err.scope}"'
        case MethodNotAllowed():
            headers["Allow"] = err.allow
        case errors.RequestTimedOut():
            # Its rest is not waited for. (What is too large is let come, unread: whoever is cut off hears no answer.)
            headers["Connection"] = "close"
        case errors.LimitReached() | errors.Overloaded() | errors.Unavailable():
            headers["Retry-After"] = str(err.retry_after_s)
        case _:
            pass
    if isinstance(err, errors.RateLimited):
        headers |= rate_headers(err.rate)
    return headers
