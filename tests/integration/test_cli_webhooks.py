"""`darkroom webhooks` on a real Valkey."""

from __future__ import annotations

import base64

import pytest
import redis
from typer.testing import CliRunner, Result

from service.cli.commands import app
from service.cli.failure import CommandFailed
from service.contract.job import Status
from service.jobs.keys import key
from service.jobs.store import JobStore
from service.tenants.audit import AuditLog
from service.tenants.store import TenantStore
from tests.outbox import begin, end
from tests.webhooks import gen

URL = "https://shop.example/hook"


def darkroom(url: str, *words: str, **variables: str) -> Result:
    return CliRunner().invoke(app, ["webhooks", *words], env={"DARKROOM_REDIS_URL": url, **variables})


def said(result: Result) -> str:
    assert result.exit_code == 0, result.exception
    return result.stdout


@pytest.fixture
def tenant(redis_client: redis.Redis) -> str:
    TenantStore(redis_client).create("ada")
    return "ada"


def test_a_secret_is_shown_rotated_and_sealed(valkey_url: str, redis_client: redis.Redis, tenant: str) -> None:
    first = said(darkroom(valkey_url, "secret", tenant))
    assert first.startswith("whsec_")
    assert said(darkroom(valkey_url, "secret", tenant)) == first
    second = said(darkroom(valkey_url, "rotate", tenant, "--keep-previous-s", "60"))
    assert second != first
    assert AuditLog(redis_client).latest(1)[0].action == "webhook_secret_rotated"
    new_key = base64.b64encode(bytes(32)).decode()
    assert said(darkroom(valkey_url, "seal", DARKROOM_WEBHOOK_KEY=new_key)).startswith("2 secrets")
    assert {text.split()[2].partition(":")[0] for text in redis_client.hvals(key("webhook_secrets", tenant))} == {
        "a256gcm"
    }
    assert said(darkroom(valkey_url, "secret", tenant, DARKROOM_WEBHOOK_KEY=new_key)) == second
    failed = darkroom(valkey_url, "seal")
    assert isinstance(failed.exception, CommandFailed)
    assert "The secrets of ada cannot be read" in failed.exception.message


def test_endpoints_and_deliveries_are_shown_switched_and_sent_again(
    valkey_url: str, redis_client: redis.Redis, tenant: str
) -> None:
    store = JobStore(redis_client)
    end(store, begin(store, gen(1), tenant=tenant, webhook_url=URL, webhook_events=("completed",)), Status.SUCCEEDED)
    event = f"evt_{gen(1)}_succeeded"
    shown = said(darkroom(valkey_url, "endpoints", tenant))
    assert URL in shown
    endpoint = next(word for word in shown.split() if word.startswith("ep_"))
    assert event in said(darkroom(valkey_url, "deliveries", tenant, "--state", "pending"))
    assert event not in said(darkroom(valkey_url, "deliveries", tenant, "--state", "failed"))
    said(darkroom(valkey_url, "redeliver", tenant, event))
    said(darkroom(valkey_url, "switch", tenant, endpoint, "--off"))
    assert "off: by_request" in said(darkroom(valkey_url, "endpoints", tenant))
    refused = darkroom(valkey_url, "redeliver", tenant, event)
    assert isinstance(refused.exception, CommandFailed)
    assert "switched off" in refused.exception.message
    said(darkroom(valkey_url, "switch", tenant, endpoint, "--on"))
    said(darkroom(valkey_url, "redeliver", tenant, event))


@pytest.mark.parametrize("words", [["secret"], ["endpoints"], ["deliveries"]])
def test_an_unknown_tenant_is_one_line_and_nothing_is_made(
    valkey_url: str, redis_client: redis.Redis, words: list[str]
) -> None:
    result = darkroom(valkey_url, *words, "nobody")
    assert isinstance(result.exception, CommandFailed)
    assert "There is no tenant nobody" in result.exception.message
    assert not redis_client.exists(key("webhook_secrets", "nobody"))
