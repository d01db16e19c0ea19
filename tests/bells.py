"""A bell function for tests that need no agent."""

from __future__ import annotations

RUNG: list[int] = []


def heard() -> None:
    RUNG.append(1)
