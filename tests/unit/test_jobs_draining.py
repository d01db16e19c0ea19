"""How soon a full queue has a place again, by what ended lately."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.jobs.commands import Ended
from service.jobs.draining import LONGEST_S, seconds_to_a_place
from service.jobs.scripts import LIMITS

#: A slot of 30 s that began 10 s ago.
NOW_MS = 1_800_000_010_000


def ended(*by_slot: int, now_ms: int = NOW_MS) -> Ended:
    return Ended(now_ms, by_slot)


@pytest.mark.parametrize(
    ("by_slot", "expected_s"),
    [
        # Nothing is known.
        ((), None),
        ((0, 0, 0), None),
        # One end in a slot that has just begun: no more than two a minute.
        ((1,), 30),
        # A long steady pace: 15 in a slot of 30 s.
        ((5, 15, 15, 15, 15), 2),
        # It was ten times as fast before: only the present counts.
        ((5, 15, 150, 150, 150), 2),
        # Enough in the present slot: what was before says nothing.
        ((20, 0, 1, 1, 1, 1), 2),
        # Faster than one a second.
        ((1000, 3000), 1),
        # One in five minutes, two seen: 10 s + 11 × 30 s, by two.
        ((0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), 170),
        # It was idle before its first end, not slow.
        ((2, 2, 0, 0, 0, 0, 0), 10),
        # Fast once, and silent for 10 s + 5 × 30 s: for as long again.
        ((0, 0, 0, 0, 0, 0, 900, 900), 160),
        # Not within what is looked at, all but once.
        ((*[0] * 19, 1), 580),
    ],
)
def test_the_wait_is_the_time_between_ends(by_slot: tuple[int, ...], expected_s: int | None) -> None:
    assert seconds_to_a_place(ended(*by_slot)) == expected_s


@given(
    st.lists(st.integers(0, 2**53), min_size=1, max_size=LIMITS["ended_slots"]),
    st.integers(0, 2**43),
)
def test_the_wait_is_always_one_that_can_be_told(by_slot: list[int], now_ms: int) -> None:
    seconds = seconds_to_a_place(ended(*by_slot, now_ms=now_ms))
    assert (seconds is None) == (not any(by_slot))
    assert seconds is None or 1 <= seconds <= LONGEST_S
