"""What calls cost: learnt, told, believed until measured, and never more of it than a bounded number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.costs import CallCost, CallLabel
from tests.costs import cost, label
from worker.engine.ledger import Ledger, rows_within

K = label()


def measured(ledger: Ledger, rows: int, *seconds: float, peak_bytes: int | None = None, of: CallLabel = K) -> None:
    for each in seconds:
        ledger.measured(of, rows, each, peak_bytes)


def reported(ledger: Ledger) -> dict[int, CallCost]:
    return {each.cost.rows: each.cost for each in ledger.changed(1000)}


def test_nothing_is_known_of_what_was_never_measured() -> None:
    ledger = Ledger()
    assert ledger.turn_s(K) is None
    assert ledger.memory(K) is None
    assert ledger.rows_within(K, 1.0) == 0
    assert not ledger.has_changed
    assert ledger.changed(10) == []


def test_the_first_call_warms_up_and_counts_until_the_second() -> None:
    ledger = Ledger()
    measured(ledger, 2, 9.0)
    assert ledger.turn_s(K) == 9.0
    measured(ledger, 2, 0.1)
    assert ledger.turn_s(K) == 0.1


def test_time_is_a_running_mean() -> None:
    ledger = Ledger()
    measured(ledger, 2, 9.0, 0.2, 0.4, 0.3)
    assert ledger.turn_s(K) == pytest.approx(0.3)
    measured(ledger, 2, *[1.0] * 100)
    assert ledger.turn_s(K) == pytest.approx(1.0, rel=0.01)


def test_memory_is_the_most_that_the_widest_measured_call_took() -> None:
    ledger = Ledger()
    measured(ledger, 8, 0.1, peak_bytes=800)
    measured(ledger, 8, 0.1, peak_bytes=900)
    measured(ledger, 8, 0.1, peak_bytes=850)
    measured(ledger, 2, 0.1, peak_bytes=5000)
    measured(ledger, 16, 0.1)
    assert ledger.memory(K) == (8, 900)


def test_a_turn_is_taken_to_cost_what_it_does_at_the_usual_width() -> None:
    ledger = Ledger()
    measured(ledger, 1, *[0.1] * 3)
    measured(ledger, 8, *[0.5] * 9)
    measured(ledger, 16, *[0.9] * 2)
    assert ledger.turn_s(K) == pytest.approx(0.5)


def test_labels_are_kept_apart() -> None:
    ledger = Ledger()
    others = [
        label(model="other"),
        label(sha256="ba9876543210"),
        label(kind="decode"),
        label(width_px=128),
        label(height_px=128),
        label(tokens=154),
        label(dtype="bfloat16"),
    ]
    for number, other in enumerate(others):
        measured(ledger, 2, 1.0 + number, of=other)
    assert ledger.turn_s(K) is None
    assert [ledger.turn_s(other) for other in others] == [1.0 + number for number in range(7)]


def test_what_was_told_is_believed_until_the_same_was_measured_twice() -> None:
    ledger = Ledger()
    ledger.remember([cost(2, 0.5, calls=40, peak_bytes=700)])
    assert ledger.turn_s(K) == 0.5
    assert ledger.memory(K) == (2, 700)
    measured(ledger, 2, 9.0, peak_bytes=300)
    assert ledger.turn_s(K) == 0.5, "its own first call warms up"
    assert ledger.memory(K) == (2, 300), "but takes no more memory for that"
    measured(ledger, 2, 0.1, peak_bytes=200)
    assert ledger.turn_s(K) == 0.1
    assert ledger.memory(K) == (2, 300)


def test_what_was_measured_here_is_not_overwritten_by_what_is_told() -> None:
    ledger = Ledger()
    measured(ledger, 2, 0.1, peak_bytes=100)
    ledger.remember([cost(2, 50.0, peak_bytes=10**12), cost(4, 0.3)])
    assert reported(ledger)[2].seconds == 0.1
    assert ledger.memory(K) == (2, 100)
    assert ledger.rows_within(K, 0.2) == 3


def test_what_is_usual_now_outnumbers_what_was_told_to_be() -> None:
    ledger = Ledger()
    ledger.remember([cost(64, 5.0, calls=1 << 40)])
    measured(ledger, 2, *[0.1] * 10_001)
    assert ledger.turn_s(K) == pytest.approx(0.1)


def test_each_change_is_reported_once_with_what_was_done_since() -> None:
    ledger = Ledger()
    measured(ledger, 2, 9.0, 0.1, peak_bytes=10)
    measured(ledger, 4, 0.2)
    first = ledger.changed(10)
    assert [(each.cost.rows, each.calls, each.spent_s) for each in first] == [(2, 2, 9.1), (4, 1, 0.2)]
    assert first[0].cost == cost(2, 0.1, calls=2, peak_bytes=10)
    assert not ledger.has_changed
    measured(ledger, 2, 0.1)
    (again,) = ledger.changed(10)
    assert (again.cost.calls, again.calls, again.spent_s) == (3, 1, 0.1)


def test_a_report_of_more_than_fits_is_made_in_parts() -> None:
    ledger = Ledger()
    for rows in range(1, 6):
        measured(ledger, rows, 0.1)
    parts = [[each.cost.rows for each in ledger.changed(2)] for _ in range(4)]
    assert parts == [[1, 2], [3, 4], [5], []]


def test_what_was_only_told_is_not_reported() -> None:
    ledger = Ledger()
    ledger.remember([cost(2, 0.5)])
    assert not ledger.has_changed


def test_what_was_forgotten_before_it_was_reported_and_then_told_anew_is_not_reported() -> None:
    ledger = Ledger()
    measured(ledger, 2, 1.0)
    others = [cost(2, 1.0, width_px=8 * n) for n in range(100, 100 + 256)]
    ledger.remember([*others, cost(2, 1.0)])
    assert reported(ledger) == {}


def test_a_bounded_number_is_remembered_of_labels_and_of_widths() -> None:
    ledger = Ledger()
    for rows in range(1, 500):
        measured(ledger, rows, 0.1)
    assert len(ledger.changed(10_000)) == 64
    for number in range(1000):
        measured(ledger, 1, 0.1, of=label(width_px=number))
    assert len(ledger.changed(10_000)) == 256
    assert ledger.turn_s(K) is None
    ledger.remember([cost(1, 0.1, height_px=number) for number in range(1000)])
    assert len(ledger._accounts) == 256


def test_times_that_no_message_could_carry_are_brought_within_its_bounds() -> None:
    ledger = Ledger()
    measured(ledger, 1, 0.0)
    measured(ledger, 2, 1e9)
    assert {rows: each.seconds for rows, each in reported(ledger).items()} == {1: 1e-9, 2: 86_400.0}


def test_rows_are_interpolated_between_what_was_measured() -> None:
    widths = [(2, 0.1), (4, 0.15), (16, 0.45)]
    found = {seconds: rows_within(widths, seconds) for seconds in (0.01, 0.05, 0.1, 0.125, 0.2, 0.44, 0.45, 0.6, 9.0)}
    assert found == {0.01: 0, 0.05: 1, 0.1: 2, 0.125: 3, 0.2: 6, 0.44: 15, 0.45: 16, 0.6: 21, 9.0: 32}
    assert rows_within([], 1.0) == 0


@given(
    widths=st.dictionaries(st.integers(1, 64), st.floats(1e-9, 1e5), max_size=8).map(lambda d: sorted(d.items())),
    seconds=st.floats(1e-6, 1e5),
)
def test_rows_never_pass_a_width_that_was_measured_to_take_longer(
    widths: list[tuple[int, float]], seconds: float
) -> None:
    rows = rows_within(widths, seconds)
    too_long = [width for width, took_s in widths if took_s > seconds]
    assert 0 <= rows <= min(too_long, default=2 * max((width for width, _ in widths), default=0))


def test_a_width_that_took_long_once_is_tried_again_after_many_calls() -> None:
    """The first call of a width is slow, and so is one beside a neighbour who is gone by now."""
    ledger = Ledger()
    measured(ledger, 2, 0.1, 0.1)
    measured(ledger, 4, 3.0, 3.0, 3.0)
    assert ledger.rows_within(K, 0.5) == 2
    measured(ledger, 2, *[0.1] * 256)
    assert ledger.rows_within(K, 0.5) == 2
    measured(ledger, 2, 0.1)
    assert ledger.rows_within(K, 0.5) == 4
    measured(ledger, 4, 0.2)
    assert ledger.rows_within(K, 0.5) == 8, "what it was before counts no more"


@given(
    st.lists(
        st.tuples(st.integers(1, 64), st.floats(0, 1e9), st.one_of(st.none(), st.integers(0, 10**13))), max_size=80
    ),
    st.lists(st.tuples(st.integers(1, 64), st.floats(1e-300, 86_400), st.integers(1, 1 << 40)), max_size=20),
)
def test_whatever_is_measured_and_told_every_report_is_valid(
    calls: list[tuple[int, float, int | None]], told: list[tuple[int, float, int]]
) -> None:
    ledger = Ledger()
    ledger.remember([cost(rows, seconds, calls=count) for rows, seconds, count in told])
    for rows, seconds, peak_bytes in calls:
        ledger.measured(K, rows, seconds, peak_bytes)
    assert sum(each.calls for each in ledger.changed(100)) == len(calls)


def test_times_that_were_told_and_nobody_measured_break_no_estimate() -> None:
    ledger = Ledger()
    ledger.remember([cost(1 << 24, 5e-324)])
    assert ledger.rows_within(K, 86_400.0) == 1 << 25
