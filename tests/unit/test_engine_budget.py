"""Rows of a call: what fits in memory and in a step's time, known from this engine's calls and from those before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from service.contract.costs import CallLabel
from tests.costs import cost, label
from tests.sums import Device, Table, batch_of, count, engine_thread
from worker.engine.budget import RowBudget
from worker.engine.ledger import Ledger
from worker.engine.meter import Reading
from worker.engine.rows import MOST_ROWS, NoGauge, RowLimits

K = label()


@pytest.fixture(autouse=True)
def _engine_thread() -> Iterator[None]:
    with engine_thread():
        yield


@dataclass
class Card:
    """A device of so many bytes, whose calls take ten a row and 10 ms a row; its gauge and its meter."""

    total_bytes: int = 10_000
    adding: Device = field(default_factory=Device)

    def begin(self) -> None:
        pass

    def peak_bytes(self) -> int | None:
        return 10 * self.adding.widths[-1]

    def free_bytes(self) -> int:
        return self.total_bytes

    def end(self) -> Reading:
        return _Taken(0.01 * self.adding.widths[-1])


@dataclass
class _Taken:
    known_s: float

    def seconds(self) -> float | None:
        return self.known_s

    def wait_s(self) -> float:
        return self.known_s


def drawn(
    card: Card, ledger: Ledger, *, requests: int = 40, steps: int = 4, target_s: float = 0.0, of: CallLabel | None = K
) -> list[int]:
    """Draw many requests at once on a new engine; return the widths of its calls."""
    card.adding = Device(fits_rows=card.total_bytes // 10)
    batch = batch_of(cautious=True, gauge=card, meter=card, ledger=ledger, step_target_s=target_s)
    table = Table(card.adding, batch)
    for number in range(requests):
        table.join(f"{number}", lambda: count(card.adding, "x", steps=steps, label=of))
    table.finish(ticks=2000)
    assert set(table.ends.values()) == {steps}
    return card.adding.widths


def told_of(ledger: Ledger) -> Ledger:
    """Return the ledger of an engine that begins with what another one reported."""
    after = Ledger()
    after.remember([each.cost for each in ledger.changed(1000)])
    return after


def test_an_engine_begins_as_wide_as_the_one_before_it_had_come() -> None:
    card, ledger = Card(), Ledger()
    assert drawn(card, ledger)[:5] == [1, 2, 4, 8, 16]
    assert drawn(card, told_of(ledger))[:4] == [40, 40, 40, 40]


def test_what_an_engine_was_told_of_another_model_or_size_says_nothing() -> None:
    card, ledger = Card(), Ledger()
    drawn(card, ledger)
    assert drawn(card, told_of(ledger), of=label(sha256="ffffffffffff"))[:3] == [1, 2, 4]
    drawn(card, ledger)
    assert drawn(card, told_of(ledger), of=label(width_px=72))[:3] == [1, 2, 4]


def test_what_was_told_is_measured_against_the_memory_of_this_device() -> None:
    card, ledger = Card(), Ledger()
    drawn(card, ledger)
    assert drawn(Card(total_bytes=250), told_of(ledger))[0] == 20


@pytest.mark.parametrize(
    ("peak_bytes", "widths"),
    [pytest.param(1, [40, 1, 2, 4], id="too little"), pytest.param(1 << 50, [1, 2, 4, 8], id="too much")],
)
def test_a_wrong_figure_costs_one_call_that_does_not_fit_and_fails_nobody(peak_bytes: int, widths: list[int]) -> None:
    ledger = Ledger()
    ledger.remember([cost(64, 1e-9, calls=1 << 40, peak_bytes=peak_bytes)])
    found = drawn(Card(total_bytes=250), ledger)
    assert found[:4] == widths
    assert sum(width > 25 for width in found) == widths.count(40)


def test_without_a_label_nothing_is_learnt_of_a_call_and_it_is_made_all_the_same() -> None:
    ledger = Ledger()
    assert drawn(Card(), ledger, of=None)[:3] == [1, 2, 4]
    assert not ledger.has_changed


def test_a_call_has_no_more_rows_than_are_known_to_take_as_long_as_a_step_may() -> None:
    """At 10 ms a row and 125 ms a step: one request to begin with, then twice as wide as was measured, then 12."""
    widths = drawn(Card(), Ledger(), target_s=0.125, steps=8)
    assert widths[:5] == [1, 2, 4, 8, 12]
    assert max(widths) == 12


def test_a_step_that_takes_too_long_even_alone_is_made_alone() -> None:
    assert set(drawn(Card(), Ledger(), requests=5, target_s=0.001)) == {1}


def test_only_the_denoisers_steps_have_a_target() -> None:
    assert max(drawn(Card(), Ledger(), target_s=0.125, of=label(kind="decode"))) == 40


def test_what_a_kind_is_known_to_cost_is_told_once() -> None:
    ledger = Ledger()
    ledger.remember([cost(2, 0.25)])
    budget = RowBudget(RowLimits(NoGauge(), cautious=False), ledger)
    assert [budget.meet("kind", K) for _ in range(3)] == [0.25, None, None]
    assert budget.meet("other", label(width_px=8)) is None
    assert budget.meet("nameless", None) is None


def test_a_turn_that_is_known_to_be_dear_is_not_the_first() -> None:
    def order(ledger: Ledger) -> list[str]:
        table = Table(batch=batch_of(ledger=ledger))
        table.join("dear", key="dear", steps=1, label=label(width_px=1024))
        table.join("cheap", key="cheap", steps=12, label=K)
        table.finish()
        return [name for call in table.device.calls for name in call]

    told = Ledger()
    told.remember([cost(1, 1.0, width_px=1024), cost(1, 1e-5)])
    assert order(Ledger()).index("dear") < 2
    assert order(told).index("dear") > 2


def test_a_kind_that_means_another_model_now_begins_anew() -> None:
    """Kinds hold the addresses of modules, and an address is used again."""
    budget = RowBudget(RowLimits(NoGauge(), cautious=False), Ledger())
    budget.meet("kind", K)
    budget.failed("kind", 8)
    budget.meet("kind", label(tokens=154))
    assert budget.limit("kind") == 4
    budget.meet("kind", label(model="next"))
    assert budget.limit("kind") == MOST_ROWS


def test_labels_of_the_last_few_hundred_kinds_are_remembered() -> None:
    budget = RowBudget(RowLimits(NoGauge(), cautious=False), Ledger())
    for number in range(5000):
        budget.meet(number, K)
    assert len(budget._labels) == 512
