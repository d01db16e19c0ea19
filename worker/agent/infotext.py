"""The request as the text that image tools read from a picture's metadata."""

from __future__ import annotations

from service.contract.generation import GenerationSpec, Receipt
from service.contract.schedulers import SCHEDULERS


def infotext(spec: GenerationSpec, seed: int, receipt: Receipt) -> str:
    """Return the parameters in the layout of AUTOMATIC1111's web UI, which most readers of such files understand."""
    settings: dict[str, object] = {
        "Steps": spec.steps,
        # A sampler that is the model's own, and no row of the table, is known by the model.
        "Sampler": SCHEDULERS[spec.scheduler].title if spec.scheduler in SCHEDULERS else None,
        "Schedule type": spec.sigmas.capitalize() if spec.sigmas else None,
        "CFG scale": spec.guidance_scale,
        "Seed": seed,
        "Size": f"{spec.width}x{spec.height}",
        "Model hash": receipt.model_sha256[:10],
        "Model": spec.model,
        "Denoising strength": spec.strength,
        "Version": "Darkroom",
    }
    lines = [spec.prompt]
    if spec.negative_prompt:
        lines.append(f"Negative prompt: {spec.negative_prompt}")
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items() if value is not None))
    return "\n".join(lines)
