"""`darkroom webhooks`: secrets, endpoints and deliveries of tenants, straight in Redis."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from service.cli.redis_access import opened_redis

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from service.generations.webhooks import ManageWebhooks
    from service.tenants.sealing import Sealer

T = TypeVar("T")

webhooks = typer.Typer(no_args_is_help=True, help="Webhooks of tenants [DARKROOM_REDIS_URL, DARKROOM_WEBHOOK_KEY].")

TenantId = Annotated[str, typer.Argument(help="The tenant's id; `local` where keys are off.", show_default=False)]
State = Literal["pending", "delivered", "failed", "superseded"]


@webhooks.command("secret")
def show_secret(tenant: TenantId) -> None:
    """Print the secret that receivers of a tenant verify with; it is made when it is first asked for."""
    present, *_ = _asked(tenant, lambda use: use.secrets(tenant))
    typer.echo(present.text)


@webhooks.command("rotate")
def rotate_secret(
    tenant: TenantId,
    keep_previous_s: Annotated[
        int, typer.Option(min=0, max=7 * 86_400, help="How long the earlier one stays valid, s; 0 ends it now.")
    ] = 86_400,
) -> None:
    """Draw a new secret and print it."""
    from service.tenants.audit import operator  # noqa: PLC0415 - a command imports when it runs

    who = operator()
    valid = _asked(tenant, lambda use: use.rotate(tenant, who=who, keep_s=keep_previous_s, name=""))
    typer.echo(valid[0].text)
    typer.echo(f"Secret {valid[0].id} of {tenant}; {len(valid) - 1} earlier ones are valid beside it.", err=True)


@webhooks.command("seal")
def seal_secrets() -> None:
    """Store all secrets encrypted with the first key of DARKROOM_WEBHOOK_KEY; exit 1 if one cannot be read."""
    from service.contract.errors import DarkroomError  # noqa: PLC0415 - a command imports when it runs
    from service.tenants.records import LOCAL_TENANT  # noqa: PLC0415
    from service.tenants.store import TenantStore  # noqa: PLC0415
    from service.tenants.webhook_secrets import WebhookSecrets, WebhookSecretUnreadable  # noqa: PLC0415

    with opened_redis() as redis:
        tenants = [LOCAL_TENANT, *(each.id for each in TenantStore(redis).list())]
        sealed, unreadable = 0, list[str]()
        for tenant in tenants:
            try:
                sealed += _run(lambda client, sealer, of=tenant: WebhookSecrets(client, sealer).seal_anew(of))
            except WebhookSecretUnreadable:
                unreadable.append(tenant)
        typer.echo(f"{sealed} secrets are stored as DARKROOM_WEBHOOK_KEY says")
        if unreadable:
            msg = f"the secrets of {', '.join(unreadable)} cannot be read: give the key that they had too"
            raise DarkroomError(msg)


@webhooks.command("endpoints")
def list_endpoints(tenant: TenantId) -> None:
    """List where events of a tenant go, and what is switched off."""
    from service.cli.tables import show  # noqa: PLC0415 - a command imports when it runs
    from service.cli.webhook_tables import endpoints_table  # noqa: PLC0415
    from service.generations.webhooks import EndpointQuery  # noqa: PLC0415
    from service.jobs.scripts import LIMITS  # noqa: PLC0415

    found, _ = _asked(tenant, lambda use: use.endpoints(tenant, EndpointQuery(limit=LIMITS["endpoints"])))
    show(endpoints_table(found))


@webhooks.command("switch")
def switch_endpoint(
    tenant: TenantId,
    endpoint: Annotated[str, typer.Argument(help="Its id, as `darkroom webhooks endpoints` shows it.")],
    *,
    on: Annotated[bool, typer.Option("--on/--off", help="Send to it again, or nothing more.")],
) -> None:
    """Switch an endpoint off or on."""
    from service.tenants.audit import operator  # noqa: PLC0415 - a command imports when it runs

    who = operator()
    switched = _asked(tenant, lambda use: use.switch(tenant, endpoint, on=on, who=who))
    typer.echo(f"Endpoint {switched.id} of {tenant} is {'on' if switched.enabled else 'off'}")


@webhooks.command("deliveries")
def list_deliveries(
    tenant: TenantId,
    generation: Annotated[str | None, typer.Option(help="Only events of this one.", show_default=False)] = None,
    state: Annotated[State | None, typer.Option(help="Only events in this state.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most events.")] = 20,
) -> None:
    """List what was sent for a tenant, newest first."""
    from service.cli.tables import show  # noqa: PLC0415 - a command imports when it runs
    from service.cli.webhook_tables import deliveries_table  # noqa: PLC0415
    from service.generations.webhooks import DeliveryQuery  # noqa: PLC0415
    from service.jobs.deliveries import DeliveryFilter  # noqa: PLC0415

    query = DeliveryQuery(DeliveryFilter(job_id=generation, state=state), limit)
    show(deliveries_table(_asked(tenant, lambda use: use.deliveries(tenant, query)).deliveries))


@webhooks.command("redeliver")
def redeliver(
    tenant: TenantId, event: Annotated[str, typer.Argument(help="Its id, as `darkroom webhooks deliveries` shows it.")]
) -> None:
    """Have an event sent again as soon as may be, under the same id."""
    _asked(tenant, lambda use: use.redeliver(tenant, event))
    typer.echo(f"Event {event} will be sent")


def _asked(tenant: str, question: Callable[[ManageWebhooks], Awaitable[T]]) -> T:
    """Return the answer about a tenant that there is; whatever goes wrong is one line."""
    from service.generations.webhooks import ManageWebhooks  # noqa: PLC0415 - a command imports when it runs
    from service.jobs.deliveries import AsyncDeliveries  # noqa: PLC0415
    from service.tenants.records import LOCAL_TENANT  # noqa: PLC0415
    from service.tenants.store import TenantStore  # noqa: PLC0415
    from service.tenants.webhook_secrets import WebhookSecrets  # noqa: PLC0415

    with opened_redis() as redis:
        if tenant != LOCAL_TENANT:
            TenantStore(redis).get(tenant)
        return _run(
            lambda client, sealer: question(
                ManageWebhooks(deliveries=AsyncDeliveries(client), secrets=WebhookSecrets(client, sealer))
            )
        )


def _run(work: Callable[[Redis, Sealer], Awaitable[T]]) -> T:
    import asyncio  # noqa: PLC0415 - a command imports when it runs

    from service.cli.configuration import read_configuration  # noqa: PLC0415
    from service.jobs.connection import connect_async  # noqa: PLC0415
    from service.settings.groups import RedisSettings, WebhookSettings  # noqa: PLC0415
    from service.tenants.sealing import Sealer  # noqa: PLC0415

    settings, keys = read_configuration(RedisSettings), read_configuration(WebhookSettings).keys

    async def worked() -> T:
        async with connect_async(settings) as client:
            return await work(client, Sealer(keys))

    return asyncio.run(worked())
