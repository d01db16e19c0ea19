"""What the real sender sends is taken by the libraries that receivers have, also while a secret is rotated."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import openai
import pytest
import redis
import standardwebhooks
import svix.webhooks
from replicate.webhook import Webhooks, WebhookSigningSecret

from service.jobs.connection import connect_async
from service.jobs.store import JobStore
from service.settings.groups import RedisSettings
from service.tenants.sealing import Sealer
from service.tenants.webhook_secrets import WebhookSecrets
from tests.clock import QueueClock
from tests.outbox import begin, end
from tests.sites import PUBLIC, site
from tests.webhooks import gen, sending

pytestmark = pytest.mark.anyio

Verifier = Callable[[str, bytes, Mapping[str, str]], object]


def by_standardwebhooks(secret: str, body: bytes, headers: Mapping[str, str]) -> None:
    message = standardwebhooks.Webhook(secret).verify(body, dict(headers))
    assert message["type"] == "generation.succeeded"


def by_svix(secret: str, body: bytes, headers: Mapping[str, str]) -> None:
    svix.webhooks.Webhook(secret).verify(body, dict(headers))


def by_openai(secret: str, body: bytes, headers: Mapping[str, str]) -> None:
    client = openai.OpenAI(api_key="none", webhook_secret=secret)
    client.webhooks.verify_signature(body, dict(headers))
    assert client.webhooks.unwrap(body, dict(headers)).type == "generation.succeeded"  # type: ignore[comparison-overlap]


def by_replicate(secret: str, body: bytes, headers: Mapping[str, str]) -> None:
    signing = WebhookSigningSecret(key=secret)
    Webhooks.validate(headers=dict(headers), body=body.decode(), secret=signing, tolerance=300)


VERIFIERS: list[Verifier] = [by_standardwebhooks, by_svix, by_openai, by_replicate]


async def test_stock_verifiers_take_what_was_sent_with_every_valid_secret_and_nothing_else(
    valkey_url: str, redis_settings: RedisSettings, redis_client: redis.Redis
) -> None:
    # The libraries look at the clock: what is sent has to be of now.
    clock = QueueClock(time.time_ns() // 1_000_000)
    store = JobStore(redis_client, clock=clock)
    sealer = Sealer([bytes(range(32))])
    async with (
        site() as hook,
        sending(valkey_url, clock, hook, sealer=sealer) as drive,
        connect_async(redis_settings) as client,
    ):
        secrets = WebhookSecrets(client, sealer, clock=clock)
        url = f"http://{PUBLIC}:{hook.port}/hook"
        valid: list[list[str]] = []
        for number, keep_s in enumerate((None, 3600, 0)):
            if keep_s is not None:
                await secrets.rotate("ada", who="ada@host", keep_s=keep_s)
            end(store, begin(store, gen(number), webhook_url=url, webhook_events=("completed",)))
            await drive.go()
            valid.append([each.text for each in await secrets.current("ada")])
    assert [len(texts) for texts in valid] == [1, 2, 1]
    every = {text for texts in valid for text in texts}
    assert len(every) == len(hook.exchanges) == 3
    for texts, exchange in zip(valid, hook.exchanges, strict=True):
        headers = {name: text for name, text in exchange.headers.items() if name.startswith("webhook-")}
        assert len(headers["webhook-signature"].split(" ")) == len(texts)
        for verify in VERIFIERS:
            for text in texts:
                verify(text, exchange.body, headers)
                for changed in (exchange.body + b" ", exchange.body.replace(b"succeeded", b"canceled")):
                    with pytest.raises(Exception, match=r"(?i)signature"):
                        verify(text, changed, headers)
                with pytest.raises(Exception, match=r"(?i)signature"):
                    verify(text, exchange.body, {**headers, "webhook-id": f"evt_{gen(9)}_succeeded"})
            for text in every.difference(texts):
                with pytest.raises(Exception, match=r"(?i)signature"):
                    verify(text, exchange.body, headers)
