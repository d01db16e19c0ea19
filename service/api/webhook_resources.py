"""What callers see of their webhooks: secrets, endpoints, deliveries."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.contract.events import EventState, EventType
from service.generations.ids import ID_PATTERN
from service.generations.webhooks import ENDPOINT_PATTERN, EVENT_PATTERN
from service.jobs.deliveries import DeliveryAttempt, Endpoint, LoggedEvent
from service.jobs.outbox import DisabledReason
from service.tenants.webhook_secrets import KEEP_DEFAULT_S, KEEP_MAX_S, WebhookSecret

EXAMPLE_ENDPOINT = "ep_8c7f6b1d2a90e4c35f7d8b6a1e0c9f2d3b4a5968"
EXAMPLE_EVENT = "evt_gen_0d6la8q1o4u2l0p3b7f9k2s5t8v1c4e6g8i0m2n4_succeeded"


class _Shown(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WebhookSecretResource(_Shown):
    """A secret that is valid, without its text."""

    id: str
    created_at: datetime
    expires_at: Annotated[
        datetime | None, Field(description="Until when it is valid after a rotation; null for the present one.")
    ]


class WebhookSecretText(WebhookSecretResource):
    """The present secret. Whoever has it can sign as this service: keep it as a password."""

    secret: Annotated[
        str,
        Field(
            pattern="^whsec_[A-Za-z0-9+/]+=*$",
            description="As the libraries of Standard Webhooks take it.",
        ),
    ]


class WebhookSecretList(_Shown):
    """Every valid secret, the present one first. Each message has a signature of each."""

    object: Literal["list"] = "list"
    data: list[WebhookSecretResource]


class RotationRequest(BaseModel):
    """The body of a rotation; all of it may be left out."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"keep_previous_s": 86_400}]})

    keep_previous_s: Annotated[
        int | None,
        Field(
            ge=0,
            le=KEEP_MAX_S,
            json_schema_extra={"x-unit": "s"},
            description=(
                "How long the earlier secrets stay valid, at most. 0 ends them now: for a secret that leaked. "
                f"Default: {KEEP_DEFAULT_S}."
            ),
        ),
    ] = None


class EndpointRequest(BaseModel):
    """A change of an endpoint."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"enabled": True}]})

    enabled: Annotated[bool, Field(description="false: nothing is sent to it from now on.")]


class EndpointResource(_Shown):
    """Where events go: an exact URL that generations named."""

    id: Annotated[str, Field(pattern=ENDPOINT_PATTERN)]
    url: str
    enabled: bool
    created_at: datetime
    disabled_at: datetime | None
    disabled_reason: Annotated[
        DisabledReason | None,
        Field(description="`gone`: it answered 410; `failing`: every attempt failed for days; `by_request`: by PATCH."),
    ]
    failing_since: Annotated[datetime | None, Field(description="Since when every attempt has failed.")]
    last_success_at: datetime | None


class EndpointPage(_Shown):
    """Endpoints, by id."""

    object: Literal["list"] = "list"
    data: list[EndpointResource]
    next_cursor: Annotated[str | None, Field(description="Send as `cursor`; null on the last page.")]


#: Reasons that read the same to a tenant: told apart, they say which names there are inside. Logs have the true one.
_INSIDE_OR_NOWHERE = frozenset({"address", "dns"})


class AttemptResource(_Shown):
    """One attempt to send an event."""

    at: datetime
    status: Annotated[int | None, Field(description="What the receiver answered; 2xx is success.")]
    reason: Annotated[str | None, Field(description="Why there was no answer, or nothing was sent.")]
    duration_s: Annotated[float, Field(ge=0)]


class DeliveryResource(_Shown):
    """An event, and how far it came. What was sent is not kept: it was the generation as it was then."""

    id: Annotated[str, Field(pattern=EVENT_PATTERN, description="The `webhook-id` of every attempt.")]
    type: EventType
    generation: Annotated[str, Field(pattern=ID_PATTERN, description="The id of the generation.")]
    endpoint: Annotated[str, Field(pattern=ENDPOINT_PATTERN)]
    state: Annotated[
        EventState,
        Field(
            description=(
                "`pending`: to be sent, or sent again; `delivered`: the receiver took it; `failed`: nothing more is "
                "tried; `superseded`: the generation ended before it was sent."
            )
        ),
    ]
    created_at: datetime
    next_attempt_at: Annotated[datetime | None, Field(description="While `pending`.")]
    attempts: Annotated[list[AttemptResource], Field(description="The latest ones, oldest first.")]


class DeliveryPageResource(_Shown):
    """Deliveries, newest first. A filtered page may be short, or empty, and still have a next one."""

    object: Literal["list"] = "list"
    data: list[DeliveryResource]
    next_cursor: Annotated[str | None, Field(description="Send as `cursor`; null on the last page.")]


def secret_resource(secret: WebhookSecret) -> WebhookSecretResource:
    """Return what is told of a secret in a list."""
    return WebhookSecretResource(
        id=secret.id, created_at=_moment(secret.created_ms), expires_at=_moment_or_none(secret.until_ms)
    )


def secret_text(secret: WebhookSecret) -> WebhookSecretText:
    """Return a secret with its text."""
    return WebhookSecretText(secret=secret.text, **secret_resource(secret).model_dump())


def endpoint_resource(endpoint: Endpoint) -> EndpointResource:
    """Return what a caller sees of an endpoint."""
    return EndpointResource(
        id=endpoint.id,
        url=endpoint.url,
        enabled=endpoint.enabled,
        created_at=_moment(endpoint.created_ms),
        disabled_at=_moment_or_none(endpoint.disabled_ms),
        disabled_reason=endpoint.disabled_reason,
        failing_since=_moment_or_none(endpoint.failing_since_ms),
        last_success_at=_moment_or_none(endpoint.last_success_ms),
    )


def delivery_resource(delivery: LoggedEvent) -> DeliveryResource:
    """Return what a caller sees of an event."""
    return DeliveryResource(
        id=delivery.id,
        type=delivery.type,
        generation=delivery.job_id,
        endpoint=delivery.endpoint_id,
        state=delivery.state,
        created_at=_moment(delivery.created_ms),
        next_attempt_at=_moment_or_none(delivery.next_ms),
        attempts=[_attempt(each) for each in delivery.attempts],
    )


def _attempt(attempt: DeliveryAttempt) -> AttemptResource:
    nobody_was_called = attempt.reason in _INSIDE_OR_NOWHERE
    return AttemptResource(
        at=_moment(attempt.at_ms),
        status=attempt.status,
        reason="unreachable" if nobody_was_called else attempt.reason,
        # How long a lookup took tells its outcome too.
        duration_s=0 if nobody_was_called else attempt.duration_ms / 1000,
    )


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)


def _moment_or_none(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else _moment(milliseconds)
