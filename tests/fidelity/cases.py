"""What is asked of both sides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image

from service.contract.generation import GenerationSpec, Task

TASKS = ("text-to-image", "image-to-image", "inpaint")

#: Model → what it does.
ABILITIES: dict[str, tuple[str, ...]] = {
    "sd15": TASKS,
    "sd21": TASKS,
    "sdxl": TASKS,
    "sd_inpaint": ("inpaint",),
    "sdxl_inpaint": ("inpaint",),
}
MODELS_AND_TASKS = [(model, task) for model, tasks in ABILITIES.items() for task in tasks]

#: Deterministic pictures with structure at the scale of a latent pixel, so that every part of one matters.
_BLOCKS_PX = 8


@dataclass(frozen=True, slots=True)
class Case:
    """One request, with the defaults of this suite."""

    task: Task = "text-to-image"
    scheduler: str = "ddim"
    prompt: str = "a red apple on a green background"
    negative_prompt: str = ""
    width: int = 64
    height: int = 64
    steps: int = 4
    guidance_scale: float = 5.0
    guidance_rescale: float = 0.0
    eta: float = 0.0
    sigmas: str | None = None
    seed: int = 1234
    strength: float = 0.8
    picture: int = 0
    mask: int = 0
    deterministic: bool = False

    def but(self, **changes: Any) -> Case:
        return replace(self, **changes)

    def spec(self, model: str, *, num_images: int = 1) -> GenerationSpec:
        return GenerationSpec.model_validate(
            {
                "task": self.task,
                "model": model,
                "prompt": self.prompt,
                "negative_prompt": self.negative_prompt,
                "width": self.width,
                "height": self.height,
                "steps": self.steps,
                "guidance_scale": self.guidance_scale,
                "guidance_rescale": self.guidance_rescale,
                "eta": self.eta,
                "scheduler": self.scheduler,
                "sigmas": self.sigmas,
                "seed": self.seed,
                "num_images": num_images,
                "deterministic": self.deterministic,
                "strength": None if self.task == "text-to-image" else self.strength,
            }
        )

    def input_picture(self) -> PIL.Image.Image:
        size = (self.height // _BLOCKS_PX, self.width // _BLOCKS_PX, 3)
        blocks = np.random.default_rng(self.picture).integers(0, 256, size, dtype=np.uint8)
        return PIL.Image.fromarray(blocks).resize((self.width, self.height), PIL.Image.Resampling.BICUBIC)

    def input_mask(self) -> PIL.Image.Image:
        """White, to be repainted, in the middle; how far down depends on `mask`. Grey borders test the threshold."""
        mask = np.full((self.height, self.width), 100, dtype=np.uint8)
        mask[:8] = 0
        mask[8 : 32 + 8 * self.mask, 8 : self.width - 16] = 255
        mask[-8:] = 140
        return PIL.Image.fromarray(mask)

    def buffers(self) -> list[bytes]:
        if self.task == "text-to-image":
            return []
        picture = [self.input_picture().tobytes()]
        return [*picture, self.input_mask().tobytes()] if self.task == "inpaint" else picture
