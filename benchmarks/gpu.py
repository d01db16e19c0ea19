"""Full-size models with random weights on a GPU: plain diffusers, compiled diffusers, and the continuous batch.

    .venv/bin/python -m benchmarks.gpu [--model sd15|sdxl] [--steps 30] [--in-flight 1,4,8,16,32] [--images 24]

Stable Diffusion 1.5 at 512 px and XL at 1024 px, with guidance, in bfloat16. The weights are random: nothing is
downloaded, and the time of a step does not depend on them. Prompts are random embeddings, so only the U-Net and the
decoder are at work. Everything is measured in one run on one machine; the last column is the share of the arithmetic
limit, from the operations that torch counts in one step and decode, at `--tflops` (dense bfloat16; 790 was measured on
an H200).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.figures import quantile
from worker.engine.batch import Batch, batch_for
from worker.engine.calls import DenoiserCall
from worker.engine.strands import share
from worker.pipelines.stages import Denoiser

_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
_SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A pipeline to be measured, with what its call is given besides prompts."""

    name: str
    pipeline: Any
    size_px: int
    steps: int
    xl: bool

    def embeddings(self, n: int) -> dict[str, torch.Tensor]:
        """Return random prompt embeddings for n images, the negative ones among them."""
        width = 2048 if self.xl else 768

        def rows(*shape: int) -> torch.Tensor:
            return torch.randn(n, *shape, device=self.pipeline.unet.device, dtype=self.pipeline.unet.dtype)

        given = {"prompt_embeds": rows(77, width), "negative_prompt_embeds": rows(77, width)}
        if self.xl:
            given |= {"pooled_prompt_embeds": rows(1280), "negative_pooled_prompt_embeds": rows(1280)}
        return given

    def arguments(self) -> dict[str, Any]:
        return {
            "width": self.size_px,
            "height": self.size_px,
            "num_inference_steps": self.steps,
            "guidance_scale": 5.0,
        }

    def fresh(self) -> Any:
        """Return a pipeline over the same modules with a scheduler of its own."""
        parts = {**self.pipeline.components, "scheduler": EulerDiscreteScheduler(**_SCHEDULE)}
        options: dict[str, Any] = {"add_watermarker": False} if self.xl else {"requires_safety_checker": False}
        pipeline = type(self.pipeline)(**parts, **options)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


@dataclass(slots=True)
class Row:
    """One line of the table."""

    name: str
    images_per_s: float
    step_ms: list[float] = field(default_factory=list)


def build(name: str, steps: int, device: torch.device) -> Subject:
    """Return a full-size pipeline with random weights, made on the device."""
    xl = name == "sdxl"
    with device:
        unet = (
            UNet2DConditionModel(**_SDXL_UNET)
            if xl
            else UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            force_upcast=False,
        )
    nothing = {"text_encoder": None, "tokenizer": None, "scheduler": EulerDiscreteScheduler(**_SCHEDULE)}
    modules = {"unet": unet.to(torch.bfloat16).eval(), "vae": vae.to(torch.bfloat16).eval()}
    pipeline = (
        StableDiffusionXLPipeline(**modules, **nothing, text_encoder_2=None, tokenizer_2=None, add_watermarker=False)
        if xl
        else StableDiffusionPipeline(
            **modules, **nothing, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    )
    pipeline.set_progress_bar_config(disable=True)
    return Subject(name, pipeline, 1024 if xl else 512, steps, xl)


def plain(subject: Subject, name: str, batch: int, images: int) -> Row:
    """Draw by whole calls of the pipeline, `batch` images each, one after the other."""

    def call() -> None:
        subject.pipeline.scheduler = EulerDiscreteScheduler(**_SCHEDULE)
        subject.pipeline(
            **subject.embeddings(batch),
            **subject.arguments(),
            generator=[torch.Generator().manual_seed(i) for i in range(batch)],
            output_type="pt",
            callback_on_step_end=mark,
        )

    marks: list[float] = []

    def mark(_pipeline: Any, _step: int, _timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
        wait(subject)
        marks.append(time.perf_counter())
        return {}

    call()
    marks.clear()
    begun = time.perf_counter()
    for _ in range(max(1, images // batch)):
        call()
    wait(subject)
    seconds = time.perf_counter() - begun
    steps = [1000 * (b - a) for a, b in itertools.pairwise(marks)]
    return Row(name, max(1, images // batch) * batch / seconds, steps)


def shared(subject: Subject, in_flight: int, images: int) -> Row:
    """Draw by the continuous batch, with this many requests in flight at any time."""
    row = Row(f"continuous batch, {in_flight} in flight", 0.0)
    device = subject.pipeline.unet.device
    batch = batch_for(device, lost=_fail)
    drive(batch, [picture(subject, row, seed) for seed in range(2 * in_flight)], in_flight)  # learns what fits
    row.step_ms.clear()
    wait(subject)
    begun = time.perf_counter()
    drive(batch, [picture(subject, row, seed) for seed in range(max(images, 2 * in_flight))], in_flight)
    wait(subject)
    row.images_per_s = max(images, 2 * in_flight) / (time.perf_counter() - begun)
    return row


def picture(subject: Subject, row: Row, seed: int) -> Callable[[], None]:
    """Return the body of a strand that draws one image."""

    def draw() -> None:
        pipeline = subject.fresh()

        def call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            return share(DenoiserCall(module, args, kwargs, alone=False))

        last_s = time.perf_counter()

        def mark(_pipeline: Any, _step: int, _timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal last_s
            now_s = time.perf_counter()
            row.step_ms.append(1000 * (now_s - last_s))
            last_s = now_s
            return {}

        object.__setattr__(pipeline, "unet", Denoiser(pipeline.unet, call))
        latents = pipeline(
            **subject.embeddings(1),
            **subject.arguments(),
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            callback_on_step_end=mark,
        ).images
        pixels = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
        (pixels[0] * 127.5 + 127.5).clamp(0, 255).to(torch.uint8).cpu()

    return draw


def drive(batch: Batch, bodies: list[Callable[[], None]], in_flight: int) -> None:
    """Run all bodies, starting another whenever one has ended."""
    waiting = iter(bodies)
    running = [batch.hub.start(body) for body, _ in zip(waiting, range(in_flight), strict=False)]
    while batch.busy:
        batch.tick()
        ended = [strand for strand in running if strand.dead]
        for strand in ended:
            if strand.error is not None:
                raise strand.error
            running.remove(strand)
            body = next(waiting, None)
            if body is not None:
                running.append(batch.hub.start(body))


def operations(subject: Subject) -> float:
    """Return the floating-point operations of one image: its steps with guidance, and its decoding."""
    unet, side = subject.pipeline.unet, subject.size_px // 8
    conditions: dict[str, Any] = {}
    if subject.xl:
        pooled = subject.embeddings(2)["pooled_prompt_embeds"]
        conditions["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.zeros_like(pooled[:, :6])}
    latents = torch.randn(2, 4, side, side, device=unet.device, dtype=unet.dtype)
    with FlopCounterMode(display=False) as step:
        unet(latents, 1, subject.embeddings(2)["prompt_embeds"], **conditions)
    with FlopCounterMode(display=False) as decode:
        subject.pipeline.vae.decode(latents[:1])
    return subject.steps * step.get_total_flops() + decode.get_total_flops()


def wait(subject: Subject) -> None:
    """Wait for the device."""
    if subject.pipeline.unet.device.type == "cuda":
        torch.cuda.synchronize()


def _fail(error: Exception) -> None:
    raise error


def report(subject: Subject, rows: list[Row], limit: float) -> None:
    """Print the table; ratios are to the first row."""
    print(f"\n{subject.name}, {subject.size_px} px, {subject.steps} steps, guidance, bfloat16")
    print(f"{'':36} {'images/s':>9} {'× plain':>8} {'step p50':>9} {'p99, ms':>9} {'of limit':>9}")
    for row in rows:
        p50, p99 = (quantile(row.step_ms, q) for q in (0.5, 0.99))
        ratio, part = row.images_per_s / rows[0].images_per_s, row.images_per_s / limit
        print(f"{row.name:36} {row.images_per_s:9.3f} {ratio:8.2f} {p50:9.1f} {p99:9.1f} {part:9.1%}")


def measure(subject: Subject, in_flight: list[int], images: int, tflops: float) -> None:
    """Measure one model in every way."""
    limit = tflops * 1e12 / operations(subject)
    rows = [plain(subject, "plain, batch 1", 1, images)]
    rows += [shared(subject, n, images) for n in in_flight]
    own = subject.pipeline.unet
    subject.pipeline.unet = torch.compile(own)
    rows += [plain(subject, f"torch.compile, batch {n}", n, images) for n in (1, 8)]
    subject.pipeline.unet = own
    report(subject, rows, limit)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("sd15", "sdxl"), action="append")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--in-flight", default="1,4,8,16,32")
    parser.add_argument("--tflops", type=float, default=790.0)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "There is no CUDA device here; the figures would mean nothing.\n")
    device = torch.device("cuda", torch.cuda.current_device())
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    for name in given.model or ["sd15", "sdxl"]:
        measure(
            build(name, given.steps, device), [int(n) for n in given.in_flight.split(",")], given.images, given.tflops
        )
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
