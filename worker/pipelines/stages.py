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
from service.contract.generation import GenerationSpec, Task
from worker.pipelines.errors import Refusal
from worker.pipelines.families.family import Embeddings
from worker.pipelines.loading import LoadedModel, Pipeline
from worker.pipelines.tasks import family_of

#: One call of a denoiser, as the pipeline makes it: the module, then its positional and keyword arguments.
CallDenoiser = Callable[..., Any]
#: From a picture (1, 3, height, width) in [-1, 1] to the moments of its latents, (1, 2 × channels, height / f,
#: width / f), f being the autoencoder's factor.
EncodePicture = Callable[[torch.Tensor], torch.Tensor]


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


class Encoder:
    """Stands in for a pipeline's autoencoder: pictures are encoded by a function of ours.

    Pipelines of SDXL cast their autoencoder to float32 and back around a call. Here a cast is noted and not made: other
    requests use the autoencoder meanwhile.
    """

    def __init__(self, vae: Any, encode: EncodePicture, *, in_float32: bool) -> None:
        """`in_float32`: encode so whatever the pipeline asks for; the moments are handed back in its format."""
        self._vae = vae
        self._encode = encode
        self._in_float32 = in_float32
        self.dtype: torch.dtype = vae.dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def to(self, dtype: torch.dtype) -> Encoder:
        """Note the number format of what is encoded from now on."""
        self.dtype = dtype
        return self

    def encode(self, picture: torch.Tensor) -> AutoencoderKLOutput:
        """Return the distribution of the latents of a picture (1, 3, height, width) in [-1, 1]."""
        moments = self._encode(picture.to(torch.float32 if self._in_float32 else self.dtype))
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments.to(picture.dtype)))


def check_prompts(model: LoadedModel, spec: GenerationSpec) -> None:
    """Raise `Refusal` when a prompt is longer than the text encoders read: diffusers would cut it."""
    limit = model.card.max_prompt_tokens
    for name, text in (("prompt", spec.prompt), ("negative_prompt", spec.negative_prompt)):
        tokenizers = family_of(model).tokenizers(model.pipeline)
        count = max(_count_tokens(tokenizer, text) for tokenizer in tokenizers)
        if count > limit:
            message = f"The {name} has {count} tokens; the model {model.card.id} reads at most {limit}. Shorten it."
            raise Refusal(FailureCode.PROMPT_TOO_LONG, message)


def is_guided(model: LoadedModel, spec: GenerationSpec) -> bool:
    """Return whether classifier-free guidance takes a second row for the negative prompt."""
    return spec.guidance_scale > 1 and model.card.takes_negative_prompt


def encode_prompts(model: LoadedModel, specs: Sequence[GenerationSpec]) -> list[Embeddings]:
    """Return each request's prompt embeddings, of one row each; they serve every image of it.

    The requests are alike in being guided or not, and in having a negative prompt or not. An empty negative prompt is
    none at all: SDXL then takes zeros, as its config says, not an encoded empty text.
    """
    first = specs[0]
    family = family_of(model)
    encoded = family.encode(
        model.pipeline,
        [spec.prompt for spec in specs],
        [spec.negative_prompt for spec in specs] if first.negative_prompt else None,
        guided=is_guided(model, first),
        device=model.device,
    )
    named = dict(zip(family.embeddings, encoded, strict=True))
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
    encode: EncodePicture,
    on_step: Callable[[int], None],
    encode_in_float32: bool = False,
) -> torch.Tensor:
    """Return the latents of one image, as its pipeline has them (see `unpacked`).

    Every denoiser call goes through `call`, every picture to be encoded through `encode`; `on_step` gets the number of
    steps done after each. All may raise to end the image; the model stays usable. All noise comes from one CPU
    generator, so that the picture does not depend on the device or on the images beside it.
    """

    def step_done(_pipeline: Pipeline, step: int, _timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
        on_step(step + 1)
        return {}

    # Past the pipeline's own attribute hook, which takes nothing but registered modules.
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    object.__setattr__(pipeline, name, Denoiser(getattr(pipeline, name), call))
    object.__setattr__(pipeline, "vae", Encoder(pipeline.vae, encode, in_float32=encode_in_float32))
    result = pipeline(
        **embeddings,
        **arguments,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="latent",
        callback_on_step_end=step_done,
    )
    return result.images


def unpacked(model: LoadedModel, latents: torch.Tensor, spec: GenerationSpec) -> torch.Tensor:
    """Return a pipeline's latents as (n, channels, height / f, width / f), f being the autoencoder's factor."""
    return family_of(model).unpacked(latents, model.pipeline, width_px=spec.width, height_px=spec.height)


def encode_pictures(model: LoadedModel, pictures: torch.Tensor) -> torch.Tensor:
    """Return the moments of the latents of pictures (n, 3, height, width) in [-1, 1], computed in their format."""
    vae = model.pipeline.vae
    try:
        _cast(vae, pictures.dtype)
        return vae.encode(pictures).latent_dist.parameters
    finally:
        _cast(vae, model.dtype)


def unscaled(model: LoadedModel, latents: torch.Tensor, task: Task, *, in_float32: bool = False) -> torch.Tensor:
    """Return unpacked latents as the autoencoder takes them: at its scale, in the format in which it will run.

    float16 autoencoders whose config asks for it run in float32, as in diffusers; `in_float32` lets any.
    """
    family, vae = family_of(model), model.pipeline.vae
    if in_float32 or family.decodes_in_float32(vae):
        latents = latents.float()
    return family.unscaled(latents, vae, task)


def decode_unscaled(
    model: LoadedModel, latents: torch.Tensor, *, decoder: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.Tensor:
    """Return the pictures of `unscaled` latents, (n, 3, height, width) in [-1, 1] or a little outside.

    `decoder` does what the autoencoder's own `decode` would.
    """
    vae = model.pipeline.vae
    try:
        _cast(vae, latents.dtype)
        return vae.decode(latents, return_dict=False)[0] if decoder is None else decoder(latents)
    finally:
        _cast(vae, model.dtype)


def _cast(vae: Any, dtype: torch.dtype) -> None:
    """Bring the autoencoder to a number format; to float32 and back to the model's own loses nothing.

    Every weight is looked at: memory may have run out in the middle of an earlier cast.
    """
    if any(weight.dtype != dtype for weight in vae.parameters()):
        vae.to(dtype=dtype)


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


def _count_tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)
