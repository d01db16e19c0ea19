"""What calls cost: by label and width, measured here or told by the agent of engines before this one.

What was told is believed until this engine has measured the same twice: the first call of a width warms caches up, and
is no measure of the second.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from service.contract.costs import MAX_MEASURED, CallCost, CallLabel, MeasuredCost
from service.contract.engine import Measured

#: Labels that are remembered, and widths of each: the ones measured last.
_LABELS, _WIDTHS = 256, 64
#: Calls that the running mean of a width is made of.
_MEAN_CALLS = 16
#: Calls of a label after which a width that was not among them may cost something else by now: a neighbour took the
#: device for a while, a first call warmed up. It is then tried, and measured, anew.
_STALE_CALLS = 256
#: s between two reports.
_REPORT_S = 3.0
#: Bounds of `CallCost.seconds`.
_LEAST_S, _MOST_S = 1e-9, 86_400.0
#: What an earlier engine's number of calls counts for at most, so that what is usual now can outnumber it.
_MOST_TOLD_CALLS = 10_000


@dataclass(slots=True)
class _WidthCost:
    """Calls of one label and number of rows."""

    seconds: float
    #: Calls in all, those of earlier engines too; and those made here since it was stale.
    calls: int = 0
    own_calls: int = 0
    peak_bytes: int | None = None
    #: How many calls of its label there had been when it was last measured.
    at: int = 0
    #: Calls and seconds that were not reported yet.
    fresh_calls: int = 0
    fresh_s: float = 0.0

    def measured(self, seconds: float, peak_bytes: int | None, *, at: int) -> None:
        if at - self.at > _STALE_CALLS:
            self.own_calls = 1
        self.own_calls += 1
        if self.calls == 0 or self.own_calls == 2:
            self.seconds = seconds
        elif self.own_calls > 2:
            self.seconds += (seconds - self.seconds) / min(self.own_calls - 1, _MEAN_CALLS)
        if peak_bytes is not None and (self.peak_bytes is None or self.own_calls == 1 or peak_bytes > self.peak_bytes):
            self.peak_bytes = peak_bytes
        self.at = at
        self.calls += 1
        self.fresh_calls += 1
        self.fresh_s += seconds


@dataclass(slots=True)
class _Account:
    """All widths of one label."""

    widths: OrderedDict[int, _WidthCost] = field(default_factory=OrderedDict)
    #: Calls measured here.
    calls: int = 0

    def width(self, rows: int) -> _WidthCost:
        """Return the width, as the one used last; those used longest ago are forgotten."""
        found = self.widths.setdefault(rows, _WidthCost(_LEAST_S, at=self.calls))
        self.widths.move_to_end(rows)
        while len(self.widths) > _WIDTHS:
            self.widths.popitem(last=False)
        return found


class Ledger:
    """Costs by label and rows. For one thread."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[CallLabel, _Account] = OrderedDict()
        #: Labels and rows that changed since they were reported; in the order of their first change.
        self._changed: dict[tuple[CallLabel, int], None] = {}

    def measured(self, label: CallLabel, rows: int, seconds: float, peak_bytes: int | None) -> None:
        """Note what one call took, its memory where that is known."""
        account = self._account(label)
        account.calls += 1
        seconds = min(max(seconds, _LEAST_S), _MOST_S)
        account.width(rows).measured(seconds, peak_bytes if peak_bytes else None, at=account.calls)
        self._changed[label, rows] = None

    def remember(self, costs: Iterable[CallCost]) -> None:
        """Take what earlier engines measured; what was measured here counts more."""
        for cost in costs:
            account = self._account(cost.label)
            if cost.rows not in account.widths:
                width = account.width(cost.rows)
                width.seconds, width.peak_bytes = max(cost.seconds, _LEAST_S), cost.peak_bytes
                width.calls = min(cost.calls, _MOST_TOLD_CALLS)

    def memory(self, label: CallLabel) -> tuple[int, int] | None:
        """Return the rows of the widest call whose memory was measured, and its bytes: what it says of a row is best.

        A call takes something whatever its width, so that by a narrow one a row would seem to take more.
        """
        account = self._accounts.get(label)
        known = [(rows, width.peak_bytes) for rows, width in (account.widths if account else {}).items()]
        return max(((rows, peak) for rows, peak in known if peak is not None), default=None)

    def turn_s(self, label: CallLabel) -> float | None:
        """Return what a call of this label takes at the width that was most common; None where none was measured."""
        account = self._accounts.get(label)
        if account is None or not account.widths:
            return None
        return max(account.widths.values(), key=lambda width: width.calls).seconds

    def rows_within(self, label: CallLabel, seconds: float) -> int:
        """Return how many rows a call may have to take at most so long; 0 where nothing is known, or one is too many.

        Twice the widest that was measured at most: what lies further is guesswork.
        """
        account = self._accounts.get(label)
        if account is None:
            return 0
        widths = [(rows, w.seconds) for rows, w in account.widths.items() if account.calls - w.at <= _STALE_CALLS]
        return rows_within(sorted(widths), seconds)

    def changed(self, limit: int) -> list[MeasuredCost]:
        """Return up to `limit` costs that changed since they were returned here last."""
        taken = list(self._changed)[:limit]
        for each in taken:
            del self._changed[each]
        found = [self._report(label, rows) for label, rows in taken]
        return [cost for cost in found if cost is not None]

    @property
    def has_changed(self) -> bool:
        """Whether `changed` would return something."""
        return bool(self._changed)

    def _account(self, label: CallLabel) -> _Account:
        account = self._accounts.setdefault(label, _Account())
        self._accounts.move_to_end(label)
        while len(self._accounts) > _LABELS:
            self._accounts.popitem(last=False)
        return account

    def _report(self, label: CallLabel, rows: int) -> MeasuredCost | None:
        """Return the cost as it is told; None where it was forgotten meanwhile, though told anew."""
        account = self._accounts.get(label)
        width = account.widths.get(rows) if account else None
        if width is None or not width.fresh_calls:
            return None
        cost = CallCost(label=label, rows=rows, seconds=width.seconds, calls=width.calls, peak_bytes=width.peak_bytes)
        told = MeasuredCost(cost=cost, calls=width.fresh_calls, spent_s=width.fresh_s)
        width.fresh_calls, width.fresh_s = 0, 0.0
        return told


class CostReports:
    """Tells the agent what calls cost, where that has changed: at once after a pause, then every few seconds."""

    def __init__(
        self, ledger: Ledger, tell: Callable[[Measured], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ledger = ledger
        self._tell = tell
        self._clock = clock
        self._next_s = float("-inf")

    def due_in_s(self) -> float | None:
        """Return how long there is until `tell` has something to say; None where that takes another call."""
        return max(0.0, self._next_s - self._clock()) if self._ledger.has_changed else None

    def tell(self) -> None:
        """Send a report if one is due."""
        now_s = self._clock()
        if self._ledger.has_changed and now_s >= self._next_s:
            self._next_s = now_s + _REPORT_S
            self._tell(Measured(costs=tuple(self._ledger.changed(MAX_MEASURED))))


def rows_within(widths: Sequence[tuple[int, float]], seconds: float) -> int:
    """Return the rows that take `seconds`, by the (rows, seconds) that were measured, ascending in rows.

    Between two widths a straight line is drawn, before the first one from nothing, and beyond the last one time is
    taken to grow as rows do, to twice of them.
    """
    below, below_s = 0, 0.0
    for rows, took_s in widths:
        if took_s > seconds:
            return int(below + (rows - below) * (seconds - below_s) / (took_s - below_s))
        below, below_s = rows, took_s
    return min(2 * below, int(below * seconds / below_s)) if below else 0
