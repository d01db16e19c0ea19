"""Who changed what about tenants and keys, told by the same step that changes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import redis
from typer.testing import CliRunner

from service.cli.commands import app
from service.cli.failure import CommandFailed
from service.tenants import audit
from service.tenants.audit import AuditLog
from service.tenants.records import TenantError, TenantLimits
from service.tenants.store import KeyStore, TenantStore


def told(client: redis.Redis) -> list[tuple[str, str, str, dict[str, object]]]:
    return [(each.action, each.tenant, each.key, dict(each.changes)) for each in AuditLog(client).latest(1000)]


def test_every_change_is_told_once_with_who_made_it(redis_client: redis.Redis) -> None:
    tenants, keys = TenantStore(redis_client, who="ada@desk"), KeyStore(redis_client, who="ada@desk")
    tenants.create("acme", name="Acme", limits=TenantLimits(max_queued=5))
    made = keys.create("acme", label="web", scopes=frozenset({"read", "generate"}))
    keys.set_scopes(made.key.id, None)
    tenants.set_limits("acme", TenantLimits(weight=2))
    keys.revoke(made.key.id)
    tenants.remove("acme")
    assert told(redis_client) == [
        ("tenant_created", "acme", "", {"name": "Acme", "max_queued": [None, 5]}),
        ("key_created", "acme", made.key.id, {"label": "web", "scopes": "generate read"}),
        ("scopes_changed", "acme", made.key.id, {"scopes": ["generate read", "all"]}),
        (
            "limits_changed",
            "acme",
            "",
            {"weight": [1.0, 2.0], "max_queued": [5, None]},
        ),
        ("key_revoked", "acme", made.key.id, {}),
        ("tenant_removed", "acme", "", {"keys": 1, "canceled": 0}),
    ]
    entries = AuditLog(redis_client).latest(1000)
    assert {each.who for each in entries} == {"ada@desk"}
    now_ms = 1000 * redis_client.time()[0]
    assert all(now_ms - 60_000 < each.at_ms < now_ms + 2_000 for each in entries)
    assert made.text.rpartition("_")[2] not in str(redis_client.xrange("dr:audit"))


def test_what_changes_nothing_and_what_fails_is_not_told(redis_client: redis.Redis) -> None:
    tenants, keys = TenantStore(redis_client), KeyStore(redis_client)
    tenants.create("acme")
    made = keys.create("acme")
    keys.revoke(made.key.id)
    before = told(redis_client)
    tenants.set_limits("acme", TenantLimits())
    keys.revoke(made.key.id)
    keys.set_scopes(made.key.id, None)
    for wrong in (
        lambda: tenants.create("acme"),
        lambda: tenants.remove("other"),
        lambda: keys.create("other"),
        lambda: keys.revoke("a" * 12),
        lambda: keys.set_scopes("a" * 12, None),
        lambda: tenants.set_limits("other", TenantLimits()),
    ):
        with pytest.raises(TenantError):
            wrong()
    assert told(redis_client) == before


def test_a_tenant_that_is_removed_by_force_has_its_keys_revoked_first(redis_client: redis.Redis) -> None:
    tenants, keys = TenantStore(redis_client), KeyStore(redis_client)
    tenants.create("acme")
    made = keys.create("acme")
    tenants.remove("acme", force=True)
    assert told(redis_client)[-2:] == [
        ("key_revoked", "acme", made.key.id, {}),
        ("tenant_removed", "acme", "", {"keys": 1, "canceled": 0}),
    ]


def test_the_log_is_bounded_and_read_a_page_at_a_time(redis_client: redis.Redis) -> None:
    pipeline = redis_client.pipeline(transaction=False)
    for number in range(11_000):
        audit.note(pipeline, "limits_changed", who="ada", tenant=f"t{number % 1100}", changes={"number": number})
    pipeline.execute()
    # Whole blocks of a hundred are dropped.
    assert 10_000 <= redis_client.xlen("dr:audit") <= 10_100
    log = AuditLog(redis_client)
    assert [each.changes["number"] for each in log.latest(3)] == [10_997, 10_998, 10_999]
    # Of a tenant, over pages in which it is rare.
    assert [each.changes["number"] for each in log.latest(4, tenant="t7")] == [6607, 7707, 8807, 9907]
    assert len(log.latest(1000, tenant="t7")) in {9, 10}
    assert log.latest(5, tenant="nobody") == []


def test_following_goes_on_where_the_list_ended(redis_client: redis.Redis) -> None:
    tenants = TenantStore(redis_client)
    tenants.create("acme")
    log = AuditLog(redis_client)
    following = log.follow(log.latest(1)[-1].id, tenant="acme")
    tenants.create("other")
    tenants.set_limits("acme", TenantLimits(weight=3))
    assert next(following).changes == {"weight": [1.0, 3.0]}


def test_what_somebody_else_wrote_into_it_is_shown_and_harmless(redis_client: redis.Redis, valkey_url: str) -> None:
    redis_client.xadd("dr:audit", {"who": "\x1b[31mroot", "changes": "[" * 5000})
    redis_client.xadd("dr:audit", {"action": "[red]x", "changes": '{"a": [1]}', "tenant": "t"}, id=f"{2**63}-1")
    assert [dict(each.changes) for each in AuditLog(redis_client).latest(5)] == [{}, {"a": [1]}]
    shown = CliRunner().invoke(app, ["audit"], env={"DARKROOM_REDIS_URL": valkey_url})
    assert [line.partition(" ")[2] for line in shown.stdout.splitlines()] == ["?[31mroot", "[red]x t a=[1]"]
    assert shown.stdout.splitlines()[1].startswith("9999-12-31T23:59:59.000+00:00")


def _obeys_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_command_line_tells_and_follows(redis_client: redis.Redis, valkey_url: str) -> None:
    env = {"DARKROOM_REDIS_URL": valkey_url}
    run = CliRunner().invoke
    for words in (
        ["tenants", "add", "acme", "--max-queued", "5"],
        ["keys", "create", "acme", "--label", "web", "--scope", "read", "--scope", "generate"],
        ["tenants", "add", "other"],
    ):
        assert run(app, words, env=env).exit_code == 0, words
    lines = run(app, ["audit", "--tenant", "acme"], env=env).stdout.splitlines()
    who = audit.operator()
    assert lines[0].split(" ", 1)[1] == f"{who} tenant_created acme max_queued=none→5"
    key_id = KeyStore(redis_client).list("acme")[0].id
    assert lines[1].endswith(f'{who} key_created acme {key_id} label="web" scopes="generate read"')
    assert len(lines) == 2
    listed = run(app, ["keys", "list", "acme"], env=env).stdout
    assert "generate, read" in listed
    assert "never" in listed

    follower = subprocess.Popen(
        [sys.executable, "-m", "service.cli.main", "audit", "--follow", "--json", "--limit", "1"],
        env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Where the tests themselves run in the background of a shell, they ignore Ctrl-C, and so would it.
        preexec_fn=_obeys_ctrl_c,  # noqa: PLW1509 - it takes no lock
    )  # fmt: skip
    assert follower.stdout is not None
    first = json.loads(follower.stdout.readline())
    assert (first["action"], first["tenant"], first["who"]) == ("tenant_created", "other", who)
    assert run(app, ["keys", "set", key_id, "--scope", "read"], env=env).exit_code == 0
    second = json.loads(follower.stdout.readline())
    assert (second["action"], second["key"], second["changes"]) == (
        "scopes_changed", key_id, {"scopes": ["generate read", "read"]}
    )  # fmt: skip
    assert second["id"] > first["id"]
    assert second["at"].endswith("+00:00")
    follower.send_signal(signal.SIGINT)
    out, err = follower.communicate(timeout=60)
    assert (out, err, follower.returncode) == ("", "", 130)


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["create", "acme", "--scope", "everything"], "--scope: there is no such scope; there are generate, read"),
        (["create", "acme", "--scope", "all", "--scope", "read"], "--scope: there is no such scope"),
        # Nobody is given everything for a word that was forgotten.
        (["set", "a" * 12], "Name what the key may do: --scope generate, read or webhooks, or --scope all."),
    ],
)
def test_what_is_no_scope_is_refused(words: list[str], refusal: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        CliRunner().invoke(app, ["keys", *words], catch_exceptions=False)
    assert caught.value.exit_code == 2
    assert caught.value.message.startswith(refusal)
