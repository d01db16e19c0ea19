"""A small request to the engine, of which a test says what matters to it."""

from __future__ import annotations

from typing import Any

from service.contract.engine import Generate
from service.contract.generation import GenerationSpec


def tiny_request(
    execution_id: str = "e",
    *,
    sizes_px: tuple[tuple[int, int], ...] = (),
    previews_s: float = 0.0,
    **changes: Any,
) -> Generate:
    """Return a request for four steps of 64 px by the model `tiny`, with changes."""
    spec: dict[str, Any] = {
        "task": "text-to-image",
        "model": "tiny",
        "prompt": "a red apple",
        "width": 64,
        "height": 64,
        "steps": 4,
        "guidance_scale": 5.0,
        "scheduler": "ddim",
        "seed": 1,
    }
    return Generate(
        execution_id=execution_id,
        spec=GenerationSpec.model_validate(spec | changes),
        sizes_px=sizes_px,
        previews_s=previews_s,
    )
