"""`darkroom tenants` and `darkroom keys`: straight into Redis, for those who operate the service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

import typer

from service.cli.failure import CommandFailed
from service.cli.redis_access import opened_redis

if TYPE_CHECKING:
    from service.tenants.records import DefaultWebhook, TenantLimits
    from service.tenants.scopes import Scope

tenants = typer.Typer(no_args_is_help=True, help="Whom jobs and limits belong to [DARKROOM_REDIS_URL].")
keys = typer.Typer(no_args_is_help=True, help="API keys of tenants [DARKROOM_REDIS_URL].")

KeyId = Annotated[str, typer.Argument(help="The key's id, as `darkroom keys list` shows it.", show_default=False)]
TenantId = Annotated[str, typer.Argument(help="The tenant's id: a-z, 0-9 and -.", show_default=False)]
Weight = Annotated[float | None, typer.Option(help="Share of the workers relative to other tenants.")]
MaxRequestsPerMinute = Annotated[
    str | None, typer.Option(help="Most jobs accepted in a minute; `none` for no limit.", show_default=False)
]
MaxGpuSPerDay = Annotated[
    str | None, typer.Option(help="Most GPU seconds in a day (UTC); `none` for no limit.", show_default=False)
]
MaxQueued = Annotated[str | None, typer.Option(help="Most jobs waiting; `none` for no limit.", show_default=False)]
MaxRunning = Annotated[str | None, typer.Option(help="Most jobs running; `none` for no limit.", show_default=False)]
Scopes = Annotated[
    list[str] | None,
    typer.Option("--scope", help="What the key may do: generate, read, webhooks or all; repeat it for more."),
]
TopPriority = Annotated[Literal["high", "normal", "low"] | None, typer.Option(help="Highest priority of its jobs.")]


@tenants.command("add")
def add_tenant(
    tenant: TenantId,
    *,
    name: Annotated[str, typer.Option(help="For people.")] = "",
    weight: Weight = None,
    max_requests_per_minute: MaxRequestsPerMinute = None,
    max_gpu_s_per_day: MaxGpuSPerDay = None,
    max_queued: MaxQueued = None,
    max_running: MaxRunning = None,
    top_priority: TopPriority = None,
) -> None:
    """Make a tenant; it can do nothing until it has a key."""
    from service.tenants.records import TenantLimits  # noqa: PLC0415 - a command imports when it runs
    from service.tenants.store import TenantStore  # noqa: PLC0415

    _require_printable("--name", name)
    with opened_redis() as redis:
        limits = _changed(
            TenantLimits(),
            weight=weight,
            max_requests_per_minute=max_requests_per_minute,
            max_gpu_s_per_day=max_gpu_s_per_day,
            max_queued=max_queued,
            max_running=max_running,
            top_priority=top_priority,
        )
        made = TenantStore(redis).create(tenant, name=name, limits=limits)
    typer.echo(f"Tenant {made.id} made; give it a key: darkroom keys create {made.id}")


@tenants.command("list")
def list_tenants() -> None:
    """List tenants and their limits."""
    from service.cli.tables import show, tenants_table  # noqa: PLC0415 - a command imports when it runs
    from service.tenants.store import TenantStore  # noqa: PLC0415

    with opened_redis() as redis:
        show(tenants_table(TenantStore(redis).list()))


@tenants.command("set")
def set_tenant(
    tenant: TenantId,
    *,
    weight: Weight = None,
    max_requests_per_minute: MaxRequestsPerMinute = None,
    max_gpu_s_per_day: MaxGpuSPerDay = None,
    max_queued: MaxQueued = None,
    max_running: MaxRunning = None,
    top_priority: TopPriority = None,
) -> None:
    """Change limits of a tenant; what is not named stays. Gateways follow within two seconds."""
    from service.tenants.store import TenantStore  # noqa: PLC0415 - a command imports when it runs

    with opened_redis() as redis:
        store = TenantStore(redis)
        limits = _changed(
            store.get(tenant).limits,
            weight=weight,
            max_requests_per_minute=max_requests_per_minute,
            max_gpu_s_per_day=max_gpu_s_per_day,
            max_queued=max_queued,
            max_running=max_running,
            top_priority=top_priority,
        )
        store.set_limits(tenant, limits)
    typer.echo(f"Tenant {tenant} changed")


@tenants.command("remove")
def remove_tenant(
    tenant: TenantId,
    force: Annotated[bool, typer.Option("--force", help="Cancel its waiting and running generations.")] = False,
) -> None:
    """Remove a tenant and all its keys. What it has drawn is erased when its retention is over."""
    from service.tenants.store import TenantStore  # noqa: PLC0415 - a command imports when it runs

    with opened_redis() as redis:
        removed = TenantStore(redis).remove(tenant, force=force)
    canceled = f", {removed.canceled} generations canceled" if removed.canceled else ""
    typer.echo(f"Tenant {tenant} removed, {removed.keys} keys revoked{canceled}; ended generations go by their time")


@keys.command("create")
def create_key(
    tenant: TenantId,
    label: Annotated[str, typer.Option(help="For people: where the key is used.")] = "",
    scope: Scopes = None,
    webhook: Annotated[
        str | None, typer.Option(help="Where events go of what it creates, unless a request says.", show_default=False)
    ] = None,
    webhook_event: Annotated[
        list[str] | None,
        typer.Option(help="started, progress or completed; repeat it for more. [default: completed]"),
    ] = None,
) -> None:
    """Make a key for a tenant and print it; it is shown only now."""
    from service.tenants.store import KeyStore  # noqa: PLC0415 - a command imports when it runs

    _require_printable("--label", label)
    scopes, default = _scopes(scope), _default_webhook(webhook, webhook_event or [])
    with opened_redis() as redis:
        made = KeyStore(redis).create(tenant, label=label, scopes=scopes, webhook=default)
    typer.echo(made.text)
    typer.echo(f"Key {made.key.id} of {tenant}: keep the line above, it cannot be shown again.", err=True)


@keys.command("list")
def list_keys(tenant: TenantId) -> None:
    """List a tenant's keys, revoked ones too."""
    from service.cli.tables import keys_table, show  # noqa: PLC0415 - a command imports when it runs
    from service.tenants.store import KeyStore, TenantStore  # noqa: PLC0415

    with opened_redis() as redis:
        TenantStore(redis).get(tenant)
        store = KeyStore(redis)
        show(keys_table(store.list(tenant), store.used(tenant)))


@keys.command("set")
def set_key(key_id: KeyId, scope: Scopes = None) -> None:
    """Change what a key may do, everywhere within two seconds: these scopes and no others; `all` = everything."""
    from service.tenants.store import KeyStore  # noqa: PLC0415 - a command imports when it runs

    if not scope:
        msg = "Name what the key may do: --scope generate, read or webhooks, or --scope all."
        raise CommandFailed(msg, exit_code=2)
    scopes = _scopes(scope)
    with opened_redis() as redis:
        changed = KeyStore(redis).set_scopes(key_id, scopes)
    typer.echo(f"Key {changed.id} of {changed.tenant} changed")


@keys.command("revoke")
def revoke_key(key_id: KeyId) -> None:
    """Make a key open nothing from now on, everywhere within two seconds."""
    from service.tenants.store import KeyStore  # noqa: PLC0415 - a command imports when it runs

    with opened_redis() as redis:
        revoked = KeyStore(redis).revoke(key_id)
    typer.echo(f"Key {revoked.id} of {revoked.tenant} revoked")


def _require_printable(option: str, text: str) -> None:
    """Refuse what a terminal would obey, and what is no UTF-8. Raises CommandFailed."""
    if not text.isprintable():
        msg = f"{option}: must be one line of printable text."
        raise CommandFailed(msg, exit_code=2)


def _default_webhook(url: str | None, named: Sequence[str]) -> DefaultWebhook | None:
    """Return what was named on the command line. CommandFailed for a URL that senders would refuse by its form."""
    from service.cli.configuration import read_configuration  # noqa: PLC0415 - a command imports when it runs
    from service.contract.events import WebhookEvent  # noqa: PLC0415
    from service.net.urls import UrlRefused, parse_url  # noqa: PLC0415
    from service.settings.egress import EgressSettings  # noqa: PLC0415
    from service.tenants.records import DefaultWebhook  # noqa: PLC0415

    unknown = [each for each in named if each not in get_args(WebhookEvent)]
    if unknown:
        msg = f"--webhook-event: must be one of {', '.join(get_args(WebhookEvent))}."
        raise CommandFailed(msg, exit_code=2)
    if url is None:
        if named:
            msg = "--webhook-event: needs --webhook, the URL they go to."
            raise CommandFailed(msg, exit_code=2)
        return None
    rules = read_configuration(EgressSettings)
    try:
        parse_url(url, http=rules.http, ports=(80, 443, *rules.ports))
    except UrlRefused as err:
        msg = f"--webhook: {err.message}."
        raise CommandFailed(msg, exit_code=2) from err
    events = tuple(each for each in get_args(WebhookEvent) if each in named)
    return DefaultWebhook(url, events or ("completed",))


def _scopes(named: list[str] | None) -> frozenset[Scope] | None:
    """Return what was named on the command line; None = all. CommandFailed for what is no scope."""
    from service.tenants.scopes import ALL_SCOPES  # noqa: PLC0415 - a command imports when it runs

    if not named or named == ["all"]:
        return None
    unknown = set(named) - ALL_SCOPES
    if unknown:
        msg = f"--scope: there is no such scope; there are {', '.join(sorted(ALL_SCOPES))}, or all."
        raise CommandFailed(msg, exit_code=2)
    return cast("frozenset[Scope]", frozenset(named))


def _changed(limits: TenantLimits, **given: float | str | None) -> TenantLimits:
    """Return the limits with what was named on the command line in place. CommandFailed for what is no limit."""
    from pydantic import ValidationError  # noqa: PLC0415 - a command imports when it runs

    named = {field: None if value == "none" else value for field, value in given.items() if value is not None}
    try:
        return type(limits).model_validate({**limits.model_dump(), **named})
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        option = str(first["loc"][0]).replace("_", "-")
        msg = f"--{option}: {first['msg'][:1].lower()}{first['msg'][1:]}."
        raise CommandFailed(msg, exit_code=2) from err
