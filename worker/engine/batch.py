"""The continuous batch: at each tick one call for all requests that want the same call next.

    strands ──share──▶ rounds, by key ──whose turn──▶ one call, as wide as fits ──results──▶ strands go on

Requests join by starting a strand, leave by ending theirs, and meet in between for as long as their keys are equal.
Nothing here knows what the work is: denoiser calls, prompts to encode and latents to decode are all queued alike.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import structlog
import torch

from service.contract.costs import CallLabel
from worker.engine.budget import RowBudget
from worker.engine.faults import Fault, classify, free_memory
from worker.engine.keys import fitting, kind_of
from worker.engine.ledger import Ledger
from worker.engine.lessons import Lesson, lesson_of
from worker.engine.meter import CudaMeter, HostMeter, Meter, Reading
from worker.engine.rounds import Rounds
from worker.engine.rows import CudaGauge, NoGauge, RowLimits
from worker.engine.strands import Hub, SharedWork, Strand

log = structlog.get_logger()

#: Rows of a call on a CPU, whose memory nobody measures for us.
CPU_ROWS = 32

Waiting = tuple[Strand, SharedWork]


@dataclass(frozen=True, slots=True)
class _Made:
    """A call that was made, and may not have ended yet. Works are not kept: they hold the tensors of their call."""

    reading: Reading
    key: Hashable
    label: CallLabel | None
    rows: int
    peak_bytes: int | None
    #: Whose rows they were.
    shares: list[tuple[Strand, int]]


class Batch:
    """Owns the strands of one device. Everything happens on the thread that calls `tick`."""

    def __init__(self, budget: RowBudget, meter: Meter, *, lost: Callable[[Exception], None]) -> None:
        """`lost` is called with an error after which the device cannot be trusted; it should not return."""
        self.hub = Hub(parked=self._parked)
        self._budget = budget
        self._meter = meter
        self._unsettled: deque[_Made] = deque()
        self._lost = lost
        self._rounds: Rounds[Waiting] = Rounds()
        #: Calls made, and rows in them: their quotient is what batching gains.
        self.calls = 0
        self.rows = 0

    @property
    def busy(self) -> bool:
        """Whether a tick has something to do."""
        return self.hub.has_ready or len(self._rounds) > 0

    def tick(self) -> None:
        """Let every strand go on that can; then make one call and hand out its results."""
        self.hub.end_pauses()
        self.hub.run()
        if len(self._rounds):
            key = self._rounds.next_turn()
            limit = fitting(key, self._budget.limit(kind_of(key)), self._rounds.waiting(key, _rows))
            taken = self._rounds.take(key, _rows, limit)
            # Who was stopped while waiting is still in the queue, and waits for something else or nothing.
            waiting = [(strand, work) for strand, work in taken if strand.work is work]
            if waiting:
                self._call(waiting)
        self.hub.run()
        self.settle()
        if not self.busy:
            # An idle engine ticks no more: what the device still works on is waited for, as the next call would.
            while self._unsettled:
                self._charge(self._unsettled[0].reading.wait_s())

    def settle(self) -> None:
        """Charge calls that have ended: to their key's cost, and to every strand the part of it that its rows are."""
        while self._unsettled and (seconds := self._unsettled[0].reading.seconds()) is not None:
            self._charge(seconds)

    def _charge(self, seconds: float) -> None:
        made = self._unsettled.popleft()
        self._rounds.took(made.key, seconds)
        self._budget.took(made.label, made.rows, seconds, made.peak_bytes)
        for strand, rows in made.shares:
            strand.charge(seconds * rows / made.rows)

    def _parked(self, strand: Strand, work: SharedWork) -> None:
        kind = kind_of(work.key)
        expected_s = self._budget.meet(kind, work.label)
        if expected_s is not None:
            self._rounds.expect(kind, expected_s)
        self._rounds.add(work.key, (strand, work))

    def _call(self, waiting: list[Waiting]) -> None:
        key, rows = waiting[0][1].key, sum(work.rows for _, work in waiting)
        works = [work for _, work in waiting]
        self._meter.begin()
        out_of_memory = False
        try:
            results = self._budget.measure(
                kind_of(key),
                rows,
                functools.partial(_do, works),
                teaches=lambda: lesson_of(works[0]) is Lesson.EVERYTHING,
            )
        except Exception as err:  # noqa: BLE001 - it belongs to whichever strand's work it was
            fault = classify(err)
            if fault is Fault.DEVICE:
                self._lost(err)
            out_of_memory = fault is Fault.OUT_OF_MEMORY
            if len(waiting) == 1:
                self.hub.wake(waiting[0][0], error=err)
                return
        else:
            for (strand, _), result in zip(waiting, results, strict=True):
                self.hub.wake(strand, result)
            self.calls, self.rows = self.calls + 1, self.rows + rows
            if lesson_of(works[0]) is not Lesson.NOTHING:
                self._made(waiting)
            return
        # Outside of the handler, whose error keeps the failed call's tensors.
        if out_of_memory:
            free_memory()
            self._budget.failed(kind_of(key), rows)
            for strand, work in waiting:
                self._parked(strand, work)
            log.warning("call_did_not_fit", rows=rows)
        else:
            self._find_culprit(waiting)

    def _made(self, waiting: list[Waiting]) -> None:
        """Note a call that was just made, to be settled once the device is done with it."""
        first, shares = waiting[0][1], [(strand, work.rows) for strand, work in waiting]
        rows, peak_bytes = sum(rows for _, rows in shares), self._budget.peak_bytes
        self._unsettled.append(_Made(self._meter.end(), first.key, first.label, rows, peak_bytes, shares))

    def _find_culprit(self, waiting: list[Waiting]) -> None:
        """Do each work alone: the one at fault gets its error, the others their results."""
        log.warning("shared_call_failed", works=len(waiting))
        for one in waiting:
            self._call([one])


def _rows(waiting: Waiting) -> int:
    return waiting[1].rows


def _do(works: list[SharedWork]) -> list[Any]:
    return works[0].together(works) if len(works) > 1 else [works[0].alone()]


def batch_for(
    device: torch.device,
    *,
    lost: Callable[[Exception], None],
    ledger: Ledger | None = None,
    step_target_s: float = 0.0,
) -> Batch:
    """Return a batch for a device: a GPU's memory and time are measured on the GPU."""
    ledger = ledger or Ledger()
    if device.type == "cuda":
        limits, meter = RowLimits(CudaGauge(device), cautious=True), CudaMeter(device)
    else:
        limits, meter = RowLimits(NoGauge(), cautious=False, most=CPU_ROWS), HostMeter()
    return Batch(RowBudget(limits, ledger, step_target_s=step_target_s), meter, lost=lost)
