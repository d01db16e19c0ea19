"""What tells one family of models from another: how its folder is read, and how its pipelines are made and called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from service.contract.catalog import Family, UnusedField
from service.contract.generation import GenerationSpec, Task
from service.contract.schedulers import SCHEDULERS
from worker.pipelines import schedulers
from worker.pipelines.errors import UnusableModel

ALL_TASKS: tuple[Task, ...] = ("text-to-image", "image-to-image", "inpaint")

#: Prompt embeddings of one or several requests, (n, tokens, width) or (n, width) each, by the names of a pipeline's
#: arguments.
Embeddings = dict[str, torch.Tensor | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a model's configs say of it, its samplers aside."""

    family: Family
    tasks: tuple[Task, ...]
    #: Fields of a request that its pipelines have no use for.
    unused_fields: tuple[UnusedField, ...] = ()
    #: Side of one latent pixel in px.
    vae_scale_factor: int
    #: Sides must be multiples of this.
    size_step_px: int
    #: None where the configs do not tell.
    native_width_px: int | None
    native_height_px: int | None
    #: The longest side that the denoiser has positions for; None = any.
    max_side_px: int | None = None
    #: Start and end marks not counted.
    max_prompt_tokens: int
    #: Of requests that do not say.
    steps: int = 30
    guidance_scale: float
    strength: float = 0.8


class PipelineFamily(ABC):
    """Models whose pipelines differ in their weights alone.

    What is said here of a pipeline is said of its stock class in diffusers: the fidelity suite holds both equal.
    """

    #: Tasks and the diffusers classes that do them.
    pipelines: Mapping[Task, type[Any]]
    #: How `encode_prompt` returns what a pipeline takes, in order.
    embeddings: tuple[str, ...] = ("prompt_embeds", "negative_prompt_embeds")
    #: Tasks whose pipelines take `guidance_rescale`.
    rescaled_tasks: frozenset[Task] = frozenset()
    #: Whether its pipelines take η, and hand it to samplers that know it.
    takes_eta: bool = False
    #: Tasks whose pipelines take width and height; the others take those of the picture.
    sized_tasks: frozenset[Task] = frozenset(ALL_TASKS)
    #: What its pipelines are loaded with.
    loading_options: Mapping[str, Any] = {}

    def constructor_options(self, config: Mapping[str, Any], task: Task) -> dict[str, Any]:
        """Return what the class of a task takes besides modules; `config` is that of the folder's pipeline."""
        del config, task
        return {}

    def samplers(self, config: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """Return the public names of the folder's own sampler and of all that draw right, given its config.

        Raises `UnusableModel` where the folder's own is none of the family's.
        """
        class_name = str(config.get("_class_name"))
        own = schedulers.own_name(class_name, config)
        known = self.own_samplers()
        if own is None or own not in known:
            classes = ", ".join(sorted({SCHEDULERS[name].diffusers_class for name in known}))
            raise UnusableModel(f"Its scheduler is {class_name}. Supported are {classes}.")
        return own, self.runnable_samplers(config)

    def own_samplers(self) -> frozenset[str]:
        """Return which samplers a folder may come with."""
        return frozenset(name for name, row in SCHEDULERS.items() if not row.flow)

    def runnable_samplers(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Return which samplers draw what a model was trained for, given the config of the one that it came with."""
        return schedulers.runnable(str(config.get("_class_name")), config)

    def tokenizers(self, pipeline: Any) -> list[Any]:
        """Return the tokenizers whose text encoders must read a prompt whole."""
        found = (getattr(pipeline, name, None) for name in ("tokenizer", "tokenizer_2"))
        return [tokenizer for tokenizer in found if tokenizer is not None]

    def encode(
        self,
        pipeline: Any,
        prompts: list[str],
        negative_prompts: list[str] | None,
        *,
        guided: bool,
        device: torch.device,
    ) -> Sequence[torch.Tensor | None]:
        """Return the embeddings of several prompts, in the order of `embeddings`.

        Without negative prompts a guided request takes what the pipeline takes for none.
        """
        return pipeline.encode_prompt(
            prompt=prompts,
            device=device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided,
            negative_prompt=negative_prompts,
        )

    def call_arguments(self, spec: GenerationSpec) -> dict[str, Any]:
        """Return the arguments of a pipeline's call that numbers of the request decide."""
        arguments: dict[str, Any] = {"num_inference_steps": spec.steps, "guidance_scale": spec.guidance_scale}
        if self.takes_eta:
            arguments["eta"] = spec.eta
        if spec.task in self.rescaled_tasks:
            arguments["guidance_rescale"] = spec.guidance_rescale
        if spec.task in self.sized_tasks:
            arguments |= {"width": spec.width, "height": spec.height}
        if spec.task != "text-to-image":
            arguments["strength"] = spec.strength
        return arguments

    def timestep_options(self, scheduler: Any, strength: float | None) -> dict[str, Any]:
        """Return what a pipeline gives a sampler for its timesteps besides their number."""
        del scheduler, strength
        return {}

    def unpacked(self, latents: torch.Tensor, pipeline: Any, *, width_px: int, height_px: int) -> torch.Tensor:
        """Return a pipeline's latents as (n, channels, height / f, width / f), f being the autoencoder's factor."""
        del pipeline, width_px, height_px
        return latents

    def decodes_in_float32(self, vae: Any) -> bool:
        """Return whether its pipelines compute this autoencoder in float32 for the time of a decoding."""
        del vae
        return False

    @abstractmethod
    def unscaled(self, latents: torch.Tensor, vae: Any, task: Task) -> torch.Tensor:
        """Return latents at the scale of the autoencoder, as the pipeline of the task hands them to it."""
