"""Requests to several models in one batch, in process, with everything that the agent would hear of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.contract.engine import Finished, FromEngine, Generate, ImageDrawn, PhaseStarted, StepDone
from service.contract.framing import Buffer
from service.contract.generation import GenerationSpec
from tests.sums import DeviceLost
from worker.engine.batch import batch_for
from worker.engine.strands import Strand
from worker.engine.wholecall import drawing_class
from worker.pipelines.errors import Refusal
from worker.pipelines.loading import LoadedModel


def request_to(model: LoadedModel, name: str, **changes: Any) -> Generate:
    """Return a request for what the model's card says, with changes."""
    card = model.card
    spec: dict[str, Any] = {
        "task": "text-to-image",
        "model": card.id,
        "prompt": "a red apple",
        "width": card.width,
        "height": card.height,
        "steps": 3,
        "guidance_scale": card.guidance_scale,
        "scheduler": card.scheduler,
        "seed": 1,
    }
    return Generate(execution_id=name, spec=GenerationSpec.model_validate(spec | changes))


@dataclass(eq=False)
class Request:
    """One request, and what came of it."""

    message: Generate
    strand: Strand | None = None
    finished: Finished | None = None
    error: Exception | None = None
    canceled: bool = False
    #: Canceled as seen by itself after that step.
    cancel_at_step: int | None = None
    messages: list[FromEngine] = field(default_factory=list)
    pixels: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def steps(self) -> list[tuple[int, int]]:
        return [(m.step, m.steps) for m in self.messages if isinstance(m, StepDone)]

    @property
    def phases(self) -> list[str]:
        return [m.phase for m in self.messages if isinstance(m, PhaseStarted)]

    @property
    def code(self) -> str:
        """Why it was refused."""
        assert isinstance(self.error, Refusal), self.error
        return self.error.code


class Company:
    """A batch, and who was told what in it, in order."""

    def __init__(self) -> None:
        self.batch = batch_for(torch.device("cpu"), lost=_lost)
        self.requests: list[Request] = []
        #: Names of requests with the kind of what was told, in the order of telling.
        self.told: list[tuple[str, str]] = []

    def join(self, model: LoadedModel, name: str = "r", **changes: Any) -> Request:
        """Let a request begin at the next tick."""
        request = Request(request_to(model, name, **changes))

        def send(message: FromEngine, buffers: Sequence[Buffer] = ()) -> None:
            request.messages.append(message)
            self.told.append((name, message.type))
            if isinstance(message, StepDone) and message.step == request.cancel_at_step:
                request.canceled = True
            if isinstance(message, ImageDrawn) and buffers:
                shape = (message.height_px, message.width_px, 3)
                request.pixels[message.index] = np.frombuffer(bytes(buffers[0]), np.uint8).reshape(shape)

        def body() -> None:
            draw = drawing_class(model)
            try:
                drawing = draw(model, request.message, [], send=send, is_canceled=lambda: request.canceled)
                request.finished = drawing.run()
            except Exception as err:  # noqa: BLE001 - looked at when all have ended
                request.error = err
            self.told.append((name, "ended"))

        request.strand = self.batch.hub.start(body)
        self.requests.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Cancel from outside, as the engine's loop does."""
        request.canceled = True
        assert request.strand is not None
        self.batch.hub.stop(request.strand, Refusal("canceled", "Canceled."))

    def tick(self, until: Request | None = None, steps: int = 0) -> None:
        """Tick once, or until a request has come to a step."""
        self.batch.tick()
        while until is not None and len(until.steps) < steps:
            assert self.batch.busy
            self.batch.tick()

    def finish(self, *, ticks: int = 2000) -> None:
        """Tick until all have ended."""
        for _ in range(ticks):
            if not self.batch.busy:
                assert all(each.finished or each.error for each in self.requests)
                assert not self.batch.hub.lines
                return
            self.batch.tick()
        raise AssertionError(f"still busy after {ticks} ticks")

    def draw(self, model: LoadedModel, **changes: Any) -> Request:
        """Return a request that was drawn with nobody else there."""
        request = self.join(model, **changes)
        self.finish()
        return request


def _lost(error: Exception) -> None:
    raise DeviceLost from error
