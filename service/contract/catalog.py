"""Models as operators describe them (`CatalogEntry`) and as callers see them (`ModelCard`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, StringConstraints

from service.contract.generation import Task

DType = Literal["float32", "float16", "bfloat16"]
Family = Literal["sd1", "sd2", "sdxl", "lcm", "sd3", "flux", "flux_fill", "other"]
#: `batched`: many requests share its calls. `whole`: it draws one request at a time, and shares nothing.
Execution = Literal["batched", "whole"]
#: Where a model's modules wait while they do not compute: on the device, or in the machine's memory, brought to the
#: device as wholes or layer by layer.
Offload = Literal["none", "model", "sequential"]
#: What a request may say, and a model may have no use for.
UnusedField = Literal["negative_prompt", "guidance_scale", "guidance_rescale", "eta", "sigmas"]

ModelId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
PoolName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SamplingDefaults(_Frozen):
    """What a request gets that does not say otherwise; None = derived from the model's own configs."""

    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    strength: float | None = None


class Limits(_Frozen):
    """What one request may ask for."""

    #: Sides in px, inclusive.
    min_side_px: PositiveInt = 64
    max_side_px: PositiveInt = 1536
    #: width × height, px².
    max_pixels: PositiveInt = 1536 * 1536
    max_steps: PositiveInt = 150
    max_images: PositiveInt = 4


class StepRange(_Frozen):
    """Denoising steps that a sampler can do, inclusive."""

    min_steps: PositiveInt
    max_steps: PositiveInt


class EngineOptions(_Frozen):
    """How the engine runs a model, for speed or memory.

    Pictures differ by rounding. To those of `deterministic` requests only `channels_last` and the reuse of prompts that
    were encoded alone apply.
    """

    #: Weights of convolutions with the channels innermost, as tensor cores want them; slower on CPUs.
    channels_last: bool = False
    #: `torch.compile` of the denoiser and the decoder; seconds to minutes for every size and width of call, once.
    compile: bool = False
    #: Denoiser calls that come often are recorded as CUDA graphs and repeated; CUDA only.
    graphs: bool = False
    #: Most pictures of one decode; None = as many as fit.
    vae_batch: PositiveInt | None = None
    #: Encoded prompts that are kept; 0 = none.
    embedding_cache: int = Field(default=256, ge=0, le=65_536)
    #: Where its modules wait while they do not compute. Needs a GPU or another accelerator; the model then draws one
    #: request at a time.
    offload: Offload = "none"


class CatalogEntry(_Frozen):
    """One model of `models.yaml`."""

    id: ModelId
    #: A folder in diffusers layout, or a hub id (`owner/name`).
    source: str
    #: A revision of the hub repository; pin it in production.
    revision: str | None = None
    #: File variant, e.g. `fp16`.
    variant: str | None = None
    #: One sentence for `GET /v1/models`.
    description: str = ""
    pool: PoolName = "default"
    #: `auto` = bfloat16 on GPUs that have it, else float16 on GPUs, float32 on CPUs.
    dtype: DType | Literal["auto"] = "auto"
    #: `auto` = cuda, then mps, then cpu.
    device: str = "auto"
    #: An `AutoencoderTiny` for previews: a folder or a hub id; None = previews of one pixel a latent.
    preview_decoder: str | None = None
    #: Exactly one model is the default of requests that name none.
    default: bool = False
    defaults: SamplingDefaults = SamplingDefaults()
    limits: Limits = Limits()
    options: EngineOptions = EngineOptions()


class ModelCard(_Frozen):
    """A loadable model with everything a gateway must know to validate a request."""

    id: ModelId
    description: str = ""
    family: Family
    pool: PoolName
    default: bool = False
    tasks: tuple[Task, ...]
    #: Sides must be multiples of this.
    size_step_px: PositiveInt
    width: PositiveInt
    height: PositiveInt
    steps: PositiveInt
    guidance_scale: FiniteFloat
    #: The folder's own sampler by its name in `SCHEDULERS`, or `OWN_SCHEDULER` where the table has none of its class;
    #: asked for, it runs with the folder's config unchanged.
    scheduler: str
    schedulers: tuple[str, ...]
    #: Samplers that cannot do every number of steps, and what they can with this model.
    step_ranges: dict[str, StepRange] = {}
    strength: float = Field(default=0.8, gt=0, le=1)
    limits: Limits
    #: Most tokens of a prompt, start and end marks not counted.
    max_prompt_tokens: PositiveInt = 75
    safety_checker: bool = False
    execution: Execution = "batched"
    #: Fields that may not differ from their defaults: they would do nothing.
    unused_fields: tuple[UnusedField, ...] = ()
    #: Tasks in which `guidance_rescale` does something.
    rescaled_tasks: tuple[Task, ...] = ("text-to-image", "image-to-image", "inpaint")
    dtype: DType
    sha256: str

    @property
    def takes_negative_prompt(self) -> bool:
        """Whether guidance above 1 is classifier-free: each picture takes a second row, for the negative prompt."""
        return "negative_prompt" not in self.unused_fields
