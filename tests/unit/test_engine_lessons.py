"""What is learnt of calls that were compiled, recorded or repeated: nothing that does not hold for the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.sums import Addition, Device, Table, batch_of, engine_thread
from tests.unit.test_engine_rows import Memory
from worker.engine.lessons import Lesson
from worker.engine.rows import RowLimits
from worker.engine.strands import share


@dataclass(eq=False)
class Taught(Addition):
    """A step that says what its call teaches."""

    lesson: Lesson = Lesson.EVERYTHING


@pytest.fixture(autouse=True)
def _engine_thread() -> Iterator[None]:
    with engine_thread():
        yield


@pytest.mark.parametrize(
    ("lesson", "widths", "is_charged"),
    [
        pytest.param(Lesson.EVERYTHING, [2, 4, 2], True, id="an ordinary call"),
        pytest.param(Lesson.TIME, [2, 2, 2, 2], True, id="a repeated recording"),
        pytest.param(Lesson.NOTHING, [2, 2, 2, 2], False, id="one that was compiled first"),
    ],
)
def test_a_call_widens_the_next_and_is_charged_by_what_it_teaches(
    lesson: Lesson, widths: list[int], *, is_charged: bool
) -> None:
    table = Table(Device(), batch_of(cautious=True, gauge=Memory(total_bytes=10**9)))

    def step() -> int:
        return share(Taught(table.device, "a", 1, rows=2, lesson=lesson))

    strands = [table.join(f"{n}", step) for n in range(4)]
    table.finish()
    assert table.device.widths == widths
    assert all((strand.spent_s > 0) == is_charged for strand in strands)


def test_a_limit_learns_from_a_call_that_teaches_and_from_no_other() -> None:
    memory = Memory(total_bytes=10**9)
    limits = RowLimits(memory, cautious=True)
    limits.measure("k", 2, lambda: memory.call(2), teaches=lambda: False)
    assert (limits.limit("k"), limits.peak_bytes) == (0, None)
    limits.measure("k", 2, lambda: memory.call(2))
    assert (limits.limit("k"), limits.peak_bytes) == (4, 20)
