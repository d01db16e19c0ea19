"""The engine's side: its own drawing code, in process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from service.contract.engine import FromEngine, Generate, ImageDrawn, StepDone
from service.contract.framing import Buffer
from tests.fidelity.cases import Case
from tests.fidelity.reference import Reference
from worker.engine.drawing import Drawing
from worker.pipelines import stages, tasks
from worker.pipelines.loading import LoadedModel


class EngineSide:
    """Draws cases as the engine does."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model

    def draw(self, case: Case, *, num_images: int = 1) -> tuple[list[NDArray[np.uint8]], list[FromEngine]]:
        """Return the pictures, each height × width × 3, and every message that the agent would have got."""
        messages: list[FromEngine] = []
        pictures: list[NDArray[np.uint8]] = []

        def send(message: FromEngine, buffers: Sequence[Buffer] = ()) -> None:
            messages.append(message)
            if isinstance(message, ImageDrawn):
                shape = (message.height_px, message.width_px, 3)
                pictures.extend(np.frombuffer(bytes(b), np.uint8).reshape(shape) for b in buffers)

        messages.append(
            Drawing(
                self.model, self.request(case, num_images), case.buffers(), send=send, is_canceled=lambda: False
            ).run()
        )
        return pictures, messages

    def request(self, case: Case, num_images: int = 1) -> Generate:
        sizes = ((case.width, case.height),) * len(case.buffers())
        spec = case.spec(self.model.card.id, num_images=num_images)
        return Generate(execution_id="case", spec=spec, sizes_px=sizes)

    @torch.no_grad()
    def latents(self, case: Case) -> torch.Tensor:
        """Return the latents after the last step, by the engine's stages."""
        spec = case.spec(self.model.card.id)
        pipeline = tasks.task_pipeline(self.model, spec, seed=case.seed)
        image = case.input_picture() if case.task != "text-to-image" else None
        mask = case.input_mask() if case.task == "inpaint" else None
        latents = stages.denoise(
            pipeline,
            stages.encode_prompts(self.model, [spec])[0],
            tasks.call_arguments(self.model, spec, image, mask),
            seed=case.seed,
            call=lambda denoiser, *args, **kwargs: denoiser(*args, **kwargs),
            encode=lambda picture: stages.encode_pictures(self.model, picture),
            on_step=lambda _: None,
        )
        return stages.unpacked(self.model, latents, spec)


def steps_of(messages: Sequence[FromEngine]) -> list[StepDone]:
    return [message for message in messages if isinstance(message, StepDone)]


def assert_equal(engine: EngineSide, reference: Reference, case: Case) -> None:
    """Latents and pixels are equal to the bit, and every denoiser call was reported as a step."""
    expected = reference.draw(case)
    pictures, messages = engine.draw(case)
    assert torch.equal(engine.latents(case), expected.latents)
    assert np.array_equal(pictures[0], expected.pixels)
    assert [(m.step, m.steps) for m in steps_of(messages)] == [(n + 1, expected.calls) for n in range(expected.calls)]
