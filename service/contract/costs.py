"""What calls of an engine cost: measured by one engine, kept in Redis, told to the next one and to whoever estimates.

A cost is a hint. What is kept comes back from Redis, where anybody may have written: bounds are checked here, and a
figure that lies within them and is wrong makes a call slow, or too wide once.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, StringConstraints

from service.contract.catalog import DType, ModelCard, ModelId

#: What is done for several requests at once: their prompts encoded, their input pictures encoded, one step of theirs
#: denoised, their latents decoded.
CallKind = Literal["prompts", "encode", "denoise", "decode"]

#: Costs that are kept of one kind of device.
MAX_KEPT = 2000
#: Costs of one `Measured`.
MAX_MEASURED = 256

#: Characters of `CallLabel.sha256`: enough to tell a model from its next version.
_DIGEST_CHARACTERS = 12


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CallLabel(_Frozen):
    """What a call computes, in words that mean the same in another process: what has one label costs alike, by row."""

    model: ModelId
    #: The first characters of the card's digest.
    sha256: Annotated[str, StringConstraints(pattern=rf"^[0-9a-f]{{{_DIGEST_CHARACTERS}}}$")]
    kind: CallKind
    #: Of the picture that the latents belong to; 0 for prompts.
    width_px: int = Field(default=0, ge=0, le=1 << 17)
    height_px: int = Field(default=0, ge=0, le=1 << 17)
    #: Of prompt embeddings, for each row that is denoised; of all its prompts, for a request's prompts; 0 for pictures.
    tokens: int = Field(default=0, ge=0, le=1 << 20)
    #: Number format of the computation.
    dtype: DType
    #: Rows that one piece counts for, where that is always the same: a picture that is decoded counts for several.
    rows_each: int = Field(default=1, ge=1, le=1 << 20)


class CallCost(_Frozen):
    """What calls of one label and width took."""

    label: CallLabel
    rows: int = Field(ge=1, le=1 << 24)
    #: Running mean of the device's time for the whole call.
    seconds: float = Field(gt=0, le=86_400, allow_inf_nan=False)
    #: How many calls were measured: their number says what widths are usual.
    calls: int = Field(default=1, ge=1, le=1 << 40)
    #: The most that one of them took beyond what was there before it; None where that cannot be measured.
    peak_bytes: int | None = Field(default=None, ge=1, le=1 << 50)


class MeasuredCost(_Frozen):
    """A cost that has changed, and what was done since it was told last."""

    cost: CallCost
    calls: PositiveInt = Field(le=1_000_000)
    spent_s: float = Field(ge=0, allow_inf_nan=False)


class KeptCost(_Frozen):
    """A cost as it lies in Redis."""

    cost: CallCost
    #: s since 1970, by the clock of the agent that wrote it: the oldest are dropped first.
    kept_s: NonNegativeInt


def short_digest(card: ModelCard) -> str:
    """Return the part of a card's digest that labels carry."""
    return card.sha256[:_DIGEST_CHARACTERS]
