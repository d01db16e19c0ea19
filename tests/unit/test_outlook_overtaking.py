"""What comes later and goes before: told from looks, and what it adds to a wait."""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.contract.forecast import ClassAhead, Forecast, ModelPace, Overtaking, PoolAhead
from service.contract.job import Priority
from service.generations.outlook.order import ClaimOrder, Queued, QueuedClass, QueuedLine
from service.generations.outlook.overtaking import OrderLook, OvertakingMeter, Standing, stretched
from service.generations.outlook.reading import Outlooks
from tests.clock import Clock
from tests.jobs import make_job


def look(at_s: float, sequence: int, order: list[int], *, priority: Priority = "normal") -> OrderLook:
    """Return a look at jobs, named by their sequences."""
    jobs = {str(job): Standing(str(job), priority, job, before) for before, job in enumerate(order)}
    return OrderLook(round(1000 * at_s), sequence, jobs)


def test_without_arrivals_a_wait_is_what_it_is() -> None:
    meter = OvertakingMeter()
    for second in range(20):
        meter.observe(look(second, 40, list(range(second, 40))))
        assert meter.rates() == {}
    assert stretched(12.3, None) == 12.3


def test_those_that_come_and_go_behind_stretch_nothing() -> None:
    meter = OvertakingMeter()
    for second in range(20):
        meter.observe(look(second, 40 + 2 * second, list(range(40 + 2 * second))))
    assert meter.rates() == {}


def test_the_rate_is_of_those_that_come_before_by_those_that_are_before() -> None:
    """Two jobs in a second go to the front of 21, where one was drawn meanwhile: 2 newcomers on a mean of 10 places."""
    meter, order, sequence = OvertakingMeter(), list(range(1, 22)), 21
    for second in range(60):
        meter.observe(look(second, sequence, order))
        order = [sequence + 1, sequence + 2, *order[2:]]
        sequence += 2
    told = meter.rates()["normal"]
    # Those two are drawn next: who waits on has 2 to 20 before it, 11 on the mean.
    assert told.rate_per_s == pytest.approx(2 / 11, rel=0.2)
    # 118 have come: two in five of them, 2 a second.
    assert told.for_s == pytest.approx(0.414 * 59, rel=0.1)


def test_each_class_has_a_rate_of_its_own() -> None:
    meter = OvertakingMeter()
    for second in range(20):
        jobs = {"high": Standing("high", "high", 1, 0)}
        newer = [Standing(f"n{second}", "normal", 10 + second, 1)]
        for before, job in enumerate([*newer, *(Standing(f"l{rank}", "low", 2, 0) for rank in range(5))], 1):
            jobs[job.job_id] = Standing(job.job_id, job.priority, job.sequence, before)
        meter.observe(OrderLook(1000 * second, 10 + second, jobs))
    assert meter.rates().keys() == {"low"}


def test_after_a_burst_waits_are_what_they_are_within_seconds() -> None:
    meter, order = OvertakingMeter(), list(range(30))
    for second in range(20):
        meter.observe(look(second, 30 + second, order := [30 + second, *order]))
    assert meter.rates()
    for second in range(20, 24):
        meter.observe(look(second, 49, order))
    assert meter.rates() == {}
    # What it was is remembered for the next one.
    meter.observe(look(24, 50, [50, *order]))
    assert meter.rates()["normal"].rate_per_s > 0
    assert meter.rates()["normal"].for_s < 1


@pytest.mark.parametrize(("seconds", "sequence"), [(6.0, 60), (-1.0, 60), (0.0, 60), (1.0, 3)])
def test_a_gap_ends_what_was_seen(seconds: float, sequence: int) -> None:
    meter, order = OvertakingMeter(), list(range(30))
    for second in range(20):
        meter.observe(look(second, 30 + second, order := [30 + second, *order]))
    meter.observe(look(19 + seconds, sequence, order))
    assert meter.rates() == {}


def test_a_sequence_that_somebody_else_wrote_is_survived() -> None:
    meter, order = OvertakingMeter(), list(range(30))
    for second, sequence in enumerate([30, 2**53, 2**53 + 1, 0, 5, 2**53]):
        meter.observe(look(second, sequence, order := [sequence, *order]))
        for told in meter.rates().values():
            assert Overtaking.model_validate(told.model_dump()) == told


@given(st.floats(0.001, 1e6), st.floats(0, 1000), st.floats(0, 1e6))
def test_a_stretched_wait_solves_its_equation(start_s: float, rate: float, for_s: float) -> None:
    told = Overtaking(rate_per_s=rate, for_s=for_s)
    whole_s = stretched(start_s, told)
    assert start_s * (1 - 1e-9) <= whole_s <= 4 * start_s
    if whole_s < 4 * start_s:
        while_s = min(for_s, whole_s)
        assert whole_s == pytest.approx(start_s * (1 + rate * while_s * (1 - while_s / (2 * whole_s))), rel=1e-6)
    assert stretched(2 * start_s, told) >= whole_s


def test_no_rate_or_no_time_stretch_nothing() -> None:
    assert stretched(7.7, Overtaking(rate_per_s=0, for_s=100)) == pytest.approx(7.7)
    assert stretched(7.7, Overtaking(rate_per_s=3, for_s=0)) == pytest.approx(7.7)
    assert stretched(0.0, Overtaking(rate_per_s=3, for_s=9)) == 0


#: (s, last sequence, waiting jobs in the order of their starts).
Moments = list[tuple[int, int, list[tuple[int, Priority]]]]


def shuffled_queue(seed: int) -> Moments:
    """Return a queue from which one job a second is drawn; as many come, each to any place of it."""
    drawn, sequence, found = random.Random(seed), 30, Moments()
    order: list[tuple[int, Priority]] = [(job, "normal") for job in range(1, 31)]
    for second in range(600):
        found.append((second, sequence, list(order)))
        del order[0]
        sequence += 1
        order.insert(drawn.randrange(len(order) + 1), (sequence, "normal"))
    return found


def fair_queue(seed: int) -> Moments:
    """Return a queue of four tenants and two classes from which claims take one job a second; as many come."""
    drawn, found = random.Random(seed), Moments()
    classes: list[Priority] = ["high", "normal"]
    lines: dict[tuple[Priority, str], list[int]] = {(p, tenant): [] for p in classes for tenant in "abcd"}
    virtual, present, passed = dict.fromkeys(lines, 0.0), dict.fromkeys(classes, 0.0), 0

    def come(job: int) -> None:
        each: tuple[Priority, str] = drawn.choices(classes, (1, 9))[0], drawn.choice("abcd")
        if not lines[each]:
            virtual[each] = max(virtual[each], present[each[0]])
        lines[each].append(job)

    for job in range(1, 31):
        come(job)
    for second in range(600):
        waiting = ClaimOrder(
            {
                p: QueuedClass(
                    [
                        QueuedLine(t, virtual[p, t], iter([Queued(str(job), "m", 1.0, None) for job in lines[p, t]]))
                        for t in "abcd"
                    ],
                    present[p],
                    passed if p == "normal" else 0,
                )
                for p in classes
            }
        )
        taken = [each for _ in range(1000) if (each := waiting.take())]
        found.append((second, 30 + second, [(int(each.job.job_id), each.priority) for each in taken]))
        if taken:
            first = taken[0]
            del lines[first.priority, first.tenant][0]
            present[first.priority] = first.virtual
            virtual[first.priority, first.tenant] = first.virtual + 1
            passed = 0 if first.priority == "normal" else passed + 1
        come(31 + second)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("queue", [shuffled_queue, fair_queue])
def test_while_jobs_come_steadily_waits_are_told_as_they_turn_out(queue: Callable[[int], Moments], seed: int) -> None:
    moments = queue(seed)
    started_s = {job: second + 1 for second, _, order in moments for job, _ in order}
    meter = OvertakingMeter()
    plain: list[float] = []
    told: list[float] = []
    true: list[float] = []
    for second, sequence, order in moments[:450]:
        jobs = {str(j): Standing(str(j), p, j, before) for before, (j, p) in enumerate(order)}
        meter.observe(OrderLook(1000 * second, sequence, jobs))
        for before, (job, priority) in enumerate(order):
            # Those at the very end stay there as long as jobs come.
            if second >= 60 and 5 <= before < len(order) / 2 and priority == "normal":
                plain.append(before + 1)
                told.append(stretched(before + 1, meter.rates().get(priority)))
                true.append(started_s[job] - second)
    assert sum(plain) / sum(true) < 0.86
    assert sum(told) / sum(true) == pytest.approx(1, abs=0.16)
    errors = [[abs(t - s) / s for t, s in zip(each, true, strict=True)] for each in (plain, told)]
    assert median(errors[1]) < median(errors[0])


def pool_with(overtaking: dict[Priority, Overtaking]) -> PoolAhead:
    return PoolAhead(
        sequence=9,
        next={"gen_1": (4, 10.0, 12.0), "gen_2": (5, 11.0, None), "gen_3": (6, None, None)},
        running={"gen_0": 3.0},
        starts=[(0, 2.0), (1, 3.0), (2, 8.0), (3, 10.0)],
        each_s=1.0,
        models={"tiny": ModelPace(joining_s=0.1, full_s=0.2, px=8192, px_s=0)},
        classes={"normal": ClassAhead(present=0, tenants={}, before=[(0, 0), (8, 8)])},
        overtaking=overtaking,
    )


def test_starts_and_ends_of_waiting_jobs_move_and_nothing_else_does() -> None:
    plain, late = Outlooks(Clock()), Outlooks(Clock())
    plain.show(Forecast(made_ms=0, pools={"default": pool_with({})}))
    told: dict[Priority, Overtaking] = {"normal": Overtaking(rate_per_s=0.1, for_s=5)}
    late.show(Forecast(made_ms=0, pools={"default": pool_with(told)}))
    for number, priority, moved in [(1, "normal", True), (2, "normal", True), (3, "normal", False), (1, "low", False)]:
        job = make_job(f"gen_{number}", priority=priority, sequence=3)
        before, after = plain.of(job), late.of(job)
        assert before
        assert after
        assert after.position == before.position
        if not moved:
            assert after == before
            continue
        assert before.start_s
        assert after.start_s == pytest.approx(stretched(before.start_s, told["normal"]), abs=0.1)
        assert after.start_s > before.start_s + 1
        if before.finish_s is not None:
            assert after.finish_s == pytest.approx(before.finish_s + after.start_s - before.start_s, abs=0.11)
    running = make_job("gen_0", status="running", execution_id="e", agent_id="a")
    assert late.of(running) == plain.of(running)


def test_those_of_others_that_came_since_are_before_as_far_as_all_others_are() -> None:
    outlooks = Outlooks(Clock())
    outlooks.show(Forecast(made_ms=0, pools={"default": pool_with({})}))
    # Its tenant has nothing waiting: it begins at the front, before all that came since.
    first = outlooks.of(make_job("gen_new", sequence=13))
    assert first
    assert first.start_s == 2
    empty = pool_with({}).model_copy(update={"next": {}, "starts": [(0, 0.0), (1, 0.0), (2, 4.0)]})
    outlooks.show(Forecast(made_ms=0, pools={"default": empty}))
    # Nobody waited: those that came before it were first, and took the two places that were free.
    starts = [outlooks.of(make_job("gen_new", sequence=sequence)) for sequence in (10, 11, 12, 13)]
    assert [each and each.start_s for each in starts] == [0, 0, 4, 5]


def test_forecasts_of_leaders_that_know_nothing_of_it_are_read() -> None:
    forecast = Forecast(made_ms=0, pools={"default": pool_with({})})
    older = forecast.model_dump(mode="json")
    del older["pools"]["default"]["overtaking"]
    assert Forecast.model_validate(older) == forecast


@pytest.mark.parametrize(
    "told",
    [
        {"normal": {"rate_per_s": -1, "for_s": 1}},
        {"normal": {"rate_per_s": float("nan"), "for_s": 1}},
        {"normal": {"rate_per_s": 1e9, "for_s": 1}},
        {"normal": {"rate_per_s": 1, "for_s": float("inf")}},
        {"urgent": {"rate_per_s": 1, "for_s": 1}},
        {"normal": None},
        [],
    ],
)
def test_what_is_none_is_not_read(told: object) -> None:
    forecast = Forecast(made_ms=0, pools={"default": pool_with({})}).model_dump(mode="json")
    forecast["pools"]["default"]["overtaking"] = told
    with pytest.raises(ValidationError):
        Forecast.model_validate(forecast)
