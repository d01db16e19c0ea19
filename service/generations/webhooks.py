"""What a tenant sees and changes of its webhooks: secrets, endpoints, deliveries."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from service.contract.errors import EndpointOff, FieldError, InvalidRequest, NotFound
from service.contract.events import EventState
from service.generations.field_errors import MAX_ERRORS, pointer
from service.generations.ids import ID_FORM
from service.generations.listing import LIMIT_DEFAULT, LIMIT_MAX
from service.jobs.deliveries import AsyncDeliveries, DeliveryFilter, DeliveryPage, Endpoint, LoggedEvent
from service.tenants.webhook_secrets import KEEP_DEFAULT_S, KEEP_MAX_S, WebhookSecret, WebhookSecrets

ENDPOINT_PATTERN = r"^ep_[0-9a-f]{40}$"
#: The id of a generation, and which of its events: progress has the revision at which it was told.
EVENT_PATTERN = r"^evt_gen_[0-9a-v]{40}_(started|progress_[0-9]{1,16}|succeeded|failed|canceled|expired)$"

_ENDPOINT = re.compile(ENDPOINT_PATTERN[1:-1])
_EVENT = re.compile(EVENT_PATTERN[1:-1])
_NUMBER = re.compile(r"[1-9][0-9]{0,2}")
_EVENT_CURSOR = re.compile(r"([0-9]{1,14})-(evt_[0-9a-z_]{1,100})")


@dataclass(frozen=True, slots=True)
class DeliveryQuery:
    """Which deliveries, and how many."""

    chosen: DeliveryFilter
    limit: int = LIMIT_DEFAULT
    #: (created_ms, id) of the last one of the page before.
    before: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class EndpointQuery:
    """How many endpoints, and behind which id."""

    limit: int = LIMIT_DEFAULT
    after: str = ""


def delivery_query(parameters: Iterable[tuple[str, str]]) -> DeliveryQuery:
    """Read query parameters; raises `InvalidRequest` with everything that is wrong: a typo must not list all."""
    given, errors = _given(parameters, ("generation", "endpoint", "state", "limit", "cursor"))
    limit = _limit(given, errors)
    generation, endpoint, state = given.get("generation"), given.get("endpoint"), given.get("state")
    if generation is not None and not ID_FORM.fullmatch(generation):
        errors.append(FieldError("generation", "must be the id of a generation, gen_ and 40 characters"))
    if endpoint is not None and not _ENDPOINT.fullmatch(endpoint):
        errors.append(FieldError("endpoint", "must be the id of an endpoint, ep_ and 40 characters"))
    known = next((each for each in get_args(EventState) if each == state), None)
    if state is not None and known is None:
        errors.append(FieldError("state", f"must be one of {', '.join(get_args(EventState))}"))
    cursor = _EVENT_CURSOR.fullmatch(given["cursor"]) if "cursor" in given else None
    if "cursor" in given and cursor is None:
        errors.append(_WRONG_CURSOR)
    if errors:
        raise InvalidRequest(errors[:MAX_ERRORS])
    return DeliveryQuery(DeliveryFilter(generation, endpoint, known), limit, (cursor[1], cursor[2]) if cursor else None)


def endpoint_query(parameters: Iterable[tuple[str, str]]) -> EndpointQuery:
    """Read query parameters; raises `InvalidRequest` with everything that is wrong."""
    given, errors = _given(parameters, ("limit", "cursor"))
    limit = _limit(given, errors)
    if "cursor" in given and not _ENDPOINT.fullmatch(given["cursor"]):
        errors.append(_WRONG_CURSOR)
    if errors:
        raise InvalidRequest(errors[:MAX_ERRORS])
    return EndpointQuery(limit, given.get("cursor", ""))


def rotation_span_s(body: Mapping[str, Any]) -> int:
    """Return how long the earlier secret stays valid, from the body of a rotation; raises `InvalidRequest`."""
    errors = _unknown_fields(body, ("keep_previous_s",))
    span_s = body.get("keep_previous_s")
    if span_s is None:
        span_s = KEEP_DEFAULT_S
    if type(span_s) is not int or not 0 <= span_s <= KEEP_MAX_S:
        errors.append(FieldError("/keep_previous_s", f"must be a whole number, 0 to {KEEP_MAX_S} s"))
    if errors:
        raise InvalidRequest(errors)
    return span_s


def endpoint_switch(body: Mapping[str, Any]) -> bool:
    """Return whether an endpoint is to be on, from the body of a change; raises `InvalidRequest`."""
    errors = _unknown_fields(body, ("enabled",))
    enabled = body.get("enabled")
    if type(enabled) is not bool:
        errors.append(FieldError("/enabled", "is required" if enabled is None else "must be true or false"))
    if errors:
        raise InvalidRequest(errors)
    return enabled is True


class ManageWebhooks:
    """The use case. What is another tenant's is as unknown as what never was."""

    def __init__(self, *, deliveries: AsyncDeliveries, secrets: WebhookSecrets) -> None:
        self._deliveries = deliveries
        self._secrets = secrets

    async def secrets(self, tenant: str) -> tuple[WebhookSecret, ...]:
        """Return every valid secret, the present one first; raises `WebhookSecretUnreadable`, `Unavailable`."""
        return await self._secrets.current(tenant)

    async def rotate(self, tenant: str, *, who: str, keep_s: int, name: str) -> tuple[WebhookSecret, ...]:
        """Draw another secret; return every valid one, the new one first. The same `name` again draws no second."""
        return await self._secrets.rotate(tenant, who=who, keep_s=keep_s, name=name)

    async def endpoints(self, tenant: str, query: EndpointQuery) -> tuple[list[Endpoint], str | None]:
        """Return one page, by id, and the cursor of the next."""
        return await self._deliveries.endpoints(tenant, limit=query.limit, after=query.after)

    async def endpoint(self, tenant: str, endpoint_id: str) -> Endpoint:
        """Return an endpoint; raises `NotFound`, `Unavailable`."""
        known = _ENDPOINT.fullmatch(endpoint_id) and await self._deliveries.endpoint(tenant, endpoint_id)
        if not known:
            raise NotFound("There is no such endpoint here.")
        return known

    async def switch(self, tenant: str, endpoint_id: str, *, on: bool, who: str) -> Endpoint:
        """Switch an endpoint off or on; raises `NotFound`, `Unavailable`."""
        known = _ENDPOINT.fullmatch(endpoint_id) and await self._deliveries.switch(tenant, endpoint_id, on=on, who=who)
        if not known:
            raise NotFound("There is no such endpoint here.")
        return known

    async def deliveries(self, tenant: str, query: DeliveryQuery) -> DeliveryPage:
        """Return one page, newest first."""
        chosen = query.chosen
        if chosen.job_id is None:
            return await self._deliveries.page(tenant, chosen, limit=query.limit, before=query.before)
        # Of one generation there are few, and all of them are found however old they are.
        found = [each for each in await self._deliveries.of_job(tenant, chosen.job_id) if chosen.passes(each)]
        behind = [each for each in found if query.before is None or _position(each) < _ordered(query.before)]
        page = behind[: query.limit]
        return DeliveryPage(page, (str(page[-1].created_ms), page[-1].id) if len(behind) > query.limit else None)

    async def delivery(self, tenant: str, event_id: str) -> LoggedEvent:
        """Return an event; raises `NotFound`, `Unavailable`."""
        known = _EVENT.fullmatch(event_id) and await self._deliveries.delivery(tenant, event_id)
        if not known:
            raise NotFound("There is no such delivery here.")
        return known

    async def redeliver(self, tenant: str, event_id: str) -> LoggedEvent:
        """Have an event sent again as soon as may be; raises `NotFound`, `EndpointOff`, `Unavailable`."""
        delivery = await self.delivery(tenant, event_id)
        outcome = await self._deliveries.redeliver(tenant, event_id)
        if outcome == "unknown":
            raise NotFound("There is no such delivery here.")
        if outcome == "endpoint_off":
            raise EndpointOff(f"The endpoint {delivery.endpoint_id} is switched off; switch it on first.")
        return await self.delivery(tenant, event_id)


_WRONG_CURSOR = FieldError("cursor", "must be the next_cursor of an earlier page")


def _given(parameters: Iterable[tuple[str, str]], known: tuple[str, ...]) -> tuple[dict[str, str], list[FieldError]]:
    given: dict[str, str] = {}
    errors: list[FieldError] = []
    for name, value in parameters:
        if name not in known:
            errors.append(FieldError(name[:64], f"is not a parameter here; there are {', '.join(known)}"))
        elif name in given:
            errors.append(FieldError(name, "is given twice"))
        else:
            given[name] = value
    return given, errors


def _limit(given: Mapping[str, str], errors: list[FieldError]) -> int:
    text = given.get("limit", str(LIMIT_DEFAULT))
    if _NUMBER.fullmatch(text) and int(text) <= LIMIT_MAX:
        return int(text)
    errors.append(FieldError("limit", f"must be a whole number, 1 to {LIMIT_MAX}"))
    return LIMIT_DEFAULT


def _unknown_fields(body: Mapping[str, Any], known: tuple[str, ...]) -> list[FieldError]:
    unknown = [name for name in body if name not in known]
    return [FieldError(pointer(name), f"is not a field of this request; there is {known[0]}") for name in unknown][
        : MAX_ERRORS - 1
    ]


def _position(delivery: LoggedEvent) -> tuple[int, str]:
    return delivery.created_ms, delivery.id


def _ordered(position: tuple[str, str]) -> tuple[int, str]:
    return int(position[0]), position[1]
