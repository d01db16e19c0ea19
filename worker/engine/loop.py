"""The engine: holds models, draws many requests at once."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import NoReturn

import structlog
import torch

from service.contract.engine import Finished, Generate, Hello, LoadModel, PhaseStarted, Refused, Remember
from service.contract.errors import FailureCode
from worker.engine.background import Background
from worker.engine.batch import batch_for
from worker.engine.channel import Inbox, Outbox
from worker.engine.device import device_name
from worker.engine.drawing import library_versions
from worker.engine.faults import Fault, classify, free_memory, report
from worker.engine.ledger import CostReports, Ledger
from worker.engine.memory import budget_bytes, shelf_bytes
from worker.engine.residency import Residency
from worker.engine.shelf import Shelf
from worker.engine.strands import Strand
from worker.engine.wholecall import drawing_class
from worker.pipelines.errors import Refusal
from worker.pipelines.loading import LoadedModel, resolve_device

log = structlog.get_logger()


class Engine:
    """Takes messages until the pipe ends. A request that fails takes nothing down but itself."""

    def __init__(
        self, inbox: Inbox, outbox: Outbox, *, capacity: int = 0, model_bytes: int = 0, step_target_s: float = 0.0
    ) -> None:
        """`capacity`: requests drawn at once; 0 = as many as suit the device. `model_bytes`: see `budget_bytes`.

        `step_target_s`: see `RowBudget`.
        """
        torch.set_grad_enabled(False)  # before the batch: its strands may not differ from it
        self._device = resolve_device("auto")
        self._inbox = inbox
        self._outbox = outbox
        self._capacity = capacity or suitable_capacity(self._device)
        self._ledger = Ledger()
        self._reports = CostReports(self._ledger, outbox.send)
        self._batch = batch_for(self._device, lost=_exit, ledger=self._ledger, step_target_s=step_target_s)
        self._models = Residency(
            self._batch.hub,
            Background(inbox.hand_over),
            Shelf(shelf_bytes(self._device)),
            budget_bytes=model_bytes or budget_bytes(self._device),
            tell=outbox.send,
            lost=_exit,
        )
        self._strands: dict[str, Strand] = {}

    def run(self) -> NoReturn:
        """Greet the agent, then work until the inbox ends the process."""
        self._outbox.send(
            Hello(
                pid=os.getpid(),
                device=str(self._device),
                device_name=device_name(self._device),
                capacity=self._capacity,
                versions=library_versions(),
            )
        )
        while True:
            for message, buffers in self._inbox.take(wait=not self._batch.busy, timeout_s=self._reports.due_in_s()):
                match message:
                    case LoadModel():
                        self._models.offer(message.entry)
                    case Remember():
                        self._ledger.remember(message.costs)
                    case Generate():
                        self._begin(message, buffers)
            for execution_id in self._inbox.newly_canceled():
                strand = self._strands.get(execution_id)
                if strand:  # one that has not begun sees it by itself
                    self._batch.hub.stop(strand, Refusal("canceled", "Canceled."))
            self._batch.tick()
            self._reports.tell()

    def _begin(self, request: Generate, buffers: list[bytes]) -> None:
        """Let a request join the batch."""

        def draw_and_answer() -> None:
            answer = self._draw(request, buffers)
            self._batch.settle()
            spent_s = self._strands[request.execution_id].spent_s
            self._outbox.send(answer.model_copy(update={"gpu_s": spent_s}) if isinstance(answer, Finished) else answer)
            self._inbox.close(request.execution_id)
            del self._strands[request.execution_id]

        self._strands[request.execution_id] = self._batch.hub.start(draw_and_answer)

    def _draw(self, request: Generate, buffers: list[bytes]) -> Finished | Refused:
        execution_id, spec = request.execution_id, request.spec
        try:
            with self._model_of(request) as (model, waited_s):
                finished = drawing_class(model)(
                    model,
                    request,
                    buffers,
                    send=self._outbox.send,
                    is_canceled=lambda: self._inbox.is_canceled(execution_id),
                ).run()
            return finished.model_copy(update={"load_s": waited_s})
        except Refusal as refusal:
            log.info("execution_refused", execution_id=execution_id, code=refusal.code)
            return Refused(execution_id=execution_id, code=refusal.code, message=refusal.message)
        except Exception as err:  # noqa: BLE001 - one request must not take the others' engine down
            private = (spec.prompt, spec.negative_prompt)
            report("execution_failed", err, private=private, execution_id=execution_id)
            self._exit_if_device_is_lost(err)
        free_memory()
        message = "The engine failed on this request; the worker's log says why."
        return Refused(execution_id=execution_id, code=FailureCode.INTERNAL, message=message)

    @contextlib.contextmanager
    def _model_of(self, request: Generate) -> Iterator[tuple[LoadedModel, float]]:
        """Give a request its model, with the seconds for which it waited until that was in memory."""
        execution_id, begun_s = request.execution_id, 0.0

        def wait() -> None:
            nonlocal begun_s
            begun_s = time.monotonic()
            self._outbox.send(PhaseStarted(execution_id=execution_id, phase="load"))

        if self._inbox.is_canceled(execution_id):
            raise Refusal("canceled", "Canceled.")
        with self._models.use(request.spec.model, on_wait=wait) as model:
            yield model, time.monotonic() - begun_s if begun_s else 0.0

    def _exit_if_device_is_lost(self, error: Exception) -> None:
        if classify(error) is Fault.DEVICE:
            _exit(error)


def suitable_capacity(device: torch.device) -> int:
    """Return how many requests a device draws at once: a GPU gains by each, a CPU only shares its time among them."""
    return 16 if device.type == "cuda" else 4


def _exit(error: Exception) -> NoReturn:
    """After a device's error nothing that the process computes can be trusted: the agent starts another."""
    log.error("device_lost", error=type(error).__name__)
    os._exit(os.EX_SOFTWARE)
