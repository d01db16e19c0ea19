"""What the agent and its engine child say to each other.

    agent → child    Remember · LoadModel · Generate · Cancel · Shutdown
    child → agent    Hello · ModelLoading · ModelLoaded · ModelCold · ModelFailed
                     PhaseStarted · StepDone · PreviewDrawn · ImageDrawn · Finished · Refused · Measured

One `Generate` is answered by any number of `PhaseStarted`, `StepDone`, `PreviewDrawn` and `ImageDrawn`, then by exactly
one of `Finished` and `Refused`, unless the child dies. Pixels travel as raw buffers beside the message (see `framing`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from service.contract.catalog import CatalogEntry, ModelCard
from service.contract.costs import MAX_KEPT, MAX_MEASURED, CallCost, MeasuredCost
from service.contract.errors import FailureCode
from service.contract.generation import GenerationSpec, Receipt
from service.contract.previews import PREVIEW_SIDE_PX

Phase = Literal["load", "encode", "denoise", "decode"]


class _Message(BaseModel):
    # An error would quote the prompt into a traceback.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class LoadModel(_Message):
    """Serve this model: read it into memory where there is room, else when it is wanted."""

    type: Literal["load_model"] = "load_model"
    entry: CatalogEntry


class Remember(_Message):
    """What calls cost engines on devices like this one, as far as it is known. Comes soon after `Hello`."""

    type: Literal["remember"] = "remember"
    costs: tuple[CallCost, ...] = Field(max_length=MAX_KEPT)


class Generate(_Message):
    """Draw. Buffers: the picture (height × width × 3, uint8 RGB), then the mask (height × width, uint8), if any."""

    type: Literal["generate"] = "generate"
    execution_id: str
    spec: GenerationSpec
    #: Width and height of each buffer, px.
    sizes_px: tuple[tuple[int, int], ...] = ()
    #: Share no denoiser call with any other request.
    alone: bool = False
    #: Least s between two previews of the first picture; 0 = none are made.
    previews_s: float = 0.0


class Cancel(_Message):
    """Stop this execution at its next step; an unknown one is ignored."""

    type: Literal["cancel"] = "cancel"
    execution_id: str


class Shutdown(_Message):
    """Exit now; what runs is dropped."""

    type: Literal["shutdown"] = "shutdown"


class Hello(_Message):
    """The child has imported its libraries and takes messages."""

    type: Literal["hello"] = "hello"
    pid: int
    device: str
    #: The kind of device, by which costs are kept: `NVIDIA H200`, `cpu: …, 8 threads`; empty = keep none.
    device_name: str = Field(default="", max_length=200)
    #: How many `Generate` may be in flight.
    capacity: int
    versions: dict[str, str]


class ModelLoading(_Message):
    """The model is being read: it was asked to be served, or a request wants it."""

    type: Literal["model_loading"] = "model_loading"
    model: str


class ModelCold(_Message):
    """The model can be drawn with, and is not in memory: it had to make room, or found none."""

    type: Literal["model_cold"] = "model_cold"
    card: ModelCard


class ModelLoaded(_Message):
    """The model is warm."""

    type: Literal["model_loaded"] = "model_loaded"
    card: ModelCard
    seconds: float


class ModelFailed(_Message):
    """The model could not be loaded; the child goes on with the others. One that was cold is so again."""

    type: Literal["model_failed"] = "model_failed"
    model: str
    message: str


class PhaseStarted(_Message):
    """An execution entered a phase."""

    type: Literal["phase_started"] = "phase_started"
    execution_id: str
    phase: Phase


class StepDone(_Message):
    """`step` of `steps` denoiser calls of this execution are done; over all its images."""

    type: Literal["step_done"] = "step_done"
    execution_id: str
    step: int
    steps: int


class PreviewDrawn(_Message):
    """What the first picture will look like, as far as `step` of its calls can tell. Buffer as of `ImageDrawn`."""

    type: Literal["preview_drawn"] = "preview_drawn"
    execution_id: str
    step: int
    width_px: int = Field(ge=1, le=PREVIEW_SIDE_PX)
    height_px: int = Field(ge=1, le=PREVIEW_SIDE_PX)


class ImageDrawn(_Message):
    """One picture. Buffer: height × width × 3, uint8 RGB; none when flagged."""

    type: Literal["image_drawn"] = "image_drawn"
    execution_id: str
    index: int
    seed: int
    width_px: int
    height_px: int
    flagged: bool = False


class Finished(_Message):
    """All pictures of the execution were sent."""

    type: Literal["finished"] = "finished"
    execution_id: str
    #: Waiting for the model to be read into memory.
    load_s: float = 0.0
    #: From the outside: what other requests did in between is in it.
    encode_s: float
    denoise_s: float
    decode_s: float
    #: Its part of the device's time: of every call that it shared, as much as its rows were of all.
    gpu_s: float = 0.0
    receipt: Receipt


class Refused(_Message):
    """The execution ended without its pictures."""

    type: Literal["refused"] = "refused"
    execution_id: str
    code: FailureCode | Literal["canceled"]
    message: str


class Measured(_Message):
    """What calls cost, where that has changed; every few seconds while there are calls."""

    type: Literal["measured"] = "measured"
    costs: tuple[MeasuredCost, ...] = Field(max_length=MAX_MEASURED)


ToEngine = Annotated[LoadModel | Remember | Generate | Cancel | Shutdown, Field(discriminator="type")]
FromEngine = Annotated[
    Hello
    | ModelLoading
    | ModelLoaded
    | ModelCold
    | ModelFailed
    | PhaseStarted
    | StepDone
    | PreviewDrawn
    | ImageDrawn
    | Finished
    | Refused
    | Measured,
    Field(discriminator="type"),
]

TO_ENGINE: TypeAdapter[ToEngine] = TypeAdapter(ToEngine)
FROM_ENGINE: TypeAdapter[FromEngine] = TypeAdapter(FromEngine)
