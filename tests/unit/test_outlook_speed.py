"""How fast workers really are, by what became of the work between two looks."""

from __future__ import annotations

import pytest

from service.contract.job import Priority
from service.generations.outlook.pace import CallPaces
from service.generations.outlook.speed import Look, SpeedMeter, WorkLeft

PACES = CallPaces([], {})
LINE: tuple[Priority, str] = ("normal", "ada")


def look(
    at_s: float,
    running: dict[str, float],
    waiting: dict[int, float],
    *,
    rate: float = 1.0,
    paces: CallPaces = PACES,
    measured: str = "",
) -> Look:
    """Return a look at jobs: s that are left of what runs by name, and of what waits by sequence."""
    works = {name: WorkLeft(left_s) for name, left_s in running.items()}
    works |= {f"q{number}": WorkLeft(left_s, (*LINE, number)) for number, left_s in waiting.items()}
    return Look(
        round(1000 * at_s),
        works,
        {LINE: min(waiting)} if waiting else {},
        rate,
        saturated=bool(waiting),
        paces=paces,
        measured=frozenset(measured),
    )


def test_costs_are_believed_until_something_is_seen() -> None:
    assert SpeedMeter().speed(measured=True) == 1
    assert SpeedMeter().speed(measured=False) is None
    assert SpeedMeter(0.25).speed(measured=False) == 0.25


def test_what_ended_and_what_got_on_was_done() -> None:
    """In every second one job of a quarter of a second ends and another begins: a quarter of what costs say."""
    meter = SpeedMeter()
    for second in range(120):
        meter.observe(look(second, {f"q{second}": 0.25}, dict.fromkeys(range(second + 1, second + 30), 0.25)))
    assert meter.speed(measured=False) == pytest.approx(0.25, abs=0.01)


def test_a_new_pace_is_learnt_within_half_a_minute() -> None:
    meter, left_s = SpeedMeter(), 1000.0
    for second in range(100):
        left_s -= 1.0 if second < 70 else 0.5
        meter.observe(look(second, {"a": left_s}, {}))
    assert meter.speed(measured=True) == pytest.approx(0.5, abs=0.1)


def test_a_job_behind_the_ones_that_are_looked_at_still_waits() -> None:
    meter = SpeedMeter()
    meter.observe(look(0, {"a": 10.0}, {1: 5.0, 2: 5.0, 3: 5.0}))
    # More tenants have come: of this one's line only the first is looked at.
    meter.observe(look(1, {"a": 9.0}, {1: 5.0}))
    assert meter.speed(measured=True) == pytest.approx(1.0, abs=0.01)


def test_idle_workers_and_long_silences_say_nothing() -> None:
    meter = SpeedMeter(0.5)
    meter.observe(look(0, {"a": 10.0}, {}))
    meter.observe(look(1, {"b": 10.0}, {}))
    meter.observe(look(10, {"b": 1.0}, {}))
    assert meter.speed(measured=True) == 0.5


def test_work_that_is_reckoned_anew_is_not_taken_for_done() -> None:
    meter, other = SpeedMeter(0.5), CallPaces([], {})
    meter.observe(look(0, {"a": 100.0}, {1: 100.0}))
    meter.observe(look(1, {"a": 1.0}, {1: 1.0}, paces=other))
    assert meter.speed(measured=True) == 0.5
    # The first costs of a model: what was learnt of work without them is of no use.
    meter.observe(look(2, {"a": 0.5}, {1: 1.0}, paces=other, measured="m"))
    assert meter.speed(measured=True) != 0.5
