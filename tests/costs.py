"""Labels and costs for tests."""

from __future__ import annotations

from typing import Any

from service.contract.costs import CallCost, CallLabel


def label(**fields: Any) -> CallLabel:
    """Return the label of a denoiser's call; `fields` replace any of its own."""
    values: dict[str, Any] = {
        "model": "tiny",
        "sha256": "0123456789ab",
        "kind": "denoise",
        "width_px": 64,
        "height_px": 64,
        "tokens": 77,
        "dtype": "float32",
    }
    return CallLabel.model_validate(values | fields)


def cost(rows: int, seconds: float, *, calls: int = 1, peak_bytes: int | None = None, **fields: Any) -> CallCost:
    return CallCost(label=label(**fields), rows=rows, seconds=seconds, calls=calls, peak_bytes=peak_bytes)
