"""Lists as tables on standard output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from service.cli.doctor import Finding
    from service.tenants.records import ApiKey, Tenant

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def show(table: Table) -> None:
    """Print a table; as wide as it needs where nobody looks (a pipe)."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    console.print(table)


def printable(text: str) -> str:
    """Return a text with `?` for what a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in text)


def models_table(models: Sequence[dict[str, Any]]) -> Table:
    """`GET /v1/models` for people."""
    table = new_table("Model", "Default", "Tasks", "Size (px)", "State", "Warm workers", "Description")
    for model in models:
        size = f"{model['defaults']['width']} × {model['defaults']['height']}"
        default = "yes" if model["default"] else ""
        tasks, state = ", ".join(model["tasks"]), model.get("state", "")
        add_row(table, model["id"], default, tasks, size, state, model["workers"], model["description"])
    return table


def tenants_table(tenants: Sequence[Tenant]) -> Table:
    """Tenants and their limits."""
    table = new_table(
        *("Tenant", "Name", "Weight", "Max. per minute", "Max. GPU s a day", "Max. queued", "Max. running"),
        *("Top priority", "Since"),
    )
    for each in tenants:
        limits = each.limits
        caps = (limits.max_requests_per_minute, limits.max_gpu_s_per_day, limits.max_queued, limits.max_running)
        add_row(
            table,
            each.id,
            each.name,
            f"{limits.weight:g}",
            *map(_limit, caps),
            limits.top_priority,
            _day(each.created_ms),
        )
    return table


def keys_table(keys: Sequence[ApiKey], used: Mapping[str, date]) -> Table:
    """A tenant's keys; never a secret."""
    table = new_table("Key", "Label", "Scopes", "Webhook", "Since", "Last used", "State")
    for key in keys:
        state = f"revoked {_day(key.revoked_ms)}" if key.revoked_ms else "live"
        scopes = "all" if key.scopes is None else ", ".join(sorted(key.scopes)) or "none"
        cells = (key.label, scopes, key.webhook_url or "", _day(key.created_ms), used.get(key.id, "never"), state)
        add_row(table, key.id, *cells)
    return table


def findings_table(findings: Sequence[Finding]) -> Table:
    """What `darkroom doctor` found."""
    table = new_table("Check", "Verdict", "Found", "What to do")
    for each in findings:
        verdict = f"[{_COLOURS[each.verdict]}]{each.verdict}[/]"
        table.add_row(escape(each.check), verdict, escape(each.found), escape(each.advice))
    return table


def new_table(*columns: str) -> Table:
    """Return an empty table."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def add_row(table: Table, *cells: object) -> None:
    """Add a row of plain text."""
    table.add_row(*(escape(printable(str(cell))) for cell in cells))


def _limit(value: int | None) -> str:
    return "none" if value is None else str(value)


def _day(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d")
