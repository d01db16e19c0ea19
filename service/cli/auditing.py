"""`darkroom audit`: who changed what about tenants and keys. One line each, as it may go on for ever."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, cast

import typer

from service.cli.redis_access import opened_redis

if TYPE_CHECKING:
    from service.tenants.audit import AuditEntry


def audit(
    *,
    tenant: Annotated[str | None, typer.Option(help="Only changes of this tenant.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Most entries to begin with, the newest.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what happens, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show who changed what about tenants, keys and webhooks, oldest first [DARKROOM_REDIS_URL]."""
    from service.tenants.audit import AuditLog  # noqa: PLC0415 - a command imports when it runs

    line = _json_line if as_json else _text_line
    with opened_redis() as redis:
        log = AuditLog(redis)
        entries = log.latest(limit, tenant=tenant)
        for entry in entries:
            typer.echo(line(entry))
        if follow:
            for entry in log.follow(entries[-1].id if entries else "0", tenant=tenant):
                typer.echo(line(entry))


def _json_line(entry: AuditEntry) -> str:
    named = ("who", "action", "tenant", "key", "changes")
    return json.dumps({"id": entry.id, "at": _moment(entry.at_ms), **{name: getattr(entry, name) for name in named}})


def _text_line(entry: AuditEntry) -> str:
    from service.cli.tables import printable  # noqa: PLC0415 - a command imports when it runs

    parts = [_moment(entry.at_ms), entry.who, entry.action, entry.tenant, entry.key]
    parts += [f"{name}={_change(value)}" for name, value in entry.changes.items()]
    return printable(" ".join(filter(None, parts)))


def _change(value: object) -> str:
    if isinstance(value, list) and len(cast("list[object]", value)) == 2:
        before, after = cast("list[object]", value)
        return f"{_word(before)}→{_word(after)}"
    return _word(value)


def _word(value: object) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
