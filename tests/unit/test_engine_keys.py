"""How many of the works that wait the next call takes, where its widths are few."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sums import Device, Table, engine_thread
from worker.engine.buckets import WIDTHS, bucket
from worker.engine.keys import Stepped, fitting

KEY = Stepped("k", WIDTHS)


@pytest.mark.parametrize(
    ("waiting", "limit", "taken"),
    [
        pytest.param(16, 64, 16, id="exactly a width"),
        pytest.param(14, 64, 16, id="nearly full: padded"),
        pytest.param(18, 64, 16, id="half empty: two wait for the next call"),
        pytest.param(100, 64, 64, id="more than the widest"),
        pytest.param(100, 26, 16, id="the next width would not fit"),
        pytest.param(14, 15, 8, id="padded it would not fit"),
        pytest.param(2, 1, 1, id="less than one request's rows"),
        pytest.param(2, 0, 0, id="nothing is known of it"),
    ],
)
def test_a_call_is_as_wide_as_a_width_that_fits_and_is_mostly_full(waiting: int, limit: int, taken: int) -> None:
    assert fitting(KEY, limit, waiting) == taken


@given(waiting=st.integers(1, 200), limit=st.integers(1, 64))
def test_padded_a_call_fits_and_wastes_at_most_a_quarter(waiting: int, limit: int) -> None:
    rows = min(waiting, fitting(KEY, limit, waiting))
    assert 0 < rows <= bucket(rows) <= limit
    assert rows >= 0.75 * bucket(rows)


def test_other_keys_take_what_fits() -> None:
    assert fitting("k", 26, 100) == 26


def test_a_batch_leaves_to_the_next_call_what_would_mostly_be_padding() -> None:
    with engine_thread():
        table = Table(Device())
        for n in range(9):
            table.join(f"{n}", steps=2, start=10 * n, key=KEY, rows=2)
        table.finish()
    # The one that was left goes first in the next.
    assert table.device.widths == [16, 16, 4]
    assert table.ends == {f"{n}": [10 * n + 2] for n in range(9)}
