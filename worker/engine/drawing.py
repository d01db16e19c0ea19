"""One request, from its message to its pictures."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import diffusers
import numpy as np
import PIL.Image
import torch
import transformers
from numpy.typing import NDArray

from service.contract.engine import Finished, Generate, ImageDrawn, Phase, PhaseStarted, StepDone
from service.contract.errors import FailureCode
from service.contract.generation import Receipt
from worker.engine.calls import DenoiserCall
from worker.engine.channel import Send
from worker.engine.faults import Fault, classify, free_memory
from worker.engine.labels import denoise_label
from worker.engine.phases import Phases
from worker.engine.previewing import Previewer
from worker.engine.speed import speed_of
from worker.engine.strands import SharedWork, gather, share
from worker.engine.works import LatentsWork, PictureWork, PromptWork
from worker.pipelines import stages, tasks
from worker.pipelines.errors import Refusal
from worker.pipelines.loading import LoadedModel, Pipeline
from worker.pipelines.stages import Embeddings

T = TypeVar("T")

#: In a receipt: the autoencoder ran in float32 though the model is kept in another format.
VAE_FLOAT32 = "vae-float32"

NUMERICAL = "The model gave no finite picture for this request; other settings or another seed may do."
_NO_MEMORY = "The device ran out of memory, also when the request was drawn alone; ask for a smaller picture."


class Drawing:
    """One execution: draws its images and tells the agent of every step.

    As a strand of a batch it shares its calls with other executions, and its images take turns; outside of one it draws
    them one after the other. Image i comes from seed + i and from nothing else, so that it is the same in whatever
    company it is drawn. All images share the encoded prompts. A fault leaves the model usable for the next execution.
    """

    def __init__(
        self,
        model: LoadedModel,
        request: Generate,
        buffers: Sequence[bytes],
        *,
        send: Send,
        is_canceled: Callable[[], bool],
    ) -> None:
        self._model = model
        self._spec = request.spec
        self._execution_id = request.execution_id
        self._image, self._mask = _pictures(request, buffers)
        self._send = send
        self._is_canceled = is_canceled
        self._phases = Phases(self._tell_phase, request.spec.num_images)
        self._previewer = Previewer(model, request, send=send)
        self._degraded: set[str] = set()
        self._scheduler_sha256 = ""
        self._calls_per_image = 0
        #: Denoiser calls done, by image.
        self._done = [0] * self._spec.num_images
        self._alone = request.alone or self._spec.deterministic
        self._waits_for_compiler = False

    @torch.no_grad()
    def run(self) -> Finished:
        """Draw and send every image; return the closing message. Raises `Refusal` when there is none to send."""
        self._stop_if_canceled()
        tasks.check_supported(self._model, self._spec)
        stages.check_prompts(self._model, self._spec)
        self._calls_per_image = tasks.count_calls(self._model, self._spec)
        self._phases.enter("encode")
        embeddings = self._with_room(self._encode)
        self._phases.leave()
        self._draw_all([functools.partial(self._image_of, index, embeddings) for index in range(self._spec.num_images)])
        return self._finished()

    def _draw_all(self, images: Sequence[Callable[[], None]]) -> None:
        gather(images)

    def _finished(self) -> Finished:
        return Finished(
            execution_id=self._execution_id,
            encode_s=self._phases.spent_s("encode"),
            denoise_s=self._phases.spent_s("denoise"),
            decode_s=self._phases.spent_s("decode"),
            receipt=self._receipt(),
        )

    def _encode(self) -> Embeddings:
        cache = speed_of(self._model).embeddings
        known = cache.get(self._spec, exact=self._alone)
        if known is not None:
            return known
        work = PromptWork(self._model, self._spec, alone=self._alone)
        embeddings = share(work)
        cache.put(self._spec, embeddings, exact=work.is_exact)
        return embeddings

    def _image_of(self, index: int, embeddings: Embeddings) -> None:
        pixels = self._with_room(lambda: self._draw(index, embeddings))
        self._phases.leave(index)
        self._tell_image(index, pixels)

    def _draw(self, index: int, embeddings: Embeddings) -> NDArray[np.uint8] | None:
        """Return the pixels of one image, or None when the safety checker holds it back."""
        latents = self._denoise(index, embeddings)
        if not _finite(latents) and self._image is not None and self._tries_float32():
            # The input picture was encoded by the autoencoder first, the one part that is known to overflow.
            latents = self._denoise(index, embeddings, encode_in_float32=True)
        if not _finite(latents):
            raise Refusal(FailureCode.NUMERICAL_ERROR, NUMERICAL)
        self._phases.enter("decode", index)
        self._stop_if_canceled()
        picture = self._decode(latents)
        pixels = _sound_pixels(picture)
        if pixels is None and self._tries_float32():
            picture = self._decode(latents, in_float32=True)
            pixels = _sound_pixels(picture)
        if pixels is None:
            raise Refusal(FailureCode.NUMERICAL_ERROR, NUMERICAL)
        return None if stages.is_flagged(self._model, picture) else pixels

    def _decode(self, latents: torch.Tensor, *, in_float32: bool = False) -> torch.Tensor:
        latents = stages.unscaled(self._model, latents, self._spec.task, in_float32=in_float32)
        wait = self._tell_wait
        work = LatentsWork(self._model, self._spec, latents, in_float32=in_float32, alone=self._alone, on_prepare=wait)
        return self._share(work)

    def _denoise(self, index: int, embeddings: Embeddings, *, encode_in_float32: bool = False) -> torch.Tensor:
        self._phases.enter("encode", index)
        seed = self._spec.seed + index
        pipeline = tasks.task_pipeline(self._model, self._spec, seed=seed)
        self._scheduler_sha256 = self._scheduler_sha256 or config_sha256(pipeline)

        label = denoise_label(self._model, self._spec, tokens=stages.count_tokens(embeddings))

        def call(denoiser: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            self._phases.enter("denoise", index)
            self._stop_if_canceled()
            how = {"alone": self._alone, "runner": speed_of(self._model).runner, "on_prepare": self._tell_wait}
            return self._share(DenoiserCall(denoiser, args, kwargs, label=label, **how))

        def encode(picture: torch.Tensor) -> torch.Tensor:
            return share(PictureWork(self._model, self._spec, picture, alone=self._alone))

        latents = stages.denoise(
            pipeline,
            embeddings,
            tasks.call_arguments(self._model, self._spec, self._image, self._mask),
            seed=seed,
            call=self._previewer.watching(index, pipeline, call),
            encode=encode,
            on_step=lambda step: self._tell_step(index, step),
            encode_in_float32=encode_in_float32,
        )
        return stages.unpacked(self._model, latents, self._spec)

    def _with_room(self, work: Callable[[], T]) -> T:
        """Return what `work` does; where memory runs out, free what can be freed and try once more."""
        try:
            return work()
        except (RuntimeError, MemoryError) as err:
            if classify(err) is not Fault.OUT_OF_MEMORY:
                raise
        speed_of(self._model).give_back()
        free_memory()
        try:
            return work()
        except (RuntimeError, MemoryError) as err:
            if classify(err) is not Fault.OUT_OF_MEMORY:
                raise
            raise Refusal(FailureCode.OUT_OF_MEMORY, _NO_MEMORY) from err

    def _tries_float32(self) -> bool:
        """Return whether float32 is a way out; if so the receipt will say that it was taken."""
        if self._model.dtype == torch.float32:
            return False
        self._degraded.add(VAE_FLOAT32)
        return True

    def _tell_wait(self) -> None:
        """A call of this request must be compiled first: the agent's patience with a step is too short for that."""
        self._waits_for_compiler = True
        self._tell_phase("load")

    def _share(self, work: SharedWork) -> Any:
        result = share(work)
        if self._waits_for_compiler:
            self._waits_for_compiler = False
            self._phases.tell_again()
        return result

    def _stop_if_canceled(self) -> None:
        if self._is_canceled():
            raise Refusal("canceled", "Canceled.")

    def _tell_phase(self, phase: Phase) -> None:
        self._send(PhaseStarted(execution_id=self._execution_id, phase=phase))

    def _tell_step(self, index: int, step: int) -> None:
        self._done[index] = step
        total = self._calls_per_image * self._spec.num_images
        self._send(StepDone(execution_id=self._execution_id, step=sum(self._done), steps=total))
        self._stop_if_canceled()

    def _tell_image(self, index: int, pixels: NDArray[np.uint8] | None) -> None:
        height, width = (self._spec.height, self._spec.width) if pixels is None else pixels.shape[:2]
        message = ImageDrawn(
            execution_id=self._execution_id,
            index=index,
            seed=self._spec.seed + index,
            width_px=width,
            height_px=height,
            flagged=pixels is None,
        )
        self._send(message, [] if pixels is None else [pixels.data.cast("B")])

    def _receipt(self) -> Receipt:
        device = str(self._model.device)
        if self._model.device.type == "cuda":
            device = f"{device} ({torch.cuda.get_device_name(self._model.device)})"
        return Receipt(
            model_sha256=self._model.card.sha256,
            scheduler_config_sha256=self._scheduler_sha256,
            versions=library_versions(),
            device=device,
            dtype=self._model.card.dtype,
            degraded=tuple(sorted(self._degraded)),
        )


def library_versions() -> dict[str, str]:
    """Return the versions that decide what a picture looks like."""
    return {"diffusers": diffusers.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


def _pictures(request: Generate, buffers: Sequence[bytes]) -> tuple[PIL.Image.Image | None, PIL.Image.Image | None]:
    """Return picture (RGB) and mask (8 bit grey) of the request, or raise `Refusal` where they do not fit its task."""
    modes = {"text-to-image": (), "image-to-image": ("RGB",), "inpaint": ("RGB", "L")}[request.spec.task]
    size = (request.spec.width, request.spec.height)
    if len(buffers) != len(modes) or any(given != size for given in request.sizes_px):
        message = f"{request.spec.task} takes {len(modes)} pictures of {size[0]}×{size[1]} px."
        raise Refusal(FailureCode.INVALID_INPUT, message)
    found: list[PIL.Image.Image | None] = [None, None]
    for n, (mode, pixels) in enumerate(zip(modes, buffers, strict=True)):
        if len(pixels) != size[0] * size[1] * len(mode):
            raise Refusal(FailureCode.INVALID_INPUT, f"Picture {n} is not {mode} of {size[0]}×{size[1]} px.")
        found[n] = PIL.Image.frombytes(mode, size, pixels)
    return found[0], found[1]


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _sound_pixels(picture: torch.Tensor) -> NDArray[np.uint8] | None:
    """Return the pixels, or None where there is no picture: not finite, or black all over, as overflows end."""
    if not _finite(picture):
        return None
    pixels = stages.to_pixels(picture)
    return pixels if pixels.any() else None


def config_sha256(pipeline: Pipeline) -> str:
    """Return the checksum of the config of a pipeline's sampler."""
    return hashlib.sha256(pipeline.scheduler.to_json_string().encode()).hexdigest()
