"""Previews of an execution's first picture, made between its steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from service.contract.engine import Generate, PreviewDrawn
from worker.engine.channel import Send
from worker.engine.faults import report
from worker.pipelines import stages
from worker.pipelines.loading import LoadedModel, Pipeline
from worker.pipelines.prediction import predicted_latents
from worker.pipelines.stages import CallDenoiser


class Previewer:
    """Looks at the denoiser calls of the first picture and sends, now and then, what it will look like.

    It changes nothing of what it sees, and no fault of its own reaches the picture: it only ends the previews.
    """

    def __init__(
        self, model: LoadedModel, request: Generate, *, send: Send, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._model = model
        self._preview = model.preview if request.previews_s > 0 else None
        self._request = request
        self._send = send
        self._clock = clock
        self._last_s = 0.0
        self._step = 0
        self._on_its_way: tuple[int, _HostCopy] | None = None

    def watching(self, index: int, pipeline: Pipeline, call: CallDenoiser) -> CallDenoiser:
        """Return the same call; the ones of the first picture are looked at. The clock starts now."""
        if index > 0 or self._preview is None:
            return call
        self._last_s, self._step, self._on_its_way = self._clock(), 0, None

        def watched(denoiser: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            output = call(denoiser, *args, **kwargs)
            self._step += 1
            try:
                self._look(pipeline, args, kwargs, output)
            except Exception as err:  # noqa: BLE001 - the picture matters, its preview does not
                self._preview = None
                report("preview_failed", err, execution_id=self._request.execution_id)
            return output

        return watched

    def _look(self, pipeline: Pipeline, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._preview is None:
            return
        if self._on_its_way is None and self._clock() - self._last_s >= self._request.previews_s:
            spec = self._request.spec
            latents = predicted_latents(pipeline.scheduler, args, kwargs, output[0], spec.guidance_scale)
            if latents is None:
                self._preview = None
                return
            pixels = self._preview.pixels(stages.unpacked(self._model, latents, spec))
            self._on_its_way = self._step, _HostCopy(pixels)
        if self._on_its_way is not None and self._on_its_way[1].arrived():
            (step, copy), self._on_its_way, self._last_s = self._on_its_way, None, self._clock()
            height_px, width_px, _ = copy.host.shape
            message = PreviewDrawn(
                execution_id=self._request.execution_id, step=step, width_px=width_px, height_px=height_px
            )
            self._send(message, [copy.host.numpy().data.cast("B")])


class _HostCopy:
    """A small tensor on its way to the host. Nobody waits for a GPU: it is there at one of the next steps."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.device.type != "cuda":
            self.host = tensor.cpu()
            return
        self.host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self.host.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(tensor.device))

    def arrived(self) -> bool:
        """Return whether `host` holds it."""
        return self._event is None or self._event.query()
