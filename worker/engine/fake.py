"""An engine child for fault campaigns: the real protocol over real pipes, flat-colour pictures, faults on demand.

`python -m worker.engine.fake`, started by an agent whose `DARKROOM_ENGINE_MODULE` names it. No torch, so an agent is
up in a second and a hundred jobs take as many milliseconds as their steps say. Words of a prompt are orders:

    step=0.2      seconds that every step takes (0.01)
    load=2        seconds for which the model is read into memory first (0)
    crash         the process ends at the first step, as under a kernel that faults
    hang          the first step never ends
    omit          the pictures are never sent
    nonsense      something that is no frame is sent at the first step
    preview       a preview follows every step, if previews are wanted at all

A file in a model's folder does the same to its loading: `broken` makes it fail, `stuck` keeps it from ending.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import structlog

from service.contract.catalog import CatalogEntry, ModelCard
from service.contract.costs import CallCost, CallLabel, MeasuredCost
from service.contract.engine import (
    Finished,
    Generate,
    Hello,
    ImageDrawn,
    LoadModel,
    Measured,
    ModelFailed,
    ModelLoaded,
    PhaseStarted,
    PreviewDrawn,
    Refused,
    Remember,
    StepDone,
)
from service.contract.errors import FailureCode
from service.contract.generation import Receipt
from service.telemetry.logs import configure_logging
from worker.engine.channel import Inbox, Outbox

log = structlog.get_logger()

_STEP_S = 0.01
_SHA256 = "0" * 64


class FakeEngine:
    """Takes messages until the pipe ends. It draws one request after the other, whatever capacity it tells."""

    def __init__(self, inbox: Inbox, outbox: Outbox, raw_fd: int, capacity: int) -> None:
        """`capacity`: what it says of itself; further requests wait until those before them are drawn."""
        self._inbox = inbox
        self._outbox = outbox
        self._raw_fd = raw_fd
        self._capacity = capacity
        self._models: set[str] = set()

    def run(self) -> NoReturn:
        """Greet, then work."""
        self._outbox.send(
            Hello(pid=os.getpid(), device="fake", device_name="fake", capacity=self._capacity, versions={})
        )
        while True:
            for message, _buffers in self._inbox.take(wait=True):
                self._answer(message)

    def _answer(self, message: LoadModel | Remember | Generate) -> None:
        match message:
            case LoadModel():
                answer = _load(message.entry)
                if isinstance(answer, ModelLoaded):
                    self._models.add(message.entry.id)
                self._outbox.send(answer)
            case Remember():
                log.info("fake_told", costs=len(message.costs))
            case Generate():
                self._outbox.send(self._draw(message))
                self._outbox.send(_measured(message))
                self._inbox.close(message.execution_id)

    def _draw(self, request: Generate) -> Finished | Refused:
        spec, execution_id = request.spec, request.execution_id
        if spec.model not in self._models:
            return Refused(execution_id=execution_id, code=FailureCode.MODEL_UNAVAILABLE, message="Not loaded here.")
        orders = spec.prompt.split()
        step_s = next((float(word[5:]) for word in orders if word.startswith("step=")), _STEP_S)
        load_s = next((float(word[5:]) for word in orders if word.startswith("load=")), 0.0)
        steps = spec.steps * spec.num_images
        if load_s:
            self._outbox.send(PhaseStarted(execution_id=execution_id, phase="load"))
            time.sleep(load_s)
        begun_s = time.monotonic()
        self._outbox.send(PhaseStarted(execution_id=execution_id, phase="encode"))
        self._outbox.send(PhaseStarted(execution_id=execution_id, phase="denoise"))
        for step in range(1, steps + 1):
            if self._inbox.is_canceled(execution_id):
                return Refused(execution_id=execution_id, code="canceled", message="Canceled.")
            self._obey(orders)
            time.sleep(step_s)
            self._outbox.send(StepDone(execution_id=execution_id, step=step, steps=steps))
            if "preview" in orders and request.previews_s > 0:
                preview = PreviewDrawn(execution_id=execution_id, step=step, width_px=8, height_px=8)
                self._outbox.send(preview, [bytes((step % 256, 90, 90)) * 64])
        self._outbox.send(PhaseStarted(execution_id=execution_id, phase="decode"))
        if "omit" not in orders:
            self._send_pictures(request)
        return Finished(
            execution_id=execution_id,
            load_s=load_s,
            encode_s=0,
            denoise_s=time.monotonic() - begun_s,
            decode_s=0,
            gpu_s=time.monotonic() - begun_s,
            receipt=Receipt(model_sha256=_SHA256, scheduler_config_sha256=_SHA256, device="fake", dtype="float32"),
        )

    def _obey(self, orders: list[str]) -> None:
        if "crash" in orders:
            os.kill(os.getpid(), signal.SIGKILL)
        if "hang" in orders:
            signal.pause()
        if "nonsense" in orders:
            os.write(self._raw_fd, b"\0\0\0\4what")

    def _send_pictures(self, request: Generate) -> None:
        spec = request.spec
        for index in range(spec.num_images):
            seed = spec.seed + index
            drawn = ImageDrawn(
                execution_id=request.execution_id, index=index, seed=seed, width_px=spec.width, height_px=spec.height
            )
            colour = bytes((seed % 256, seed // 256 % 256, 90))
            self._outbox.send(drawn, [colour * (spec.width * spec.height)])


def _measured(request: Generate) -> Measured:
    """Return a report of one step for each that was drawn, of a millisecond each."""
    spec = request.spec
    steps = spec.steps * spec.num_images
    label = CallLabel(
        model=spec.model,
        sha256=_SHA256[:12],
        kind="denoise",
        width_px=spec.width,
        height_px=spec.height,
        tokens=77,
        dtype="float32",
    )
    cost = CallCost(label=label, rows=2, seconds=0.001, calls=steps)
    return Measured(costs=(MeasuredCost(cost=cost, calls=steps, spent_s=0.001 * steps),))


def _load(entry: CatalogEntry) -> ModelLoaded | ModelFailed:
    folder = Path(entry.source)
    if (folder / "stuck").exists():
        signal.pause()
    if (folder / "broken").exists():
        return ModelFailed(model=entry.id, message="Loading failed: told to.")
    card = ModelCard(
        id=entry.id,
        family="sd1",
        pool=entry.pool,
        default=entry.default,
        tasks=("text-to-image", "image-to-image", "inpaint"),
        size_step_px=8,
        width=64,
        height=64,
        steps=4,
        guidance_scale=4.0,
        scheduler="ddim",
        schedulers=("ddim",),
        limits=entry.limits,
        dtype="float32",
        sha256=_SHA256,
    )
    return ModelLoaded(card=card, seconds=0.0)


def main() -> NoReturn:
    """Run until the agent closes its end of the pipe."""
    parser = argparse.ArgumentParser()
    for name in ("--fd-in", "--fd-out", "--threads", "--capacity", "--model-bytes"):
        parser.add_argument(name, type=int, required=True)
    for name in ("--step-target-s", "--log-format", "--log-level"):
        parser.add_argument(name, required=True)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(sys.stderr.fileno(), 1)
    configure_logging(arguments.log_format, arguments.log_level)
    inbox = Inbox(os.fdopen(arguments.fd_in, "rb"))
    inbox.start()
    outbox = Outbox(os.fdopen(arguments.fd_out, "wb"))
    FakeEngine(inbox, outbox, arguments.fd_out, arguments.capacity or 1).run()


if __name__ == "__main__":
    main()
