"""Who starts when and ends when, by running a fleet ahead."""

from __future__ import annotations

import pytest

from service.contract.job import Priority
from service.generations.outlook.fleet import Ahead, Bench, Course, Place, run_ahead
from service.generations.outlook.order import ClaimOrder, Queued, QueuedClass, QueuedLine
from service.generations.outlook.pace import CallPaces, DrawnWork
from tests.costs import cost
from tests.gateway import SHAPES

OURS = {"model": "shapes", "sha256": "0" * 12}
AREA = 64 * 64
#: A call of 2 rows takes 10 ms, of 4 rows 16 ms, of 8 rows 24 ms.
PACES = CallPaces(
    [cost(2, 0.010, **OURS), cost(4, 0.016, **OURS), cost(8, 0.024, **OURS)], {"shapes": SHAPES}
)  # fmt: skip


def work(calls: int = 10, *, once_s: float = 0.0, alone: bool = False, area: int = AREA) -> DrawnWork:
    return DrawnWork("shapes", area, 2, calls, once_s, alone)


def line(tenant: str, *works: DrawnWork, model: str = "shapes", cap: int | None = None) -> QueuedLine[DrawnWork]:
    jobs = [Queued(f"{tenant}{number}", model, 1.0, each) for number, each in enumerate(works)]
    return QueuedLine(tenant, 0.0, iter(jobs), cap=cap)


def ahead(
    *lines: QueuedLine[DrawnWork],
    capacity: int = 1,
    workers: int = 1,
    running: tuple[Place, ...] = (),
    starts: int = 50,
) -> Course:
    benches = [Bench(capacity, frozenset({"shapes"})) for _ in range(workers)]
    benches[0].places.extend(running)
    classes: dict[Priority, QueuedClass[DrawnWork]] = {"normal": QueuedClass(list(lines))}
    counts = {each.tenant: 1 for each in running}
    return run_ahead(benches, ClaimOrder(classes, counts), PACES, starts=starts)


def times(course: Course) -> list[tuple[str, float, float | None]]:
    return [(each.job_id, round(each.start_s, 4), each.finish_s and round(each.finish_s, 4)) for each in course.starts]


def test_with_one_place_one_comes_after_the_other() -> None:
    course = ahead(line("a", work(10), work(20), work(5)))
    assert times(course) == [("a0", 0.0, 0.1), ("a1", 0.1, 0.3), ("a2", 0.3, 0.35)]
    assert course.next_s == pytest.approx(0.35)


def test_those_drawn_together_take_longer_by_the_width_of_their_calls_and_not_by_their_number() -> None:
    course = ahead(line("a", work(10), work(10)), capacity=2)
    assert times(course) == [("a0", 0.0, 0.16), ("a1", 0.0, 0.16)]


def test_who_is_left_goes_on_faster_when_another_ends() -> None:
    """Ten steps of both at 16 ms, the other ten at 10 ms."""
    course = ahead(line("a", work(10), work(20)), capacity=2)
    assert times(course) == [("a0", 0.0, 0.16), ("a1", 0.0, 0.26)]


def test_what_runs_keeps_its_place_until_it_ends_and_its_end_is_told() -> None:
    course = ahead(line("a", work(10)), running=(Place("x", "b", work(10), 4.0),))
    assert course.running == {"x": pytest.approx(0.04)}
    assert times(course) == [("a0", 0.04, 0.14)]


def test_each_worker_takes_jobs() -> None:
    course = ahead(line("a", work(10), work(10), work(10)), workers=2)
    assert times(course) == [("a0", 0.0, 0.1), ("a1", 0.0, 0.1), ("a2", 0.1, 0.2)]


def test_what_shares_nothing_takes_turns() -> None:
    course = ahead(line("a", work(10, alone=True), work(10, alone=True)), capacity=2)
    assert times(course) == [("a0", 0.0, 0.2), ("a1", 0.0, 0.2)]


def test_what_comes_once_is_spread_over_the_steps() -> None:
    course = ahead(line("a", work(10, once_s=0.05)))
    assert times(course) == [("a0", 0.0, 0.15)]


def test_a_tenant_at_its_cap_waits_for_its_own() -> None:
    course = ahead(line("a", work(10), work(10), cap=1), line("b", work(30)), capacity=2)
    starts = {each.job_id: each for each in course.starts}
    assert starts["a1"].start_s == pytest.approx(0.16)
    assert starts["a1"].start_s == starts["a0"].finish_s
    assert course.next_s == pytest.approx(starts["a1"].finish_s)


def test_what_nobody_can_draw_does_not_start() -> None:
    course = ahead(line("a", work(10), model="other"), line("b", work(10)))
    assert [each.job_id for each in course.starts] == ["b0"]


def test_the_first_ones_are_followed_to_their_end_in_the_company_of_those_behind_them() -> None:
    many = ahead(line("a", *[work(10)] * 40), capacity=4, starts=8)
    assert len(many.starts) == 8
    assert all(isinstance(each, Ahead) and each.finish_s for each in many.starts)
    assert many.starts[-1].finish_s == pytest.approx(2 * 0.24)
    assert len(many.company) == 4


def test_without_workers_nothing_is_known() -> None:
    course = run_ahead([], ClaimOrder({"normal": QueuedClass([line("a", work())])}), PACES, starts=9)
    assert course == Course()
