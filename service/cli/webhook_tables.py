"""Endpoints and deliveries as tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.table import Table

from service.cli.tables import add_row, new_table

if TYPE_CHECKING:
    from service.jobs.deliveries import Endpoint, LoggedEvent


def endpoints_table(endpoints: Sequence[Endpoint]) -> Table:
    """Where events go."""
    table = new_table("Endpoint", "URL", "State", "Failing since", "Last success")
    for each in endpoints:
        state = "on" if each.enabled else f"off: {each.disabled_reason or 'unknown'}"
        add_row(table, each.id, each.url, state, _moment(each.failing_since_ms), _moment(each.last_success_ms))
    return table


def deliveries_table(deliveries: Sequence[LoggedEvent]) -> Table:
    """What was sent; never what was in it."""
    table = new_table("Event", "Since", "State", "Attempts", "Last answer", "Next")
    for each in deliveries:
        last = each.attempts[-1] if each.attempts else None
        answer = (last.status or last.reason) if last else None
        cells = (_moment(each.created_ms), each.state, len(each.attempts), answer or "-", _moment(each.next_ms))
        add_row(table, each.id, *cells)
    return table


def _moment(milliseconds: int | None) -> str:
    if milliseconds is None:
        return "-"
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
