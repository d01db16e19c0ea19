"""One attempt to deliver an event: body, signature, call, and what is to be recorded of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Protocol, cast

from pydantic import ValidationError

from service.contract.events import EventType
from service.generations.webhook_message import webhook_message
from service.jobs.outbox import Attempt, DueEvent
from service.net.egress import EgressFailed, Reply
from service.net.urls import UrlRefused
from service.tenants.webhook_secrets import WebhookSecrets, WebhookSecretUnreadable
from service.webhooks.schedule import Answer, judged
from service.webhooks.signing import signature_headers

_HEADERS = {"Content-Type": "application/json", "User-Agent": "Darkroom-Webhooks"}


class Post(Protocol):
    """`service.net.egress.Egress.post`."""

    async def __call__(self, url: str, body: bytes, headers: Mapping[str, str], *, deadline_s: float) -> Reply:
        """Return what was answered; raises `UrlRefused` or `EgressFailed`."""
        ...


class Delivery:
    """Sends events. The clock (ms since 1970) and chance (in [0, 1)) are injected by tests."""

    def __init__(
        self,
        *,
        post: Post,
        secrets: WebhookSecrets,
        timeout_s: float,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._post = post
        self._secrets = secrets
        self._timeout_s = timeout_s
        self._now_ms = now_ms
        self._chance = chance

    async def attempt(self, event: DueEvent) -> Attempt:
        """Send an event once; raises `Unavailable` where Redis does not have the secrets, and nothing was sent."""
        at_ms, began_s = self._now_ms(), time.monotonic()
        answer = await self._answer(event, at_ms // 1000)
        duration_ms = round(1000 * (time.monotonic() - began_s))
        return judged(event, answer, at_ms=at_ms, duration_ms=duration_ms, chance=self._chance())

    async def _answer(self, event: DueEvent, now_s: int) -> Answer:
        job = event.job
        if job is None or job.webhook_url is None:
            return Answer(reason="unreadable", ours=True)
        try:
            message = webhook_message(job, cast("EventType", event.type), event.created_ms)
            headers = signature_headers(
                event.id, now_s, body := message.model_dump_json().encode(), await self._secrets.current(job.tenant)
            )
        except WebhookSecretUnreadable:
            return Answer(reason="secret", ours=True)
        except (ValidationError, ValueError, OverflowError):
            return Answer(reason="unreadable", ours=True)
        try:
            reply = await self._post(job.webhook_url, body, {**_HEADERS, **headers}, deadline_s=self._timeout_s)
        except UrlRefused:
            return Answer(reason="refused")
        except EgressFailed as err:
            return Answer(reason=err.reason)
        return Answer(status=reply.status, retry_after_s=reply.retry_after_s)
