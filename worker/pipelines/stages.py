"""The stages of one picture: prompts → embeddings → latents → pixels.

Each does what the stock pipeline of diffusers does in one call, in the same order and number format; the fidelity
suite holds the two bit-equal in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from numpy.typing import NDArray

from service.contract.errors import FailureCode
from service.contract.generation import GenerationSpec
from worker.pipelines.errors import Refusal
from worker.pipelines.loading import LoadedModel, Pipeline
from worker.pipelines.tasks import is_xl

#: One call of a denoiser, as the pipeline makes it: the module, then its positional and keyword arguments.
CallDenoiser = Callable[..., Any]
#: Prompt embeddings of one request, (1, tokens, width) or (1, width) each, by the names of a pipeline's arguments.
Embeddings = dict[str, torch.Tensor | None]


class Denoiser:
    """Stands in for a pipeline's denoiser: calls go to a function of ours, everything else to the real module.

    The pipeline runs unmodified; whoever holds the function sees every call before it is made, may time it, refuse it
    by raising, or make it together with the calls of other requests.
    """

    def __init__(self, module: torch.nn.Module, call: CallDenoiser) -> None:
        self._module = module
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._module, *args, **kwargs)


class Float32Encoder:
    """Stands in for a pipeline's autoencoder: pictures are encoded in float32, whatever format the pipeline works in.

    For models whose autoencoder overflows in float16; the moments are handed back in the format asked for.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def to(self, *_args: Any, **_kwargs: Any) -> Float32Encoder:
        """Stay as it is: pipelines of SDXL cast their autoencoder to and fro."""
        return self

    def encode(self, picture: torch.Tensor) -> AutoencoderKLOutput:
        """Return the distribution of the latents of a picture (1, 3, height, width) in [-1, 1].

        The autoencoder is in float32 for the time of the call only: other requests use it while this one denoises.
        """
        dtype = self._vae.dtype
        self._vae.to(dtype=torch.float32)
        try:
            moments = self._vae.encode(picture.float()).latent_dist.parameters
        finally:
            self._vae.to(dtype=dtype)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments.to(picture.dtype)))


def check_prompts(model: LoadedModel, spec: GenerationSpec) -> None:
    """Raise `Refusal` when a prompt is longer than the text encoders read: diffusers would cut it."""
    limit = model.card.max_prompt_tokens
    for name, text in (("prompt", spec.prompt), ("negative_prompt", spec.negative_prompt)):
        count = max(_count_tokens(tokenizer, text) for tokenizer in _tokenizers(model.pipeline))
        if count > limit:
            message = f"The {name} has {count} tokens; the model {model.card.id} reads at most {limit}. Shorten it."
            raise Refusal(FailureCode.PROMPT_TOO_LONG, message)


def is_guided(model: LoadedModel, spec: GenerationSpec) -> bool:
    """Return whether classifier-free guidance takes a second row for the negative prompt."""
    return spec.guidance_scale > 1 and model.pipeline.unet.config.time_cond_proj_dim is None


def encode_prompts(model: LoadedModel, specs: Sequence[GenerationSpec]) -> list[Embeddings]:
    """Return each request's prompt embeddings; they serve every image of it.

    The requests are alike in being guided or not, and in having a negative prompt or not. An empty negative prompt is
    none at all: SDXL then takes zeros, as its config says, not an encoded empty text.
    """
    first = specs[0]
    encoded = model.pipeline.encode_prompt(
        prompt=[spec.prompt for spec in specs],
        device=model.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=is_guided(model, first),
        negative_prompt=[spec.negative_prompt for spec in specs] if first.negative_prompt else None,
    )
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    named = dict(zip(names, encoded, strict=False))
    return [
        {name: None if rows is None else rows[i : i + 1] for name, rows in named.items()} for i in range(len(specs))
    ]


def count_tokens(embeddings: Embeddings) -> int:
    """Return how many tokens a denoised row attends to."""
    rows = embeddings.get("prompt_embeds")
    return 0 if rows is None else rows.shape[1]


def denoise(
    pipeline: Pipeline,
    embeddings: Embeddings,
    arguments: Mapping[str, Any],
    *,
    seed: int,
    call: CallDenoiser,
    on_step: Callable[[int], None],
    encode_in_float32: bool = False,
) -> torch.Tensor:
    """Return the latents of one image, (1, 4, height / f, width / f), f being the autoencoder's factor.

    Every denoiser call goes through `call`; `on_step` gets the number of steps done after each. Either may raise to
    end the image; the model stays usable. All noise comes from one CPU generator, so that the picture does not depend
    on the device or on the images beside it.
    """

    def step_done(_pipeline: Pipeline, step: int, _timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
        on_step(step + 1)
        return {}

    # Past the pipeline's own attribute hook, which takes nothing but registered modules.
    object.__setattr__(pipeline, "unet", Denoiser(pipeline.unet, call))
    if encode_in_float32:
        object.__setattr__(pipeline, "vae", Float32Encoder(pipeline.vae))
    result = pipeline(
        **embeddings,
        **arguments,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="latent",
        callback_on_step_end=step_done,
    )
    return result.images


def decode(model: LoadedModel, latents: torch.Tensor, *, in_float32: bool = False) -> torch.Tensor:
    """Return the pictures of latents, (n, 3, height, width) in [-1, 1] or a little outside.

    float16 autoencoders whose config asks for it are computed in float32, as diffusers does; `in_float32` makes any.
    """
    vae = model.pipeline.vae
    upcast = in_float32 or (is_xl(model) and vae.dtype == torch.float16 and vae.config.force_upcast)
    if upcast:
        vae.to(dtype=torch.float32)
        latents = latents.float()
    scaled = latents / vae.config.scaling_factor
    mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if is_xl(model) and mean is not None and std is not None:
        mean, std = (torch.tensor(v).view(1, 4, 1, 1).to(latents.device, latents.dtype) for v in (mean, std))
        scaled = latents * std / vae.config.scaling_factor + mean
    try:
        return vae.decode(scaled, return_dict=False)[0]
    finally:
        restore_dtype(model)


def restore_dtype(model: LoadedModel) -> None:
    """Bring the autoencoder back to the model's number format; the way to float32 and back loses nothing.

    Due after every image: pipelines of SDXL cast it for a while, and one that raises meanwhile leaves it cast.
    """
    if model.pipeline.vae.dtype != model.dtype:
        model.pipeline.vae.to(dtype=model.dtype)


def is_flagged(model: LoadedModel, picture: torch.Tensor) -> bool:
    """Return whether the model's safety checker, where it has one, holds the picture back."""
    checker = getattr(model.pipeline, "safety_checker", None)
    if checker is None:
        return False
    # A copy: the checker blackens what it flags in place.
    _, flags = model.pipeline.run_safety_checker(picture.clone(), model.device, model.dtype)
    return bool(flags[0])


def to_pixels(picture: torch.Tensor) -> NDArray[np.uint8]:
    """Return the picture as height × width × 3 RGB, contiguous, made on the device so that little is copied."""
    unit = (picture[0] * 0.5 + 0.5).clamp(0, 1)
    return (unit.permute(1, 2, 0).float() * 255).round().to(torch.uint8).contiguous().cpu().numpy()


def _tokenizers(pipeline: Pipeline) -> list[Any]:
    found = (getattr(pipeline, name, None) for name in ("tokenizer", "tokenizer_2"))
    return [tokenizer for tokenizer in found if tokenizer is not None]


def _count_tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)
