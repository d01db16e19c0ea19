"""Loads the Lua scripts. Python's tables go in front of them, so that they are written once.

Every change to a job is one script: Redis runs it whole or not at all, one after the other.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final, Literal, get_args

from service.contract.job import PRIORITIES, TERMINAL, TRANSITIONS
from service.contract.rate import MAX_RATE, RATE_PARTS, RATE_WINDOW_S
from service.jobs.keys import KEYS

ScriptName = Literal[
    "stage",
    "submit",
    "claim",
    "renew",
    "preview",
    "commit",
    "release",
    "reap",
    "cancel",
    "erase",
    "due_erasures",
    "forget",
    "unhold",
    "drained",
    "usage",
    "create_upload",
    "use_upload",
    "erase_upload",
    "webhook_secrets",
    "due_deliveries",
    "record_delivery",
    "census",
    "switch_endpoint",
    "redeliver",
    "forecaster",
    "publish",
    "survey",
    "rehearse",
]
SCRIPT_NAMES: Final[tuple[ScriptName, ...]] = get_args(ScriptName)

LIMITS: Final[dict[str, int]] = {
    # A waiting class or a suspect is passed over this often, then it is its turn.
    "turns_passed": 8,
    # How far behind the head of a tenant's queue, and among tenants, a claim looks for what its engine holds.
    "window": 16,
    # Engine deaths under a suspect that ran alone; with the one that made it a suspect, three deaths in all.
    "strikes": 2,
    # Leases that may run out on one job: far more than a rolling restart can cause.
    "losses": 10,
    # s; how long a day's usage is kept: a year and a month to bill by.
    "usage_ttl_s": 400 * 86_400,
    # Changes that the audit log keeps: some 3 MB.
    "audit_entries": 10_000,
    # See `service.contract.rate`.
    "rate_window_ms": 1000 * RATE_WINDOW_S,
    "rate_parts": RATE_PARTS,
    "max_rate": MAX_RATE,
    # ms; ends of jobs are counted in slots of so long, and so many of them are looked at: ten minutes.
    "ended_slot_ms": 30_000,
    "ended_slots": 20,
    # Secrets of a tenant's webhooks that are valid beside the present one; each adds a signature to every message.
    "earlier_secrets": 3,
    # Webhook endpoints that a tenant may have; one that nobody named for so long (ms) makes room.
    "endpoints": 1000,
    "endpoint_idle_ms": 30 * 86_400_000,
    # Events that a tenant's delivery log has, and attempts that an event's has.
    "deliveries": 10_000,
    "attempts_logged": 12,
    # ms; an event is kept so much longer than its generation, should nobody take it away with it.
    "event_slack_ms": 86_400_000,
    # ms between two events of progress of a job, at least.
    "progress_gap_ms": 5000,
    # Endpoints, and events of each, that one look of a sender goes through.
    "endpoints_looked": 200,
    # ms; no sender has an event longer in hand: `DARKROOM_WEBHOOK_TIMEOUT_S` is a minute at most.
    "sending_max_ms": 120_000,
    # Senders that may be lost while they send an event.
    "senders_lost": 20,
    # ms after which an endpoint is looked at again that has as much in flight as it bears, or that is damaged.
    "full_pause_ms": 250,
    "damaged_pause_ms": 60_000,
    # ms for which a receiver may ask to be left alone, at most.
    "hold_max_ms": 3_600_000,
    # Bytes of a forecast, by far; what is longer is none of ours.
    "forecast_bytes": 1 << 20,
    # What a survey looks at, at most: running jobs, agents, pools, and of each class tenants, first jobs of all of them
    # together, of each, and jobs further back: with 200 tenants in each class some 3 000 commands.
    "survey_running": 1000,
    "survey_agents": 256,
    "survey_pools": 32,
    "survey_tenants": 256,
    "survey_jobs": 384,
    "survey_heads": 2,
    "survey_spread": 384,
}


@cache
def script_text(name: ScriptName) -> str:
    """Return the full text of one script: tables, libraries, body."""
    folder = resources.files("service.jobs") / "scripts"
    parts = [(folder / f"{part}.lua").read_text("utf-8") for part in ("base", "events", "lib", name)]
    return "\n".join([_tables(), *parts])


@cache
def _tables() -> str:
    transitions = {
        str(current): {str(target): True for target in sorted(targets)} for current, targets in TRANSITIONS.items()
    }
    return "\n".join(
        [
            f"local KEYS_OF = {_lua(dict(KEYS))}",
            f"local TRANSITIONS = {_lua(transitions)}",
            f"local TERMINAL = {_lua({str(status): True for status in sorted(TERMINAL)})}",
            f"local PRIORITIES = {_lua(list(PRIORITIES))}",
            f"local LIMITS = {_lua(LIMITS)}",
        ]
    )


def _lua(value: object) -> str:
    """Write a Python value of our tables as a Lua literal."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
        case list():
            return "{" + ", ".join(_lua(item) for item in value) + "}"
        case dict():
            return "{" + ", ".join(f"[{_lua(name)}] = {_lua(item)}" for name, item in value.items()) + "}"
        case _:
            msg = f"no Lua literal for {type(value).__name__}"
            raise TypeError(msg)
