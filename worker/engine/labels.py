"""What a call is called where it is remembered beyond this process: see `service.contract.costs`."""

from __future__ import annotations

from service.contract.catalog import DType
from service.contract.costs import CallKind, CallLabel, short_digest
from service.contract.generation import GenerationSpec
from worker.pipelines.loading import LoadedModel


def prompts_label(model: LoadedModel, *, prompts: int) -> CallLabel:
    """Return the label of encoding a request's prompts: one, or two with the negative one that guidance takes."""
    return _label(model, "prompts", tokens=prompts * model.card.max_prompt_tokens)


def denoise_label(model: LoadedModel, spec: GenerationSpec, *, tokens: int) -> CallLabel:
    """Return the label of a denoiser's calls; `tokens` of its prompt embeddings."""
    return _label(model, "denoise", size_px=(spec.width, spec.height), tokens=tokens)


def encode_label(model: LoadedModel, spec: GenerationSpec, *, rows_each: int, in_float32: bool) -> CallLabel:
    """Return the label of encoding an input picture; `rows_each`: what one counts for."""
    return _picture_label(model, spec, "encode", rows_each, in_float32=in_float32)


def decode_label(model: LoadedModel, spec: GenerationSpec, *, rows_each: int, in_float32: bool) -> CallLabel:
    """Return the label of decoding latents; `rows_each`: what one picture counts for."""
    return _picture_label(model, spec, "decode", rows_each, in_float32=in_float32)


def _picture_label(
    model: LoadedModel, spec: GenerationSpec, kind: CallKind, rows_each: int, *, in_float32: bool
) -> CallLabel:
    size_px = (spec.width, spec.height)
    return _label(model, kind, size_px=size_px, rows_each=rows_each, dtype="float32" if in_float32 else None)


def _label(
    model: LoadedModel,
    kind: CallKind,
    *,
    size_px: tuple[int, int] = (0, 0),
    tokens: int = 0,
    rows_each: int = 1,
    dtype: DType | None = None,
) -> CallLabel:
    return CallLabel(
        model=model.card.id,
        sha256=short_digest(model.card),
        kind=kind,
        width_px=size_px[0],
        height_px=size_px[1],
        tokens=tokens,
        dtype=dtype or model.card.dtype,
        rows_each=rows_each,
    )
