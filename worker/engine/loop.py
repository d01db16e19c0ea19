"""The engine: holds models, draws one request at a time."""

from __future__ import annotations

import os
import time
from typing import NoReturn

import structlog

from service.contract.catalog import CatalogEntry
from service.contract.engine import Finished, Generate, Hello, LoadModel, ModelFailed, ModelLoaded, Refused
from service.contract.errors import FailureCode
from worker.engine.channel import Inbox, Outbox
from worker.engine.drawing import Drawing, library_versions
from worker.engine.faults import Fault, classify, free_memory, report
from worker.pipelines.errors import Refusal, UnusableModel
from worker.pipelines.loading import LoadedModel, load, resolve_device

log = structlog.get_logger()

#: Requests drawn at a time; further ones wait in the inbox.
CAPACITY = 1


class Engine:
    """Takes messages until the pipe ends. A request that fails takes nothing down but itself."""

    def __init__(self, inbox: Inbox, outbox: Outbox) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._models: dict[str, LoadedModel] = {}

    def run(self) -> NoReturn:
        """Greet the agent, then work until the inbox ends the process."""
        device = str(resolve_device("auto"))
        self._outbox.send(Hello(pid=os.getpid(), device=device, capacity=CAPACITY, versions=library_versions()))
        while True:
            message, buffers = self._inbox.next()
            match message:
                case LoadModel():
                    self._outbox.send(self._load(message.entry))
                case Generate():
                    self._outbox.send(self._draw(message, buffers))
                    self._inbox.close(message.execution_id)

    def _load(self, entry: CatalogEntry) -> ModelLoaded | ModelFailed:
        started_s = time.monotonic()
        held = self._models.get(entry.id)
        if held is not None and held.entry == entry:
            return ModelLoaded(card=held.card, seconds=0.0)
        try:
            self._models.pop(entry.id, None)
            model = load(entry)
        except UnusableModel as err:
            log.warning("model_unusable", model=entry.id, reason=str(err))
            return ModelFailed(model=entry.id, message=str(err))
        except Exception as err:  # noqa: BLE001 - one model that cannot be loaded must not take the others down
            report("model_load_failed", err, model=entry.id)
            self._exit_if_device_is_lost(err)
            reason = "out of memory" if classify(err) is Fault.OUT_OF_MEMORY else type(err).__name__
            return ModelFailed(model=entry.id, message=f"Loading failed: {reason}. The worker's log says more.")
        self._models[entry.id] = model
        seconds = time.monotonic() - started_s
        log.info("model_loaded", model=entry.id, dtype=model.card.dtype, device=str(model.device), seconds=seconds)
        return ModelLoaded(card=model.card, seconds=seconds)

    def _draw(self, request: Generate, buffers: list[bytes]) -> Finished | Refused:
        execution_id, spec = request.execution_id, request.spec
        try:
            return Drawing(
                self._model(spec.model),
                request,
                buffers,
                send=self._outbox.send,
                is_canceled=lambda: self._inbox.is_canceled(execution_id),
            ).run()
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

    def _model(self, model_id: str) -> LoadedModel:
        if model_id not in self._models:
            raise Refusal(FailureCode.MODEL_UNAVAILABLE, f"The model {model_id} is not loaded here.")
        return self._models[model_id]

    def _exit_if_device_is_lost(self, error: Exception) -> None:
        """After a CUDA error nothing that the process computes can be trusted: the agent starts another."""
        if classify(error) is Fault.DEVICE:
            os._exit(os.EX_SOFTWARE)
