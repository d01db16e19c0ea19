"""Lines of jobs along virtual time, and how many jobs of all lines lie before a moment of it. Pure.

The first jobs of a line are known one by one. Behind them some are known, and those between two of them are taken to
lie evenly and to cost as the second one does.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from service.contract.forecast import TenantAhead
from service.jobs.survey import Line

#: (rank, virtual start of the job of that rank), ascending; the last one is where the line ends.
VirtualLine = list[tuple[int, float]]

#: Points of a curve beyond those that are exact.
_POINTS = 128


def stretches(line: Line) -> Iterator[tuple[str, int]]:
    """Yield each job that is known of a line, and how many it stands for: itself, and those before it that are not."""
    rank = -1
    for mark in line.marks:
        yield mark.job_id, mark.rank - rank
        rank = mark.rank


def virtual_line(line: Line, costs: Mapping[str, float]) -> VirtualLine:
    """Return where the known jobs of a line start, and where it ends; `costs` by job, 0 of those that were charged."""
    found: VirtualLine = []
    virtual, rank = line.virtual, 0
    for mark in line.marks:
        price = costs[mark.job_id] / line.weight
        virtual += (mark.rank - rank) * price
        found.append((mark.rank, virtual))
        virtual, rank = virtual + price, mark.rank + 1
    return [*found, (rank, virtual)]


def tenant_ahead(line: Line, along: VirtualLine) -> TenantAhead:
    """Return a line as it is told: enough to find a job's place in it by its sequence."""
    marks = [(m.rank, m.sequence, virtual) for m, (_, virtual) in zip(line.marks, along[:-1], strict=True)]
    # Of those that stand one behind the other with even sequences, the ends say it all.
    kept = [
        each
        for at, each in enumerate(marks)
        if at in (0, len(marks) - 1) or not _is_between(marks[at - 1], each, marks[at + 1])
    ]
    return TenantAhead(
        waiting=line.waiting,
        marks=kept,
        end=along[-1][1],
        weight=line.weight,
        cap=line.cap,
        running=line.running,
    )


def before_curve(
    lines: Sequence[VirtualLine], turns: Sequence[tuple[int, int]], *, exact: int
) -> list[tuple[float, float]]:
    """Return (virtual start, jobs of all classes before a job that starts there), ascending.

    `turns`: (jobs of this class, jobs of all classes) that have been taken, ascending, in the order of turns. The first
    `exact` jobs are steps; behind them the curve is drawn with few points.
    """
    counts = _counts(lines)
    steps = [each for each in counts if each[1] <= exact]
    rest = counts[len(steps) :]
    kept = steps + rest[:: max(1, len(rest) // _POINTS)]
    if rest and kept[-1] != rest[-1]:
        kept.append(rest[-1])
    taken = [own for own, _ in turns]
    return [(virtual, _all_before(count, taken, turns)) for virtual, count in kept]


def _counts(lines: Sequence[VirtualLine]) -> list[tuple[float, float]]:
    """Return (virtual start, jobs of these lines before it) as a line of straight pieces; a job by itself is a step."""
    steps: list[tuple[float, float, float]] = []
    for line in lines:
        for (rank, virtual), (next_rank, next_virtual) in pairwise(line):
            steps.append((virtual, 1.0, 0.0))
            between = next_rank - rank - 1
            if between <= 0:
                continue
            # The jobs between two known ones begin where the first ends, and cost as much each as the second.
            span = next_virtual - virtual
            if span <= 0:
                steps.append((virtual, float(between), 0.0))
            else:
                steps += [(virtual, 0.0, between / span), (next_virtual, 0.0, -between / span)]
    steps.sort()
    at = steps[0][0] if steps else 0.0
    found = [(at, 0.0)]
    count = slope = 0.0
    for virtual, jump, bend in steps:
        count += slope * (virtual - at)
        at = virtual
        if found[-1] != (virtual, count):
            found.append((virtual, count))
        if jump:
            count += jump
            found.append((virtual, count))
        slope = max(0.0, slope + bend)
    return found


def _all_before(count: float, taken: Sequence[int], turns: Sequence[tuple[int, int]]) -> float:
    """Return the jobs of all classes that are taken before the next of this class, `count` of which have been."""
    at = bisect_right(taken, count)
    if at == len(turns):
        # The next one of this class would be behind everything.
        return float(turns[-1][1])
    (own, both), (next_own, next_both) = turns[at - 1], turns[at]
    # A single turn: what was taken before it. Many turns at once: a part of them.
    return both + (count - own) * (next_both - both) / (next_own - own) if next_own - own > 1 else float(next_both - 1)


def _is_between(before: tuple[int, int, float], mark: tuple[int, int, float], after: tuple[int, int, float]) -> bool:
    ranks, sequences, virtual = zip(before, mark, after, strict=True)
    part = (ranks[1] - ranks[0]) / (ranks[2] - ranks[0])
    return (
        sequences[1] - sequences[0] == part * (sequences[2] - sequences[0])
        and abs(virtual[1] - virtual[0] - part * (virtual[2] - virtual[0])) < 1e-9
    )
