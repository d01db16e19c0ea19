"""The engine's side with many requests in one batch, watched, canceled and made to fail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.contract.engine import FromEngine, ImageDrawn, StepDone
from service.contract.framing import Buffer
from tests.fidelity.cases import Case
from tests.fidelity.engine import EngineSide
from tests.sums import DeviceLost
from worker.engine.batch import batch_for
from worker.engine.drawing import Drawing
from worker.engine.strands import Strand
from worker.pipelines import stages
from worker.pipelines.errors import Refusal


class Watched(Drawing):
    """A drawing whose latents and pictures are kept, image by image."""

    def __init__(self, *args: Any, guest: Guest, **options: Any) -> None:
        super().__init__(*args, **options)
        self._guest = guest
        if guest.floats is not None:
            self._image = guest.floats

    def _denoise(self, index: int, *args: Any, **options: Any) -> torch.Tensor:
        latents = super()._denoise(index, *args, **options)
        self._guest.latents[index] = latents
        return latents

    def _decode(self, latents: torch.Tensor, **options: Any) -> torch.Tensor:
        picture = super()._decode(latents, **options)
        index = next(index for index, kept in self._guest.latents.items() if kept is latents)
        self._guest.pictures[index] = (picture * 0.5 + 0.5).clamp(0, 1)
        return picture


@dataclass(eq=False)
class Guest:
    """One request in the batch, and what came of it."""

    case: Case
    num_images: int = 1
    #: The input picture in more than the 8 bits that an agent sends, (1, 3, height, width) in [0, 1].
    floats: torch.Tensor | None = None
    #: Canceled as seen by itself after that step, or from outside where it then waits.
    cancel_at_step: int | None = None
    stop_at_step: int | None = None
    #: After the last step, by image.
    latents: dict[int, torch.Tensor] = field(default_factory=dict)
    #: (1, 3, height, width) in [0, 1] before they are rounded to pixels, by image.
    pictures: dict[int, torch.Tensor] = field(default_factory=dict)
    pixels: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    steps: int = 0
    canceled: bool = False
    degraded: tuple[str, ...] = ()
    #: None for one that ended well.
    error: Exception | None = None
    has_ended: bool = False
    strand: Strand | None = None

    def send(self, message: FromEngine, buffers: Sequence[Buffer] = ()) -> None:
        """Hear what the agent would hear."""
        if isinstance(message, StepDone):
            self.steps = message.step
            self.canceled = self.canceled or message.step == self.cancel_at_step
        if isinstance(message, ImageDrawn):
            shape = (message.height_px, message.width_px, 3)
            self.pixels[message.index] = np.frombuffer(bytes(buffers[0]), np.uint8).reshape(shape)


class Mix:
    """One batch over one model."""

    def __init__(self, side: EngineSide) -> None:
        self._side = side
        self.batch = batch_for(torch.device("cpu"), lost=_lost)
        self.guests: list[Guest] = []

    def join(self, guest: Guest) -> Guest:
        """Let a request begin at the next tick."""

        def body() -> None:
            try:
                guest.degraded = drawing.run().receipt.degraded
            except Exception as err:  # noqa: BLE001 - looked at when all have ended
                guest.error = err
            guest.has_ended = True

        case = guest.case
        request = self._side.request(case, guest.num_images)
        drawing = Watched(
            self._side.model,
            request,
            case.buffers(),
            guest=guest,
            send=guest.send,
            is_canceled=lambda: guest.canceled,
        )
        guest.strand = self.batch.hub.start(body)
        self.guests.append(guest)
        return guest

    def tick(self) -> None:
        """Tick, and cancel from outside whoever has come to that step, as the engine's loop does."""
        self.batch.tick()
        for guest in self.guests:
            if guest.stop_at_step is not None and guest.steps >= guest.stop_at_step and not guest.canceled:
                self.cancel(guest)

    def cancel(self, guest: Guest) -> None:
        guest.canceled = True
        if guest.strand:
            self.batch.hub.stop(guest.strand, Refusal("canceled", "Canceled."))

    def finish(self, *, ticks: int = 1000) -> None:
        """Tick until all have ended."""
        for _ in range(ticks):
            if not self.batch.busy:
                assert all(guest.has_ended for guest in self.guests)
                return
            self.tick()
        raise AssertionError(f"still busy after {ticks} ticks")


def _lost(error: Exception) -> None:
    raise DeviceLost from error


@dataclass
class Watch:
    """What reaches a model's denoiser."""

    #: Rows of every call, failed ones too.
    widths: list[int] = field(default_factory=list)


@contextmanager
def watching(
    side: EngineSide, *, poison: Case | None = None, after: int = 0, glitch_at: int | None = None, fits_rows: int = 1000
) -> Iterator[Watch]:
    """Watch the denoiser, and let it fail.

    `poison`: calls fail that have a row with this case's prompt, but for so many before (`after`), whoever shares them.
    `glitch_at`: that one call fails where it is shared, counted from 0 by shared ones. `fits_rows`: wider calls run
    out of memory.
    """
    watch = Watch()
    shared = poisoned = 0
    spec = poison and poison.spec(side.model.card.id)
    bad = stages.encode_prompts(side.model, [spec])[0]["prompt_embeds"] if spec else None

    def before(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal shared, poisoned
        rows = kwargs["encoder_hidden_states"]
        watch.widths.append(len(rows))
        if len(rows) > fits_rows:
            raise torch.OutOfMemoryError(f"{len(rows)} rows")
        if len(rows) > 2:
            shared += 1
            if shared - 1 == glitch_at:
                raise RuntimeError("a glitch")
        # Prompts encoded in company are equal up to rounding.
        if bad is not None and bool(((rows - bad).abs().amax(dim=(1, 2)) < 1e-3).any()):
            poisoned += 1
            if poisoned > after:
                raise ValueError("poisoned")

    pipeline = side.model.pipeline
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    handle = denoiser.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield watch
    finally:
        handle.remove()
