"""What requests share besides denoiser calls: prompts and pictures to encode, latents to decode."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence

import torch

from service.contract.generation import GenerationSpec
from worker.engine.keys import Alone
from worker.engine.labels import decode_label, encode_label, prompts_label
from worker.engine.lessons import Lesson
from worker.engine.speed import decode_padded, speed_of
from worker.pipelines import stages
from worker.pipelines.loading import LoadedModel
from worker.pipelines.stages import Embeddings

#: A 512 px picture, and its latents in Stable Diffusion: encoding or decoding one counts as 16 rows, so that two go
#: into a CPU's call.
LATENTS_OF_512_PX = 64 * 64
PIXELS_OF_512_PX = 512 * 512


class PromptWork:
    """The prompts of one request, to be encoded."""

    rows = 1

    def __init__(self, model: LoadedModel, spec: GenerationSpec, *, alone: bool) -> None:
        """`alone`: share the text encoders with no other request."""
        #: Whether it was done alone, asked for or not: the embeddings are then diffusers' to the bit.
        self.is_exact = False
        self._model, self.spec = model, spec
        guided = stages.is_guided(model, spec)
        self.label = prompts_label(model, prompts=1 + guided)
        alike = (id(model.pipeline), "prompts", guided, bool(spec.negative_prompt))
        self.key: Hashable = Alone(alike) if alone else alike

    def alone(self) -> Embeddings:
        """Return the embeddings, exactly as the stock pipeline makes them."""
        self.is_exact = True
        return stages.encode_prompts(self._model, [self.spec])[0]

    def together(self, works: Sequence[PromptWork]) -> list[Embeddings]:
        """Return the embeddings of each."""
        return stages.encode_prompts(self._model, [work.spec for work in works])


class PictureWork:
    """An input picture, (1, 3, height, width) in [-1, 1], to be encoded in its number format."""

    def __init__(self, model: LoadedModel, spec: GenerationSpec, picture: torch.Tensor, *, alone: bool) -> None:
        """`alone`: encode nothing else in the same call."""
        self._model, self.picture = model, picture
        self.rows = max(1, 16 * picture.shape[-2] * picture.shape[-1] // PIXELS_OF_512_PX)
        in_float32 = picture.dtype == torch.float32
        self.label = encode_label(model, spec, rows_each=self.rows, in_float32=in_float32)
        alike = (id(model.pipeline), "pictures", tuple(picture.shape[1:]), picture.dtype)
        self.key: Hashable = Alone(alike) if alone else alike

    def alone(self) -> torch.Tensor:
        """Return the moments of its latents, exactly as the stock pipeline gets them."""
        return stages.encode_pictures(self._model, self.picture)

    def together(self, works: Sequence[PictureWork]) -> list[torch.Tensor]:
        """Return the moments of each."""
        joined = torch.cat([work.picture for work in works])
        return list(stages.encode_pictures(self._model, joined).split(1))


class LatentsWork:
    """The unscaled latents of one image, (1, channels, height / f, width / f), to be decoded in their own format."""

    def __init__(
        self,
        model: LoadedModel,
        spec: GenerationSpec,
        latents: torch.Tensor,
        *,
        in_float32: bool,
        alone: bool,
        on_prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """`in_float32`: they are, whatever the model is kept in. `alone`: decode nothing else in the same call.

        `on_prepare` is called where the decoder must first be compiled, which takes up to minutes.
        """
        self._model, self.latents = model, latents
        # A decoder's memory grows with the picture as no other's: a large one counts as many rows.
        self.rows = max(1, 16 * latents.shape[-2] * latents.shape[-1] // LATENTS_OF_512_PX)
        self.label = decode_label(model, spec, rows_each=self.rows, in_float32=in_float32)
        alike = (id(model.pipeline), "latents", in_float32, tuple(latents.shape[1:]), latents.dtype)
        speed = speed_of(model)
        self.key: Hashable = Alone(alike) if alone else speed.decode_key(alike, self.rows)
        self._decoder = None if alone or in_float32 else speed.decoder
        self.on_prepare = on_prepare
        self.lesson = Lesson.EVERYTHING

    def alone(self) -> torch.Tensor:
        """Return the picture, (1, 3, height, width); not shared by wish exactly as the stock pipeline decodes it."""
        return self._decoded([self])

    def together(self, works: Sequence[LatentsWork]) -> list[torch.Tensor]:
        """Return the picture of each."""
        return list(self._decoded(works).split(1))

    def _decoded(self, works: Sequence[LatentsWork]) -> torch.Tensor:
        latents = works[0].latents if len(works) == 1 else torch.cat([work.latents for work in works])
        decoder = None
        if self._decoder is not None:
            prepare = functools.partial(self._prepare, works)
            decoder = functools.partial(decode_padded, self._decoder, on_prepare=prepare)
        return stages.decode_unscaled(self._model, latents, decoder=decoder)

    def _prepare(self, works: Sequence[LatentsWork]) -> None:
        self.lesson = Lesson.NOTHING
        for work in works:
            work.on_prepare()
