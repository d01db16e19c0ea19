"""How wide a call may be: as wide as was seen to fit, twice that while it does, and seldom what did not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.rows import MOST_ROWS, RETRY_CALLS, NoGauge, RowLimits


@dataclass
class Memory:
    """A gauge over a device whose calls take so many bytes a row."""

    total_bytes: int = 1000
    row_bytes: int = 10
    #: Measured by the device's allocator; None where that is not known.
    measured: bool = True

    def __post_init__(self) -> None:
        self.peak = 0

    def begin(self) -> None:
        self.peak = 0

    def peak_bytes(self) -> int | None:
        return self.peak if self.measured else None

    def free_bytes(self) -> int:
        return self.total_bytes

    def call(self, rows: int) -> int:
        """Take the memory; raise where there is too little."""
        if rows * self.row_bytes > self.total_bytes:
            raise torch.OutOfMemoryError("out of memory")
        self.peak = rows * self.row_bytes
        return rows


def grown(limits: RowLimits, memory: Memory, *, key: str = "k", first: int = 1, calls: int = 12) -> list[int]:
    """Make calls as wide as is allowed, the first as given; return their rows."""
    made: list[int] = []
    for _ in range(calls):
        rows = max(first, limits.limit(key))
        made.append(limits.measure(key, rows, lambda rows=rows: memory.call(rows)))
    return made


def test_a_cautious_device_begins_with_one_request_and_doubles_while_it_fits() -> None:
    memory = Memory(total_bytes=10**9)
    limits = RowLimits(memory, cautious=True)
    assert limits.limit("k") == 0
    assert grown(limits, memory, first=2) == [2, 4, 8, 16, 32, *[MOST_ROWS] * 7]


def test_a_device_whose_memory_is_not_its_own_begins_with_the_most() -> None:
    limits = RowLimits(NoGauge(), cautious=False)
    assert limits.limit("k") == MOST_ROWS
    limits.measure("k", 2, lambda: None)
    assert limits.limit("k") == MOST_ROWS
    limits.failed("k", 64)
    assert limits.limit("k") == 32


def test_doubling_stops_at_what_the_measured_memory_allows() -> None:
    """Four fifths of 1000 bytes at 30 a row are 26 rows; 32 are never tried."""
    memory = Memory(row_bytes=30)
    limits = RowLimits(memory, cautious=True)
    assert grown(limits, memory, calls=8) == [1, 2, 4, 8, 16, 26, 26, 26]


def test_a_call_that_fits_is_allowed_again_however_little_is_free() -> None:
    """One request's rows cannot be fewer, and they did fit."""
    memory = Memory(row_bytes=400)
    limits = RowLimits(memory, cautious=True)
    assert grown(limits, memory, first=2, calls=3) == [2, 2, 2]


def test_without_a_measurement_rows_double_up_to_the_most() -> None:
    limits = RowLimits(Memory(total_bytes=10**9, measured=False), cautious=True, most=24)
    memory = Memory(total_bytes=10**9)
    assert grown(limits, memory, calls=7) == [1, 2, 4, 8, 16, 24, 24]


@pytest.mark.parametrize(("rows", "half"), [(64, 32), (9, 4), (3, 1), (2, 1), (1, 1)])
def test_a_call_that_did_not_fit_halves_the_limit(rows: int, half: int) -> None:
    limits = RowLimits(NoGauge(), cautious=False)
    limits.failed("k", rows)
    assert limits.limit("k") == half
    assert limits.limit("other") == MOST_ROWS


def test_a_width_that_failed_is_not_tried_again_soon_though_narrower_calls_fit() -> None:
    memory = Memory(total_bytes=10**9)
    limits = RowLimits(memory, cautious=True)
    grown(limits, memory, calls=5)
    limits.failed("k", 16)
    assert grown(limits, memory, calls=6) == [8] * 6
    limits.failed("k", 8)
    assert grown(limits, memory, calls=6) == [4] * 6


def test_what_a_failing_call_raises_is_raised_and_teaches_nothing_by_itself() -> None:
    memory = Memory()
    limits = RowLimits(memory, cautious=True)
    grown(limits, memory, calls=3)
    with pytest.raises(torch.OutOfMemoryError):
        limits.measure("k", 500, lambda: memory.call(500))
    assert limits.limit("k") == 8


def test_a_narrow_call_takes_nothing_back_from_what_was_proven() -> None:
    memory = Memory()
    limits = RowLimits(memory, cautious=True)
    grown(limits, memory, calls=4)
    limits.measure("k", 1, lambda: memory.call(1))
    assert limits.limit("k") == 16


def test_limits_are_kept_per_key_and_for_the_last_few_hundred_only() -> None:
    limits = RowLimits(NoGauge(), cautious=False)
    limits.failed("first", 8)
    for n in range(400):
        limits.failed(n, 16)
        limits.measure("first", 2, lambda: None)
    assert limits.limit("first") == 4
    for n in range(5000):
        limits.failed(n, 16)
    assert limits.limit("first") == MOST_ROWS
    assert len(limits._known) <= 512


@given(
    row_bytes=st.integers(1, 400),
    rows=st.lists(st.integers(1, 80), max_size=60),
    cautious=st.booleans(),
    measured=st.booleans(),
)
def test_a_failed_width_is_a_ceiling_for_the_next_calls(
    row_bytes: int, rows: list[int], cautious: bool, measured: bool
) -> None:
    memory = Memory(row_bytes=row_bytes, measured=measured)
    limits = RowLimits(memory, cautious=cautious)
    ceiling = MOST_ROWS
    for wanted in rows:
        width = min(wanted, max(1, limits.limit("k")))
        try:
            limits.measure("k", width, lambda width=width: memory.call(width))
        except torch.OutOfMemoryError:
            limits.failed("k", width)
            ceiling = max(1, width // 2)
        assert limits.limit("k") <= ceiling


@given(row_bytes=st.integers(1, 1000), cautious=st.booleans(), measured=st.booleans())
def test_wide_demand_ends_at_a_width_that_fits_and_is_at_least_a_quarter_of_what_would(
    row_bytes: int, cautious: bool, measured: bool
) -> None:
    memory = Memory(row_bytes=row_bytes, measured=measured)
    limits = RowLimits(memory, cautious=cautious)
    for _ in range(20):
        width = max(1, limits.limit("k"))
        try:
            limits.measure("k", width, lambda width=width: memory.call(width))
        except torch.OutOfMemoryError:
            limits.failed("k", width)
    fits = min(MOST_ROWS, 1000 // row_bytes)
    assert fits / 4 <= max(1, limits.limit("k")) <= fits


def driven(limits: RowLimits, memory: Memory, calls: int, *, rows: int | None = None) -> list[int]:
    """Make calls as wide as is allowed, or of so many rows; return the widths that did not fit."""
    failed: list[int] = []
    for _ in range(calls):
        width = rows or max(1, limits.limit("k"))
        try:
            limits.measure("k", width, lambda width=width: memory.call(width))
        except torch.OutOfMemoryError:
            limits.failed("k", width)
            failed.append(width)
    return failed


def test_a_lowered_ceiling_rises_again_after_many_good_calls_when_the_memory_is_back() -> None:
    memory = Memory(total_bytes=10**6, measured=False)
    limits = RowLimits(memory, cautious=True)
    driven(limits, memory, 10)
    memory.total_bytes = 160
    assert driven(limits, memory, RETRY_CALLS - 1) == [64, 32]
    assert limits.limit("k") == 16
    memory.total_bytes = 10**6
    driven(limits, memory, 3)
    assert limits.limit("k") == 32
    driven(limits, memory, RETRY_CALLS)
    assert limits.limit("k") == MOST_ROWS


def test_a_try_that_fails_is_repeated_after_twice_as_many_calls_each_time() -> None:
    memory = Memory(total_bytes=160, measured=False)
    limits = RowLimits(memory, cautious=False)
    assert driven(limits, memory, 2) == [64, 32]
    for patience in (RETRY_CALLS, 2 * RETRY_CALLS, 4 * RETRY_CALLS):
        assert driven(limits, memory, patience) == []
        assert driven(limits, memory, 1) == [32]
        assert limits.limit("k") == 16


def test_a_try_that_succeeds_costs_no_patience() -> None:
    memory = Memory(total_bytes=320, measured=False)
    limits = RowLimits(memory, cautious=False)
    limits.failed("k", 32)
    assert driven(limits, memory, RETRY_CALLS + 1) == []
    assert limits.limit("k") == 32
    memory.total_bytes = 160
    assert driven(limits, memory, 1) == [32]
    assert driven(limits, memory, RETRY_CALLS) == []
    assert limits.limit("k") == 32


def test_narrow_calls_say_nothing_of_a_ceiling() -> None:
    memory = Memory(total_bytes=10**6, measured=False)
    limits = RowLimits(memory, cautious=False)
    limits.failed("k", 64)
    driven(limits, memory, 5 * RETRY_CALLS, rows=16)
    driven(limits, memory, 1)
    assert limits.limit("k") == 32


def test_what_the_memory_does_not_allow_is_not_even_tried_again() -> None:
    memory = Memory(total_bytes=300)
    limits = RowLimits(memory, cautious=True)
    limits.failed("k", 48)
    assert driven(limits, memory, 10 * RETRY_CALLS) == []
    assert limits.limit("k") == 24


def test_a_key_that_earlier_engines_measured_begins_as_wide_as_fits() -> None:
    """Four fifths of 1000 bytes at 20 a row are 40."""
    memory = Memory(row_bytes=20)
    limits = RowLimits(memory, cautious=True)
    limits.prime("k", 32, 640)
    assert limits.limit("k") == 40
    assert grown(limits, memory, calls=3) == [40, 40, 40]


@pytest.mark.parametrize(("rows", "peak_bytes", "limit"), [(4, 40, 8), (64, 640, MOST_ROWS), (1, 5000, 0)])
def test_what_was_told_is_believed_to_twice_the_width_that_was_measured(rows: int, peak_bytes: int, limit: int) -> None:
    limits = RowLimits(Memory(total_bytes=1000), cautious=True)
    limits.prime("k", rows, peak_bytes)
    assert limits.limit("k") == limit


def test_what_was_told_counts_for_nothing_where_more_is_known() -> None:
    memory = Memory(total_bytes=10**9)
    limits = RowLimits(memory, cautious=True)
    grown(limits, memory, calls=2)
    limits.prime("k", 32, 320)
    assert limits.limit("k") == 4
    plain = RowLimits(NoGauge(), cautious=False)
    plain.prime("k", 2, 20)
    assert plain.limit("k") == MOST_ROWS


def test_a_width_that_was_told_wrongly_fails_once_and_is_found_anew() -> None:
    memory = Memory(row_bytes=30, total_bytes=1000)
    limits = RowLimits(memory, cautious=True)
    limits.prime("k", 40, 40)
    assert limits.limit("k") == MOST_ROWS
    assert driven(limits, memory, 12) == [64]
    assert limits.limit("k") == 26


def test_the_first_measurement_of_a_width_that_was_told_corrects_it() -> None:
    memory = Memory(row_bytes=30, total_bytes=1000)
    limits = RowLimits(memory, cautious=True)
    limits.prime("k", 32, 32)
    limits.measure("k", 4, lambda: memory.call(4))
    assert limits.limit("k") == 26


def test_a_key_that_is_forgotten_begins_anew() -> None:
    memory = Memory()
    limits = RowLimits(memory, cautious=True)
    grown(limits, memory, calls=3)
    limits.forget("k")
    assert limits.limit("k") == 0


def test_the_memory_of_the_last_call_is_known_and_a_failed_one_has_none() -> None:
    memory = Memory()
    limits = RowLimits(memory, cautious=True)
    limits.measure("k", 3, lambda: memory.call(3))
    assert limits.peak_bytes == 30
    with pytest.raises(torch.OutOfMemoryError):
        limits.measure("k", 300, lambda: memory.call(300))
    assert limits.peak_bytes is None
