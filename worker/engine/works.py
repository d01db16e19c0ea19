"""What requests share besides denoiser calls: prompts to encode, latents to decode."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from service.contract.generation import GenerationSpec
from worker.engine.keys import Alone
from worker.engine.labels import decode_label, prompts_label
from worker.pipelines import stages
from worker.pipelines.loading import LoadedModel
from worker.pipelines.stages import Embeddings

#: Latents of a 512 px picture of Stable Diffusion; its decoding counts as 16 rows, so that two go into a CPU's call.
LATENTS_OF_512_PX = 64 * 64


class PromptWork:
    """The prompts of one request, to be encoded."""

    rows = 1

    def __init__(self, model: LoadedModel, spec: GenerationSpec, *, alone: bool) -> None:
        """`alone`: share the text encoders with no other request."""
        self._model, self.spec = model, spec
        guided = stages.is_guided(model, spec)
        self.label = prompts_label(model, prompts=1 + guided)
        alike = (id(model.pipeline), "prompts", guided, bool(spec.negative_prompt))
        self.key: Hashable = Alone(alike) if alone else alike

    def alone(self) -> Embeddings:
        """Return the embeddings, exactly as the stock pipeline makes them."""
        return stages.encode_prompts(self._model, [self.spec])[0]

    def together(self, works: Sequence[PromptWork]) -> list[Embeddings]:
        """Return the embeddings of each."""
        return stages.encode_prompts(self._model, [work.spec for work in works])


class LatentsWork:
    """The unscaled latents of one image, (1, channels, height / f, width / f), to be decoded in their own format."""

    def __init__(
        self, model: LoadedModel, spec: GenerationSpec, latents: torch.Tensor, *, in_float32: bool, alone: bool
    ) -> None:
        """`in_float32`: they are, whatever the model is kept in. `alone`: decode nothing else in the same call."""
        self._model, self.latents = model, latents
        # A decoder's memory grows with the picture as no other's: a large one counts as many rows.
        self.rows = max(1, 16 * latents.shape[-2] * latents.shape[-1] // LATENTS_OF_512_PX)
        self.label = decode_label(model, spec, rows_each=self.rows, in_float32=in_float32)
        alike = (id(model.pipeline), "latents", tuple(latents.shape[1:]), latents.dtype)
        self.key: Hashable = Alone(alike) if alone else alike

    def alone(self) -> torch.Tensor:
        """Return the picture, (1, 3, height, width), exactly as the stock pipeline decodes it."""
        return stages.decode_unscaled(self._model, self.latents)

    def together(self, works: Sequence[LatentsWork]) -> list[torch.Tensor]:
        """Return the picture of each."""
        joined = torch.cat([work.latents for work in works])
        return list(stages.decode_unscaled(self._model, joined).split(1))
