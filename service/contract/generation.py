"""What to draw, with every default filled in, and what came of it. Crosses every process boundary.

These are read back from Redis while processes of several versions run: each takes what it knows and leaves the rest. So
a new field has a default, which draws what was drawn before there was the field; a model card says who can do more.
What callers send is strict (`service.generations.request`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Task = Literal["text-to-image", "image-to-image", "inpaint"]
SigmaSpacing = Literal["karras", "exponential", "beta"]
ImageFormat = Literal["png", "jpeg", "webp"]

CONTENT_TYPES: dict[ImageFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

#: Largest seed of the contract: every JSON client keeps integers up to here exact.
SEED_MAX = 2**53 - 1


class _Stored(BaseModel):
    # An error would quote the prompt into a traceback.
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class StoredInput(_Stored):
    """An input picture that already lies in storage."""

    key: str
    #: As sniffed from its header by the gateway; the decoder checks again.
    format: ImageFormat
    width_px: int
    height_px: int
    bytes: int
    sha256: str


class Output(_Stored):
    """How pictures are encoded."""

    format: ImageFormat = "png"
    #: 1 … 100 for JPEG and WebP; PNG is lossless and has none.
    quality: int | None = None
    #: Write the request into the file. Off: it would show a product's hidden prompts to its users.
    embed_parameters: bool = False


class GenerationSpec(_Stored):
    """One request as it will be run: nothing is left to a default of a later stage."""

    task: Task
    model: str
    prompt: str
    negative_prompt: str = ""
    width: int
    height: int
    #: Denoising steps asked for; from a picture `service.contract.steps` of them run.
    steps: int
    guidance_scale: float
    guidance_rescale: float = 0.0
    #: DDIM's η (Song et al. 2021, eq. 16); other schedulers ignore it.
    eta: float = 0.0
    #: A name of `service.contract.schedulers.SCHEDULERS`.
    scheduler: str
    #: Noise-level spacing; None = the scheduler's own.
    sigmas: SigmaSpacing | None = None
    #: Image i is drawn from its own CPU generator seeded with `seed + i`.
    seed: int
    num_images: int = 1
    #: Share no computation with other requests: equal to diffusers to the bit, not only to rounding; slower.
    deterministic: bool = False
    image: StoredInput | None = None
    mask: StoredInput | None = None
    #: Denoising strength in (0, 1]; None for text-to-image.
    strength: float | None = None
    output: Output = Output()


class ResultImage(_Stored):
    """One picture of a succeeded job."""

    index: int
    seed: int
    width_px: int
    height_px: int
    #: Withheld by the model's safety checker: nothing was stored.
    flagged: bool = False
    #: Object key in the bucket; None when flagged.
    key: str | None = None
    content_type: str | None = None
    bytes: int | None = None
    sha256: str | None = None


class Timings(_Stored):
    """Where the time went, in seconds; a stage that did not happen is 0."""

    #: Accepted → claimed (last claim).
    queued_s: float = 0.0
    #: Fetching and decoding input pictures.
    inputs_s: float = 0.0
    #: Waiting for a model to be read into memory.
    load_s: float = 0.0
    #: Text and picture encoding on the device.
    encode_s: float = 0.0
    denoise_s: float = 0.0
    #: Latents → pixels.
    decode_s: float = 0.0
    #: Pixels → PNG, JPEG or WebP.
    compress_s: float = 0.0
    upload_s: float = 0.0
    #: Engine time spent on this job. Of a call shared with other jobs, the part that its rows were of all.
    gpu_s: float = 0.0


class Receipt(_Stored):
    """What it takes to draw the same picture again elsewhere."""

    #: SHA-256 over the model's weight and config files.
    model_sha256: str
    #: SHA-256 over the scheduler's full config as JSON with sorted keys.
    scheduler_config_sha256: str
    versions: dict[str, str] = Field(default_factory=dict)
    device: str
    dtype: str
    #: Anything done otherwise than asked, e.g. `vae-float32`.
    degraded: tuple[str, ...] = ()
