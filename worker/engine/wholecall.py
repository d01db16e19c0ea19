"""Models that draw one request at a time: those whose modules are offloaded, and pipelines that are not batched.

Both run as strands all the same: each denoiser call is a work of the rounds, so that other models' calls are made in
between, by their share of the time, and a cancel is seen before each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.contract.engine import Finished
from service.contract.errors import FailureCode
from worker.engine.drawing import NUMERICAL, Drawing, config_sha256
from worker.engine.faults import report
from worker.engine.keys import Alone
from worker.engine.strands import charge, share
from worker.engine.turns import one_at_a_time
from worker.pipelines import offload, whole
from worker.pipelines.errors import Refusal
from worker.pipelines.loading import LoadedModel
from worker.pipelines.stages import Embeddings

_NOT_TAKEN = "The model's pipeline does not take this request; another size or number of steps may do."


def drawing_class(model: LoadedModel) -> type[Drawing]:
    """Return how requests to this model are drawn."""
    if model.card.family == "other":
        return WholeDrawing
    return Drawing if model.card.execution == "batched" else LoneDrawing


class LoneDrawing(Drawing):
    """One execution that has its model for itself, from its first module to its last.

    Those that come meanwhile wait in order. Its images are drawn one after the other, and after each the modules go
    back to where they wait.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._alone = True

    @torch.no_grad()
    def run(self) -> Finished:
        """See the base class."""
        with one_at_a_time(id(self._model.pipeline)):
            try:
                return super().run()
            finally:
                offload.release(self._model.pipeline)

    def _draw_all(self, images: Sequence[Callable[[], None]]) -> None:
        for image in images:
            image()

    def _draw(self, index: int, embeddings: Embeddings) -> NDArray[np.uint8] | None:
        try:
            return super()._draw(index, embeddings)
        finally:
            offload.release(self._model.pipeline)


class WholeDrawing(LoneDrawing):
    """One execution by a pipeline that is called whole: what it does between its denoiser calls, it does by itself."""

    @torch.no_grad()
    def run(self) -> Finished:
        """See the base class."""
        pipeline = self._model.pipeline
        with one_at_a_time(id(pipeline)):
            self._stop_if_canceled()
            whole.check_supported(self._model, self._spec)
            whole.check_prompts(self._model, self._spec)
            dtypes = whole.dtypes_of(pipeline)
            try:
                for index in range(self._spec.num_images):
                    self._image_of(index, {})
            finally:
                whole.restore_dtypes(pipeline, dtypes)
        return self._finished()

    def _draw(self, index: int, embeddings: Embeddings) -> NDArray[np.uint8] | None:
        """Return the pixels of one image, or None when the pipeline's safety checker holds it back."""
        del embeddings  # the pipeline encodes its prompt itself
        self._phases.enter("encode", index)
        self._calls_per_image = self._spec.steps
        begun_s, waited_s = time.perf_counter(), 0.0

        def call(denoiser: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            nonlocal waited_s
            self._phases.enter("denoise", index)
            self._stop_if_canceled()
            asked_s = time.perf_counter()
            try:
                return share(WholeCall(denoiser, args, kwargs))
            finally:
                waited_s += time.perf_counter() - asked_s

        def step_done(step: int, steps: int) -> None:
            self._calls_per_image = steps
            self._tell_step(index, step)
            if step == steps:
                self._phases.enter("decode", index)

        pipeline = whole.instance(self._model.pipeline, call)
        self._scheduler_sha256 = self._scheduler_sha256 or config_sha256(pipeline)
        try:
            drawn = whole.draw(pipeline, self._spec, seed=self._spec.seed + index, on_step=step_done)
        except ValueError as err:
            if self._done[index]:
                raise
            private = (self._spec.prompt, self._spec.negative_prompt)
            report("pipeline_refused", err, private=private, execution_id=self._execution_id)
            raise Refusal(FailureCode.INVALID_REQUEST, _NOT_TAKEN) from err
        finally:
            charge(time.perf_counter() - begun_s - waited_s)
            offload.release(self._model.pipeline)
        if self._done[index] < self._calls_per_image:  # a pipeline that does not tell of its steps
            self._tell_step(index, self._calls_per_image)
        return None if drawn.flagged else _sound_pixels(drawn.picture)


class WholeCall:
    """One call of a denoiser, as a pipeline made it; shared with nobody."""

    rows = 1
    #: What one costs is known to this process only: a pipeline may have several denoisers, which cost differently.
    label = None

    def __init__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._module, self._args, self._kwargs = module, args, kwargs
        shapes = tuple(tuple(each.shape) for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor))
        self.key: Hashable = Alone((id(module), shapes))

    def alone(self) -> Any:
        """Return what the module returns."""
        return self._module(*self._args, **self._kwargs)

    def together(self, works: Sequence[WholeCall]) -> list[Any]:
        """Return what each returns: their keys differ, so that there is never more than one."""
        return [work.alone() for work in works]


def _sound_pixels(picture: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    if np.isfinite(picture).all() and (pixels := whole.to_pixels(picture)).any():
        return pixels
    raise Refusal(FailureCode.NUMERICAL_ERROR, NUMERICAL)
