"""What a caller may ask for. Types and absolute bounds are here; what a model allows is in `specification`.

Numbers are strict: `true`, `"12"` and `7.0` are no integers. Absent and null mean the same.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from service.contract.events import WebhookEvent
from service.contract.generation import SEED_MAX, ImageFormat, SigmaSpacing, Task
from service.contract.job import Priority
from service.net.urls import URL_MAX_CHARS

#: s; deadlines and retention are whole seconds.
WEEK_S = 7 * 86_400

PROMPT_MAX_CHARS = 8000
WEBHOOK_URL_MAX_CHARS = 2048
LABELS_MAX = 16
RETAIN_MAX_S = 10 * 365 * 86_400


#: The type of the error of an asset with none of its fields, or several.
ONE_KIND = "one_kind"


def _unit(unit: str) -> dict[str, Any]:
    """Note a field's unit in its schema, where messages find it too."""
    return {"x-unit": unit}


class _Strict(BaseModel):
    # An error's text would repeat the prompt: `hide_input_in_errors` keeps it out of every traceback.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True)


#: The ways to give an input picture, which are the fields of an asset.
AssetKind = Literal["base64", "url", "upload_id"]


class Asset(_Strict):
    """An input picture: PNG, JPEG or WebP, one frame. Exactly one field says where it is."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    base64: Annotated[
        str | None, Field(min_length=1, description="The file, in standard base64 (RFC 4648 §4) with padding.")
    ] = None
    url: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=URL_MAX_CHARS,
            description="Where the file is: https, on a host of the public internet. It is fetched when the request "
            "is accepted, after at most three redirects.",
            examples=["https://example.com/photo.jpg"],
        ),
    ] = None
    upload_id: Annotated[
        str | None, Field(min_length=1, max_length=64, description="An upload of yours: see `POST /v1/uploads`.")
    ] = None

    @property
    def kind(self) -> AssetKind | Literal["file"]:
        """The one field that is given."""
        return next(name for name in get_args(AssetKind) if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _is_one(self) -> Asset:
        if self._given() != 1:
            raise PydanticCustomError(ONE_KIND, "exactly one field")
        return self

    def _given(self) -> int:
        return sum(getattr(self, name) is not None for name in get_args(AssetKind))


class FileAsset(Asset):
    """An input picture that came along as a file. No JSON becomes one: fields are validated as what they are below."""

    data: Annotated[bytes, Field(repr=False)]

    @property
    def kind(self) -> Literal["file"]:
        """None of the fields."""
        return "file"

    def _given(self) -> int:
        return 1


class OutputRequest(_Strict):
    """How pictures are encoded."""

    format: Annotated[ImageFormat | None, Field(description="Default: png.")] = None
    quality: Annotated[
        int | None, Field(ge=1, le=100, description="For jpeg and webp; png is lossless and has none. Default: 90.")
    ] = None
    embed_parameters: Annotated[
        bool | None,
        Field(description="Write the request into the file, hidden prompts and all, for whoever gets it. Default: no."),
    ] = None


class WebhookRequest(_Strict):
    """Where a generation's events are sent."""

    url: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=WEBHOOK_URL_MAX_CHARS,
            description="https, on a host of the public internet. This exact text is the endpoint. "
            "Default: that of the key, where it has one.",
            examples=["https://example.com/darkroom"],
        ),
    ] = None
    events: Annotated[
        list[WebhookEvent] | None,
        Field(
            max_length=3,
            description="`started`; `progress`, every 5 s at most; `completed`: it ended, in whichever way. None: "
            "nothing is sent. Default: those of the key with its URL, `completed` alone with another.",
        ),
    ] = None


LabelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
LabelValue = Annotated[str, StringConstraints(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]

_EXAMPLE = {"prompt": "a red circle on a blue background", "seed": 7, "steps": 20}


class GenerationRequest(_Strict):
    """The body of `POST /v1/generations`."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    task: Annotated[Task | None, Field(description="Default: text-to-image.")] = None
    model: Annotated[
        str | None, Field(min_length=1, max_length=64, description="An id of `GET /v1/models`; absent = the default.")
    ] = None
    prompt: Annotated[str, Field(max_length=PROMPT_MAX_CHARS, json_schema_extra=_unit("characters"))]
    negative_prompt: Annotated[
        str | None, Field(max_length=PROMPT_MAX_CHARS, json_schema_extra=_unit("characters"))
    ] = None
    width: Annotated[
        int | None,
        Field(ge=8, le=16384, json_schema_extra=_unit("px"), description="A multiple of the model's size_step_px."),
    ] = None
    height: Annotated[
        int | None,
        Field(ge=8, le=16384, json_schema_extra=_unit("px"), description="A multiple of the model's size_step_px."),
    ] = None
    steps: Annotated[int | None, Field(ge=1, le=1000, json_schema_extra=_unit("denoising steps"))] = None
    guidance_scale: Annotated[
        float | None,
        Field(
            ge=0,
            le=100,
            description="Classifier-free guidance; at 1 and below it is off. Distilled models read it as a number.",
        ),
    ] = None
    guidance_rescale: Annotated[
        float | None, Field(ge=0, le=1, description="φ of Lin et al. 2023, section 3.4. Default: 0.")
    ] = None
    eta: Annotated[
        float | None, Field(ge=0, le=1, description="η of DDIM; other schedulers ignore it. Default: 0.")
    ] = None
    scheduler: Annotated[
        str | None, Field(min_length=1, max_length=64, description="An id of `GET /v1/schedulers`.")
    ] = None
    sigmas: Annotated[
        SigmaSpacing | None, Field(description="Spacing of the noise levels, where the scheduler has a choice.")
    ] = None
    seed: Annotated[
        int | None, Field(ge=0, le=SEED_MAX, description="Image i uses seed + i. Absent = drawn, and reported.")
    ] = None
    num_images: Annotated[
        int | None, Field(ge=1, le=64, json_schema_extra=_unit("images"), description="Default: 1.")
    ] = None
    deterministic: Annotated[
        bool | None,
        Field(description="Share no computation: the same picture to the bit in any company; slower. Default: false."),
    ] = None
    image: Annotated[Asset | None, Field(description="For image-to-image and inpaint.")] = None
    mask: Annotated[Asset | None, Field(description="For inpaint: white is drawn anew.")] = None
    strength: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="Denoising strength: min(int(steps × strength), steps) steps run; SD 3 and FLUX round up.",
        ),
    ] = None
    output: OutputRequest | None = None
    priority: Annotated[Priority | None, Field(description="Capped by the tenant's highest. Default: normal.")] = None
    start_within_s: Annotated[
        int | None, Field(ge=1, le=WEEK_S, json_schema_extra=_unit("s"), description="Not started by then: expired.")
    ] = None
    finish_within_s: Annotated[
        int | None, Field(ge=1, le=WEEK_S, json_schema_extra=_unit("s"), description="Not ended by then: expired.")
    ] = None
    retain_s: Annotated[
        int | None,
        Field(
            ge=60,
            le=RETAIN_MAX_S,
            json_schema_extra=_unit("s"),
            description="How long the record and the pictures are kept after the end; the server may allow less.",
        ),
    ] = None
    webhook: Annotated[
        WebhookRequest | None, Field(description="Be told what happens to it. Default: as the key says.")
    ] = None
    labels: Annotated[
        dict[LabelName, LabelValue] | None,
        Field(max_length=LABELS_MAX, json_schema_extra=_unit("pairs"), description="Echoed back, and filterable."),
    ] = None

    @property
    def refers_to_pictures(self) -> bool:
        """Whether a picture is named, and not given."""
        return any(asset is not None and asset.kind in {"url", "upload_id"} for asset in (self.image, self.mask))


#: Names that people know from elsewhere, and what to say to them.
FOREIGN_FIELDS: dict[str, str] = {
    "image_url": 'its name here is image: {"url": "…"}',
    "num_inference_steps": "its name here is steps",
    "cfg_scale": "its name here is guidance_scale",
    "sampler": "its name here is scheduler",
    "sampler_name": "its name here is scheduler",
    "denoising_strength": "its name here is strength",
    "n": "its name here is num_images",
    "init_image": "its name here is image",
    "mask_image": "its name here is mask",
    "webhook_url": 'its name here is webhook: {"url": "…"}',
    "webhook_events_filter": 'its name here is webhook: {"url": "…", "events": […]}',
}
