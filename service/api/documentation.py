"""What `openapi.yaml` says about parameters, headers and refusals; handlers read them by themselves."""

from __future__ import annotations

from typing import Any

from service.api.problems import MEDIA_TYPE, Problem
from service.contract.job import Status
from service.generations.cursors import CURSOR_MAX_CHARS
from service.generations.idempotency import KEY_MAX_CHARS
from service.generations.ids import ID_PATTERN
from service.generations.listing import LIMIT_DEFAULT, LIMIT_MAX
from service.generations.usage import DAYS_DEFAULT, DAYS_MAX

Parameter = dict[str, Any]
Responses = dict[int | str, dict[str, Any]]

EXAMPLE_ID = "gen_0d6la8q1o4u2l0p3b7f9k2s5t8v1c4e6g8i0m2n4"

GENERATION_ID: Parameter = {
    "name": "generation_id",
    "in": "path",
    "required": True,
    "description": "The id of a generation.",
    "schema": {"type": "string", "pattern": ID_PATTERN},
    "example": EXAMPLE_ID,
}
IMAGE_NUMBER: Parameter = {
    "name": "number",
    "in": "path",
    "required": True,
    "description": "Which picture, from 0.",
    "schema": {"type": "integer", "minimum": 0, "maximum": 63},
    "example": 0,
}
INLINE: Parameter = {
    "name": "inline",
    "in": "query",
    "description": "Show the picture in a browser instead of saving it.",
    "schema": {"type": "boolean", "default": False},
}
MODEL_ID: Parameter = {
    "name": "model_id",
    "in": "path",
    "required": True,
    "description": "The id of a model.",
    "schema": {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,63}$"},
}
LIMIT: Parameter = {
    "name": "limit",
    "in": "query",
    "description": "Generations on a page.",
    "schema": {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT},
}
CURSOR: Parameter = {
    "name": "cursor",
    "in": "query",
    "description": "The next_cursor of the page before.",
    "schema": {"type": "string", "minLength": 1, "maxLength": CURSOR_MAX_CHARS},
}
STATUS: Parameter = {
    "name": "status",
    "in": "query",
    "description": "Only generations in this status.",
    "schema": {"type": "string", "enum": list(Status)},
}
USAGE_FROM: Parameter = {
    "name": "from",
    "in": "query",
    "description": f"First day, UTC, of the last {DAYS_MAX}; where it is not given, {DAYS_DEFAULT} days to `to`.",
    "schema": {"type": "string", "format": "date"},
}
USAGE_TO: Parameter = {
    "name": "to",
    "in": "query",
    "description": "Last day, UTC, itself included; where it is not given, today.",
    "schema": {"type": "string", "format": "date"},
}
PREFER: Parameter = {
    "name": "Prefer",
    "in": "header",
    "description": (
        "RFC 7240: `wait=N` holds the reply up to N seconds for the end; the server may wait less, and says so in "
        "Preference-Applied. `respond-async` answers at once."
    ),
    "schema": {"type": "string"},
    "example": "wait=30",
}
IF_NONE_MATCH: Parameter = {
    "name": "If-None-Match",
    "in": "header",
    "description": "ETags of what is known already; 304 where the answer would be one of them.",
    "schema": {"type": "string"},
}
LAST_EVENT_ID: Parameter = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "The id of the last event that came: this revision is not told again. Browsers send it themselves.",
    "schema": {"type": "string", "pattern": "^[0-9]{1,15}$"},
    "example": "9",
}
IDEMPOTENCY_KEY: Parameter = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": (
        "Any text of your own, e.g. a UUID. A repeated call with the same key and body gives the same generation; "
        "with another body 422, after its erasure 410. Remembered for 24 h or as long as the generation, if longer."
    ),
    "schema": {"type": "string", "minLength": 1, "maxLength": KEY_MAX_CHARS, "pattern": "^[ -~]+$"},
    "example": "6f9c0c62-3d0e-4a55-8a0a-0d6f5c2f7a11",
}

#: In words, by status; every operation names those that it can give.
_REFUSALS: dict[int, str] = {
    400: "The request is malformed.",
    401: "No valid API key came along.",
    403: "This is not allowed, or the key has not the scope for it.",
    404: "There is no such thing here, or it is another tenant's.",
    405: "This method is not supported here.",
    406: "None of the accepted media types can be given.",
    408: "The body did not arrive in time.",
    410: "It was here once and has been erased.",
    413: "The body is too large.",
    415: "The content type is not supported.",
    422: "One or more fields are wrong, or the Idempotency-Key was used with another body.",
    429: "The tenant's own limit is reached, or its rate; or too many wrong keys came from this address.",
    500: "Something went wrong on the server's side.",
    503: "The system is full, or a part of it does not answer.",
    504: "The deadline of the generation passed before its picture was drawn.",
}
#: Only where the tenant has a rate.
RATE_HEADERS = {
    "RateLimit-Policy": {
        "description": "The tenant's rate: `q` generations in `w` seconds.",
        "schema": {"type": "string"},
        "example": '"default";q=60;w=60',
    },
    "RateLimit": {
        "description": (
            "What was left when this call was counted: `r` generations at once (never more than a quarter of `q`), one "
            "more after `t` seconds."
        ),
        "schema": {"type": "string"},
        "example": '"default";r=14;t=1',
    },
}
_RETRY_AFTER = {"Retry-After": {"description": "s to wait before the next try.", "schema": {"type": "integer"}}}
_AUTHENTICATE = {"WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string"}}}


def refusals(*statuses: int) -> Responses:
    """Return the documentation of these problems, and of those that any call may get."""
    found: Responses = {}
    for status in sorted({*statuses, 400, 401, 403, 405, 429, 500, 503}):
        found[status] = {
            "description": _REFUSALS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}},
        }
        if status in {429, 503}:
            found[status]["headers"] = _RETRY_AFTER | (RATE_HEADERS if 429 in statuses and status == 429 else {})
        if status == 401:
            found[status]["headers"] = _AUTHENTICATE
    return found


def header(description: str) -> dict[str, Any]:
    """Return the documentation of a response header."""
    return {"description": description, "schema": {"type": "string"}}
