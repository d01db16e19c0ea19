"""The continuous batch: at each tick one call for all requests that want the same call next.

    strands ──share──▶ rounds, by key ──whose turn──▶ one call, as wide as fits ──results──▶ strands go on

Requests join by starting a strand, leave by ending theirs, and meet in between for as long as their keys are equal.
Nothing here knows what the work is: denoiser calls, prompts to encode and latents to decode are all queued alike.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog
import torch

from worker.engine.faults import Fault, classify, free_memory
from worker.engine.keys import kind_of
from worker.engine.meter import CudaMeter, HostMeter, Meter, Reading
from worker.engine.rounds import Rounds
from worker.engine.rows import CudaGauge, NoGauge, RowLimits
from worker.engine.strands import Hub, SharedWork, Strand

log = structlog.get_logger()

#: Rows of a call on a CPU, whose memory nobody measures for us.
CPU_ROWS = 32

Waiting = tuple[Strand, SharedWork]


class Batch:
    """Owns the strands of one device. Everything happens on the thread that calls `tick`."""

    def __init__(self, limits: RowLimits, meter: Meter, *, lost: Callable[[Exception], None]) -> None:
        """`lost` is called with an error after which the device cannot be trusted; it should not return."""
        self.hub = Hub(parked=self._parked)
        self._limits = limits
        self._meter = meter
        self._unsettled: deque[tuple[Reading, list[Waiting]]] = deque()
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
            taken = self._rounds.take(key, lambda waiting: waiting[1].rows, self._limits.limit(kind_of(key)))
            # Who was stopped while waiting is still in the queue, and waits for something else or nothing.
            waiting = [(strand, work) for strand, work in taken if strand.work is work]
            if waiting:
                self._call(waiting)
        self.hub.run()
        self.settle()

    def settle(self) -> None:
        """Charge calls that have ended: to their key's cost, and to every strand the part of it that its rows are."""
        while self._unsettled and (seconds := self._unsettled[0][0].seconds()) is not None:
            _, waiting = self._unsettled.popleft()
            rows = sum(work.rows for _, work in waiting)
            self._rounds.took(waiting[0][1].key, seconds)
            for strand, work in waiting:
                strand.charge(seconds * work.rows / rows)

    def _parked(self, strand: Strand, work: SharedWork) -> None:
        self._rounds.add(work.key, (strand, work))

    def _call(self, waiting: list[Waiting]) -> None:
        key, rows = waiting[0][1].key, sum(work.rows for _, work in waiting)
        works = [work for _, work in waiting]
        self._meter.begin()
        out_of_memory = False
        try:
            results = self._limits.measure(kind_of(key), rows, functools.partial(_do, works))
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
            self._unsettled.append((self._meter.end(), waiting))
            self.calls, self.rows = self.calls + 1, self.rows + rows
            return
        # Outside of the handler, whose error keeps the failed call's tensors.
        if out_of_memory:
            free_memory()
            self._limits.failed(kind_of(key), rows)
            for strand, work in waiting:
                self._parked(strand, work)
            log.warning("call_did_not_fit", rows=rows)
        else:
            self._find_culprit(waiting)

    def _find_culprit(self, waiting: list[Waiting]) -> None:
        """Do each work alone: the one at fault gets its error, the others their results."""
        log.warning("shared_call_failed", works=len(waiting))
        for one in waiting:
            self._call([one])


def _do(works: list[SharedWork]) -> list[Any]:
    return works[0].together(works) if len(works) > 1 else [works[0].alone()]


def batch_for(device: torch.device, *, lost: Callable[[Exception], None]) -> Batch:
    """Return a batch for a device: a GPU's memory and time are measured on the GPU."""
    if device.type == "cuda":
        return Batch(RowLimits(CudaGauge(device), cautious=True), CudaMeter(device), lost=lost)
    return Batch(RowLimits(NoGauge(), cautious=False, most=CPU_ROWS), HostMeter(), lost=lost)
