"""The order of claims, done ahead, against the plainest simulation of what `claim.lua` does."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract.job import PRIORITIES, Priority
from service.generations.outlook.order import ClaimOrder, Queued, QueuedClass, QueuedLine
from service.generations.outlook.turns import turns
from service.jobs.scripts import LIMITS

TENANTS = ("ada", "bob", "eve")


@dataclass
class Waiting:
    tenant: str
    priority: Priority
    model: str
    price: float
    number: int


@dataclass
class Plain:
    """Everything in lists, looked through from the front each time."""

    jobs: list[Waiting]
    virtual: dict[tuple[Priority, str], float]
    passed: dict[Priority, int]

    def take(self, models: set[str]) -> int | None:
        barren: set[Priority] = set()
        while True:
            waiting = [p for p in PRIORITIES if any(job.priority == p for job in self.jobs)]
            fruitful = [p for p in waiting if p not in barren]
            if not fruitful:
                return None
            overdue = [p for p in fruitful if self.passed[p] >= LIMITS["turns_passed"]]
            priority = overdue[-1] if overdue else fruitful[0]
            found = [job for job in self.jobs if job.priority == priority and job.model in models]
            if not found:
                barren.add(priority)
                continue
            job = min(found, key=lambda j: (self.virtual[priority, j.tenant], j.tenant, j.number))
            for lower in waiting:
                if PRIORITIES.index(lower) > PRIORITIES.index(priority):
                    self.passed[lower] += 1
            self.passed[priority] = 0
            self.virtual[priority, job.tenant] += job.price
            self.jobs.remove(job)
            return job.number


def job_of(waiting: Waiting) -> Queued[Waiting]:
    return Queued(str(waiting.number), waiting.model, waiting.price, waiting)


jobs_in_line = st.lists(
    st.tuples(
        st.sampled_from(TENANTS),
        st.sampled_from(PRIORITIES),
        st.sampled_from(["a", "b"]),
        st.sampled_from([1.0, 2.5, 7]),
    ),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(
    jobs_in_line,
    st.fixed_dictionaries({p: st.integers(0, 9) for p in PRIORITIES}),
    st.lists(st.sampled_from([{"a"}, {"b"}, {"a", "b"}]), max_size=40),
    st.dictionaries(st.tuples(st.sampled_from(PRIORITIES), st.sampled_from(TENANTS)), st.floats(0, 9)),
)
def test_jobs_are_taken_in_the_order_of_claims(
    given_jobs: list[tuple[str, Priority, str, float]],
    passed: dict[Priority, int],
    claims: list[set[str]],
    virtual: dict[tuple[Priority, str], float],
) -> None:
    jobs = [Waiting(*job, number) for number, job in enumerate(given_jobs)]
    starts = {(p, t): virtual.get((p, t), 0.0) for p in PRIORITIES for t in TENANTS}
    plain = Plain(list(jobs), dict(starts), dict(passed))
    order = ClaimOrder(
        {
            p: QueuedClass(
                [
                    QueuedLine(
                        t,
                        starts[p, t],
                        iter([job_of(j) for j in jobs if (j.tenant, j.priority) == (t, p)]),
                    )
                    for t in TENANTS
                ],
                passed=passed[p],
            )
            for p in PRIORITIES
        }
    )  # fmt: skip
    for models in [*claims, *[{"a", "b"}] * len(jobs)]:
        expected = plain.take(models)
        taken = order.take(models.__contains__)
        assert (taken and int(taken.job.job_id)) == expected


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(*[st.integers(0, 200)] * 3),
    st.tuples(*[st.integers(0, 9)] * 3),
    st.integers(0, 40),
)
def test_turns_that_are_not_counted_one_by_one_come_out_as_those_that_are(
    waiting: tuple[int, int, int], passed: tuple[int, int, int], exact: int
) -> None:
    counts, over = dict(zip(PRIORITIES, waiting, strict=True)), dict(zip(PRIORITIES, passed, strict=True))
    all_turns = turns(counts, over, exact=sum(waiting))
    assert all_turns[-1] == waiting
    some = turns(counts, over, exact=exact)
    assert some[-1] == waiting
    assert len(some) <= exact + 12
    for done in some:
        # One pattern of turns more or less.
        assert max(abs(a - b) for a, b in zip(done, all_turns[sum(done)], strict=True)) <= 9
